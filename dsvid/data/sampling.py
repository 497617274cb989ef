"""Which frames of a video make a clip: the rules of VideoMAE (V1) and VideoMAE V2, as pure functions of counted frames.

Legend: D frames of the video, L frames of a clip, r their distance (sampling rate), S = L segments of the `segment`
rule. Each rule with chance has two parts: `*_range` says what to draw, the other takes the draw, so that the numbers
of the original systems can be fed in. All return int64 [L], ascending except for padding.
"""

from __future__ import annotations

import math
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]
Short = Literal["zeros", "pad"]


class Draws(Protocol):
    """The one method of numpy's Generator that the rules use."""

    def integers(self, low: int, high: int) -> int: ...


# ---- pre-training: a fixed distance --------------------------------------------------------------------------------


def stride_range(frames: int, length: int, step: float) -> int:
    """How many start frames the pre-training rule draws from: D - L*r + 1, at least 1 (arXiv 2203.12602, code)."""
    return max(1, frames - math.ceil(length * step) + 1)


def stride_clip(frames: int, length: int, step: float, start: int) -> Indices:
    """start + i*r; a video that is too short repeats the last frame it reaches that way."""
    reach = np.floor(np.arange(length) * step + 0.5).astype(np.int64) + start
    inside = reach[reach < frames]
    return np.concatenate([inside, np.full(length - len(inside), inside[-1])])


# ---- fine-tuning: dense --------------------------------------------------------------------------------------------


def dense_range(frames: int, length: int, rate: int) -> tuple[int, int] | None:
    """[low, high) of the clip's end that dense training draws, or None where the video is too short to choose."""
    return (length * rate, frames) if frames > length * rate else None


def dense_clip(frames: int, length: int, rate: int, end: int | None) -> Indices:
    """L points spread over the L*r frames before `end`; a short video is spread whole and padded with D-1.

    The spacing is L*r/(L-1), not exactly r, and the last frame of a video is never reached: as in the originals.
    """
    if end is not None:
        span = length * rate
        inside: Indices = np.clip(np.linspace(end - span, end, length), end - span, end - 1).astype(np.int64)
        return inside
    spread = np.linspace(0, frames, frames // rate)[:length]
    padded = np.concatenate([spread, np.full(length - len(spread), float(frames))])
    shown: Indices = np.clip(padded, 0, frames - 1).astype(np.int64)
    return shown


def dense_centre(frames: int, length: int, rate: int) -> Indices:
    """VideoMAE V2's validation clip: the dense rule with its end at (L*r + D) // 2."""
    drawn = dense_range(frames, length, rate)
    return dense_clip(frames, length, rate, (length * rate + frames) // 2 if drawn else None)


def dense_test(frames: int, length: int, rate: int, segments: int, segment: int) -> Indices:
    """One of `segments` test clips: L consecutive entries of 0, r, 2r, ... (true distance r), evenly spaced starts."""
    every = np.arange(0, frames, rate, dtype=np.int64)
    if len(every) < length:
        every = np.concatenate([every, np.full(length - len(every), every[-1])])
    # one segment starts in the middle; the originals divide by zero there
    start = (
        int(segment * max((len(every) - length) / (segments - 1), 0)) if segments > 1 else (len(every) - length) // 2
    )
    return every[start : start + length]


# ---- fine-tuning: one frame per segment ----------------------------------------------------------------------------


def segment_range(frames: int, length: int) -> int:
    """D // S: the offset of each segment is drawn from [0, this); 0 = too short, nothing to draw."""
    return frames // length


def segment_clip(frames: int, length: int, offsets: Indices | None, short: Short = "pad") -> Indices:
    """i * (D // S) + offset_i. Short videos: V1 shows frame 0 only ("zeros"), V2 puts zeros before 0..D-1 ("pad")."""
    average = segment_range(frames, length)
    if average > 0:
        assert offsets is not None, "segment_clip needs an offset per segment here"
        return np.arange(length, dtype=np.int64) * average + offsets
    if short == "zeros":
        return np.zeros(length, dtype=np.int64)
    return np.concatenate([np.zeros(length - frames, dtype=np.int64), np.arange(frames, dtype=np.int64)])


def segment_centre(frames: int, length: int) -> Indices:
    """VideoMAE V2's validation clip: the middle of each segment."""
    half = segment_range(frames, length) // 2
    return segment_clip(frames, length, np.full(length, half, dtype=np.int64))


def segment_test(frames: int, length: int, segments: int, segment: int) -> Indices:
    """Every `segments`-th of int(t*tick/segments + tick*x), sorted, tick = D/L; V1's rule is that with 2 segments."""
    tick = frames / length
    ticks = sorted(int(t * tick / segments + tick * x) for t in range(segments) for x in range(length))
    return np.asarray(ticks[segment::segments], dtype=np.int64)


# ---- choosing a rule -----------------------------------------------------------------------------------------------


def frame_step(rate: int, view_fps: float | None, fps: float | None) -> float:
    """Distance of two sampled frames, in frames of the file: fps / view_fps (at least 1) if view_fps is set, else r."""
    if view_fps is None or fps is None:
        return float(rate)
    return max(1.0, fps / view_fps)


def train_indices(rule: str, frames: int, length: int, step: float, rng: Draws) -> Indices:
    """A random clip by the rule `stride` (pre-training), `dense` or `segment` (fine-tuning)."""
    if rule == "stride":
        return stride_clip(frames, length, step, int(rng.integers(0, stride_range(frames, length, step))))
    if rule == "dense":
        rate = max(1, round(step))
        drawn = dense_range(frames, length, rate)
        return dense_clip(frames, length, rate, int(rng.integers(*drawn)) if drawn else None)
    average = segment_range(frames, length)
    offsets = np.array([rng.integers(0, average) for _ in range(length)], dtype=np.int64) if average else None
    return segment_clip(frames, length, offsets)


def eval_indices(rule: str, frames: int, length: int, step: float, segments: int, segment: int) -> Indices:
    """Test clip number `segment`; one segment alone is the centre clip, so that validation has no chance in it."""
    if rule == "segment":
        return segment_centre(frames, length) if segments == 1 else segment_test(frames, length, segments, segment)
    if rule == "dense" and segments == 1:
        return dense_centre(frames, length, max(1, round(step)))
    if segments == 1:
        return stride_clip(frames, length, step, (stride_range(frames, length, step) - 1) // 2)
    return dense_test(frames, length, max(1, round(step)), segments, segment)
