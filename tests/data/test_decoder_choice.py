"""The decoder of a list is the one asked for, or the one that was the faster here."""

from __future__ import annotations

import builtins
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
import torch

from dsvid.data import decode, decoder_choice
from dsvid.data.decoder_choice import choose_decoder, some_entries
from dsvid.data.manifest import Entry
from dsvid.errors import DataError


def entries(videos: Path, count: int = 3) -> list[Entry]:
    return [Entry(str(videos / f"v{number:02}.mp4"), 0, 0, -1, "video") for number in range(count)]


@pytest.fixture(autouse=True)
def forget():
    decoder_choice._measure_apart.cache_clear()
    yield
    decoder_choice._measure_apart.cache_clear()


@pytest.mark.parametrize(("slow", "chosen"), [("decord", "pyav"), ("pyav", "decord")])
def test_auto_takes_the_decoder_that_was_faster_on_the_list(videos, monkeypatch, slow, chosen):
    real, opened = decode._open, multiprocessing.Value("i", 0)

    def slowed(entry, decoder, *rest):
        opened.value += 1
        if decoder == slow:
            decoder_choice.time.sleep(0.05)
        return real(entry, decoder, *rest)

    monkeypatch.setattr(decode, "_open", slowed)
    name, why = choose_decoder("auto", entries(videos), frames=4, distance=2)
    assert name == chosen
    assert why.startswith("the faster one here, in ms a clip: decord ") and ", pyav " in why
    assert opened.value == 12, "three videos, twice by either"
    assert choose_decoder("auto", entries(videos), frames=4, distance=2) == (name, why) and opened.value == 12


@pytest.mark.parametrize("how", ["hangs", "crashes"])
def test_a_video_that_ends_its_decoder_ends_no_training(videos, monkeypatch, how):
    def sick(*_):
        if how == "hangs":
            time.sleep(1000)
        os.kill(os.getpid(), signal.SIGSEGV)

    monkeypatch.setattr(decode, "_open", sick)
    monkeypatch.setattr(decoder_choice, "LIMIT_S", 0.5)
    assert choose_decoder("auto", entries(videos))[1].startswith("not measured")


def test_what_cannot_be_read_is_not_measured(videos, tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    bad = [Entry(str(tmp_path / name), 0, 0, -1, "video") for name in ("text.mp4", "gone.mp4")]
    assert choose_decoder("auto", bad)[1].startswith("not measured")
    assert choose_decoder("auto", [*bad, *entries(videos, 1)])[1].startswith("the faster one here")
    assert choose_decoder("auto", [Entry(str(tmp_path), 0, 0, 10, "frames")])[1].startswith("not measured")


def test_a_few_of_a_long_list():
    assert [some_entries(range(count)) for count in (0, 1, 2, 3, 7, 100)] == [
        [], [0], [0, 1], [0, 1, 2], [0, 2, 4], [0, 33, 66],
    ]  # fmt: skip


def test_choice_of_the_decoder(monkeypatch):
    assert choose_decoder("decord") == ("decord", "asked for")
    assert choose_decoder("pyav") == ("pyav", "asked for")
    assert choose_decoder("auto")[0] == "pyav"

    def no_decord(name: str) -> object:
        raise OSError("no wheel for this platform")

    monkeypatch.setattr(decode.importlib, "import_module", no_decord)
    name, reason = choose_decoder("auto")
    assert name == "pyav" and "decord cannot be imported" in reason
    with pytest.raises(DataError, match=r"data\.decoder=decord[\s\S]*no wheel[\s\S]*data\.decoder=pyav"):
        choose_decoder("decord")

    real = builtins.__import__

    def no_av(name: str, *rest: object, **named: object) -> object:
        if name == "av":
            raise ImportError("no av")
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", no_av)
    with pytest.raises(DataError, match="PyAV cannot be imported"):
        choose_decoder("auto")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_a_gpu_s_decoder_needs_a_gpu():
    with pytest.raises(DataError, match="data.decoder=torchcodec_cuda needs CUDA"):
        choose_decoder("torchcodec_cuda")
