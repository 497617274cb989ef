"""Unlabelled footage: the releases' layouts, an index of lengths that agrees with the decoder and may be stopped."""

from __future__ import annotations

import ctypes
import os
import pickle
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from dsvid.data import footage as footage_module
from dsvid.data.decode import open_clip_source
from dsvid.data.footage import UNKNOWN, check_footage, list_footage, measure_footage, read_clip, read_index
from dsvid.data.manifest import Entry, read_list
from dsvid.data.traffic_generated import make_set
from dsvid.data.window_index import WindowIndex, WindowRule
from dsvid.data.zip_frames import ZipFrames
from dsvid.errors import DataError
from tests.data.numbered_videos import read_number, write_video


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def names_of(found: footage_module.Footage) -> list[str]:
    return [found.name(number) for number in range(len(found))]


def test_layouts_lead_to_the_releases_files(tmp_path: Path) -> None:
    write(tmp_path / "CAPDATA_my_split" / "training.txt", "1/000012\n43/001234\n\n")
    found = list_footage("capdata", tmp_path)
    assert names_of(found) == ["frames/1/000012/images.zip", "frames/43/001234/images.zip"]
    assert found[1].path == tmp_path / "frames/43/001234/images.zip" and found[1].zipped
    assert (found.frames == UNKNOWN).all() and found.fps.tolist() == [30, 30]

    write(tmp_path / "bdd100k_splits" / "all.txt", "train/0000f77c-6257be58.mov\nval/b1c66a42\n")
    found = list_footage("bdd100k", tmp_path)
    assert names_of(found) == ["train/0000f77c-6257be58.mov", "val/b1c66a42.mov"]
    assert found.fps.tolist() == [30, 30] and not found[0].zipped

    header = "label,youtube_id,time_start,time_end,split,is_cc\n"
    rows = "riding a bike,---0dWlqevI,19,29,train,0\nski jumping,x_-2,0,1010,train,0\nyoga,bad,1,11,train,0\n"
    write(tmp_path / "annotations" / "train.csv", header + rows)
    ignored = write(tmp_path / "bad.txt", "bad\n")
    found = list_footage("kinetics", tmp_path, ignore=ignored)
    assert names_of(found) == [
        "train/riding a bike/---0dWlqevI_000019_000029.mp4",
        "train/ski jumping/x_-2_000000_001010.mp4",
    ]
    assert found.fps.tolist() == [0, 0]

    write(tmp_path / "dataset" / "train_split.txt", "a_000100\n")
    write(tmp_path / "DADA2K_my_split" / "training.txt", "10/003\n")
    assert names_of(list_footage("dota", tmp_path)) == ["frames/a_000100/images.zip"]
    dada = list_footage("dada", tmp_path)
    assert names_of(dada) == ["frames/10/003/images.zip"] and dada.fps.tolist() == [30]


def test_plain_folders_and_lists(tmp_path: Path) -> None:
    for name in ("b/2.mp4", "a 1.MOV", "b/notes.txt", "c/images.zip", "b/10.mkv"):
        write(tmp_path / "videos" / name, "")
    found = list_footage("videos", tmp_path / "videos", fps=12)
    assert names_of(found) == ["a 1.MOV", "b/10.mkv", "b/2.mp4", "c/images.zip"] and set(found.fps) == {12}
    plain = write(tmp_path / "plain.txt", "videos/a 1.MOV\n# comment\nvideos/b/2.mp4\n")
    assert [clip.path for clip in map(list_footage("videos", plain).__getitem__, range(2))] == [
        tmp_path / "videos/a 1.MOV",
        tmp_path / "videos/b/2.mp4",
    ]
    labelled = write(tmp_path / "train.csv", "videos/b/2.mp4 3\nvideos/b/10.mkv 0 -1\n")
    assert names_of(list_footage("videos", labelled)) == ["videos/b/2.mp4", "videos/b/10.mkv"]
    for line, what in (("videos/b/2.mp4 4 10", "part of a video"), ("frames/x 120 3", "folder of frames")):
        with pytest.raises(DataError, match=what):
            list_footage("videos", write(tmp_path / "wrong.csv", f"videos/b/10.mkv 1\n{line}\n"))


@pytest.mark.parametrize(
    ("layout", "file", "text", "said"),
    [
        ("capdata", "CAPDATA_my_split/training.txt", "1/1\n../../etc\n", r"name 2[\s\S]*\.\./\.\./etc"),
        ("bdd100k", "bdd100k_splits/all.txt", "/etc/x.mov\n", "below the data set's folder"),
        ("bdd100k", "bdd100k_splits/all.txt", "a.mov\na.mov\n", "second time"),
        ("dota", "dataset/train_split.txt", "\n", "no clips"),
        ("kinetics", "annotations/train.csv", "label,youtube_id\n", "also time_start"),
        ("kinetics", "annotations/train.csv", "label,youtube_id,time_start,time_end\na,b,1,x\n", "line 2"),
        ("kinetics", "annotations/train.csv", "label,youtube_id,time_start,time_end\n..,b,1,2\n", "line 2"),
        ("dada", "elsewhere.txt", "", "training.txt"),
        ("cityscapes", "x", "", "layout of footage"),
    ],
)
def test_broken_lists_are_named(tmp_path: Path, layout: str, file: str, text: str, said: str) -> None:
    write(tmp_path / file, text)
    with pytest.raises(DataError, match=said):
        list_footage(layout, tmp_path)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("videos")
    write_video(root / "a.mp4", 61, g=12)
    write_video(root / "b.mov", 47, rate=30, bf=3, g=20)
    write_video(root / "c.mkv", 33)
    write_video(root / "d.avi", 20, codec="mpeg4")
    write_video(root / "e.mp4", 40, times=[40 * k + (k % 3) * 7 for k in range(40)])
    write_video(root / "f.mp4", 1)
    write_video(root / "g.mp4", 64, container_options={"movflags": "frag_keyframe+empty_moov"}, g=16)
    whole = write_video(root / "whole.mp4", 200, container_options={"movflags": "+faststart"}, g=10).read_bytes()
    (root / "cut.mp4").write_bytes(whole[: int(len(whole) * 0.6)])
    (root / "whole.mp4").unlink()
    (root / "no.mp4").write_bytes(b"no video")
    (root / "none.mp4").write_bytes(b"")
    return root


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("jobs", [1, 2])
def test_the_index_counts_as_the_decoder_does(videos: Path, tmp_path: Path, jobs: int, exact: bool) -> None:
    found = list_footage("videos", videos)
    measured = {one.name: one for one in measure_footage(found, tmp_path / "i.csv", jobs=jobs, exact=exact)}
    assert set(measured) == {path.name for path in videos.iterdir()}
    for name, one in measured.items():
        if name in ("no.mp4", "none.mp4"):
            assert one.frames == 0 and name in one.problem
            continue
        with open_clip_source(Entry(str(videos / name), -1, 0, -1, "video"), "decord") as source:
            assert one.frames == source.frames, name
            assert one.fps == pytest.approx(source.fps, rel=1e-3), name
    index = read_index(tmp_path / "i.csv", videos)
    assert names_of(index) == names_of(found)
    assert index.frames.tolist() == [measured[name].frames for name in names_of(found)]
    assert not (tmp_path / "i.csv.part").exists()


def test_windows_of_an_index_are_read(videos: Path, tmp_path: Path) -> None:
    list(measure_footage(list_footage("videos", videos), tmp_path / "i.csv"))
    index = read_index(tmp_path / "i.csv", videos)
    windows = WindowIndex(index.frames, index.fps, WindowRule(8, 10, step=5, nearest=True))
    assert {index.name(clip) for clip in windows.left_out} >= {"no.mp4", "none.mp4", "f.mp4"}
    clips, frames = windows.positions(np.arange(len(windows)))
    assert len({index.name(int(clip)) for clip in clips}) >= 6
    for clip, positions in list(zip(clips, frames, strict=True))[::4]:
        pictures = read_clip(index[int(clip)], positions, "pyav")
        assert [read_number(picture) for picture in pictures] == positions.tolist()


def test_zips_are_footage_too(tmp_path: Path) -> None:
    make_set(tmp_path, {"train": 2})
    found = list_footage("dota", tmp_path)
    list(measure_footage(found, tmp_path / "i.csv"))
    index = read_index(tmp_path / "i.csv", tmp_path)
    assert index.frames.tolist() == [ZipFrames().count(found[number].path) for number in range(2)]
    names = ZipFrames().names(index[0].path)
    same = ZipFrames().read(index[0].path, [names[3], names[30]])
    assert (read_clip(index[0], np.array([3, 30]), "auto") == same).all()
    with_rate = list_footage("videos", tmp_path)
    assert all("--fps" not in one.problem or not one.frames for one in measure_footage(with_rate, tmp_path / "j.csv"))
    with pytest.raises(DataError, match="no clip can be read"):
        read_index(tmp_path / "j.csv", tmp_path)


def test_a_stopped_index_goes_on(videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "videos"
    shutil.copytree(videos, root)
    found, output = list_footage("videos", root), tmp_path / "i.csv"
    running = measure_footage(found, output)
    first = [next(running).name for _ in range(4)]
    running.close()
    assert not output.exists()
    part = tmp_path / "i.csv.part"
    part.write_text(part.read_text() + "c.mkv,99")  # killed inside of a line
    write_video(root / first[0], 7)  # another video since
    running = measure_footage(found, output)
    assert next(running).name == first[0]
    running.close()
    again = [one.name for one in measure_footage(found, output)]
    assert again == [name for name in names_of(found) if name not in first]
    index = read_index(output, root)
    assert names_of(index) == names_of(found) and index.frames[0] == 7
    assert index.frames[names_of(found).index("c.mkv")] == 33
    assert {one.name for one in measure_footage(found, output)} == {"no.mp4", "none.mp4"}, "only what had a problem"
    assert read_index(output, root).frames.tolist() == index.frames.tolist()


def test_a_missing_clip_is_a_problem_of_its_row(tmp_path: Path) -> None:
    write(tmp_path / "bdd100k_splits" / "all.txt", "train/a.mov\ntrain/gone.mov\n")
    (tmp_path / "train").mkdir()
    write_video(tmp_path / "train" / "a.mov", 30)
    found = list(measure_footage(list_footage("bdd100k", tmp_path), tmp_path / "i.csv"))
    assert found[0].frames == 30 and found[0].fps == 30 and "gone.mov: no such file" in found[1].problem
    assert read_index(tmp_path / "i.csv", tmp_path).frames.tolist() == [30, 0]


def test_broken_index_files_are_named(tmp_path: Path) -> None:
    head = ",".join(footage_module.INDEX_COLUMNS) + "\n"
    for text, said in (
        ("", "first line"),
        ("path,frames\n", "first line"),
        (head + "a.mp4,3\n", "line 2"),
        (head + "a.mp4,3,25,1,\nb.mp4,x,25,1,\n", "line 3"),
        (head, "no clip can be read"),
        (head + "a.mp4,99999999999,25,1,\n", "line 2"),
    ):
        with pytest.raises(DataError, match=said):
            read_index(write(tmp_path / "i.csv", text), tmp_path)
    with pytest.raises(DataError, match="cannot be read"):
        read_index(tmp_path / "none.csv", tmp_path)


def test_the_check_looks_at_videos(videos: Path) -> None:
    found = {Path(one.name).name: one for one in check_footage(list_footage("videos", videos))}
    assert {name for name, one in found.items() if one.faults} == {"no.mp4", "none.mp4", "cut.mp4"}
    assert found["a.mp4"].frames == 61 and "cannot be decoded" in found["cut.mp4"].faults[0]


@pytest.mark.skipif(sys.platform != "linux", reason="the processes are Linux's")
def test_clips_that_hang_or_crash_are_faults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "videos"
    root.mkdir()
    for name in ("a.mp4", "c.mp4"):
        write_video(root / name, 9)
    os.mkfifo(root / "b.mp4")  # whoever opens it waits for a writer
    monkeypatch.setattr(os.path, "isfile", os.path.exists)  # as a file that was swapped after the look
    real = footage_module.refuse_by_first_bytes
    monkeypatch.setattr(
        footage_module,
        "refuse_by_first_bytes",
        lambda path: ctypes.string_at(0) if path.endswith("c.mp4") else real(path),
    )
    found = list_footage("videos", root)
    checked = list(check_footage(found, jobs=2, limit_s=1.0))
    assert [one.frames for one in checked] == [9, 0, 0] and not checked[0].faults
    assert checked[1].faults[0].startswith(f"{root}/b.mp4: hangs: reading it took longer than 1 s")
    assert checked[2].faults[0].startswith(f"{root}/c.mp4: crashes: ") and "SIGSEGV" in checked[2].faults[0]
    measured = list(measure_footage(found, tmp_path / "i.csv", limit_s=1.0))
    assert [one.problem for one in measured] == ["", checked[1].faults[0], checked[2].faults[0]]
    assert read_index(tmp_path / "i.csv", root).frames.tolist() == [9, 0, 0]
    capfd.readouterr()  # the stacks of the crashes


def test_footage_is_small_and_travels_to_other_processes() -> None:
    found = footage_module.Footage(Path("/data"), "list")
    for number in range(10_000):
        found.append(f"train/{number:08d}.mov", 1200, 30.0)
    again = pickle.loads(pickle.dumps(found))
    assert again[9_999] == found[9_999] and again[9_999].path == Path("/data/train/00009999.mov")
    assert len(pickle.dumps(found)) < 10_000 * 45
    with pytest.raises(IndexError):
        found[10_000]


def test_another_rate_is_not_taken_from_the_old_index(tmp_path: Path) -> None:
    make_set(tmp_path / "d", {"train": 2})
    for fps in (10.0, 30.0):
        list(measure_footage(list_footage("dota", tmp_path / "d", fps=fps), tmp_path / "i.csv"))
        assert (read_index(tmp_path / "i.csv", tmp_path / "d").fps == fps).all()
    assert list(measure_footage(list_footage("dota", tmp_path / "d", fps=30.0), tmp_path / "i.csv")) == []


def test_the_videos_that_can_be_read_become_a_list(tmp_path: Path) -> None:
    (tmp_path / "v").mkdir()
    for name in ('a "1".mp4', "b.mp4"):
        write_video(tmp_path / "v" / name, 12)
    (tmp_path / "v" / "c.mp4").write_bytes(b"")
    found = list_footage("videos", tmp_path / "v")
    list(measure_footage(found, tmp_path / "i.csv"))
    assert footage_module.write_video_list(tmp_path / "l.txt", read_index(tmp_path / "i.csv", tmp_path / "v")) == 2
    listed = read_list(tmp_path / "l.txt")
    assert [listed.path(number) for number in range(2)] == [str(tmp_path / "v" / n) for n in ('a "1".mp4', "b.mp4")]
    make_set(tmp_path / "d", {"train": 2})
    list(measure_footage(list_footage("dota", tmp_path / "d"), tmp_path / "z.csv"))
    with pytest.raises(DataError, match="a list is of videos"):
        footage_module.write_video_list(tmp_path / "m.txt", read_index(tmp_path / "z.csv", tmp_path / "d"))
