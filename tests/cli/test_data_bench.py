"""`dsvid data bench`: what is measured, and the advice that follows from the numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dsvid.cli import bench_loader, data_bench, main
from dsvid.cli.data_bench import advise
from dsvid.data.reader import ClipReader
from dsvid.data.video_facts import Look, look_at
from dsvid.recipe import DataConfig
from tests.data.numbered_videos import write_video

WORDS = ["--workers", "1", "--clips", "32", "--repeats", "1"]


@pytest.fixture(autouse=True)
def _one_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_bench, "_decoders", lambda: (["pyav"], {"decord": "too slow for a test"}))


def test_a_list_is_measured_with_every_way(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def through(source: Path, samples: int, turn: int, workers: int, clips: int, base: DataConfig) -> float:
        """Stands for the loader, which has tests of its own: the longest group of what it would read, and samples."""
        reader = ClipReader(base.model_copy(update={"train": str(source)}), "train")
        assert reader.size == 1
        read.append((source.name, samples, turn))
        facts = look_at(reader.manifest[0], Look(full=True))
        assert not facts.cause
        return 100.0 * (turn + 1) * samples / max(facts.groups or [1])

    read: list[tuple[str, int, int]] = []
    monkeypatch.setattr(bench_loader, "through_loader", through)
    write_video(tmp_path / "a.mp4", 70, g=35, bf=0, x264_params="scenecut=0")
    (tmp_path / "list.csv").write_text("a.mp4 0\nnone.mp4 0\n")
    assert main(["data", "bench", str(tmp_path / "list.csv"), *WORDS, "--json", str(tmp_path / "b.json")]) == 0
    shown = capsys.readouterr().out
    found = json.loads((tmp_path / "b.json").read_text())
    rates = {name: [each["1"], each["4"]] for name, each in found["clips_per_s_a_process"].items()}
    assert rates == {
        "pyav": pytest.approx([200 / 35, 800 / 35]),
        "resized": pytest.approx([200 / 12, 800 / 12]),
        "packed": [200, 800],
    }, "the turn that fills the cache does not count"
    assert sorted(set(read)) == sorted(
        (name, samples, turn) for name in ("list.csv", "loose.csv", "packed") for samples in (1, 4) for turn in (0, 1)
    )
    assert (found["entries"], found["read"], found["gop_median"], found["gop_longest"]) == (2, 1, 35, 35)
    assert "some entries cannot be read and were left out" in shown
    assert "GOP length: median 35, longest 35 frames" in shown
    assert "decord cannot be used here: too slow for a test" in shown
    assert "(short side 320, a key frame every 12 frames) gives 2.9 times the clips" in shown
    assert all(f"- {line}" in shown for line in found["advice"])


def test_the_recipe_says_what_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_video(tmp_path / "a.mp4", 40)
    (tmp_path / "list.csv").write_text("a.mp4 0\n")
    words = ["data", "bench", str(tmp_path / "list.csv"), *WORDS, "--as-is", "--recipe"]
    assert main([*words, "demo_finetune"]) == 0
    shown = capsys.readouterr().out
    assert "8 frames at distance 2" in shown
    assert "other files were not tried: --as-is" in shown
    assert main([*words, "demo_ava"]) == 2
    assert "task: detect" in capsys.readouterr().err


def numbers(**rates: float) -> dict[str, object]:
    return {
        "auto": ["pyav", "the faster one"],
        "clips_per_s_a_process": {name: {"1": rate, "4": 1.1 * rate} for name, rate in rates.items()},
        "storage": {"resized": 0.5, "packed": 8.0},
        "not_tried": "",
    }


def test_the_advice() -> None:
    decoder, resized, packed = advise(numbers(pyav=10.0, resized=11.0, packed=50.0))
    assert decoder == "data.decoder=auto takes pyav (the faster one)"
    assert "gives 1.1 times the clips and takes 0.5 times the room: not worth it" in resized
    assert packed.endswith("gives 5.0 times the clips and takes 8.0 times the room")


def test_what_cannot_be_measured_ends_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "list.csv").write_text("none.mp4 0\n")
    assert main(["data", "bench", str(tmp_path / "list.csv"), *WORDS]) == 2
    assert "none of 1 entries can be read" in capsys.readouterr().err
    for workers, clips, least in (("1", "31", 32), ("2", "16", 64)):
        words = ["data", "bench", str(tmp_path / "list.csv"), "--workers", workers, "--clips", clips]
        assert main(words) == 2
        assert f"at least {least}" in capsys.readouterr().err


def test_more_processes_make_longer_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def through(source: Path, samples: int, turn: int, workers: int, clips: int, base: DataConfig) -> float:
        counted.append((workers, clips))
        return 1.0

    counted: list[tuple[int, int]] = []
    monkeypatch.setattr(bench_loader, "through_loader", through)
    write_video(tmp_path / "a.mp4", 40)
    (tmp_path / "list.csv").write_text("a.mp4 0\n")
    for workers in ("1", "3"):
        words = ["data", "bench", str(tmp_path / "list.csv"), "--workers", workers, "--repeats", "1", "--as-is"]
        assert main(words) == 0
    assert set(counted) == {(1, 64), (3, 96)}
