"""The loader's benchmark at a tiny size: every arm gives clips, and nothing is left behind."""

from __future__ import annotations

import json
import multiprocessing
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest

from dsvid.cli import bench_loader, main
from dsvid.data.decode import open_clip_source
from dsvid.data.manifest import Entry
from dsvid.errors import DataError


@pytest.mark.long
def test_every_arm_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    video = bench_loader.make_videos(tmp_path, count=1, seconds=3)[0]
    words = ["bench", "loader", str(video), "--clips", "16", "--repeats", "1", "--memory", "400"]
    assert main([*words, "--json", str(tmp_path / "result.json")]) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert set(result["clips_per_s"]) == set(bench_loader.ARMS) and min(result["clips_per_s"].values()) > 0
    fastest = result["fastest_bare_decoder"]
    assert fastest in ("bare decord", "bare PyAV")
    expected = result["clips_per_s"]["loader"] / result["clips_per_s"][fastest]
    assert result["ratios"][f"loader / {fastest}"] == pytest.approx(expected)
    assert result["storage_factor"] > 1 and result["memory"]["mb_per_1000_clips"] < 200
    printed = capsys.readouterr().out
    assert all(name in printed for name in bench_loader.ARMS)
    assert list((tmp_path / "scratch").glob("dsvid*")) == [] and multiprocessing.active_children() == []


def test_the_bare_decoders_give_the_frames_that_were_asked_for(tmp_path: Path) -> None:
    video = bench_loader.make_videos(tmp_path, count=1, seconds=2)[0]
    wanted = np.arange(3, 60, 4)
    with open_clip_source(Entry(str(video), 0, 0, -1, "video"), "pyav") as source:
        frames = source.read(wanted)
    assert frames.shape == (15, 256, 340, 3)
    for read in (bench_loader.read_by_decord, bench_loader.read_by_pyav):
        assert np.array_equal(read(video, wanted), frames)


def test_no_processes_and_no_turns_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for wrong in (["--workers", "0"], ["--clips", "8"], ["--repeats", "0"], ["--memory", "100"]):
        assert main(["bench", "loader", *wrong]) == 2
        assert wrong[0] in capsys.readouterr().err


@pytest.mark.parametrize("at", ["first", "later"])
def test_an_arm_that_fails_is_an_error_at_once(at: str) -> None:
    calls = []

    def read(rng: np.random.Generator) -> None:
        calls.append(rng)
        if at == "first" or len(calls) > 3:
            raise ValueError("no such frame")

    with pytest.raises(DataError, match="ValueError: no such frame"):
        bench_loader.in_processes(read, 0, 2, 10)
    with pytest.raises(DataError, match="exit code 7"):
        bench_loader.in_processes(lambda rng: os._exit(7), 0, 2, 10)
    assert multiprocessing.active_children() == []


def test_a_slope_is_that_of_the_line() -> None:
    x = np.arange(0, 1000, 40)
    slope, noise = bench_loader._line(x, 5 + 0.25 * x)
    assert slope == pytest.approx(0.25) and noise == pytest.approx(0, abs=1e-9)
