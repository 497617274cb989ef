"""Frames in zips: right pixels in the order asked for, few open files, forks side by side, every fault by its name."""

from __future__ import annotations

import gc
import io
import os
import pickle
import struct
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dsvid.data import zip_frames
from dsvid.data.picture import decode_by_pillow, decode_picture, decoder_name
from dsvid.data.zip_frames import ZipFrames
from dsvid.errors import DataError


def encode(value: int, kind: str = "JPEG", size: tuple[int, int] = (24, 16)) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", size, (value, 255 - value, 7)).save(data, kind)
    return data.getvalue()


def pack(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", method) as content:
        for name, data in members.items():
            content.writestr(name, data)
    return path


def frames(count: int, kind: str = "JPEG", shift: int = 0) -> dict[str, bytes]:
    suffix = "jpg" if kind == "JPEG" else "png"
    return {f"{number:06}.{suffix}": encode(10 * number + shift, kind) for number in range(count)}


def reds(pictures: np.ndarray) -> list[int]:
    return [int(value) for value in pictures[:, 0, 0, 0]]


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_frames_come_in_the_order_asked_for(tmp_path: Path, method: int, kind: str) -> None:
    members = frames(12, kind)
    path = pack(tmp_path / "a.zip", dict(reversed(members.items())), method)
    zips = ZipFrames()
    assert zips.names(path) == tuple(members) and zips.count(path) == 12
    names = list(members)
    pictures = zips.read(path, [names[7], names[0], names[7]])
    assert pictures.shape == (3, 16, 24, 3) and pictures.dtype == np.uint8
    assert np.abs(np.array(reds(pictures)) - [70, 0, 70]).max() <= 3
    assert (zips.read(path, [7, 0, 7]) == pictures).all()
    for name, data in members.items():
        assert bytes(zips.read_bytes(path, name)) == data


def test_the_order_is_natural_and_pictures_only_count(tmp_path: Path) -> None:
    picture = encode(0)
    names = ["img_10.jpg", "Thumbs.db", "img_2.JPG", "__MACOSX/._img_2.jpg", "sub/", "img_1.jpeg", "readme.txt"]
    path = pack(tmp_path / "a.zip", dict.fromkeys(names, picture))
    assert ZipFrames().names(path) == ("img_1.jpeg", "img_2.JPG", "img_10.jpg")


def test_a_long_extra_field_and_a_prefix_before_the_zip(tmp_path: Path) -> None:
    data = encode(90)
    info = zipfile.ZipInfo("a.jpg")
    info.extra = struct.pack("<HH", 0x7777, 500) + bytes(500)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as content:
        content.writestr(info, data)
    path = tmp_path / "b.zip"
    path.write_bytes(b"#!prefix" * 100 + (tmp_path / "a.zip").read_bytes())
    for where in (tmp_path / "a.zip", path):
        assert bytes(ZipFrames().read_bytes(where, "a.jpg")) == data


@pytest.fixture
def settled() -> None:
    """The import of torch keeps the calls below it, and the files they hold, until the next collection."""
    decoder_name()
    gc.collect()


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.usefixtures("settled")
def test_files_stay_few_over_many_clips(tmp_path: Path) -> None:
    paths = [pack(tmp_path / f"{number}.zip", frames(1, shift=number)) for number in range(60)]
    zips, before = ZipFrames(open_files=4, directories=8), open_files()
    for turn in range(10_000 // 60 + 1):
        for number, path in enumerate(paths):
            zips.count(path)
            if turn % 40 == 0:
                assert abs(reds(zips.read(path, [0]))[0] - number) <= 3
        assert open_files() <= before + 4
    assert len(zips._directories._kept) == 8
    zips.close()
    assert open_files() == before


def test_what_is_used_most_stays_open(tmp_path: Path) -> None:
    paths = [pack(tmp_path / f"{number}.zip", frames(1)) for number in range(4)]
    zips = ZipFrames(open_files=2)
    kept = zips._open(paths[0])
    for path in paths[1:]:
        zips.count(path)
        assert zips._open(paths[0]) is kept


def test_of_two_members_of_one_name_the_last_counts(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as content, pytest.warns(UserWarning, match="Duplicate"):
        content.writestr("1.jpg", encode(10))
        content.writestr("1.jpg", encode(200))
    assert ZipFrames().count(path) == 1 and abs(reds(ZipFrames().read(path, ["1.jpg"]))[0] - 200) <= 3


def test_a_replaced_zip_is_read_anew_when_it_is_opened_again(tmp_path: Path) -> None:
    path, other = pack(tmp_path / "a.zip", frames(3)), pack(tmp_path / "b.zip", frames(1))
    zips = ZipFrames(open_files=1)
    assert zips.count(path) == 3
    pack(tmp_path / "new.zip", frames(5, shift=50)).rename(path)
    zips.count(other)
    assert zips.count(path) == 5 and abs(reds(zips.read(path, [0]))[0] - 50) <= 3


def test_forks_and_threads_read_side_by_side(tmp_path: Path) -> None:
    paths = [pack(tmp_path / f"{number}.zip", frames(20, shift=number), zipfile.ZIP_DEFLATED) for number in range(3)]
    zips = ZipFrames(open_files=2)
    expected = [zips.read(path, range(20)).tobytes() for path in paths]
    assert zips.count(paths[2]) == 20  # open before the fork

    def agrees() -> bool:
        return all(zips.read(path, range(20)).tobytes() == whole for path, whole in zip(paths, expected, strict=True))

    children = []
    for _ in range(4):
        child = os.fork()
        if child == 0:
            os._exit(0 if all(agrees() for _ in range(20)) else 1)
        children.append(child)
    assert all(agrees() for _ in range(20))
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(lambda _: agrees(), range(40)))


def test_a_pickled_store_opens_its_own_files(tmp_path: Path) -> None:
    path = pack(tmp_path / "a.zip", frames(2))
    zips = ZipFrames(open_files=3, directories=5)
    zips.count(path)
    again = pickle.loads(pickle.dumps(zips))
    assert again._limits == (3, 5) and not again._archives._kept and again.count(path) == 2


def damaged(path: Path, how: str) -> Path:
    """A zip of two frames with one fault."""
    members = frames(2)
    if how in ("broken", "no picture", "huge"):
        data = members["000001.jpg"]
        place = data.index(b"\xff\xc0") + 5
        huge = data[:place] + b"\xff\xff\xff\xff" + data[place + 4 :]
        members["000001.jpg"] = {"broken": data[: len(data) // 2], "no picture": b"none", "huge": huge}[how]
    elif how == "sizes":
        members["000001.jpg"] = encode(0, size=(30, 16))
    pack(path, members, zipfile.ZIP_BZIP2 if how == "bzip2" else zipfile.ZIP_STORED)
    blob = bytearray(path.read_bytes())
    central = blob.rindex(b"PK\x01\x02")
    if how == "encrypted":
        blob[central + 8] |= 1
    elif how == "checksum":
        blob[blob.index(b"\xff\xda", blob.index(b"000001.jpg")) + 4] ^= 0xFF
    elif how == "offset":
        blob[central + 42 : central + 46] = struct.pack("<I", 3)
    elif how == "deflate":
        blob[central + 10] = 8
    elif how == "long":
        blob[central + 20 : central + 28] = struct.pack("<II", 1 << 29, 1 << 29)
    elif how == "cut":
        blob = blob[:central]
    elif how == "empty":
        blob.clear()
    path.write_bytes(blob)
    return path


FAULTS = {
    "broken": r"000001\.jpg[\s\S]*truncated",
    "no picture": r"000001\.jpg[\s\S]*not a picture",
    "huge": r"000001\.jpg[\s\S]*65535 x 65535",
    "sizes": r"000001\.jpg differs in size from 000000\.jpg[\s\S]*30 x 16[\s\S]*24 x 16",
    "bzip2": r"000000\.jpg[\s\S]*bzip2",
    "encrypted": r"000001\.jpg[\s\S]*encrypted",
    "checksum": r"000001\.jpg[\s\S]*checksum",
    "offset": r"000001\.jpg[\s\S]*no member",
    "deflate": r"000001\.jpg[\s\S]*undamaged",
    "long": r"000001\.jpg[\s\S]*536870912 bytes",
    "cut": "not a zip file",
    "empty": "not a zip file",
}


@pytest.mark.parametrize("how", FAULTS)
def test_what_is_broken_is_named_with_zip_and_member(tmp_path: Path, how: str) -> None:
    path = damaged(tmp_path / "images.zip", how)
    with pytest.raises(DataError, match=r"images\.zip") as caught:
        ZipFrames().read(path, ["000000.jpg", "000001.jpg"])
    assert caught.match(FAULTS[how])


@pytest.mark.usefixtures("settled")
def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    zips, before = ZipFrames(), open_files()
    with pytest.raises(DataError, match=r"gone\.zip: no such file"):
        zips.count(tmp_path / "gone.zip")
    os.mkfifo(tmp_path / "pipe.zip")
    for path in (tmp_path, tmp_path / "pipe.zip"):
        with pytest.raises(DataError, match=r"cannot be opened[\s\S]*no regular file"):
            zips.count(path)
    assert open_files() == before
    path = pack(tmp_path / "a.zip", frames(3))
    with pytest.raises(DataError, match=r"a\.zip: frame 000003\.jpg[\s\S]*3 pictures, 000000\.jpg to 000002\.jpg"):
        zips.read(path, ["000001.jpg", "000003.jpg"])
    for place in (-1, 3):
        with pytest.raises(DataError, match=f"number {place}"):
            zips.read(path, [0, place])
    with pytest.raises(DataError, match="no frame is asked for"):
        zips.read(path, [])
    with pytest.raises(DataError, match="no pictures"):
        zips.count(pack(tmp_path / "b.zip", {"a.txt": b""}))
    with pytest.raises(DataError, match="name of a frame"):
        zips.count(pack(tmp_path / "c.zip", {"a" * 600 + ".jpg": b""}))


def test_a_fault_is_not_remembered(tmp_path: Path) -> None:
    zips, path = ZipFrames(), tmp_path / "a.zip"
    for content in (None, b"no zip"):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(DataError):
            zips.count(path)
    pack(path, frames(2))
    assert zips.count(path) == 2


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "CMYK", "I;16"])
def test_pixels_are_those_of_pillow(kind: str, mode: str) -> None:
    assert decoder_name() == "torchvision"  # a dependency of timm: else this test compares Pillow with itself
    noise = np.random.default_rng(0).integers(0, 256, size=(33, 41, 3)).astype(np.uint8)
    picture = Image.fromarray(noise)
    picture = Image.fromarray(noise[..., 0].astype(np.uint16) * 200) if mode == "I;16" else picture.convert(mode)
    data = io.BytesIO()
    try:
        picture.save(data, kind, **({"quality": 90} if kind == "JPEG" else {}))
    except OSError:
        return  # JPEG has no palette, PNG no CMYK
    buffer = memoryview(bytearray(data.getvalue()))
    ours = decode_picture(buffer)
    assert ours.shape == (33, 41, 3) and ours.dtype == np.uint8 and (ours == decode_by_pillow(buffer)).all()


def test_natural_order() -> None:
    names = ["b1", "a10", "a2", "a", "10", "9", "a2b10", "a2b9", "a02"]
    assert sorted(names, key=zip_frames.natural_key) == ["9", "10", "a", "a02", "a2", "a2b9", "a2b10", "a10", "b1"]
