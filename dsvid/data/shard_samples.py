"""One video -> the tar members of one sample of packed shards: which frames, how large, how encoded.

The bytes depend on the video and the options only. Knows no shard and no index: see `shard_packing`.
"""

from __future__ import annotations

import io
import json
import math
import os
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from dsvid.data import augment
from dsvid.data.decode import ClipSource, PyavSource, open_clip_source, quiet_decoders, unreadable
from dsvid.data.decoder_choice import choose_decoder
from dsvid.data.guarded_work import GivenUp
from dsvid.data.manifest import Entry, Manifest
from dsvid.data.shards import FRAME, SAMPLE, Table, member_key
from dsvid.data.video_writer import open_writer
from dsvid.data.zip_packing import one_line, told
from dsvid.errors import DataError

CODECS = ("jpeg", "h264")
JPEG_QUALITY = 90
KEY_EVERY = 12  # frames: what a clip in the middle of a packed mp4 costs at most in frames that are thrown away
READ_BYTES = 256 << 20  # decoded pictures held at a time
MAX_FPS = 1000
SPARE_FPS = 25.0  # of an mp4 whose source says no rate; its frames keep their numbers
ROUNDING_S = 1e-9  # times are binary fractions: what is meant as a middle must not be decided by their last digits
BLOCK = tarfile.BLOCKSIZE
_MAX_MEMBER = (1 << 32) - 1


@dataclass(frozen=True)
class PackOptions:
    """How videos are packed; two packings with equal options and lists are equal byte for byte.

    `fps` None keeps every frame; `quality` is JPEG's, 0 where there is none (H.264 has its constant rate factor).
    """

    short_side: int = 256
    fps: float | None = None
    codec: str = "jpeg"
    quality: int | None = None
    shard_mb: int = 512
    decoder: str = "auto"
    frame_name: str = "img_{:05}.jpg"
    frame_start: int = 1

    def checked(self) -> PackOptions:
        """The same, with what was left open filled in. Raises DataError for values that make no sense."""
        if self.codec not in CODECS:
            raise DataError("--codec", found=self.codec, expected=" or ".join(CODECS))
        if self.codec == "h264" and self.quality not in (None, 0):
            raise DataError("--quality is JPEG's", found="--codec h264", fix="leave --quality out, or --codec jpeg")
        quality = 0 if self.codec == "h264" else JPEG_QUALITY if self.quality is None else self.quality
        for name, value, least, most in (
            ("--short-side", self.short_side, 16, 1 << 14),
            ("--quality", quality or int(self.codec == "h264"), 1, 100),
            ("--shard-mb", self.shard_mb, 1, 1 << 20),
        ):
            if not least <= value <= most:
                raise DataError(name, found=value, expected=f"{least} .. {most}")
        if self.fps is not None and not 0 < self.fps <= MAX_FPS:
            raise DataError("--fps", found=self.fps, expected=f"frames a second, more than 0, at most {MAX_FPS}")
        choose_decoder(self.decoder)
        return PackOptions(**{**asdict(self), "quality": quality})


@dataclass
class Sample:
    """A packed video: its tar members in one piece, its line of the index, offsets from the piece's start."""

    number: int
    row: Table
    rows: Table = field(default_factory=lambda: np.zeros(0, FRAME))
    data: bytes | bytearray = b""
    error: str = ""
    note: str = ""


@dataclass
class _Kept:
    """Which frames of a video are kept [K], their times in seconds (None: it has none), whose place they take."""

    frames: NDArray[np.int64]
    seconds: NDArray[np.float64] | None
    nearest_from: NDArray[np.int64]


def pack_sample(manifest: Manifest, options: PackOptions, number: int, *, scratch: str | None = None) -> Sample:
    """Read and encode one video; `scratch` is a folder for what is written on the way.

    What cannot be read is a sample with an `error`; nothing else is raised for it.
    """
    quiet_decoders()
    entry, sample = manifest[number], _empty_sample(manifest, number)
    decoder, _ = choose_decoder(options.decoder)
    try:
        with open_clip_source(entry, decoder, frame_name=options.frame_name, frame_start=options.frame_start) as source:
            _fill(sample, listed_path(manifest, number), entry, source, _Pictures(options, source.fps, scratch))
    except DataError as error:
        sample.error = one_line(error)
        sample.rows, sample.data = np.zeros(0, FRAME), b""
    return sample


def bad_sample(manifest: Manifest, number: int, why: GivenUp) -> Sample:
    """A video on which the work came to no end."""
    sample = _empty_sample(manifest, number)
    sample.error = told(manifest.path(number), why)
    return sample


def _empty_sample(manifest: Manifest, number: int) -> Sample:
    entry, sample = manifest[number], Sample(number, np.zeros(1, SAMPLE))
    sample.row[["shard", "label", "line"]] = (-1, entry.label, manifest.line_number(number))
    sample.row["source_bytes"] = source_bytes(entry)
    return sample


def listed_path(manifest: Manifest, number: int) -> str:
    """The path of an entry as the list has it: shards know nothing of where the list lay."""
    path = manifest.path(number)
    base = f"{manifest.base}{os.sep}"
    return path[len(base) :] if path.startswith(base) else path


def source_bytes(entry: Entry) -> int:
    """Bytes of a video or of a folder's pictures; 0 where it is not there."""
    try:
        if os.path.isdir(entry.path):
            return sum(item.stat().st_size for item in os.scandir(entry.path) if item.is_file())
        return os.stat(entry.path).st_size
    except (OSError, ValueError):
        return 0


def _fill(sample: Sample, path: str, entry: Entry, source: ClipSource, pictures: _Pictures) -> None:
    kept = _choose(entry, source, pictures.options.fps)
    encoded, missing = pictures.encode(source, kept)
    if len(missing) == len(kept.frames):
        raise DataError(next(iter(missing.values())))
    key = member_key(sample.number)
    about = {
        "path": path,
        "label": entry.label,
        "frames": source.frames,
        "fps": source.fps,
        "kept": kept.frames.tolist(),
        "seconds": None if kept.seconds is None else [round(second, 6) for second in kept.seconds.tolist()],
        "width": pictures.width,
        "height": pictures.height,
        "crc32": {name: f"{zlib.crc32(data):08x}" for name, data in encoded},
    }
    if missing:
        about["missing"] = {str(kept.frames[place]): cause for place, cause in missing.items()}
    if source.note:
        about["note"] = sample.note = source.note
    members = [("json", json.dumps(about, separators=(",", ":")).encode()), *encoded]
    sample.data, places = write_members(key, members)
    sample.rows = _frame_rows(kept, missing, encoded, places[1:])
    sample.row["frames"], sample.row["kept"], sample.row["fps"] = source.frames, len(kept.frames), source.fps or 0.0
    sample.row["height"], sample.row["width"] = pictures.height, pictures.width
    sample.row["size"] = len(sample.data)


def _frame_rows(kept: _Kept, missing: dict[int, str], encoded: list[tuple[str, bytes]], places: list[int]) -> Table:
    rows = np.zeros(len(kept.frames), FRAME)
    rows["nearest_from"] = kept.nearest_from
    there = [place for place in range(len(rows)) if place not in missing]
    facts = [(at, len(data), zlib.crc32(data)) for (_, data), at in zip(encoded, places, strict=True)]
    # an mp4 holds all of them
    for place, (offset, size, crc) in zip(there, facts * len(there) if len(facts) == 1 else facts, strict=True):
        rows[place]["offset"], rows[place]["size"], rows[place]["crc"] = offset, size, crc
    return rows


def write_members(key: str, members: list[tuple[str, bytes]]) -> tuple[bytearray, list[int]]:
    """Tar members `key.suffix` in one piece, and where in it the content of each begins."""
    out, places = bytearray(), []
    for suffix, data in members:
        if len(data) > _MAX_MEMBER:
            raise DataError(f"{key}.{suffix}: too large", found=f"{len(data)} bytes", expected=f"at most {_MAX_MEMBER}")
        info = tarfile.TarInfo(f"{key}.{suffix}")
        info.size = len(data)
        info.mode, info.mtime, info.uid, info.gid = 0o644, 0, 0, 0  # the same bytes whoever packs, and when
        out += info.tobuf(tarfile.USTAR_FORMAT)
        places.append(len(out))
        out += data
        out += bytes(-len(data) % BLOCK)
    return out, places


# ---- which frames --------------------------------------------------------------------------------------------------


def _choose(entry: Entry, source: ClipSource, fps: float | None) -> _Kept:
    every = np.arange(source.frames, dtype=np.int64)
    seconds = _seconds(entry, source)
    if fps is None:
        return _Kept(every, seconds, every)
    if seconds is None:
        raise DataError(f"{entry.path}: its pictures have no times", found=f"--fps {fps:g}", fix="pack without --fps")
    kept = thin(seconds, fps)
    return _Kept(kept, seconds[kept], nearest_from(seconds, kept))


def _seconds(entry: Entry, source: ClipSource) -> NDArray[np.float64] | None:
    """The time of each frame in seconds after the first; None for folders of pictures."""
    if os.path.isdir(entry.path):
        return None
    try:
        index = PyavSource(entry.path)
    except DataError:
        raise
    except Exception as error:  # av.error.*
        raise unreadable(entry.path, error) from error
    seconds = index.seconds()
    index.close()
    first = max(entry.start, 0) if entry.total > 0 else 0
    part: NDArray[np.float64] = seconds[first : first + source.frames]
    if len(part) != source.frames:
        raise DataError(f"{entry.path}: frames with times", found=len(part), expected=source.frames)
    part -= part[0]
    return part


def thin(seconds: NDArray[np.float64], fps: float) -> NDArray[np.int64]:
    """The numbers of the frames that are nearest to the times k / fps; of two that are equally near the earlier."""
    # how many of the k / fps lie up to the end of each frame's part of the time; a list of them could be of any length
    middles = (seconds[:-1] + seconds[1:]) / 2
    upto = np.append(np.floor((middles + ROUNDING_S) * fps), math.floor(float(seconds[-1]) * fps + 0.5)) + 1
    return np.flatnonzero(np.diff(upto, prepend=0) > 0)


def nearest_from(seconds: NDArray[np.float64], kept: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each kept frame [K] the first frame that it stands for: those up to the middle between two belong to the
    earlier.
    """
    return np.searchsorted(_nearest(seconds[kept], seconds), np.arange(len(kept)), side="left")


def _nearest(times: NDArray[np.float64], wanted: NDArray[np.float64]) -> NDArray[np.int64]:
    """The place in ascending `times` that is nearest to each wanted one."""
    middles = (times[:-1] + times[1:]) / 2
    return np.searchsorted(middles, wanted - ROUNDING_S, side="left")


# ---- pictures ------------------------------------------------------------------------------------------------------


class _Pictures:
    """Scales and encodes the pictures of one video; `height` and `width` are those that are written."""

    def __init__(self, options: PackOptions, fps: float | None, scratch: str | None) -> None:
        self.options, self._fps, self._scratch = options, fps or SPARE_FPS, scratch
        self._shape: tuple[int, ...] = ()
        self.height = self.width = 0

    def encode(self, source: ClipSource, kept: _Kept) -> tuple[list[tuple[str, bytes]], dict[int, str]]:
        """(suffix, bytes) of the members, and the places that could not be decoded, with their causes."""
        missing: dict[int, str] = {}
        pictures = self._scaled(source, kept.frames, missing)
        if self.options.codec == "jpeg":
            return [(f"{place:05}.jpg", self._jpeg(picture)) for place, picture in pictures], missing
        video = self._mp4(pictures, kept, missing)
        return ([("mp4", video)] if video else []), missing

    def _scaled(
        self, source: ClipSource, frames: NDArray[np.int64], missing: dict[int, str]
    ) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        for place, picture in enumerate(_read_all(source, frames)):
            if isinstance(picture, DataError):
                missing[place] = one_line(picture)
                continue
            if not self._shape:
                self._shape = picture.shape
                self.height, self.width = packed_size(picture.shape[0], picture.shape[1], self.options)
            if picture.shape != self._shape:
                raise DataError("pictures of different sizes", found=f"{picture.shape} and {self._shape}")
            yield place, augment.resize(torch.from_numpy(picture)[None], self.height, self.width)[0].numpy()

    def _jpeg(self, picture: NDArray[np.uint8]) -> bytes:
        out = io.BytesIO()
        try:
            Image.fromarray(picture).save(out, "JPEG", quality=self.options.quality)
        except (OSError, ValueError) as error:
            raise DataError(f"{self.width} x {self.height} pixels cannot be encoded as JPEG", found=error) from error
        return out.getvalue()

    def _mp4(self, pictures: Iterator[tuple[int, NDArray[np.uint8]]], kept: _Kept, missing: dict[int, str]) -> bytes:
        first = next(pictures, None)
        if first is None:
            return b""
        rate = self.options.fps or self._fps
        seconds = np.arange(len(kept.frames)) / rate if kept.seconds is None else kept.seconds
        with tempfile.TemporaryDirectory(dir=self._scratch) as folder:
            path = Path(folder) / "video.mp4"
            with open_writer(path, rate, self.width, self.height, key_every=KEY_EVERY, threads=1) as writer:
                writer.add(first[1], float(seconds[first[0]]))
                for place, picture in pictures:
                    writer.add(picture, float(seconds[place]))
            video = path.read_bytes()
        self._check(video, len(kept.frames) - len(missing))
        return video

    @staticmethod
    def _check(video: bytes, frames: int) -> None:
        index = PyavSource("the packed video", io.BytesIO(video))
        index.close()
        if index.frames != frames:
            raise DataError("the encoder lost frames", found=index.frames, expected=frames, fix="--codec jpeg")


def packed_size(height: int, width: int, options: PackOptions) -> tuple[int, int]:
    """(height, width) of a packed picture: as `augment.resize_short_side`, never larger; even for H.264."""
    short = min(height, width)
    if short > options.short_side:
        size = options.short_side
        height, width = (size, size * width // height) if height <= width else (size * height // width, size)
    if options.codec == "h264":
        height, width = height - height % 2, width - width % 2
    return height, width


def _read_all(source: ClipSource, frames: NDArray[np.int64]) -> Iterator[NDArray[np.uint8] | DataError]:
    """Every frame, or why it cannot be decoded; few are held at a time."""
    at, some = 0, 1
    while at < len(frames):
        wanted, at = frames[at : at + some], at + some
        for picture in _read_some(source, wanted):
            if not isinstance(picture, DataError):
                some = max(1, READ_BYTES // picture.nbytes)
            yield picture


def _read_some(source: ClipSource, frames: NDArray[np.int64]) -> Iterator[NDArray[np.uint8] | DataError]:
    try:
        yield from source.read(frames)
    except DataError as error:
        if len(frames) == 1:
            yield error
            return
        half = len(frames) // 2  # a damaged frame must not cost the others
        yield from _read_some(source, frames[:half])
        yield from _read_some(source, frames[half:])
