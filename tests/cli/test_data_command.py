"""`dsvid data pack` as a user calls it: what it says, what it ends with, and a training on what it wrote."""

from __future__ import annotations

import argparse
import errno
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from dsvid.cli import data, main
from dsvid.data.shards import open_shards
from dsvid.data.video_writer import open_writer
from dsvid.errors import DataError


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    """A list of three small videos and a broken one."""
    rng = np.random.default_rng(0)
    for number in range(3):
        with open_writer(tmp_path / f"v{number}.mp4", 25.0, 80, 64) as writer:
            for at, level in enumerate(rng.integers(0, 255, 70)):
                writer.add(np.full((64, 80, 3), level, np.uint8), at / 25)
    (tmp_path / "broken.mp4").write_bytes(b"no video" * 50)
    (tmp_path / "train.csv").write_text("v0.mp4 0\nbroken.mp4 1\nv1.mp4 1\nv2.mp4 0\n")
    return tmp_path / "train.csv"


def test_pack_says_what_it_does_and_may_be_called_again(
    listed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "packed"
    words = ["data", "pack", str(listed), str(out), "--short-side", "48", "--quality", "80", "--jobs", "1"]
    assert main(words) == 0
    shown = capsys.readouterr()
    assert re.search(r"4 videos to pack: about [\d.]+ MB, [\d.]+ GB are free", shown.out)
    assert "broken.mp4: cannot be decoded" in shown.out + shown.err
    assert f"3 videos in 1 shard, 1 could not be read ({out}/bad.jsonl)" in shown.out
    assert re.search(r"210 of 210 frames kept, [\d.]+ MB before, [\d.]+ MB after: [\d.]+ times", shown.out)
    assert re.search(r"[\d.]+ loose, [\d.]+ packed, [\d.]+ times as many", shown.out)
    assert "video/s" not in shown.err, "no bar where there is no terminal"
    assert main(words) == 0
    assert "packed already" in capsys.readouterr().out
    for video in tmp_path.glob("v*.mp4"):
        video.unlink()
    assert main(words) == 0
    assert "speed not compared" in capsys.readouterr().out


def test_the_options_reach_the_shards(listed: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "packed")
    words = ["--fps", "5", "--codec", "h264", "--shard-mb", "7", "--decoder", "pyav", "--jobs", "2"]
    root = tmp_path / "moved"
    root.mkdir()
    for video in tmp_path.glob("*.mp4"):
        video.rename(root / video.name)
    assert main(["data", "pack", str(listed), out, "--root", str(root), *words]) == 0
    about = open_shards(out).about
    assert about["options"] == {
        "short_side": 256, "fps": 5.0, "codec": "h264", "quality": 0, "shard_mb": 7, "decoder": "pyav",
        "frame_name": "img_{:05}.jpg", "frame_start": 1,
    }  # fmt: skip
    assert about["counts"]["frames"] == 3 * 15


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--short-side", "8"], "--short-side"),
        (["--quality", "0"], "--quality"),
        (["--fps", "0"], "--fps"),
        (["--jobs", "0"], "--jobs"),
        (["--limit", "0"], "--limit"),
        (["--root", "/no/such/folder"], "data.root"),
    ],
)
def test_values_without_sense_end_with_2(
    listed: Path, tmp_path: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "pack", str(listed), str(tmp_path / "packed"), *words]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "packed").exists()


def test_places_that_cannot_be_used_end_with_2(
    listed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "pack", str(listed), str(tmp_path)]) == 2
    assert "not empty" in capsys.readouterr().err
    assert main(["data", "pack", str(listed), str(listed / "below")]) == 2
    assert "cannot be" in capsys.readouterr().err
    assert main(["data", "pack", str(tmp_path / "none.csv"), str(tmp_path / "packed")]) == 2
    assert "nothing there" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="needs a pseudo terminal")
def test_the_bar_is_on_the_terminal(listed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert main(["data", "pack", str(listed), str(tmp_path / "packed"), "--jobs", "1"]) == 0
    assert "4/4" in terminal.getvalue()


def failing(monkeypatch: pytest.MonkeyPatch, error: OSError, *words: str) -> argparse.Namespace:
    """Arguments of a tool that ends in `error`."""

    def fail(args: argparse.Namespace) -> int:
        raise error

    monkeypatch.setitem(data.TOOLS, words[0], (*data.TOOLS[words[0]][:3], fail))
    parser = argparse.ArgumentParser()
    data.add_arguments(parser)
    return parser.parse_args(words)


def test_a_pipe_that_breaks_elsewhere_than_at_the_output_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    # Of the output's reader see tests/cli/test_data_check.py.
    with pytest.raises(DataError, match="Broken pipe"):
        data.run(failing(monkeypatch, BrokenPipeError(errno.EPIPE, "Broken pipe"), "check", "l.csv"))


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "new/clean.csv cannot be written"),
        (PermissionError(errno.EACCES, "Permission denied", "new/.clean.csv-x1"), "new/clean.csv cannot be written"),
        (PermissionError(errno.EACCES, "Permission denied", "new"), "new/clean.csv cannot be written"),
        (PermissionError(errno.EACCES, "Permission denied", "new/l.csv"), "new/l.csv cannot be read"),
        (PermissionError(errno.EACCES, "Permission denied", "v/a.mp4"), "v/a.mp4 cannot be read"),
        (OSError(errno.EIO, "Input/output error"), "a file cannot be read or written"),
    ],
)
def test_what_the_system_refused_is_said(error: OSError, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError) as raised:
        data.run(failing(monkeypatch, error, "check", "new/l.csv", "-o", "new/clean.csv"))
    assert raised.value.what == said
    assert error.strerror in str(raised.value)


def test_a_folder_that_cannot_be_made_is_said_to_be_written(
    listed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert main(["data", "check", str(listed), "--workers", "1", "-o", str(tmp_path / "file" / "clean.csv")]) == 2
    assert f"{tmp_path}/file/clean.csv cannot be written" in capsys.readouterr().err
