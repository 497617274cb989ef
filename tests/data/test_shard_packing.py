"""Packing: the same bytes for any number of processes and after every stop, a layout others read, clear refusals."""

from __future__ import annotations

import ctypes
import json
import multiprocessing
import os
import signal
import sys
import tarfile
import tempfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from dsvid.data import augment, shard_packing, shard_samples
from dsvid.data.decode import ClipSource, PyavSource, open_clip_source
from dsvid.data.manifest import open_split, read_list
from dsvid.data.shard_packing import Packing
from dsvid.data.shard_samples import PackOptions, Sample, nearest_from, packed_size, thin
from dsvid.data.shards import open_shards
from dsvid.errors import DataError
from tests.data.numbered_videos import numbered_picture, read_number, write_video

SMALL = PackOptions(short_side=48)


@pytest.fixture
def listed(videos: Path, tmp_path: Path) -> Path:
    (tmp_path / "broken.mp4").write_bytes(b"\0" * 500)
    lines = ["broken.mp4 7\n", *(f"{videos}/v{number:02}.mp4 {number}\n" for number in range(4)), "nowhere.mp4 9\n"]
    (tmp_path / "list.csv").write_text("".join(lines))
    return tmp_path / "list.csv"


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shard is closed with every second video: what is kilobytes here is megabytes elsewhere."""
    from dataclasses import replace

    real = PackOptions.checked
    monkeypatch.setattr(PackOptions, "checked", lambda self: replace(real(self), shard_mb=0.1))  # type: ignore[arg-type]


def pack(listed: Path, out: Path, options: PackOptions = SMALL, jobs: int = 1) -> Packing:
    packing = Packing(read_list(listed), out, options)
    packing.run(jobs)
    return packing


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# ---- the layout ----------------------------------------------------------------------------------------------------


def test_the_members_of_a_sample_share_a_key_and_stand_together(listed: Path, tmp_path: Path, videos: Path) -> None:
    pack(listed, tmp_path / "out")
    with tarfile.open(tmp_path / "out" / "shard-000000.tar") as shard:
        members = shard.getmembers()
        names = [member.name for member in members]
        assert names[:3] == ["000000001.json", "000000001.00000.jpg", "000000001.00001.jpg"]
        keys = [name.split(".")[0] for name in names]
        assert keys == sorted(keys) and [keys.count(key) for key in dict.fromkeys(keys)] == [31] * 4
        assert {(member.mtime, member.uid, member.gid, member.mode) for member in members} == {(0, 0, 0, 0o644)}
        about = json.load(shard.extractfile("000000002.json"))  # type: ignore[arg-type]
        picture = shard.extractfile("000000002.00011.jpg").read()  # type: ignore[union-attr]
    assert about["path"] == f"{videos}/v01.mp4" and about["label"] == 1
    assert (about["frames"], about["fps"], about["width"], about["height"]) == (30, 25.0, 48, 48)
    assert about["kept"] == list(range(30)) and about["seconds"][11] == 0.44
    assert about["crc32"]["00011.jpg"] == f"{zlib.crc32(picture):08x}"


def test_a_relative_path_stays_as_the_list_has_it(tmp_path: Path) -> None:
    write_video(tmp_path / "a b.mp4", 5)
    (tmp_path / "list.csv").write_text('"a b.mp4",3\n')
    pack(tmp_path / "list.csv", tmp_path / "out")
    assert open_split(str(tmp_path / "out"), "val")[0].path == "a b.mp4"


def test_the_index_says_what_was_packed(listed: Path, tmp_path: Path) -> None:
    pack(listed, tmp_path / "out", PackOptions(short_side=48, quality=40))
    folder = open_shards(tmp_path / "out")
    about = folder.about
    assert about["list"]["entries"] == 6 and about["list"]["sha256"] == read_list(listed).sha256
    assert (about["options"]["quality"], about["options"]["short_side"]) == (40, 48)
    assert about["counts"] == {"samples": 6, "bad": 2, "remarks": 0, "frames": 120, "source_frames": 120}
    assert about["bytes"]["after"] == (tmp_path / "out" / "shard-000000.tar").stat().st_size == about["shards"][0]
    assert about["bytes"]["before"] == sum(os.stat(read_list(listed)[i].path).st_size for i in range(1, 5))
    lines = [json.loads(line) for line in (tmp_path / "out" / "bad.jsonl").read_text().splitlines()]
    assert [line["sample"] for line in lines] == [0, 5]
    assert "no such file" in lines[1]["error"] and lines[1]["path"] == "nowhere.mp4"
    with tarfile.open(tmp_path / "out" / "shard-000000.tar") as shard:
        for number in range(1, 5):
            row = folder.samples[number]
            offset = shard.getmember(f"{number:09}.json").offset
            assert row["offset"] == offset and row["label"] == number - 1
            (member,) = (each for each in shard if each.name == f"{number:09}.00007.jpg")
            frame = folder.rows(number)[7]
            assert (frame["offset"], frame["size"]) == (member.offset_data, member.size)


# ---- determinism, stops --------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small_shards")
def test_the_bytes_do_not_depend_on_the_number_of_processes(listed: Path, tmp_path: Path) -> None:
    pack(listed, tmp_path / "one")
    pack(listed, tmp_path / "two", jobs=2)
    assert content(tmp_path / "one") == content(tmp_path / "two")
    assert {"shard-000000.tar", "shard-000001.tar"} <= content(tmp_path / "one").keys()
    assert not [name for name in content(tmp_path / "one") if name.endswith(".npz") or name.startswith(".")]


class Stop(Exception):
    pass


def stop_at(number: int, listed: Path, out: Path, options: PackOptions) -> None:
    """A packing that ends when sample `number` is written."""

    def tell(sample: Sample) -> None:
        if sample.number == number:
            raise Stop

    with pytest.raises(Stop):
        Packing(read_list(listed), out, options).run(tell=tell)


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("after", [1, 3, 4])
def test_a_packing_that_was_stopped_goes_on(listed: Path, tmp_path: Path, after: int) -> None:
    pack(listed, tmp_path / "whole")
    out, told = tmp_path / "out", []

    def tell(sample: Sample) -> None:
        told.append(sample.number)
        if len(told) == after:
            raise Stop

    with pytest.raises(Stop):
        Packing(read_list(listed), out, SMALL).run(tell=tell)
    assert not (out / "index.json").exists()
    with pytest.raises(DataError, match="not finished"):
        open_split(str(out), "train")
    (out / ".shard-000001.tar-killed").write_bytes(b"what a killed process leaves")
    again = Packing(read_list(listed), out, SMALL)
    finished = len(list(out.glob("shard-*.tar")))
    assert again.done == (0, 3, 5)[finished] and finished == {1: 0, 3: 0, 4: 1}[after]
    begun = again.done
    seen: list[int] = []
    again.run(tell=lambda sample: seen.append(sample.number))
    assert seen == list(range(begun, 6))
    assert content(out) == content(tmp_path / "whole")


@pytest.mark.usefixtures("small_shards")
def test_a_packing_that_was_killed_goes_on_and_leaves_no_process(listed: Path, tmp_path: Path) -> None:
    pack(listed, tmp_path / "whole")
    out, pids = tmp_path / "out", tmp_path / "pids"

    def packs() -> None:
        def tell(sample: Sample) -> None:
            if sample.number == 3:
                pids.write_text(" ".join(str(child.pid) for child in multiprocessing.active_children()))
                os.kill(os.getpid(), signal.SIGKILL)

        Packing(read_list(listed), out, SMALL).run(2, tell)

    process = multiprocessing.get_context("fork").Process(target=packs)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    helpers = [int(pid) for pid in pids.read_text().split()]
    assert len(helpers) == 2
    until = time.monotonic() + 20
    while any(runs(pid) for pid in helpers) and time.monotonic() < until:
        time.sleep(0.05)
    assert not [pid for pid in helpers if runs(pid)]
    assert [path.name for path in out.glob("*.tar")] == ["shard-000000.tar"] and list(out.glob(".shard-000001*"))
    assert pack(listed, out).finished
    assert content(out) == content(tmp_path / "whole")


def runs(pid: int) -> bool:
    """Whether a process is there and no zombie, which its new parent may leave for a while."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.usefixtures("small_shards")
def test_a_shard_that_was_cut_since_is_packed_again(listed: Path, tmp_path: Path) -> None:
    pack(listed, tmp_path / "whole")
    out = tmp_path / "out"
    stop_at(4, listed, out, SMALL)
    path = out / "shard-000000.tar"
    path.write_bytes(path.read_bytes()[:-1])
    assert pack(listed, out).finished
    assert content(out) == content(tmp_path / "whole")


@pytest.mark.usefixtures("small_shards")
def test_shards_behind_a_lost_one_are_not_taken_over(videos: Path, tmp_path: Path) -> None:
    lines = [f"{videos}/v{number:02}.mp4 {number}\n" for number in range(8)]
    (tmp_path / "list.csv").write_text("".join(lines))
    other = PackOptions(short_side=40)
    pack(tmp_path / "list.csv", tmp_path / "whole", other)

    stop_at(5, tmp_path / "list.csv", tmp_path / "out", SMALL)
    assert len(list((tmp_path / "out").glob("shard-*.tar"))) == 2
    (tmp_path / "out" / "shard-000000.tar").unlink()
    stop_at(3, tmp_path / "list.csv", tmp_path / "out", other)  # allowed: nothing whole was left of the first
    assert pack(tmp_path / "list.csv", tmp_path / "out", other).finished
    assert content(tmp_path / "out") == content(tmp_path / "whole")


@pytest.mark.usefixtures("small_shards")
def test_what_was_begun_with_other_settings_is_refused(listed: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    stop_at(4, listed, out, SMALL)
    with pytest.raises(DataError, match="other options were packed here") as caught:
        Packing(read_list(listed), out, PackOptions(short_side=50))
    assert (caught.value.found, caught.value.expected) == ("short_side 48", "short_side 50")
    with pytest.raises(DataError, match="another --root"):
        Packing(read_list(listed, str(tmp_path.parent)), out, SMALL)
    listed.write_text(listed.read_text() + "another.mp4 1\n")
    with pytest.raises(DataError, match="another list was packed here"):
        Packing(read_list(listed), out, SMALL)


def test_a_finished_folder_is_kept_or_refused(listed: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    pack(listed, out)
    before = content(out)
    again = Packing(read_list(listed), out, SMALL)
    assert again.finished and again.done == 6
    again.run(tell=lambda _: pytest.fail("nothing is left to do"))
    assert content(out) == before
    with pytest.raises(DataError, match="other options"):
        Packing(read_list(listed), out, PackOptions(short_side=48, fps=3.0))
    (out / "shard-000000.tar").unlink()
    with pytest.raises(DataError, match="not the shard that was packed"):
        Packing(read_list(listed), out, SMALL)


def test_a_file_of_which_two_parts_are_listed_counts_once(tmp_path: Path) -> None:
    size = write_video(tmp_path / "a.mp4", 30).stat().st_size
    (tmp_path / "list.csv").write_text("path start total label\na.mp4 0 10 0\na.mp4 10 15 1\n")
    pack(tmp_path / "list.csv", tmp_path / "out")
    about = open_shards(tmp_path / "out").about
    assert about["bytes"]["before"] == size and about["counts"]["frames"] == 25
    with open_clip_source(open_split(str(tmp_path / "out"), "train")[1], "pyav") as source:
        assert [read_number(picture) for picture in source.read([0, 14])] == [10, 24]
    with tarfile.open(tmp_path / "out" / "shard-000000.tar") as shard:
        assert json.load(shard.extractfile("000000001.json"))["seconds"][:2] == [0.0, 0.04]  # type: ignore[arg-type]


def test_a_source_that_changed_is_noticed(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", 5)
    (tmp_path / "list.csv").write_text("a.mp4 0\n")
    pack(tmp_path / "list.csv", tmp_path / "out")
    write_video(tmp_path / "a.mp4", 9)
    with pytest.raises(DataError, match=r"a\.mp4: changed since it was packed"):
        Packing(read_list(tmp_path / "list.csv"), tmp_path / "out", SMALL)
    (tmp_path / "a.mp4").unlink()
    assert Packing(read_list(tmp_path / "list.csv"), tmp_path / "out", SMALL).finished, "the shards are all one needs"


def test_two_calls_do_not_fill_one_folder(listed: Path, tmp_path: Path) -> None:
    manifest = read_list(listed)

    def tell(_: Sample) -> None:
        with pytest.raises(DataError, match="another call writes into it"):
            Packing(manifest, tmp_path / "out", SMALL).run()

    Packing(manifest, tmp_path / "out", SMALL).run(tell=tell)


@pytest.mark.skipif(sys.platform != "linux", reason="the processes are Linux's")
def test_videos_that_hang_or_crash_are_bad_ones(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    os.mkfifo(tmp_path / "hangs.mp4")  # whoever opens it waits for a writer
    write_video(tmp_path / "crashes.mp4", 9)
    read_all = shard_samples._read_all

    def crash(source: ClipSource, frames: NDArray[np.int64]) -> Iterator[NDArray[np.uint8] | DataError]:
        for place, picture in enumerate(read_all(source, frames)):
            if source.frames == 9 and place == 5:
                ctypes.string_at(0)
            yield picture

    monkeypatch.setattr(shard_samples, "_read_all", crash)
    (tmp_path / "list.csv").write_text(f"hangs.mp4 0\n{videos}/v01.mp4 1\ncrashes.mp4 2\n{videos}/v02.mp4 3\n")
    packing = Packing(read_list(tmp_path / "list.csv"), tmp_path / "out", PackOptions(short_side=48, codec="h264"))
    told: list[str] = []
    packing.run(2, lambda sample: told.append(sample.error), limit_s=1.0)
    folder = open_shards(tmp_path / "out")
    assert folder.samples["shard"].tolist() == [-1, 0, -1, 0] and folder.samples["label"].tolist() == [0, 1, 2, 3]
    lines = [json.loads(line) for line in (tmp_path / "out" / "bad.jsonl").read_text().splitlines()]
    assert [(line["sample"], line["path"]) for line in lines] == [(0, "hangs.mp4"), (2, "crashes.mp4")]
    assert [line["error"] for line in lines] == [told[0], told[2]]
    assert told[0].startswith(f"{tmp_path}/hangs.mp4: hangs: reading it took longer than 1 s")
    assert told[2].startswith(f"{tmp_path}/crashes.mp4: crashes: ") and "SIGSEGV" in told[2]
    assert not list(scratch.iterdir()), "what the crashed process was writing"
    capfd.readouterr()  # the stack of the crash


@pytest.mark.skipif(sys.platform != "linux", reason="the processes are Linux's")
def test_a_video_that_hangs_does_not_stop_the_estimate(videos: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "hangs.mp4")
    (tmp_path / "list.csv").write_text(f"hangs.mp4 0\n{videos}/v01.mp4 1\n")
    packing = Packing(read_list(tmp_path / "list.csv"), tmp_path / "out", SMALL)
    needed = packing.estimate_bytes(0.5)
    (tmp_path / "list.csv").write_text(f"{videos}/v01.mp4 1\n")
    alone = Packing(read_list(tmp_path / "list.csv"), tmp_path / "out", SMALL)
    assert needed == 2 * alone.estimate_bytes() > 0


# ---- refusals ------------------------------------------------------------------------------------------------------


def test_a_folder_that_is_not_ours_is_left_alone(listed: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("x")
    with pytest.raises(DataError, match="not empty, and not packed by this command") as caught:
        Packing(read_list(listed), out, SMALL)
    assert "thesis.tex" in str(caught.value.found)
    with pytest.raises(DataError, match="a file"):
        Packing(read_list(listed), listed, SMALL)
    (out / "index.json").write_text('{"format": "wids"}')
    with pytest.raises(DataError, match="not the index of packed shards"):
        Packing(read_list(listed), out, SMALL)


def test_a_list_without_a_readable_video_is_an_error_and_can_be_tried_again(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("a.mp4 0\nb.mp4 1\n")
    with pytest.raises(DataError, match="no video can be read") as caught:
        pack(tmp_path / "list.csv", tmp_path / "out")
    assert "a.mp4: no such file" in str(caught.value.found)
    write_video(tmp_path / "b.mp4", 5)
    pack(tmp_path / "list.csv", tmp_path / "out", PackOptions(short_side=32))
    assert open_shards(tmp_path / "out").about["counts"]["bad"] == 1


def test_packed_shards_are_not_packed_again(listed: Path, tmp_path: Path) -> None:
    pack(listed, tmp_path / "out")
    with pytest.raises(DataError, match="packed already"):
        Packing(open_split(str(tmp_path / "out"), "train"), tmp_path / "again", SMALL)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"short_side": 15}, "--short-side"),
        ({"quality": 0}, "--quality"),
        ({"quality": 101}, "--quality"),
        ({"codec": "h264", "quality": 90}, "--quality"),
        ({"codec": "png"}, "--codec"),
        ({"fps": 0.0}, "--fps"),
        ({"fps": -1.0}, "--fps"),
        ({"fps": float("nan")}, "--fps"),
        ({"fps": float("inf")}, "--fps"),
        ({"fps": 1001.0}, "--fps"),
        ({"shard_mb": 0}, "--shard-mb"),
    ],
)
def test_options_without_sense_are_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(DataError) as caught:
        PackOptions(**options).checked()  # type: ignore[arg-type]
    assert said in caught.value.what and caught.value.found is not None


def test_no_jobs_and_no_room(listed: Path, tmp_path: Path) -> None:
    packing = Packing(read_list(listed), tmp_path / "out", SMALL)
    with pytest.raises(DataError, match="--jobs"):
        packing.run(0)
    needed = packing.estimate_bytes()
    packing.run()
    assert needed == pytest.approx(open_shards(tmp_path / "out").about["bytes"]["after"] * 6 / 4, rel=0.3)
    assert packing.check_room(needed) > needed
    with pytest.raises(DataError, match="no room on the disk"):
        packing.check_room(1 << 60)


# ---- frames --------------------------------------------------------------------------------------------------------


def test_the_frames_nearest_to_the_wanted_times_are_kept() -> None:
    seconds = np.arange(10) / 25
    assert thin(seconds, 25.0).tolist() == list(range(10)) == thin(seconds, 100.0).tolist()
    assert thin(seconds, 12.5).tolist() == [0, 2, 4, 6, 8, 9]
    assert thin(seconds, 0.001).tolist() == [0]
    assert thin(np.array([0.0, 1.0, 1e12]), 1000.0).tolist() == [0, 1, 2], "a time stamp out of all proportion"
    irregular = np.array([0, 0.1, 0.11, 0.5, 2.0])
    assert thin(irregular, 10.0).tolist() == [0, 1, 2, 3, 4]
    assert thin(irregular, 2.0).tolist() == [0, 3, 4]
    assert nearest_from(irregular, np.array([0, 3, 4])).tolist() == [0, 3, 4]
    assert nearest_from(np.arange(7.0), np.array([0, 4])).tolist() == [0, 3], "2 is in the middle: the earlier one"


@pytest.mark.parametrize(
    ("size", "short_side", "even", "jpeg"),
    [
        ((256, 340), 128, (128, 170), (128, 170)),
        ((45, 81), 256, (44, 80), (45, 81)),
        ((101, 67), 33, (48, 32), (49, 33)),
    ],
)
def test_sizes_are_those_of_the_loader_s_resize(
    size: tuple[int, int], short_side: int, even: tuple[int, int], jpeg: tuple[int, int]
) -> None:
    assert packed_size(*size, PackOptions(short_side=short_side)) == jpeg
    assert packed_size(*size, PackOptions(short_side=short_side, codec="h264")) == even
    if min(size) > short_side:
        assert augment.resize_short_side(torch.zeros(1, *size, 3, dtype=torch.uint8), short_side).shape[1:3] == jpeg


def test_odd_sides_become_even_for_h264(tmp_path: Path) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    for number in range(6):
        Image.fromarray(numbered_picture(number, 45, 81)).save(folder / f"img_{number + 1:05}.jpg", quality=95)
    (tmp_path / "list.csv").write_text("frames 6 2\n")
    pack(tmp_path / "list.csv", tmp_path / "out", PackOptions(codec="h264"))
    with open_clip_source(open_split(str(tmp_path / "out"), "train")[0], "pyav") as source:
        shown = source.read(np.arange(6))
        assert source.fps is None, "a folder of pictures says no rate"
    assert shown.shape == (6, 44, 80, 3) and [read_number(picture) for picture in shown] == list(range(6))


def test_a_folder_of_pictures_has_no_times_to_thin_by(tmp_path: Path) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    Image.fromarray(numbered_picture(3, 40, 80)).save(folder / "img_00001.jpg")
    write_video(tmp_path / "a.mp4", 10)
    (tmp_path / "list.csv").write_text("path start total label\nframes 1 1 2\na.mp4 0 -1 3\n")
    pack(tmp_path / "list.csv", tmp_path / "out", PackOptions(fps=5.0))
    manifest = open_split(str(tmp_path / "out"), "train")
    with pytest.raises(DataError) as caught, open_clip_source(manifest[0], "pyav"):
        pass
    assert "have no times" in str(caught.value.found)
    pack(tmp_path / "list.csv", tmp_path / "all")
    with tarfile.open(tmp_path / "all" / "shard-000000.tar") as shard:
        about = json.load(shard.extractfile("000000000.json"))  # type: ignore[arg-type]
    assert about["seconds"] is None and about["fps"] is None


@pytest.mark.parametrize("codec", ["jpeg", "h264"])
def test_a_damaged_frame_costs_no_other_frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codec: str) -> None:
    write_video(tmp_path / "a.mp4", 20)
    (tmp_path / "list.csv").write_text("a.mp4 1\n")
    real = PyavSource.read

    def read(self: PyavSource, indices: np.ndarray) -> np.ndarray:
        if 7 in np.asarray(indices) and str(self.path).endswith("a.mp4"):
            raise DataError(f"{self.path}: frame 7 of 20 cannot be decoded")
        return real(self, indices)

    with monkeypatch.context() as patch:
        patch.setattr(PyavSource, "read", read)
        pack(tmp_path / "list.csv", tmp_path / "out", PackOptions(decoder="pyav", codec=codec))
    with open_clip_source(open_split(str(tmp_path / "out"), "train")[0], "pyav") as source:
        assert [read_number(picture) for picture in source.read([6, 8, 19])] == [6, 8, 19]
        with pytest.raises(DataError, match="could not be decoded when it was packed"):
            source.read([6, 7])
    with tarfile.open(tmp_path / "out" / "shard-000000.tar") as shard:
        about = json.load(shard.extractfile("000000000.json"))  # type: ignore[arg-type]
    assert list(about["missing"]) == ["7"] and "cannot be decoded" in about["missing"]["7"]


def test_long_videos_are_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dsvid.data import shard_samples

    write_video(tmp_path / "a.mp4", 50)
    (tmp_path / "list.csv").write_text("a.mp4 1\n")
    pack(tmp_path / "list.csv", tmp_path / "whole")
    monkeypatch.setattr(shard_samples, "READ_BYTES", 7 * 64 * 80 * 3)
    pack(tmp_path / "list.csv", tmp_path / "pieces")
    assert content(tmp_path / "whole") == content(tmp_path / "pieces")


def test_names_of_the_module_are_those_of_the_files(listed: Path, tmp_path: Path) -> None:
    pack(listed, tmp_path / "out")
    assert sorted(content(tmp_path / "out")) == sorted(
        ["shard-000000.tar", shard_packing.INDEX, "samples.npy", "frames.npy", "paths.txt", "bad.jsonl"]
    )
