"""One video cut into clips, as a model wants them: which frames, how their pictures are scaled and cropped.

Knows no task. Legend: T frames of a clip.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dsvid.data import augment, sampling
from dsvid.data.decode import Frames
from dsvid.data.stream import VideoStream
from dsvid.data.windows import Window, windows
from dsvid.predict.settings import ClipInput, Pictures, Settings


def clip_windows(
    stream: VideoStream, model: ClipInput, settings: Settings, notes: list[str], first: int = 0
) -> list[Window]:
    """Windows every `settings.every_s` seconds, or one after the other, from frame `first` on; the last one ends with
    the video."""
    step = settings.step(model, stream.fps)
    span = max(1, math.ceil(model.frames * step))
    stride = settings.every_s * stream.fps if settings.every_s else float(span)
    there = stream.frames - first
    found = windows(there, model.frames, step, stride)
    last = found[-1]
    if there < span:
        what = f"from frame {first} on, the video" if first else "the video"
        notes.append(f"{what} is shorter than a clip ({there} of {span} frames): the last frame is repeated")
    elif last.padded:
        start = there - span
        shown = sampling.stride_clip(there, model.frames, step, start)
        found[-1] = Window(start, there, False, shown)
    return [replace(each, start=each.start + first, end=each.end + first, indices=each.indices + first)
            for each in found]  # fmt: skip


def noted(pictures: Pictures, seen: NDArray[np.bool_]) -> Iterator[tuple[int, Frames]]:
    """Pass pictures on; `seen` [frames of the video] becomes True where one came."""
    for number, picture in pictures:
        seen[number] = True
        yield number, picture


def undecodable(done: int, planned: int) -> list[str]:
    """The note on clips that have no picture, if there are any."""
    if done == planned:
        return []
    return [f"{planned - done} of {planned} clips have no frame that can be decoded: left out"]


def centre_square(short_side: int, size: int) -> Callable[[Frames], Tensor]:
    """Picture uint8 [H, W, 3] -> its middle [size, size, 3], after its short side was scaled to `short_side`."""

    def prepare(picture: Frames) -> Tensor:
        scaled = augment.resize_short_side(torch.from_numpy(picture[None]), short_side)
        return augment.center_crop(scaled, size)[0].contiguous()

    return prepare
