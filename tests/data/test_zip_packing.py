"""Folders packed into zips, and the check that names every bad member."""

from __future__ import annotations

import ctypes
import io
import json
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dsvid.data import traffic, zip_packing
from dsvid.data.traffic_generated import make_set
from dsvid.data.zip_frames import ZipFrames
from dsvid.errors import DataError


def picture(value: int, size: tuple[int, int] = (16, 16)) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", size, (value, 0, 0)).save(data, "JPEG")
    return data.getvalue()


def folder_of(path: Path, names: list[str]) -> Path:
    path.mkdir(parents=True)
    for value, name in enumerate(names):
        (path / name).write_bytes(picture(value))
    return path


@pytest.mark.parametrize("jobs", [1, 2])
def test_folders_become_zips_and_are_kept(tmp_path: Path, jobs: int) -> None:
    names = [f"{number}.jpg" for number in range(12)]
    one = folder_of(tmp_path / "frames" / "clip" / "images", names)
    other = folder_of(tmp_path / "frames" / "1" / "002", ["0001.png.jpg"])
    (one / "Thumbs.db").write_bytes(b"windows")
    packed = list(zip_packing.pack_all(tmp_path, jobs))
    assert [(item.archive, item.frames, item.already) for item in packed] == [
        (other / "images.zip", 1, False),
        (one.parent / "images.zip", 12, False),
    ]
    with zipfile.ZipFile(one.parent / "images.zip") as content:
        members = content.infolist()
    assert [member.filename for member in members] == names, "2 before 10, no Thumbs.db"
    assert {member.compress_type for member in members} == {zipfile.ZIP_STORED}
    for name in names:
        assert bytes(ZipFrames().read_bytes(one.parent / "images.zip", name)) == (one / name).read_bytes()
    before = (one.parent / "images.zip").read_bytes()
    assert [item.already for item in zip_packing.pack_all(tmp_path, jobs)] == [True, True]
    assert (one.parent / "images.zip").read_bytes() == before


def test_a_zip_that_differs_from_its_folder_is_not_replaced(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "images", ["1.jpg", "2.jpg"])
    list(zip_packing.pack_all(tmp_path))
    (folder / "2.jpg").write_bytes(picture(200, (40, 40)))
    with pytest.raises(DataError, match=r"other pictures[\s\S]*2\.jpg"):
        list(zip_packing.pack_all(tmp_path))
    (folder / "2.jpg").unlink()
    with pytest.raises(DataError, match=r"2 pictures, 1 in the folder"):
        list(zip_packing.pack_all(tmp_path))


def test_folders_that_cannot_be_packed(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no folder with pictures"):
        list(zip_packing.pack_all(tmp_path))
    folder_of(tmp_path / "clip" / "images", ["1.jpg"])
    (tmp_path / "clip" / "cover.jpg").write_bytes(picture(1))
    with pytest.raises(DataError, match="two folders would go into it"):
        list(zip_packing.pack_all(tmp_path))


@pytest.fixture
def dota(tmp_path: Path) -> Path:
    make_set(tmp_path / "dota", {"train": 6})
    return tmp_path / "dota"


def rewrite(archive: Path, change: dict[str, bytes | None]) -> None:
    with zipfile.ZipFile(archive) as content:
        members = {name: content.read(name) for name in content.namelist()}
    for name, data in change.items():
        if data is None:
            del members[name]
        else:
            members[name] = data
    with zipfile.ZipFile(archive, "w") as content:
        for name, data in members.items():
            content.writestr(name, data)


@pytest.mark.parametrize("jobs", [1, 2])
def test_the_check_names_every_bad_member(dota: Path, jobs: int) -> None:
    names = [f"generated-train_{number:06d}" for number in range(6)]
    zips = [dota / "frames" / name / "images.zip" for name in names]
    found = list(zip_packing.check_clips("dota", dota, "train_split.txt", jobs=jobs))
    assert [item.name for item in found] == names and not any(item.faults for item in found)
    assert sum(item.frames for item in found) == sum(map(ZipFrames().count, zips))
    zips[0].unlink()
    rewrite(zips[1], {"000003.jpg": None, "000007.jpg": picture(0)[:200], "000900.jpg": picture(3, (64, 64))})
    rewrite(zips[2], {"000005.jpg": picture(1, (32, 64)), "000006.jpg": b"no picture"})
    zips[3].write_bytes(b"no zip at all")
    (dota / "dataset" / "annotations" / f"{names[4]}.json").unlink()
    path = dota / "dataset" / "annotations" / f"{names[5]}.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "labels": []}))
    found = list(zip_packing.check_clips("dota", dota, "train_split.txt", jobs=jobs))
    faults = [" | ".join(item.faults) for item in found]
    assert "no such file" in faults[0] and str(zips[0]) in faults[0]
    assert "1 frames missing from the zip: 000003.jpg" in faults[1]
    assert "1 frames without a label: 000900.jpg" in faults[1]
    assert f"{zips[1]}: frame 000007.jpg" in faults[1] and len(found[1].faults) == 3
    assert "frame 000005.jpg: 32 x 64 pixels, others 64 x 64" in faults[2]
    assert "frame 000006.jpg: not a picture" in faults[2] and len(found[2].faults) == 2
    assert "not a zip file" in faults[3]
    assert "unknown" in faults[4] and "no frames in labels" in faults[5]
    quick = list(zip_packing.check_clips("dota", dota, "train_split.txt", jobs=jobs, decode=False))
    assert [len(item.faults) for item in quick] == [1, 2, 0, 1, 1, 1]


@pytest.mark.skipif(sys.platform != "linux", reason="the processes are Linux's")
def test_a_clip_that_hangs_is_a_fault_of_its_own(dota: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = zip_packing.check_zip

    def hangs(decode: bool, archive: Path) -> zip_packing.Checked:
        if "generated-train_000003" in str(archive):
            time.sleep(600)
        return whole(decode, archive)

    monkeypatch.setattr(zip_packing, "check_zip", hangs)
    found = list(zip_packing.check_clips("dota", dota, "train_split.txt", jobs=2, limit_s=1.0))
    assert [bool(item.faults) for item in found] == [number == 3 for number in range(6)]
    assert found[3].faults[0].startswith("generated-train_000003: hangs: ")


@pytest.mark.skipif(sys.platform != "linux", reason="the processes are Linux's")
def test_a_folder_whose_packing_crashes_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = folder_of(tmp_path / "images", ["1.jpg"])
    monkeypatch.setattr(zip_packing, "pack_folder", lambda *_: ctypes.string_at(0))
    with pytest.raises(DataError, match=f"{folder}: crashes: "):
        list(zip_packing.pack_all(tmp_path))
    capfd.readouterr()  # the stack of the crash


def test_a_dada_table_that_disagrees_with_the_zip(tmp_path: Path) -> None:
    make_set(tmp_path, {"train": 2}, layout="dada")
    table = tmp_path / "annotation" / "full_anno.csv"
    lines = table.read_text().splitlines()
    fields = lines[2].split(",")
    fields[-5:-2] = ["900", "900", "950"]
    table.write_text("\n".join([*lines[:2], ",".join(fields)]))
    clean, faulty = zip_packing.check_clips("dada", tmp_path, "training.txt")
    assert not clean.faults and "no frame is in the anomaly" in faulty.faults[0]
    (tmp_path / "DADA2K_my_split" / "training.txt").write_text("24/099\nx\n")
    for item in zip_packing.check_clips("dada", tmp_path, "training.txt"):
        assert "rows of clip" in item.faults[0]
    for names, message in (("24/001\n../x\n", "name 2"), ("24/001\n24/002\n24/001\n", "name 3")):
        (tmp_path / "DADA2K_my_split" / "training.txt").write_text(names)
        with pytest.raises(DataError, match=message):
            next(zip_packing.check_clips("dada", tmp_path, "training.txt"))


def test_label_files_that_disagree_are_named(tmp_path: Path) -> None:
    """Training goes by the metadata, as simple-tad does; the check tells."""
    make_set(tmp_path / "dota", {"train": 2})
    place = tmp_path / "dota" / "dataset" / "metadata_train.json"
    metadata = json.loads(place.read_text())
    metadata["generated-train_000001"] |= {"anomaly_class": "ego: unknown", "num_frames": 3}
    place.write_text(json.dumps(metadata))
    clean, faulty = zip_packing.check_clips("dota", tmp_path / "dota", "train_split.txt", decode=False)
    assert not clean.faults and len(faulty.faults) == 2
    assert "UK ego in the metadata" in faulty.faults[0] and "num_frames 3, " in faulty.faults[1]
    metadata["generated-train_000001"]["anomaly_class"] = 5
    place.write_text(json.dumps(metadata))
    _, faulty = zip_packing.check_clips("dota", tmp_path / "dota", "train_split.txt", decode=False)
    assert "anomaly_class" in faulty.faults[0] or "AttributeError" in faulty.faults[0]

    make_set(tmp_path / "dada", {"train": 2}, layout="dada")
    table = tmp_path / "dada" / "annotation" / "full_anno.csv"
    lines = table.read_text().splitlines()
    fields = lines[1].split(",")
    fields[-2] = str(int(fields[-2]) + 7)
    table.write_text("\n".join([lines[0], ",".join(fields), *lines[2:]]))
    faulty, clean = zip_packing.check_clips("dada", tmp_path / "dada", "training.txt", decode=False)
    assert not clean.faults and f"{fields[-2]} by" in faulty.faults[0]


def test_an_annotation_that_names_a_frame_twice_or_none(dota: Path) -> None:
    path = dota / "dataset" / "annotations" / "generated-train_000000.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "labels": []}))
    with pytest.raises(DataError, match="no frames in labels"):
        traffic.read_dota(dota, "train_split.txt")
    path.write_text(json.dumps({**content, "labels": content["labels"] + content["labels"][:1]}))
    with pytest.raises(DataError, match=r"000000\.jpg for the second time"):
        traffic.read_dota(dota, "train_split.txt")


def test_windows_longer_than_the_clips(dota: Path) -> None:
    clips = traffic.read_dota(dota, "train_split.txt")
    cut = traffic.cut_windows(clips, length=200, view_fps=10, step=1)
    assert len(cut) == 0 and cut.frames.shape == (0, 200)
    rule = traffic.WindowRule(200, 10, padding="repeat")
    windows = traffic.LabelledWindows(clips, rule)
    assert len(windows) == sum(len(clip.frames) for clip in clips)
    first = windows.take([0])
    assert (first.frames == 0).all() and traffic.read_frames(clips[0], first.frames[0]).shape[0] == 200
    labels = np.concatenate([clip.labels for clip in clips])
    whole = windows.take(np.arange(len(windows)))
    assert (whole.label == labels).all()
    order = np.random.default_rng(0).permutation(len(windows))
    shuffled = windows.take(order)
    assert (shuffled.ttc_s == whole.ttc_s[order]).all() and (shuffled.risk == whole.risk[order]).all()
    assert set(whole.ttc_s[whole.label == 1]) == {0.0} and (whole.ttc_s < 0).any()
