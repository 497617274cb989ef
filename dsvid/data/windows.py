"""Sliding windows over whole videos: where they start, which videos a list names, and the clips of the windows.

Knows no model and no feature files. Legend: T frames of a window, n windows, S side of the crop.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from dsvid.data import augment, sampling
from dsvid.data.decode import ClipSource, open_clip_source, quiet_decoders
from dsvid.data.manifest import VIDEO_SUFFIXES, Entry, Manifest, open_split, read_list
from dsvid.data.shards import is_packed, open_shards
from dsvid.errors import DataError

FRAMES_PER_READ = 32  # full-size pictures held at a time: 0.2 GB of 1080p


# ---- windows -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Window:
    """Frames [start, end) of a video and the ones shown; `padded`: the last frame is shown again up to T."""

    start: int
    end: int
    padded: bool
    indices: NDArray[np.int64]


def windows(frames: int, length: int, step: float, stride: float) -> list[Window]:
    """Windows of `length` frames at the distance `step`, starting every `stride` frames, until the end is covered.

    A window stands for length * step frames. The last one may reach over the end: it is padded and says so.
    """
    span = max(1, math.ceil(length * step))
    out: list[Window] = []
    for number in range(frames):
        start = int(number * max(1.0, stride) + 0.5)
        if start >= frames:
            break
        last = int((length - 1) * step + 0.5) + start
        shown = sampling.stride_clip(frames, length, step, start)
        out.append(Window(start, min(start + span, frames), last >= frames, shown))
        if start + span >= frames:
            break
    return out


@dataclass(frozen=True)
class Plan:
    """How videos are cut: `stride` in frames (0 = `stride_s` seconds; both 0 = one window after the other)."""

    num_frames: int
    input_size: int
    short_side: int
    sampling_rate: int
    view_fps: float | None = None
    stride: int = 0
    stride_s: float = 0.0
    batch: int = 8
    frame_name: str = "img_{:05}.jpg"
    frame_start: int = 1

    def windows(self, source: ClipSource, path: str) -> list[Window]:
        """The windows of an open video. Raises DataError where seconds are asked for and the frame rate is unknown."""
        step = sampling.frame_step(self.sampling_rate, self.view_fps, source.fps)
        stride = float(self.stride) or math.ceil(self.num_frames * step)
        if self.stride_s:
            if source.fps is None:
                raise DataError(f"{path}: the frame rate is unknown", fix="--stride-frames in place of --stride-s")
            stride = self.stride_s * source.fps
        return windows(source.frames, self.num_frames, step, stride)


# ---- reading -------------------------------------------------------------------------------------------------------


@dataclass
class Part:
    """Some windows of one video, in order: `clips` uint8 [n, T, S, S, 3]; `last` ends the video; or its `error`."""

    number: int
    clips: Tensor | None = None
    windows: list[Window] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    last: bool = False
    error: str | None = None


class WindowClips(IterableDataset[Part]):
    """The parts of every video of `numbers`; with workers the videos are dealt out to them."""

    def __init__(self, manifest: Manifest, numbers: list[int], plan: Plan, decoder: str) -> None:
        self.manifest, self.numbers, self.plan, self.decoder = manifest, numbers, plan, decoder

    def __iter__(self) -> Iterator[Part]:
        worker = get_worker_info()
        own = self.numbers if worker is None else self.numbers[worker.id :: worker.num_workers]
        for number in own:
            try:
                yield from self._parts(number)
            except DataError as error:
                text = "; ".join(str(part) for part in (error.what, error.found, error.fix) if part is not None)
                yield Part(number, error=text, last=True)

    def _parts(self, number: int) -> Iterator[Part]:
        entry, plan = self.manifest[number], self.plan
        with open_clip_source(entry, self.decoder, frame_name=plan.frame_name, frame_start=plan.frame_start) as source:
            all_windows = plan.windows(source, entry.path)
            for first in range(0, len(all_windows), plan.batch):
                some = all_windows[first : first + plan.batch]
                clips = self._clips(source, some)
                facts = {"fps": source.fps, "frames": source.frames, "note": source.note}
                yield Part(number, clips, some, facts, last=first + len(some) == len(all_windows))

    def _clips(self, source: ClipSource, some: list[Window]) -> Tensor:
        """Each frame is decoded and scaled once, however many windows show it."""
        shown = np.stack([window.indices for window in some])
        wanted = np.unique(shown)
        small = [
            self._prepared(source.read(wanted[at : at + FRAMES_PER_READ]))
            for at in range(0, len(wanted), FRAMES_PER_READ)
        ]
        return torch.cat(small)[torch.from_numpy(np.searchsorted(wanted, shown))]

    def _prepared(self, pictures: NDArray[np.uint8]) -> Tensor:
        scaled = augment.resize_short_side(torch.from_numpy(pictures), self.plan.short_side)
        return augment.center_crop(scaled, self.plan.input_size).contiguous()


def start_worker(_: int) -> None:
    """Set up a process that reads clips."""
    torch.set_num_threads(1)
    quiet_decoders()


# ---- lists ---------------------------------------------------------------------------------------------------------


def read_videos(source: str) -> Manifest:
    """The videos of a list of ours, of a list of paths without labels, or one video. Raises DataError."""
    path = Path(source)
    if source == "builtin":
        return open_split(source, "test")
    if path.suffix.lower() in VIDEO_SUFFIXES:
        return _manifest(source, [(1, str(path.absolute()))], path.absolute().parent)
    if path.is_dir() and is_packed(path):
        return open_shards(path).manifest()
    lines = _path_lines(path) if path.is_file() else []
    if not lines:
        return read_list(path)
    manifest = _manifest(source, lines, path.absolute().parent)
    first = lines[0][1]
    if not (manifest.base / first).exists() and Path(first).exists():
        manifest.base = Path.cwd()  # the rule of all our lists
    return manifest


def _path_lines(path: Path) -> list[tuple[int, str]]:
    """(line number, path) of a list where no line ends with a number; else nothing."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError):
        return []  # read_list says what is wrong
    found: list[tuple[int, str]] = []
    for number, line in enumerate(text.splitlines(), start=1):
        bare = line.strip()
        if not bare or bare.startswith("#") or (not found and bare.lower() in ("path", "video", "file", "filename")):
            continue
        words = bare.replace(",", " ").split()
        if not words or words[-1].lstrip("-").isdigit() or "\0" in bare:
            return []
        found.append((number, bare.strip('"')))
    return found


def _manifest(source: str, lines: list[tuple[int, str]], base: Path) -> Manifest:
    manifest = Manifest(source, "", base)
    for number, path in lines:
        is_video = Path(path).suffix.lower() in VIDEO_SUFFIXES or (base / path).is_file()
        manifest.append(Entry(path, -1, 0 if is_video else -1, -1, "video" if is_video else "frames"), number)
    return manifest
