"""`dsvid traffic`: each tool as a user calls it, and the exit code of what is broken."""

from __future__ import annotations

from pathlib import Path

import pytest

from dsvid.cli import main
from dsvid.cli.traffic import LAYOUTS
from dsvid.data import traffic
from dsvid.data.footage import SPLITS, read_index


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    assert main(["traffic", "generate", str(tmp_path / "drives"), "--train", "4", "--val", "2"]) == 0
    return tmp_path / "drives"


def test_the_layouts_are_those_that_are_read() -> None:
    assert tuple(SPLITS) == LAYOUTS


def test_lists_and_the_table(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = str(folder)
    assert main(["traffic", "split", "dota", root]) == 0
    assert main(["traffic", "split", "dota", root, "--val", "0.5"]) == 2
    assert "--force replaces it" in capsys.readouterr().err
    assert main(["traffic", "split", "dota", root, "--val", "0.5", "--force"]) == 0
    half = folder / "dataset" / "half_train_split.txt"
    assert main(["traffic", "half", "dota", root, "--split", "train_split.txt", "-o", str(half)]) == 0
    clips = traffic.read_dota(folder, half.name)
    assert 1 <= len(clips) <= 3
    table = tmp_path / "table.csv"
    assert main(["traffic", "table", "dota", root, "--split", half.name, "-o", str(table)]) == 0
    assert len(table.read_text().splitlines()) == 1 + sum(len(clip.frames) for clip in clips)
    assert main(["traffic", "table", "dota", root, "--split", "none.txt", "-o", str(table)]) == 2


def test_the_check_ends_with_2_where_it_finds_faults(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["traffic", "check", "dota", str(folder), "--jobs", "1"]
    assert main(words) == 0
    assert "4 clips" in capsys.readouterr().out
    archive = next(folder.glob("frames/generated-train_000002/images.zip"))
    archive.write_bytes(archive.read_bytes()[:2000])
    assert main(words) == 2
    shown = capsys.readouterr()
    assert f"{archive}: not a zip file" in shown.out and "1 of 4 clips have faults" in shown.err
    assert main([*words, "--split", "val_split.txt", "--quick"]) == 0
    videos = ["traffic", "check", "videos", str(folder), "--jobs", "2"]
    assert main(videos) == 2 and main([*videos, "--quick"]) == 2
    for option in ("--jobs", "--limit"):
        assert main([*words, option, "0"]) == 2
        assert option in capsys.readouterr().err


def test_pack_and_index(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import zipfile

    for archive in folder.glob("frames/*/images.zip"):
        with zipfile.ZipFile(archive) as content:
            content.extractall(archive.parent / "images")
        archive.unlink()
    assert main(["traffic", "pack", str(folder / "frames"), "--jobs", "2"]) == 0
    assert "6 zips written, 0 there already" in capsys.readouterr().out
    assert main(["traffic", "check", "dota", str(folder), "--jobs", "1"]) == 0
    index = tmp_path / "index.csv"
    words = ["traffic", "index", "videos", str(folder / "frames"), "-o", str(index), "--jobs", "1"]
    assert main(words) == 0
    assert "6 cannot be read" in capsys.readouterr().out, "a zip says nothing of its rate"
    assert main([*words, "--fps", "10"]) == 0
    found = read_index(index, folder / "frames")
    assert len(found) == 6 and set(found.fps) == {10} and found.frames.min() >= 36
    assert main([*words, "--fps", "10", "--ignore", str(tmp_path / "nothing.txt")]) == 2
    assert main(["traffic", "pack", str(tmp_path / "nowhere")]) == 2


def test_a_place_that_cannot_be_written_ends_with_2(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    for words in (
        ["traffic", "generate", str(tmp_path / "file" / "x"), "--train", "2", "--val", "2"],
        ["traffic", "index", "dota", str(folder), "-o", str(tmp_path / "file" / "x.csv")],
        ["traffic", "table", "dota", str(folder), "--split", "val_split.txt", "-o", str(tmp_path / "file" / "t.csv")],
    ):
        assert main(words) == 2
        assert "cannot be written" in capsys.readouterr().err
