"""One interface over decord, torchcodec, PyAV and folders of frames: frame number i is the same picture from each.

Frame numbers count the frames of FFmpeg's best video stream (default flag, then most frames probed, then bit rate) in
display order. Where decord or torchcodec would give other frames than asked for (`_why_not`), PyAV reads the file and
says so. Sources are opened for one clip and closed: an idle decord reader keeps decoding ahead. Pictures are turned as
quarter turns of the rotation tag say, which the other two do by themselves.
"""

from __future__ import annotations

import importlib
import os
import re
from bisect import bisect_right
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from dsvid.data.manifest import Entry
from dsvid.errors import DataError

Frames = NDArray[np.uint8]
ON_GPU = "torchcodec_cuda"
TORCHCODEC = ("torchcodec", ON_GPU)
_SOUND_CONTAINERS = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")
_PLAIN_PIXELS = ("yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "yuv444p", "yuvj444p", "gray")
# whose decoder can leave out frames that no other one refers to; HEVC's asks within a temporal layer only
_SKIPPING_CODEC = "h264"
_SEEKING = (*_SOUND_CONTAINERS, "avi", "flv")  # containers in which a seek lands where it should
_REWINDING = (*_SEEKING, "mpegts", "mpeg")  # and those in which one lands at the start at least
_MOST_KEYS_BACK = 4  # key frames before the one that a frame should follow
DEFAULT_FPS = 25.0  # of files that say nothing of time
FRAME_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".webp"))
_BUILD_PLACE = re.compile(r"\[\d\d:\d\d:\d\d\] \S+:\d+: ")  # decord puts time and source line of its own build first
_PLAYLISTS = (b"#EXTM3U", b"ffconcat", b"[playlist]", b"<?xml", b"<MPD")


class ClipSource(Protocol):
    """An open video: `frames` it has, `fps` (None = unknown), `note` (None, or why another decoder was taken)."""

    frames: int
    fps: float | None

    @property
    def note(self) -> str | None: ...

    def read(self, indices: Sequence[int] | NDArray[np.int64]) -> Frames:
        """Pictures of the given frame numbers, uint8 [T, H, W, 3], in the order asked for, repeats allowed."""


class _Source(ClipSource, Protocol):
    def close(self) -> None: ...


def import_decord() -> Any:
    """The module, of decord or of its fork decord2. Raises whatever a wheel for another platform raises."""
    return importlib.import_module("decord")


def import_torchcodec() -> Any:
    """The module of its decoders. Raises whatever it raises without FFmpeg's libraries."""
    return importlib.import_module("torchcodec.decoders")


def quiet_decoders() -> None:
    """Silence FFmpeg's own lines about damaged files: the errors raised here name file and cause."""
    with suppress(Exception):  # absent or for another platform: then there is nothing to silence
        decord = import_decord()
        decord.logging.set_level(decord.logging.QUIET)
    with suppress(Exception):
        import av

        av.logging.set_level(None)


@contextmanager
def open_clip_source(
    entry: Entry, decoder: str, *, frame_name: str = "img_{:05}.jpg", frame_start: int = 1
) -> Iterator[ClipSource]:
    """Open the video or the frame folder of an entry. Raises DataError with path and cause, here and in `read`."""
    try:
        source = _open(entry, decoder, frame_name, frame_start)
    except DataError:
        raise
    except Exception as error:  # decoders raise DECORDError, RuntimeError, av.error.*, ValueError, ...
        raise unreadable(entry.path, error) from error
    try:
        yield _Guarded(source, entry.path)
    finally:
        source.close()


class _Guarded:
    """A source whose `read` raises nothing but DataError."""

    def __init__(self, source: _Source, path: str) -> None:
        self._source = source
        self._path = path
        self.frames = source.frames
        self.fps = source.fps

    @property
    def note(self) -> str | None:
        return self._source.note

    def read(self, indices: Sequence[int] | NDArray[np.int64]) -> Frames:
        try:
            return self._source.read(indices)
        except DataError:
            raise
        except Exception as error:
            raise unreadable(self._path, error) from error


def _open(entry: Entry, decoder: str, frame_name: str, frame_start: int) -> _Source:
    if entry.kind == "packed":
        from dsvid.data import shards  # which imports this module

        return shards.open_packed(entry)
    path = entry.path
    if "\0" in path or not os.path.exists(path):
        raise DataError(
            f"{path}: no such file or folder",
            expected="a video or a folder of frames; relative paths start from the list's folder or data.root",
        )
    if os.path.isdir(path):
        return _FolderSource(entry, frame_name, frame_start)
    if entry.kind == "frames" and entry.total > 0:
        raise DataError(f"{path}: a file where the list promises a folder of frames")
    refuse_by_first_bytes(path)
    source = PyavSource(path) if decoder == "pyav" else _open_native(path, decoder)
    if entry.total > 0:
        return _Part(source, entry)
    return source


def refuse_by_first_bytes(path: str) -> None:
    # FFmpeg would follow a playlist to other files and hosts, and a text file costs it seconds of probing
    with open(path, "rb") as handle:
        first = handle.read(64)
    if not first:
        raise DataError(f"{path}: the file is empty (0 bytes)")
    if first.lstrip(b"\xef\xbb\xbf \r\n\t").startswith(_PLAYLISTS):
        raise DataError(f"{path}: a playlist is not a video", expected="a file that holds the video itself")


def unreadable(path: str, error: Exception) -> DataError:
    return DataError(f"{path}: cannot be decoded", found=f"{type(error).__name__}: {_first_line(error)}")


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return _BUILD_PLACE.sub("", lines[0])[:300] if lines else "no message"


def check_range(indices: NDArray[np.int64], frames: int, path: str) -> None:
    """Raise DataError for frame numbers that a video does not have, or for none."""
    if len(indices) == 0 or int(indices.min()) < 0 or int(indices.max()) >= frames:
        raise DataError(f"{path}: frames {indices.tolist()} of a video of {frames} frames")


# ---- decord --------------------------------------------------------------------------------------------------------


class _DecordSource:
    note: str | None = None

    def __init__(self, path: str, reader: Any) -> None:
        self.path = path
        self._reader = reader
        self._other: PyavSource | None = None
        self.frames = len(reader)
        fps = float(reader.get_avg_fps())
        self.fps = fps if 0 < fps < 1e4 else None

    def read(self, indices: Sequence[int] | NDArray[np.int64]) -> Frames:
        wanted = np.asarray(indices, dtype=np.int64)
        check_range(wanted, self.frames, self.path)
        if self._other is None:
            try:
                pictures: Frames = self._reader.get_batch(wanted).asnumpy()
                return pictures
            except Exception as error:
                if "from_size == to_size" not in str(error):
                    raise
            # decord 0.6.0 cannot copy out pictures of some widths (48, 72, ... pixels)
            self.note = "read by PyAV, because decord cannot read pictures of this width"
            self._other = PyavSource(self.path)
        return self._other.read(wanted)

    def close(self) -> None:
        self._reader = None
        if self._other is not None:
            self._other.close()


def _open_native(path: str, decoder: str) -> _Source:
    """By decord or torchcodec; by PyAV, with a note, where they would give other frames or none."""
    facts = os.stat(path)
    reason = _why_not(decoder, path, facts.st_size, facts.st_mtime_ns)
    if reason is None:
        try:
            if decoder in TORCHCODEC:
                from dsvid.data.torchcodec_source import TorchcodecSource  # which imports this module

                return TorchcodecSource(path, decoder)
            decord = import_decord()
            return _DecordSource(path, decord.VideoReader(path, ctx=decord.cpu(0), num_threads=1))
        except Exception as error:  # for example a codec younger than decord's FFmpeg 4.1 (AV1)
            reason = f"{decoder} cannot open it ({_first_line(error)})"
    other = PyavSource(path)
    other.note = f"read by PyAV, because {reason}"
    return other


@lru_cache(maxsize=1 << 16)
def _why_not(decoder: str, path: str, size: int, modified_ns: int) -> str | None:
    """Why a decoder would give wrong frames of a file, or None; `size` and `modified_ns` only tell a replaced file.

    decord takes the place of a key frame among the packets for its frame number, and trusts every time stamp: measured
    wrong frames are 23 of 96 with open groups of pictures, 84 of 96 for H.264 in AVI, 350 of 400 in MPEG-TS (of
    torchcodec there 217 of 384).
    """
    index = PyavSource(path)
    try:
        return index.why_not(decoder)
    finally:
        index.close()


# ---- PyAV ----------------------------------------------------------------------------------------------------------


class PyavSource:
    """Index of presentation times from the packets, then seek to a key frame and decode up to the frames wanted."""

    note: str | None = None

    def __init__(self, path: str, file: BinaryIO | None = None) -> None:
        """Open the video at `path`; of an open `file` the path is for messages only."""
        import av

        self.path = path
        self._file = file
        self._container = av.open(path if file is None else file)
        try:
            stream = self._container.streams.best("video")
            if stream is None:
                raise DataError(f"{path}: no video stream", found="audio or data only")
            self._stream: Any = stream
            self._stream.codec_context.thread_count = 1
            self._index()
        except BaseException:
            self._container.close()
            raise

    def _index(self) -> None:
        times: list[int | None] = []
        keys: dict[int, int] = {}  # time of a key frame -> its place among the packets
        hidden = 0  # by an edit list
        latest, self.reordered = -(1 << 63), 0  # frames that are stored after one that is shown later
        for packet in self._container.demux(self._stream):
            if packet.size == 0 or packet.is_discard:
                hidden += packet.is_discard
                continue
            if packet.is_keyframe and packet.pts is not None:
                keys[packet.pts] = len(times)
            times.append(packet.pts)
            if packet.pts is not None:
                self.reordered += packet.pts < latest
                latest = max(latest, packet.pts)
        if not times:
            raise DataError(f"{self.path}: the video has no frames")
        known = sorted({time for time in times if time is not None})
        self.frames = len(times)
        # without a time of its own for every frame (AVI and ASF have none for reordered ones) frames are counted from
        # the start
        container = self._container.format.name
        reordered = container in ("avi", "asf") and self._stream.codec_context.has_b_frames
        self._timed = len(known) == self.frames and not reordered
        self._times = known
        self._keys = sorted(keys)
        self._places = keys
        self._seekable = self._timed and container in _SEEKING
        self._rewinds = container in _REWINDING
        promised = self._stream.frames
        self._discards = hidden > 0
        if self.frames + hidden < promised - max(2, promised // 50):
            self.note = f"the file is cut off: {self.frames} of {promised} frames are there"
        rate: Fraction | None = self._stream.average_rate
        self.fps = float(rate) if rate else None

    def read(self, indices: Sequence[int] | NDArray[np.int64]) -> Frames:
        wanted = np.asarray(indices, dtype=np.int64)
        check_range(wanted, self.frames, self.path)
        pictures: dict[int, Frames] = {}
        needed = set(wanted.tolist())
        ahead: Iterator[tuple[int, Any]] | None = None
        at = -1  # number of the last frame that `ahead` gave
        for number in sorted(needed):
            key = self._key_before(number)
            if ahead is None or key > at + 1:
                ahead, at = self.decode_from(key, needed), -1
            picture, at = self.advance(ahead, number)
            for _ in range(_MOST_KEYS_BACK):
                if picture is not None or key == 0:
                    break
                # the seek fell behind the frame (open group of pictures, coarse index): start one key frame earlier
                key = self._key_before(key - 1)
                ahead = self.decode_from(key, needed)
                picture, at = self.advance(ahead, number)
            if picture is None:
                raise DataError(f"{self.path}: frame {number} of {self.frames} cannot be decoded (damaged or cut off)")
            pictures[number] = picture
        return np.stack([pictures[number] for number in wanted.tolist()])

    def seconds(self) -> NDArray[np.float64]:
        """The time of each frame in seconds after the first one; by the frame rate where frames have no times."""
        base = self._stream.time_base
        if self._timed and base:
            times: NDArray[np.float64] = (np.asarray(self._times, dtype=np.float64) - self._times[0]) * float(base)
            return times
        return np.arange(self.frames, dtype=np.float64) / (self.fps or DEFAULT_FPS)

    def coding(self) -> tuple[str, str, list[int]]:
        """Codec, pixel format, lengths of the groups of pictures: packets from each key frame to the next."""
        context, starts = self._stream.codec_context, sorted(self._places.values())
        groups = [after - start for start, after in zip(starts, [*starts[1:], self.frames], strict=False)]
        return context.codec.canonical_name, context.pix_fmt or "", groups

    def pixel_aspect(self) -> Fraction:
        """Width of a pixel over its height."""
        aspect: Fraction | None = self._stream.sample_aspect_ratio
        return aspect if aspect and aspect > 0 else Fraction(1)

    def why_not(self, decoder: str) -> str | None:
        """See `_why_not`."""
        if self._container.format.name not in _SOUND_CONTAINERS:
            return f"{decoder} counts frames wrongly in {self._container.format.name} files"
        if self.note is not None:
            return self.note
        if not self._timed or self._discards:
            return "its frames have no time stamps, equal ones or an edit list"
        if decoder == "decord" and any(self._times[place] != time for time, place in self._places.items()):
            return "decord counts frames wrongly after a key frame with frames shown before it (open GOP)"
        context = self._stream.codec_context
        if context.pix_fmt not in _PLAIN_PIXELS:
            return f"{decoder} converts {context.pix_fmt} to other colours"
        return None

    def _key_before(self, number: int) -> int:
        """Frame number of the last key frame at or before a frame; 0 where only counting from the start is safe."""
        if not self._seekable or not self._keys:
            return 0
        place = bisect_right(self._keys, self._times[number]) - 1
        return bisect_right(self._times, self._keys[place]) - 1 if place > 0 else 0

    def key_after(self, number: int) -> int | None:
        """The first key frame after a frame, where one can be sought."""
        if not self._seekable:
            return None
        places = (bisect_right(self._times, time) - 1 for time in self._keys)
        return next((place for place in places if place > number), None)

    def decode_from(self, key: int, needed: Collection[int] | None = None) -> Iterator[tuple[int, Any]]:
        """(frame number, decoded frame) from the key frame on, in display order; of the frames `needed` at least.

        Frames that no other one refers to are not decoded where they are not needed: up to two thirds of an H.264 file.
        """
        if not self._rewinds:
            self._reopen()
        elif key == 0:
            # the demuxer may hold packets before time 0 (edit lists), so to the very beginning
            self._container.seek(min(0, self._times[0]) if self._times else 0, stream=self._stream)
        else:
            self._container.seek(self._times[key], stream=self._stream, backward=True)
        if not self._timed:
            yield from enumerate(self._container.decode(self._stream))
            return
        context, all_of_them = self._stream.codec_context, True
        skips = needed is not None and context.name == _SKIPPING_CODEC
        times = {self._times[number] for number in needed or ()}
        context.skip_frame = "DEFAULT"
        for packet in self._container.demux(self._stream):
            if skips and all_of_them != (packet.pts in times):
                all_of_them = not all_of_them
                context.skip_frame = "DEFAULT" if all_of_them else "NONREF"
            for frame in packet.decode():
                if frame.pts is None:
                    continue
                number = bisect_right(self._times, frame.pts) - 1
                if number >= 0 and self._times[number] == frame.pts:
                    yield number, frame

    def _reopen(self) -> None:
        import av

        self._container.close()
        if self._file is not None:
            self._file.seek(0)
        self._container = av.open(self.path if self._file is None else self._file)
        self._stream = self._container.streams.best("video")
        self._stream.codec_context.thread_count = 1

    @staticmethod
    def advance(ahead: Iterator[tuple[int, Any]], number: int) -> tuple[Frames | None, int]:
        for found, frame in ahead:
            if found == number:
                turns = round((getattr(frame, "rotation", 0) or 0) / 90) % 4
                return np.rot90(frame.to_ndarray(format="rgb24"), turns), found
            if found > number:
                return None, found
        return None, -1

    def close(self) -> None:
        self._container.close()


# ---- parts and folders ---------------------------------------------------------------------------------------------


class _Part:
    """The frames [start, start + total) of a video, counted from 0."""

    def __init__(self, whole: _Source, entry: Entry) -> None:
        self._whole = whole
        self._start = entry.start
        self.frames = min(entry.total, whole.frames - entry.start)
        self.fps = whole.fps
        if self.frames < 1:
            whole.close()
            raise DataError(
                f"{entry.path}: the list asks for frames {entry.start} .. {entry.start + entry.total - 1}",
                found=f"{whole.frames} frames",
            )

    @property
    def note(self) -> str | None:
        return self._whole.note

    def read(self, indices: Sequence[int] | NDArray[np.int64]) -> Frames:
        wanted = np.asarray(indices, dtype=np.int64)
        check_range(wanted, self.frames, "part of a video")
        return self._whole.read(wanted + self._start)

    def close(self) -> None:
        self._whole.close()


class _FolderSource:
    """A folder of pictures named by `frame_name` and a number, as in Something-Something."""

    fps: float | None = None
    note: str | None = None

    def __init__(self, entry: Entry, frame_name: str, frame_start: int) -> None:
        self.folder = Path(entry.path)
        self._name = frame_name
        # for an entry that the list took for a video, `start` counts frames and is no file number
        self._first = entry.start if entry.kind == "frames" and entry.start >= 0 else frame_start + max(entry.start, 0)
        self.frames = entry.total if entry.total > 0 else self._count()

    def _count(self) -> int:
        count = sum(1 for item in os.scandir(self.folder) if Path(item.name).suffix.lower() in FRAME_SUFFIXES)
        if count == 0:
            raise DataError(f"{self.folder}: no pictures in the folder", expected=", ".join(sorted(FRAME_SUFFIXES)))
        return count

    def read(self, indices: Sequence[int] | NDArray[np.int64]) -> Frames:
        wanted = np.asarray(indices, dtype=np.int64)
        check_range(wanted, self.frames, str(self.folder))
        pictures = {number: self._picture(number) for number in set(wanted.tolist())}
        shapes = {picture.shape for picture in pictures.values()}
        if len(shapes) > 1:
            raise DataError(f"{self.folder}: pictures of different sizes", found=sorted(shapes))
        return np.stack([pictures[number] for number in wanted.tolist()])

    def _picture(self, number: int) -> Frames:
        from PIL import Image

        path = self.folder / self._name.format(self._first + number)
        if not path.is_file():
            raise DataError(
                f"{path}: no such frame",
                found=f"the list promises {self.frames} frames from number {self._first} on",
                fix="correct the list, data.frame_name or data.frame_start",
            )
        try:
            with Image.open(path) as image:
                return np.asarray(image.convert("RGB"))
        except Exception as error:
            raise unreadable(str(path), error) from error

    def close(self) -> None:
        return None
