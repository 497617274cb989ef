"""`dsvid data check` as a user calls it: the report, the exit code, the cleaned list."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from dsvid.cli import main
from tests.data.numbered_videos import write_video


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    write_video(tmp_path / "a.mp4", 80, g=20, bf=0, x264_params="scenecut=0")
    write_video(tmp_path / "b.mp4", 100, g=20, bf=0, x264_params="scenecut=0")
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "list.csv").write_text("a.mp4 0\nempty.mp4 1\nb.mp4 7\n")
    return tmp_path / "list.csv"


def test_a_list_with_bad_lines_ends_with_1(listed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = listed.parent / "sub" / "clean.csv"
    words = ["data", "check", str(listed), "--workers", "1", "--num-classes", "5", "-o", str(out)]
    assert main(words) == 1
    shown = capsys.readouterr().out
    assert f"line 2: {listed.parent}/empty.mp4: zero bytes: the file is empty" in shown
    assert f"line 3: {listed.parent}/b.mp4: label: 7, not in 0 .. 4" in shown
    assert "3 entries, 1 good, 2 bad: 1 zero bytes, 1 label" in shown
    assert "frames      80 to 100, median 80" in shown
    assert "frames/s    25 (100%)" in shown
    assert "size        80x64 (100%)" in shown
    assert "GOP length  20 frames from key frame to key frame" in shown
    assert "B-frames    0% of the frames" in shown
    assert "data.decoder=auto takes " in shown
    assert f"its relative paths start from {listed.parent}: data.root={listed.parent}" in shown
    assert out.read_text() == "a.mp4 0\n"


def test_the_cleaned_list_is_all_good(listed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clean = listed.parent / "clean.csv"
    assert main(["data", "check", str(listed), "--workers", "1", "-o", str(clean)]) == 1
    assert "data.root" not in capsys.readouterr().out, "it lies beside the list"
    assert main(["data", "check", str(clean), "--workers", "1", "--full"]) == 0
    assert "2 entries, 2 good, 0 bad" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--workers", "0"], "--workers"),
        (["--limit", "0"], "--limit"),
        (["--num-classes", "-1"], "--num-classes"),
        (["--root", "/no/such/folder"], "data.root"),
    ],
)
def test_values_without_sense_end_with_2(
    listed: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "check", str(listed), *words]) == 2
    assert said in capsys.readouterr().err


def test_what_is_no_list_ends_with_2(listed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path, said in ((listed.parent, "is a folder"), (listed.parent / "none.csv", "nothing there")):
        assert main(["data", "check", str(path)]) == 2
        assert said in capsys.readouterr().err
    assert main(["data", "check", str(listed), "-o", str(listed)]) == 2
    assert listed.read_text().startswith("a.mp4 0\n")


def test_packed_shards_are_checked_too(listed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    packed = listed.parent / "packed"
    assert main(["data", "pack", str(listed), str(packed), "--jobs", "1"]) == 0
    capsys.readouterr()
    assert main(["data", "check", str(packed), "--workers", "1"]) == 1
    assert "3 entries, 2 good, 1 bad" in capsys.readouterr().out
    shard = packed / "shard-000000.tar"
    blob = bytearray(shard.read_bytes())
    place = blob.index(b"\xff\xd8\xff") + 300
    blob[place : place + 50] = bytes(50)
    shard.write_bytes(blob)
    assert main(["data", "check", str(packed), "--workers", "1"]) == 1
    assert "line 1: a.mp4: damaged" in capsys.readouterr().out


def test_a_reader_that_has_seen_enough_loses_nothing(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("".join(f"none{number}.mp4 0\n" for number in range(40)))
    words = [sys.executable, "-m", "dsvid", "data", "check", "list.csv", "--workers", "1", "-o", "clean.csv"]
    with subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        assert "line 1: " in process.stdout.readline()
        process.stdout.close()  # as `| head -1` does
        told = process.stderr.read()
    assert process.returncode == 1 and "Traceback" not in told and "Error" not in told
    assert len((tmp_path / "clean.csv.bad.jsonl").read_text().splitlines()) == 40
