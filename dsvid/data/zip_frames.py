"""Frames in zip files, read where they lie: nothing is unpacked, few files are open, forked processes may share it.

A clip's `images.zip` holds its frames, stored or deflated. Central directories are kept as flat arrays (40 to 50 bytes
a frame); files are read by `pread`, so that no process moves another one's place in a file.
"""

from __future__ import annotations

import os
import re
import stat
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Generic, NoReturn, TypeVar

import numpy as np
from numpy.typing import NDArray

from dsvid.data.decode import FRAME_SUFFIXES
from dsvid.data.picture import PictureError, decode_picture
from dsvid.errors import DataError

OPEN_FILES, DIRECTORIES = 64, 4096  # kept by one process
MAX_MEMBER_BYTES = 1 << 28
MAX_NAME_BYTES = 512  # names lie in an array as wide as the longest
_HEADER = 30  # bytes of a local header before name and extra field
_SLACK = 64  # bytes guessed for the extra field: with it one read is enough
_DIGITS = re.compile(r"(\d+)")

Pixels = NDArray[np.uint8]
Kept = TypeVar("Kept")


class ZipFrames:
    """Reads frames of any number of zip files with at most `open_files` of them open and `directories` remembered.

    A file is looked at again when it is opened again; one that is replaced while it is open is read as it was.
    """

    def __init__(self, open_files: int = OPEN_FILES, directories: int = DIRECTORIES) -> None:
        self._limits = (open_files, directories)
        self._archives: _Recent[_Archive] = _Recent(open_files)
        self._directories: _Recent[_Directory] = _Recent(directories)

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy in another process opens its own files."""
        return ZipFrames, self._limits

    def names(self, archive: str | Path) -> tuple[str, ...]:
        """Names of all pictures in the zip in natural order (2 before 10). Raises DataError."""
        directory = self._open(archive).directory
        return tuple(name.decode() for name in directory.names.tolist())

    def count(self, archive: str | Path) -> int:
        """How many pictures the zip holds. Raises DataError."""
        return len(self._open(archive).directory)

    def read(self, archive: str | Path, frames: Sequence[str] | Sequence[int] | NDArray[np.int64]) -> Pixels:
        """Pictures by name, or by place in the natural order: uint8 RGB [T, H, W, 3], in the order asked for.

        Repeats are decoded once. Raises DataError with the zip and the member.
        """
        opened = self._open(archive)
        places = opened.places(frames)
        decoded = {place: opened.picture(place) for place in dict.fromkeys(places)}
        first = decoded[places[0]].shape
        for place, pixels in decoded.items():
            if pixels.shape != first:
                raise DataError(
                    f"{opened.path}: frame {opened.name(place)} differs in size from {opened.name(places[0])}",
                    found=f"{pixels.shape[1]} x {pixels.shape[0]} pixels",
                    expected=f"{first[1]} x {first[0]}: all frames of a clip have one size",
                )
        return np.stack([decoded[place] for place in places])

    def read_bytes(self, archive: str | Path, frame: str) -> memoryview:
        """A picture's bytes as they were before they were packed, the checksum verified. Raises DataError."""
        opened = self._open(archive)
        return opened.member(opened.places([frame])[0])

    def size(self, archive: str | Path, frame: str) -> int:
        """How many bytes a picture has before it is packed. Raises DataError."""
        opened = self._open(archive)
        return int(opened.directory.size[opened.places([frame])[0]])

    def close(self) -> None:
        """Close what is open; the next read opens it again."""
        self._archives.clear()
        self._directories.clear()

    def _open(self, archive: str | Path) -> _Archive:
        path = str(archive)
        return self._archives.get(path, lambda: self._open_anew(path))

    def _open_anew(self, path: str) -> _Archive:
        file = _OpenFile(path)
        facts = os.fstat(file.handle)
        key = (path, facts.st_ino, facts.st_size, facts.st_mtime_ns)
        return _Archive(file, self._directories.get(key, lambda: _read_directory(file)))


class _Recent(Generic[Kept]):
    """The values used last. What falls out is freed when its last user is done with it, so threads need no lock."""

    def __init__(self, limit: int) -> None:
        self._limit = max(1, limit)
        self._kept: OrderedDict[object, Kept] = OrderedDict()

    def get(self, key: object, make: Callable[[], Kept]) -> Kept:
        try:
            value = self._kept[key]
            self._kept.move_to_end(key)
        except KeyError:  # also where another thread has pushed it out between the two lines
            value = self._kept[key] = make()
            while len(self._kept) > self._limit:
                self._kept.popitem(last=False)
        return value

    def clear(self) -> None:
        self._kept.clear()


def write_zip(out: BinaryIO, members: Iterable[tuple[str, bytes]]) -> None:
    """A zip of stored members in the order given; the same bytes for the same members."""
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as content:
        for name, data in members:
            info = zipfile.ZipInfo(name)  # its time is 1980
            info.create_system, info.external_attr = 3, 0o644 << 16
            content.writestr(info, data)


# ---- one zip -------------------------------------------------------------------------------------------------------


class _OpenFile:
    """A file handle that is closed with its last user."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.handle = -1
        try:
            # without waiting: a pipe has a writer some day, or never
            self.handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError as error:
            raise DataError(f"{path}: no such file", expected="a zip file of frames") from error
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            raise DataError(f"{path}: cannot be opened", found=error, expected="a zip file of frames") from error
        if not stat.S_ISREG(os.fstat(self.handle).st_mode):
            raise DataError(f"{path}: cannot be opened", found="no regular file", expected="a zip file of frames")

    def __del__(self) -> None:
        if self.handle >= 0:
            os.close(self.handle)

    def read_into(self, buffer: bytearray | memoryview, offset: int) -> int:
        """Fill the buffer from a place in the file; returns how many bytes there were."""
        view, got = memoryview(buffer), 0
        try:
            while got < len(view) and (more := os.preadv(self.handle, [view[got:]], offset + got)) > 0:
                got += more
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read", found=error.strerror or error) from error
        return got


class _Directory:
    """The pictures of a zip in natural order: arrays [n] of names, header offsets, sizes, checksums, how packed."""

    def __init__(self, members: Sequence[zipfile.ZipInfo]) -> None:
        self.names = np.array([member.filename.encode() for member in members], dtype=np.bytes_)
        self.by_name = np.argsort(self.names, kind="stable").astype(np.int32)
        self.offset = np.array([member.header_offset for member in members], dtype=np.int64)
        self.packed = np.array([member.compress_size for member in members], dtype=np.int64)
        self.size = np.array([member.file_size for member in members], dtype=np.int64)
        self.crc = np.array([member.CRC for member in members], dtype=np.uint32)
        self.method = np.array([member.compress_type for member in members], dtype=np.uint16)
        self.encrypted = np.array([bool(member.flag_bits & 1) for member in members], dtype=bool)

    def __len__(self) -> int:
        return len(self.names)

    def places(self, names: Sequence[str]) -> NDArray[np.int64]:
        """Where the names are [T], -1 for those that are not."""
        wanted = np.array([name.encode() for name in names], dtype=np.bytes_)
        found = np.minimum(np.searchsorted(self.names, wanted, sorter=self.by_name), len(self) - 1)
        places = self.by_name[found].astype(np.int64)
        return np.where(self.names[places] == wanted, places, -1)


def _read_directory(file: _OpenFile) -> _Directory:
    try:
        # the handle's own place is moved here only, right after it was opened: forks and threads read by position
        with open(file.handle, "rb", closefd=False) as handle, zipfile.ZipFile(handle) as content:
            members = content.infolist()
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError, EOFError) as error:
        raise DataError(f"{file.path}: not a zip file", found=error, expected="a zip file of frames") from error
    # of two members of one name the last counts, as everywhere
    pictures = {member.filename: member for member in members if is_picture(member.filename)}
    if not pictures:
        raise DataError(f"{file.path}: no pictures in the zip", found=f"{len(members)} members",
                        expected=", ".join(sorted(FRAME_SUFFIXES)))  # fmt: skip
    longest = max(pictures, key=len)
    if len(longest.encode()) > MAX_NAME_BYTES:
        raise DataError(f"{file.path}: name of a frame", found=f"{longest[:60]}… of {len(longest)} letters",
                        expected=f"at most {MAX_NAME_BYTES} bytes")  # fmt: skip
    return _Directory([pictures[name] for name in sorted(pictures, key=natural_key)])


def natural_key(name: str) -> tuple[list[str | int], str]:
    """Key of the natural order: numbers inside of a name count as numbers."""
    parts = _DIGITS.split(name)
    return [int(part) if place % 2 else part for place, part in enumerate(parts)], name


def is_picture(name: str) -> bool:
    """Whether a member or a file is one of the frames, by its name."""
    stem, dot, suffix = name.rpartition("/")[2].rpartition(".")
    # a Mac's zip has a shadow `__MACOSX/._a.jpg` of every picture
    return bool(stem and dot) and f".{suffix.lower()}" in FRAME_SUFFIXES and not stem.startswith("._")


class _Archive:
    """An open zip and its directory."""

    def __init__(self, file: _OpenFile, directory: _Directory) -> None:
        self._file = file
        self.path = file.path
        self.directory = directory

    def name(self, place: int) -> str:
        return str(self.directory.names[place].decode())

    def places(self, frames: Sequence[str] | Sequence[int] | NDArray[np.int64]) -> list[int]:
        """Places in the directory of frames given by name or by place."""
        if not len(frames):
            raise DataError(f"{self.path}: no frame is asked for", expected="at least one")
        if isinstance(frames[0], str):
            names = [str(frame) for frame in frames]
            found = self.directory.places(names)
            if found.min() < 0:
                self._refuse(names[int(np.argmin(found))], "not in the zip", f"one of its {self._known()}")
            return [int(place) for place in found]
        places = [int(frame) for frame in frames]
        if min(places) < 0 or max(places) >= len(self.directory):
            wrong = min(places) if min(places) < 0 else max(places)
            self._refuse(f"number {wrong}", "not in the zip", f"0 .. {len(self.directory) - 1}, of its {self._known()}")
        return places

    def _known(self) -> str:
        count = len(self.directory)
        return f"{count} pictures, {self.name(0)} to {self.name(count - 1)}"

    def picture(self, place: int) -> Pixels:
        data = self.member(place)
        try:
            return decode_picture(data)
        except PictureError as error:
            self._refuse(self.name(place), str(error), "a whole JPEG or PNG", error)

    def member(self, place: int) -> memoryview:
        directory, name = self.directory, self.name(place)
        if directory.encrypted[place]:
            self._refuse(name, "it is encrypted", "a zip without a password")
        method = int(directory.method[place])
        if method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            kind = zipfile.compressor_names.get(method, "unknown")  # type: ignore[attr-defined]
            self._refuse(name, f"packed by method {method} ({kind})", "stored or deflated members")
        packed, size = int(directory.packed[place]), int(directory.size[place])
        if max(packed, size) > MAX_MEMBER_BYTES:
            self._refuse(name, f"{max(packed, size)} bytes", f"at most {MAX_MEMBER_BYTES}")
        data = self._packed(place, name, packed)
        if method == zipfile.ZIP_DEFLATED:
            data = self._inflate(name, data, size)
        if len(data) != size or zlib.crc32(data) != int(directory.crc[place]):
            self._refuse(name, "its checksum is wrong", "the bytes that were packed: the file is damaged")
        return data

    def _packed(self, place: int, name: str, packed: int) -> memoryview:
        offset = int(self.directory.offset[place])
        buffer = bytearray(_HEADER + len(name.encode()) + _SLACK + packed)
        got = self._file.read_into(buffer, offset)
        start = _HEADER + int.from_bytes(buffer[26:28], "little") + int.from_bytes(buffer[28:30], "little")
        if got < _HEADER or buffer[:4] != b"PK\3\4":
            self._refuse(name, "no member where the directory says", "an undamaged zip file")
        if start + packed > len(buffer):  # a long extra field
            buffer = bytearray(start + packed)
            got = self._file.read_into(buffer, offset)
        if got < start + packed:
            self._refuse(name, "the file ends inside of it", "an undamaged zip file")
        return memoryview(buffer)[start : start + packed]

    def _inflate(self, name: str, data: memoryview, size: int) -> memoryview:
        try:
            whole = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, size + 1)
        except zlib.error as error:
            self._refuse(name, str(error), "an undamaged zip file", error)
        return memoryview(bytearray(whole))

    def _refuse(self, name: str, found: str, expected: str, cause: Exception | None = None) -> NoReturn:
        raise DataError(f"{self.path}: frame {name}", found=found, expected=expected) from cause
