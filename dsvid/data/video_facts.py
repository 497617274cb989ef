"""What a look at one entry of a list tells: whether it can be read, how long, how large, how it is coded, how fast.

Opened as the loader opens it; the first and the last frame are decoded, or all of them. Knows no list and no labels.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field

import numpy as np

from dsvid.data.decode import PyavSource, open_clip_source, refuse_by_first_bytes
from dsvid.data.manifest import Entry
from dsvid.data.zip_packing import one_line
from dsvid.errors import DataError

# causes, in the words of the report
MISSING, EMPTY, UNREADABLE, NO_VIDEO = "missing", "zero bytes", "not a video", "no video stream"
CUT_OFF, TOO_FEW, DAMAGED = "truncated", "over-reported length", "damaged"


@dataclass
class Facts:
    """`cause` "" = can be read; `frames` of the entry; `groups` lengths of its groups of pictures in frames;
    `reordered` frames of the file that are stored after one that is shown later (B-frames); `not_decord` why decord
    would give other frames. Of folders of pictures only frames and size are known.
    """

    cause: str = ""
    text: str = ""
    frames: int = 0
    fps: float = 0.0
    width: int = 0
    height: int = 0
    codec: str = ""
    pixels: str = ""
    groups: list[int] = field(default_factory=list)
    reordered: int = 0
    not_decord: str = ""


@dataclass(frozen=True)
class Look:
    """How closely: `full` decodes every frame of the entry; names of pictures as in a recipe."""

    full: bool = False
    frame_name: str = "img_{:05}.jpg"
    frame_start: int = 1


def look_at(entry: Entry, look: Look) -> Facts:
    """Open an entry and decode of it what `look` says. Raises nothing for what is wrong with a file."""
    facts = Facts()
    try:
        if "\0" in entry.path or (entry.kind != "packed" and not os.path.exists(entry.path)):
            raise _Wrong(MISSING, "no such file or folder")
        if entry.kind == "packed" or os.path.isdir(entry.path):
            _look_at_pictures(entry, look, facts)
        else:
            _look_at_video(entry, look, facts)
    except _Wrong as wrong:
        facts.cause, facts.text = wrong.cause, wrong.text
    except DataError as error:
        facts.cause, facts.text = DAMAGED, _without_path(one_line(error), entry.path)
    except Exception as error:  # decoders raise whatever they like
        facts.cause, facts.text = DAMAGED, _ffmpeg_says(error)
    return facts


class _Wrong(Exception):
    def __init__(self, cause: str, text: str) -> None:
        self.cause, self.text = cause, text


def _without_path(text: str, path: str) -> str:
    return text.removeprefix(f"{path}: ")


def _look_at_pictures(entry: Entry, look: Look, facts: Facts) -> None:
    with open_clip_source(entry, "pyav", frame_name=look.frame_name, frame_start=look.frame_start) as source:
        facts.frames, facts.fps = source.frames, source.fps or 0.0
        for number in range(source.frames) if look.full else sorted({0, source.frames - 1}):
            try:
                picture = source.read([number])[0]
            except DataError as error:
                gone = "no such frame" in error.what
                raise _Wrong(TOO_FEW if gone else DAMAGED, _without_path(one_line(error), entry.path)) from error
            if facts.width and picture.shape[:2] != (facts.height, facts.width):
                raise _Wrong(DAMAGED, f"pictures of different sizes: frame {number} is {_size(picture)}")
            facts.height, facts.width = picture.shape[:2]


def _size(picture: np.ndarray) -> str:
    return f"{picture.shape[1]} x {picture.shape[0]}"


def _look_at_video(entry: Entry, look: Look, facts: Facts) -> None:
    if os.path.isfile(entry.path) and os.path.getsize(entry.path) == 0:
        raise _Wrong(EMPTY, "the file is empty")
    if entry.kind == "frames" and entry.total > 0:
        raise _Wrong(UNREADABLE, "a file where the list promises a folder of frames")
    index = _open(entry.path)
    try:
        facts.fps = index.fps or 0.0
        facts.codec, facts.pixels, facts.groups = index.coding()
        facts.reordered = index.reordered
        facts.not_decord = index.why_not("decord") or ""
        _look_at_frames(entry, index, look.full, facts)
    finally:
        index.close()


def _open(path: str) -> PyavSource:
    try:
        refuse_by_first_bytes(path)
        return PyavSource(path)
    except DataError as error:
        cause = NO_VIDEO if "no video stream" in error.what else UNREADABLE
        raise _Wrong(cause, _without_path(one_line(error), path)) from error
    except Exception as error:
        if _begins_as_mp4(path):
            raise _Wrong(CUT_OFF, "it begins as an mp4, but its index (moov) is not there or is damaged") from error
        raise _Wrong(UNREADABLE, _ffmpeg_says(error)) from error


def _begins_as_mp4(path: str) -> bool:
    with open(path, "rb") as handle:
        return handle.read(8)[4:] == b"ftyp"


def _ffmpeg_says(error: Exception) -> str:
    """Without the error number and the path, which are named already."""
    text = getattr(error, "strerror", None) or (str(error).splitlines() or ["no message"])[0]
    return f"{type(error).__name__}: {text}"[:300]


def _look_at_frames(entry: Entry, index: PyavSource, full: bool, facts: Facts) -> None:
    first, end = (entry.start, entry.start + entry.total) if entry.total > 0 else (0, index.frames)
    if end > index.frames:
        raise _Wrong(TOO_FEW, f"the list asks for frames {first} .. {end - 1} of {index.frames}")
    facts.frames = end - first
    try:
        for number in sorted({first, end - 1}):
            facts.height, facts.width = index.read([number])[0].shape[:2]
        if full:
            _decode_all(index, first, end)
    finally:
        if index.note:  # the cause also of a last frame that cannot be decoded
            raise _Wrong(CUT_OFF, index.note)


def _decode_all(index: PyavSource, first: int, end: int) -> None:
    seen, patched = set(), 0
    try:
        for number, frame in index.decode_from(0):
            if number >= end:
                break
            seen.add(number)
            patched += first <= number and frame.is_corrupt
    except Exception as error:  # av.error.*
        text = f"decoding stops behind frame {max(seen, default=-1)} of {index.frames}: {_ffmpeg_says(error)}"
        raise _Wrong(DAMAGED, text) from error
    missing = [number for number in range(first, end) if number not in seen]
    if missing:
        raise _Wrong(DAMAGED, f"{len(missing)} of {end - first} frames cannot be decoded, frame {missing[0]} first")
    if patched:
        raise _Wrong(DAMAGED, f"{patched} of {end - first} frames are patched up by the decoder")
