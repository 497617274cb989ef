"""Videos coded anew show the same frames at the same times, smaller, whole or not at all."""

from __future__ import annotations

import faulthandler
import json
import os
import re
import signal
from pathlib import Path

import av
import numpy as np
import pytest

from dsvid.data import video_resize
from dsvid.data.decode import PyavSource
from dsvid.data.manifest import read_list
from dsvid.data.video_resize import ResizeOptions, Resizing, even_size, resize_video, target_names
from dsvid.errors import DataError
from tests.data.numbered_videos import read_number, write_video

SMALL = ResizeOptions(short_side=32, gop=5)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A list of two videos in folders, one of them twice, one that is missing and one that is damaged."""
    path = tmp_path / "in"
    (path / "x" / "y z").mkdir(parents=True)
    write_video(path / "x" / "a.mkv", 24, g=24)
    write_video(path / "x" / "y z" / "b.mp4", 30, g=30, offset=100)
    (path / "bad.mp4").write_text("no video " * 99)
    (path / "list.csv").write_text('x/a.mkv 4\nnone.mp4 1\n"x/y z/b.mp4" 2\nbad.mp4 3\nx/a.mkv 5\n')
    return path


def resize(folder: Path, options: ResizeOptions = SMALL) -> list[video_resize.Made]:
    return Resizing(read_list(folder / "list.csv"), folder.parent / "out", options).run(1, 60.0)


def test_a_list_of_the_same_labels_in_the_same_order(folder: Path) -> None:
    made = resize(folder)
    out = folder.parent / "out"
    assert (out / "list.csv").read_text() == 'x/a.mp4,4\n"x/y z/b.mp4",2\nx/a.mp4,5\n'
    rows = [json.loads(line) for line in (out / "bad.jsonl").read_text().splitlines()]
    assert [(row["line"], row["error"].split(":")[0]) for row in rows] == [(2, "missing"), (4, "cannot be read")]
    assert [(bool(one.error), one.before > 0, one.after > 0) for one in made] == [
        (False, True, True), (True, False, False), (False, True, True), (True, False, False),
    ]  # fmt: skip
    files = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert files == {"bad.jsonl", "list.csv", "made.jsonl", "resize.json", "x/a.mp4", "x/y z/b.mp4"}


def test_the_frames_are_those_of_the_source(folder: Path) -> None:
    resize(folder)
    index = PyavSource(str(folder.parent / "out" / "x" / "y z" / "b.mp4"))
    pictures = index.read(range(30))
    assert pictures.shape == (30, 32, 40, 3)
    assert [read_number(picture) for picture in pictures] == [100 + number for number in range(30)]
    assert max(index.coding()[2]) <= 5
    assert index.coding()[:2] == ("h264", "yuv420p")
    index.close()


def test_times_are_kept_and_sound_is_not(tmp_path: Path) -> None:
    times = [0, 40, 50, 200, 1000, 1001, 1500, 1700]
    path = write_video(tmp_path / "a.mp4", len(times), times=times, extra_stream=None)
    resize_video(str(path), tmp_path / "b.mp4", SMALL)
    index = PyavSource(str(tmp_path / "b.mp4"))
    assert np.abs(index.seconds() - np.array(times) / 1000).max() < 0.001
    index.close()
    with av.open(str(tmp_path / "b.mp4")) as container:
        assert [stream.type for stream in container.streams] == ["video"]


def test_fewer_frames_a_second(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", 50, rate=25)
    resize_video(str(path), tmp_path / "b.mp4", ResizeOptions(32, 12, 20, fps=5.0))
    index = PyavSource(str(tmp_path / "b.mp4"))
    assert [read_number(picture) for picture in index.read(range(index.frames))] == [*range(0, 50, 5), 49]
    assert index.seconds() == pytest.approx([*np.arange(10) / 5, 1.96], abs=0.001)
    index.close()


def test_a_rotated_video_is_made_upright(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "a.mp4", 6, 64, 80)
    blob = path.read_bytes()
    place = blob.index(b"tkhd") + 4 + 40  # version and flags, times, ids, layer, volume: then the matrix
    turn = (0, 1 << 16, 0, -(1 << 16) & 0xFFFFFFFF, 0, 0, 0, 0, 1 << 30)
    path.write_bytes(blob[:place] + b"".join(value.to_bytes(4, "big") for value in turn) + blob[place + 36 :])
    wanted = PyavSource(str(path)).read([3])[0]
    assert wanted.shape[:2] == (80, 64), "the tag is understood"
    resize_video(str(path), tmp_path / "b.mp4", ResizeOptions(short_side=64))
    index = PyavSource(str(tmp_path / "b.mp4"))
    found = index.read([3])[0]
    index.close()
    assert np.abs(found.astype(int) - wanted).mean() < 8
    with av.open(str(tmp_path / "b.mp4")) as container:
        assert not next(container.decode(video=0)).rotation


def test_what_is_finished_is_not_made_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resize(folder)
    made = resize(folder)
    assert [one.already for one in made] == [True, False, True, False]
    (folder.parent / "out" / "x" / "a.mp4").unlink()
    os.utime(folder / "x" / "y z" / "b.mp4", (1, 1))
    assert [one.already for one in resize(folder)] == [False] * 4, "gone, or its source has changed"


def test_another_video_of_the_same_name_and_time_is_not_taken_for_it(tmp_path: Path) -> None:
    for number, name in enumerate("AB"):
        (tmp_path / name).mkdir()
        os.utime(write_video(tmp_path / name / "v.mp4", 8, offset=100 * number), (5, 5))
        (tmp_path / name / "list.csv").write_text(f"v.mp4 {number}\n")
    out = tmp_path / "out"
    Resizing(read_list(tmp_path / "A" / "list.csv"), out, SMALL).run(1, 60.0)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(DataError, match=r"v\.mp4 was made from another video") as error:
        Resizing(read_list(tmp_path / "B" / "list.csv"), out, SMALL)
    assert str(tmp_path / "A" / "v.mp4") in str(error.value)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    (out / "made.jsonl").unlink()  # as the message says
    made = Resizing(read_list(tmp_path / "B" / "list.csv"), out, SMALL).run(1, 60.0)
    assert [one.already for one in made] == [False]
    index = PyavSource(str(out / "v.mp4"))
    assert read_number(index.read([0])[0]) == 100
    index.close()


def test_a_source_changed_within_its_second_is_made_again(folder: Path) -> None:
    os.utime(folder / "x" / "a.mkv", ns=(10**9, 10**9))
    resize(folder)
    os.utime(folder / "x" / "a.mkv", ns=(10**9, 10**9 + 1000))
    assert [one.already for one in resize(folder)] == [False, False, True, False]


def test_odd_rows_of_the_record_are_made_again(folder: Path) -> None:
    resize(folder)
    record = folder.parent / "out" / "made.jsonl"
    first = record.read_bytes().splitlines(keepends=True)[0]
    record.write_bytes(b'{}\n[1]\nnull\n{"name": 3, "source": []}\n\xff\n' + first + first[:-20])
    assert [one.already for one in resize(folder)].count(True) == 1
    assert [one.already for one in resize(folder)].count(True) == 2, "what comes behind half a row is read"


def test_a_video_without_a_suffix_is_a_video(folder: Path) -> None:
    (folder / "x" / "a.mkv").rename(folder / "x" / "plain")
    (folder / "list.csv").write_text("x/plain 4\n")
    assert [one.error for one in resize(folder)] == [""]
    assert (folder.parent / "out" / "list.csv").read_text() == "x/plain.mp4,4\n"
    (folder / "list.csv").write_text("x/plain 7 4\n")
    with pytest.raises(DataError, match="line 1: a file where the list promises a folder of pictures"):
        resize(folder)
    (folder / "list.csv").write_text("x 7 4\n")
    with pytest.raises(DataError, match="line 1: a folder of pictures"):
        resize(folder)


def test_a_stop_leaves_nothing_that_looks_finished(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(path: str, target: Path, options: ResizeOptions) -> None:
        resize_video(path, target, options)
        faulthandler.disable()
        os.kill(os.getpid(), signal.SIGSEGV)

    with monkeypatch.context() as patched:
        patched.setattr(video_resize, "resize_video", half)
        with pytest.raises(DataError, match="no video could be read"):
            resize(folder)
    out = folder.parent / "out"
    assert not [path for path in out.rglob("*") if ".mp4" in path.name]
    assert [bool(one.error) for one in resize(folder)] == [False, True, False, True]


def test_a_video_with_a_frame_that_cannot_be_decoded_is_not_made(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", 60, 128, 160, g=60, bf=0)
    blob = bytearray(path.read_bytes())
    start = blob.index(b"mdat") + 4
    middle = start + (blob.index(b"moov") - start) // 2
    blob[middle : middle + 400] = bytes(400)
    path.write_bytes(blob)
    with pytest.raises(DataError, match=r"frame \d+ of 60 cannot be decoded"):
        resize_video(str(path), tmp_path / "b.mp4", SMALL)


def test_ranges_keep_their_frame_numbers(folder: Path) -> None:
    (folder / "list.csv").write_text("x/a.mkv 4 12\nx/a.mkv 0 -1\n")
    with pytest.raises(DataError, match="line 1: a range"):
        resize(folder, ResizeOptions(fps=5))
    resize(folder)
    again = read_list(folder.parent / "out" / "list.csv")
    assert [(again[number].start, again[number].total) for number in range(2)] == [(4, 12), (0, -1)]


def test_names() -> None:
    base = Path("/d")
    assert target_names(["/d/x/a.avi", "/d/b.mp4"], base) == {"/d/x/a.avi": "x/a.mp4", "/d/b.mp4": "b.mp4"}
    assert [*target_names(["/d/a.avi", "/d/a.mp4", "/d/b.mkv"], base).values()] == ["a.avi.mp4", "a.mp4.mp4", "b.mp4"]
    assert len({*target_names(["/d/a.avi", "/d/a.mp4", "/d/a.avi.mkv"], base).values()}) == 3
    assert [*target_names(["/e/f/a.mp4", "/e/g/a.mp4"], base).values()] == ["f/a.mp4", "g/a.mp4"]
    assert [*target_names(["/d/../e/a.mp4"], base).values()] == ["a.mp4"], "no way out of the folder"


@pytest.mark.parametrize(
    ("size", "wanted"),
    [((240, 320), (240, 320)), ((720, 1280), (320, 568)), ((1280, 720), (568, 320)), ((241, 321), (240, 320))],
)
def test_sizes_are_even_and_never_larger(size: tuple[int, int], wanted: tuple[int, int]) -> None:
    assert even_size(*size, 320) == wanted


def test_folders_that_hold_something_else(folder: Path) -> None:
    manifest = read_list(folder / "list.csv")
    for out, said in ((folder, "would replace"), (folder / "x", "not empty"), (folder / "list.csv", "is a file")):
        with pytest.raises(DataError, match=said):
            Resizing(manifest, out, SMALL)
    resize(folder)
    with pytest.raises(DataError, match="other options"):
        resize(folder, ResizeOptions(short_side=48))
    (folder / "list.csv").write_text("x 24 1\n")
    with pytest.raises(DataError, match="folder of pictures"):
        Resizing(read_list(folder / "list.csv"), folder.parent / "other", SMALL)


@pytest.mark.parametrize(
    "options",
    [ResizeOptions(15), ResizeOptions(33), ResizeOptions(gop=0), ResizeOptions(crf=52), ResizeOptions(fps=0.0)],
)
def test_options_without_sense(options: ResizeOptions) -> None:
    with pytest.raises(DataError, match=re.compile("^--")):
        options.check()
