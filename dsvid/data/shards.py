"""Packed shards, read: what `shard_packing` writes, as a list of samples and as open videos. Writes nothing.

A folder holds `shard-000000.tar`, ... in WebDataset's layout and the index: `index.json` (what was packed and how, the
bytes of every shard, the hash of every index file), `samples.npy` (a SAMPLE a line of the list), `frames.npy` (a FRAME
a kept frame), `paths.txt` (a path a line), `bad.jsonl` (the samples that could not be read, with their causes).
Shards and `frames.npy` are memory-mapped: forks share the maps, a copy in another process opens its own.
"""

from __future__ import annotations

import hashlib
import io
import mmap
import os
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from dsvid.data.decode import PyavSource, unreadable
from dsvid.data.manifest import Entry, Manifest
from dsvid.data.picture import PictureError, decode_picture, jpeg_size
from dsvid.documents import DocumentError, parse_json, read_text
from dsvid.errors import DataError

FORMAT, VERSION = "dsvid-shards", 1
INDEX, SAMPLES, FRAMES, PATHS, BAD = "index.json", "samples.npy", "frames.npy", "paths.txt", "bad.jsonl"
UNFINISHED = "packing.json"  # stands in the folder while it is being filled
OPEN_SHARDS = 128  # maps kept by one process; each holds a file handle
MAX_INDEX_BYTES = 64 << 20
AGAIN = "dsvid data pack LIST OUT"
ANEW = "copy it again, or remove the folder and pack anew"

# A sample: `shard` (-1: it could not be read), `frames` and `fps` (0: unknown) of the source, `kept` frames from place
# `first` of frames.npy on, `rows_crc` the CRC-32 of those, [offset, offset + size) its members with their headers.
SAMPLE = np.dtype([
    ("shard", "<i4"), ("label", "<i4"), ("line", "<i4"), ("frames", "<i4"), ("kept", "<i4"), ("height", "<i4"),
    ("width", "<i4"), ("rows_crc", "<u4"), ("fps", "<f8"), ("first", "<i8"), ("offset", "<i8"), ("size", "<i8"),
    ("source_bytes", "<i8"),
])  # fmt: skip
# A kept frame: place, size (0: it could not be decoded) and CRC-32 of the member that holds it, and the first frame of
# the source to which none is nearer in time.
FRAME = np.dtype([("offset", "<i8"), ("size", "<u4"), ("crc", "<u4"), ("nearest_from", "<i4")])

Table = NDArray[np.void]
Pixels = NDArray[np.uint8]


def shard_name(shard: int) -> str:
    """The file name of a shard."""
    return f"shard-{shard:06}.tar"


def member_key(sample: int) -> str:
    """What the names of a sample's members start with."""
    return f"{sample:09}"


def is_packed(folder: Path) -> bool:
    """Whether a folder holds packed shards, whole or not. Raises DataError where the packing was not finished."""
    if (folder / INDEX).is_file():
        if (folder / SAMPLES).is_file():
            return True
        try:
            about = _document(folder / INDEX)
        except DataError:
            return False  # another program's file of that name
        return isinstance(about, dict) and about.get("format") == FORMAT
    if (folder / UNFINISHED).is_file():
        raise DataError(f"{folder}: its packing was not finished", fix=f"go on with the same call of {AGAIN}")
    return False


def open_shards(folder: str | Path) -> ShardFolder:
    """The packed shards of a folder; the same object while the folder does not change.

    Raises DataError where the index or a shard is missing, damaged or of another version.
    """
    path = os.path.abspath(folder)
    try:
        facts = os.stat(os.path.join(path, INDEX))
    except OSError as error:
        raise DataError(f"{path}: no packed shards", found=f"{INDEX}: {error.strerror}", fix=AGAIN) from error
    return _opened(path, facts.st_ino, facts.st_size, facts.st_mtime_ns)


@lru_cache(maxsize=8)
def _opened(folder: str, *_: int) -> ShardFolder:
    return ShardFolder(Path(folder))


class ShardFolder:
    """The index of packed shards, and the bytes of their members. `sha256` is that of index.json."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.about = read_about(folder)
        self.sha256 = hashlib.sha256((folder / INDEX).read_bytes()).hexdigest()
        self.codec = str(self.about["options"]["codec"])
        for shard, size in enumerate(self.about["shards"]):
            self._check_shard(shard, size)
        samples = np.load(io.BytesIO(self._verified(SAMPLES)), allow_pickle=False)
        self.samples: Table = samples
        self.frames: Table = self._map_frames()
        self._paths = self._verified(PATHS)
        self._path_ends = np.flatnonzero(np.frombuffer(self._paths, np.uint8) == ord("\n"))
        lines = self._verified(BAD).decode().splitlines()
        self.bad: dict[int, str] = {entry["sample"]: entry["error"] for entry in map(parse_json, lines)}
        self._check_tables()
        self._maps: OrderedDict[int, mmap.mmap] = OrderedDict()

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy in another process maps the files itself."""
        return open_shards, (str(self.folder),)

    def __len__(self) -> int:
        return len(self.samples)

    def manifest(self) -> Manifest:
        """The samples as a list: labels and paths as the packed list had them; sample i is entry i."""
        manifest = Manifest(str(self.folder), self.sha256, Path())
        manifest.packed = str(self.folder)
        labels, lines = self.samples["label"].tolist(), self.samples["line"].tolist()
        for sample, (label, line) in enumerate(zip(labels, lines, strict=True)):
            manifest.append(Entry(self.path(sample), label, 0, -1, "packed"), line)
        return manifest

    def path(self, sample: int) -> str:
        """The path of a sample's source, as the packed list had it."""
        start = int(self._path_ends[sample - 1]) + 1 if sample else 0
        return self._paths[start : int(self._path_ends[sample])].decode()

    def rows(self, sample: int) -> Table:
        """FRAME [kept] of a sample. Raises DataError where they are damaged."""
        about = self.samples[sample]
        rows = self.frames[about["first"] : about["first"] + about["kept"]]
        if zlib.crc32(rows.tobytes()) != about["rows_crc"]:
            raise DataError(f"{self.folder / FRAMES}: damaged", found=f"the checksum of sample {sample} is wrong",
                            fix=ANEW)  # fmt: skip
        return rows

    def shard_of(self, sample: int) -> memoryview:
        """The mapped shard of a sample; it stays mapped while this view is there. Raises DataError."""
        return memoryview(self._map(int(self.samples[sample]["shard"])))

    def member(self, shard: memoryview, sample: int, suffix: str, offset: int, size: int, crc: int) -> memoryview:
        """The bytes of a member, in a buffer of their own, their checksum verified. Raises DataError."""
        if offset < 0 or offset + size > len(shard):
            self.refuse(sample, suffix, "it ends behind the shard's end")
        # a copy: decoders want a buffer that may be written to, and a map of that kind would be charged as memory
        data = bytearray(shard[offset : offset + size])
        if zlib.crc32(data) != crc:
            self.refuse(sample, suffix, "its checksum is wrong: the shard is damaged")
        return memoryview(data)

    def refuse(self, sample: int, suffix: str, found: object, cause: Exception | None = None) -> NoReturn:
        """Raise the DataError of a member."""
        shard = self.folder / shard_name(int(self.samples[sample]["shard"]))
        raise DataError(
            f"{shard}: {member_key(sample)}.{suffix} ({self.path(sample)})",
            found=found,
            expected="the bytes that were packed",
            fix=ANEW,
        ) from cause

    def _map(self, shard: int) -> mmap.mmap:
        opened = self._maps.get(shard)
        if opened is not None:
            self._maps.move_to_end(shard)
        else:
            path = self._check_shard(shard, self.about["shards"][shard])
            try:
                with path.open("rb") as handle:
                    opened = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
            except (OSError, ValueError) as error:
                raise DataError(f"{path}: cannot be read", found=error) from error
            self._maps[shard] = opened
            while len(self._maps) > OPEN_SHARDS:
                self._maps.popitem(last=False)  # unmapped with its last user
        return opened

    def _check_shard(self, shard: int, size: int) -> Path:
        path = self.folder / shard_name(shard)
        try:
            found = path.stat().st_size
        except OSError as error:
            raise DataError(f"{path}: a shard is missing", found=error.strerror, expected=f"{size} bytes",
                            fix=ANEW) from error  # fmt: skip
        if found != size:
            raise DataError(f"{path}: not the shard that was packed", found=f"{found} bytes", expected=f"{size} bytes",
                            fix=ANEW)  # fmt: skip
        return path

    def _verified(self, name: str) -> bytes:
        """The content of an index file."""
        path, about = self.folder / name, self.about["files"][name]
        try:
            content = path.read_bytes()
        except OSError as error:
            raise DataError(f"{path}: cannot be read", found=error.strerror, fix=AGAIN) from error
        if hashlib.sha256(content).hexdigest() != about["sha256"]:
            raise DataError(f"{path}: damaged, or of another packing", found=f"{len(content)} bytes of another hash",
                            expected=f"what {INDEX} says", fix=ANEW)  # fmt: skip
        return content

    def _map_frames(self) -> Table:
        path, about = self.folder / FRAMES, self.about["files"][FRAMES]
        try:
            if path.stat().st_size != about["bytes"]:
                raise ValueError(f"{path.stat().st_size} bytes, {about['bytes']} expected")
            # an empty array cannot be mapped, but then there is no index either: one sample at least was readable
            frames: Table = np.load(path, mmap_mode="r", allow_pickle=False).view(np.ndarray)  # its slices cost less
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: damaged", found=error, fix=ANEW) from error
        return frames

    def _check_tables(self) -> None:
        samples, frames = self.samples, self.frames
        sound = samples.dtype == SAMPLE and frames.dtype == FRAME and samples.ndim == frames.ndim == 1
        if sound:
            ends = samples["first"] + samples["kept"]
            sound = bool((samples["first"] >= 0).all() and (samples["kept"] >= 0).all() and (ends <= len(frames)).all()
                         and (samples["shard"] < len(self.about["shards"])).all()
                         and set(np.flatnonzero(samples["shard"] < 0).tolist()) == self.bad.keys()
                         and len(self._path_ends) == len(samples))  # fmt: skip
        if not sound:
            raise DataError(f"{self.folder}: the files of the index do not fit each other", fix=AGAIN)


def read_about(folder: Path) -> dict[str, Any]:
    """index.json of packed shards. Raises DataError where it is none, or of another version."""
    path = folder / INDEX
    about = _document(path)
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise DataError(f"{path}: not the index of packed shards", expected=f'"format": "{FORMAT}"', fix=AGAIN)
    if about.get("version") != VERSION:
        raise DataError(f"{path}: packed by another version of dsvid", found=f"version {about.get('version')!r}",
                        expected=f"version {VERSION}", fix=f"{AGAIN} into an empty folder")  # fmt: skip
    try:
        whole = isinstance(about["options"]["codec"], str) and all(isinstance(size, int) for size in about["shards"])
        whole = whole and all(about["files"][name]["sha256"] for name in (SAMPLES, PATHS, BAD))
        whole = whole and isinstance(about["files"][FRAMES]["bytes"], int)
    except (KeyError, TypeError):
        whole = False
    if not whole:
        raise DataError(f"{path}: entries are missing", expected="options, shards, files", fix=AGAIN)
    return about


def _document(path: Path) -> Any:
    try:
        return parse_json(read_text(path, MAX_INDEX_BYTES))
    except (OSError, DocumentError) as error:
        raise DataError(f"{path}: cannot be read", found=error, expected="an index of packed shards") from error


# ---- one video -----------------------------------------------------------------------------------------------------


class PackedSource:
    """A packed video as `decode.ClipSource`: frame numbers, `frames` and `fps` are those of the source.

    Raises DataError with the recorded cause for a sample that could not be read when it was packed.
    """

    note: str | None = None

    def __init__(self, folder: ShardFolder, sample: int) -> None:
        self._folder, self._sample = folder, sample
        if sample in folder.bad:
            raise DataError(f"{folder.path(sample)}: could not be read when it was packed", found=folder.bad[sample])
        about = folder.samples[sample]
        self.frames = int(about["frames"])
        self.fps = float(about["fps"]) or None
        self._size = (int(about["height"]), int(about["width"]), 3)
        self._rows = folder.rows(sample)
        self._video: PyavSource | None = None

    def read(self, indices: Sequence[int] | NDArray[np.int64]) -> Pixels:
        """The pictures nearest in time to frames of the source, uint8 [T, H, W, 3]. Raises DataError."""
        places = self._places(indices)
        return self._read_jpeg(places) if self._folder.codec == "jpeg" else self._read_video(places)

    def jpegs(self, indices: Sequence[int] | NDArray[np.int64]) -> list[memoryview]:
        """The same pictures compressed, their checksums and sizes verified; one that is shown again is the same object.

        For shards of codec jpeg. Raises DataError.
        """
        places = self._places(indices)
        shard = self._folder.shard_of(self._sample)
        found: dict[int, memoryview] = {}
        for place, row in zip(places.tolist(), self._rows[places].tolist(), strict=True):
            if place not in found:
                suffix = f"{place:05}.jpg"
                found[place] = self._folder.member(shard, self._sample, suffix, *row[:3])
                width, height = jpeg_size(found[place])
                if (height, width, 3) != self._size:
                    self._folder.refuse(self._sample, suffix, f"a picture of {height} x {width}, not {self._size}")
        return [found[place] for place in places.tolist()]

    def _places(self, indices: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
        """The kept frames nearest in time to frames of the source. Raises DataError where one is not there."""
        wanted = np.asarray(indices, dtype=np.int64)
        if len(wanted) == 0 or int(wanted.min()) < 0 or int(wanted.max()) >= self.frames:
            path = self._folder.path(self._sample)
            raise DataError(f"{path}: frames {wanted.tolist()} of a video of {self.frames} frames")
        places = wanted
        if len(self._rows) < self.frames:
            places = np.searchsorted(self._rows["nearest_from"], wanted, side="right") - 1
        if not self._rows["size"][places].all():
            gone = places[self._rows["size"][places] == 0].tolist()
            raise DataError(f"{self._folder.path(self._sample)}: frames that could not be decoded when it was packed",
                            found=f"kept frames {gone}")  # fmt: skip
        return places

    def _read_jpeg(self, places: NDArray[np.int64]) -> Pixels:
        pictures = np.empty((len(places), *self._size), dtype=np.uint8)
        shard = self._folder.shard_of(self._sample)
        done: dict[int, int] = {}
        for to, (place, row) in enumerate(zip(places.tolist(), self._rows[places].tolist(), strict=True)):
            earlier = done.setdefault(place, to)
            pictures[to] = self._picture(shard, place, *row[:3]) if earlier == to else pictures[earlier]
        return pictures

    def _picture(self, shard: memoryview, place: int, offset: int, size: int, crc: int) -> Pixels:
        suffix = f"{place:05}.jpg"
        try:
            picture = decode_picture(self._folder.member(shard, self._sample, suffix, offset, size, crc))
        except PictureError as error:
            self._folder.refuse(self._sample, suffix, error, error)
        if picture.shape != self._size:
            self._folder.refuse(self._sample, suffix, f"a picture of shape {picture.shape}, not {self._size}")
        return picture

    def _read_video(self, places: NDArray[np.int64]) -> Pixels:
        # frames that could not be decoded are not in the video
        inside = np.cumsum(self._rows["size"] > 0) - 1
        if self._video is None:
            shard = self._folder.shard_of(self._sample)
            data = self._folder.member(shard, self._sample, "mp4", *self._rows[places[0]].item()[:3])
            name = f"{self._folder.folder}: {member_key(self._sample)}.mp4"
            try:
                self._video = PyavSource(name, io.BytesIO(data))
            except DataError:
                raise
            except Exception as error:  # av.error.*
                raise unreadable(name, error) from error
        return self._video.read(inside[places])

    def close(self) -> None:
        """Free the decoder, where there is one."""
        if self._video is not None:
            self._video.close()


def open_packed(entry: Entry) -> PackedSource:
    """The video of an entry that `ShardFolder.manifest` made. Raises DataError."""
    return PackedSource(open_shards(entry.shards), entry.start)
