"""`dsvid data resize` as a user calls it; a training list comes out."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dsvid.cli import main
from tests.data.numbered_videos import write_video


def test_videos_and_a_list_come_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_video(tmp_path / "a.mp4", 30, 256, 320, crf=1)
    (tmp_path / "list.csv").write_text("a.mp4 3\nnone.mp4 0\n")
    out = tmp_path / "out"
    words = ["data", "resize", str(tmp_path / "list.csv"), str(out), "--short-side", "32", "--workers", "1"]
    assert main(words) == 1
    shown = capsys.readouterr().out
    assert f"not made: {tmp_path}/none.mp4: missing" in shown
    assert f"{out}/list.csv: 1 videos; 1 could not be read ({out}/bad.jsonl)" in shown
    assert re.search(r"[\d.]+ MB before, [\d.]+ MB after: 0\.\d+ times", shown)
    (tmp_path / "list.csv").write_text("a.mp4 3\n")
    assert main(words) == 0
    assert "1 videos, 1 of them were there already" in capsys.readouterr().out
    assert main([*words, "--gop", "3"]) == 2
    assert "begun with other options" in capsys.readouterr().err
    assert main(["data", "check", str(out / "list.csv"), "--full", "--workers", "1"]) == 0


def test_nothing_is_begun_that_makes_no_sense(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_video(tmp_path / "a.mp4", 8)
    (tmp_path / "list.csv").write_text("a.mp4 3\n")
    for words in (["--crf", "99"], ["--workers", "0"], ["--fps", "-1"]):
        assert main(["data", "resize", str(tmp_path / "list.csv"), str(tmp_path / "out"), *words]) == 2
        assert words[0] in capsys.readouterr().err
    assert main(["data", "resize", str(tmp_path / "list.csv"), str(tmp_path)]) == 2
    assert "would replace" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
