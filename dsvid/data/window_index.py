"""Windows of many clips, numbered through: from a number to clip and frames by arithmetic; no window is stored.

A window is judged at its last frame, its target. Knows numbers of frames and frame rates only. Legend: C clips,
n windows asked for, T frames of a window.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dsvid.errors import DataError

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class WindowRule:
    """Which windows a clip has: `length` frames at `view_fps`, targets `step` frames of the source apart, the last one
    on the last frame of the clip.

    `with_start`: one more window at frame 0, numbered last, where the first one starts late (simple-tad's rule for
    pre-training). `padding`: `repeat` shows the first frame again for those before it, so that with step 1 every frame
    is a target once; `none` leaves out windows that reach over the start. `nearest`: a rate that view_fps does not
    divide gives the nearest frames instead of an error. Raises DataError for what makes no windows.
    """

    length: int
    view_fps: float
    step: int = 1
    with_start: bool = False
    padding: Literal["none", "repeat"] = "none"
    nearest: bool = False

    def __post_init__(self) -> None:
        if self.length < 1 or self.step < 1 or not 0 < self.view_fps < 1e6 or self.padding not in ("none", "repeat"):
            raise DataError("windows", found=self, expected="length, step and view_fps above 0, padding none or repeat")
        if self.with_start and self.padding == "repeat":
            raise DataError(
                "windows with_start and padding=repeat", found="both", expected="one: padding covers the start already"
            )

    def offsets(self, source_fps: float) -> Ints:
        """How many source frames before the target each frame lies, int64 [T], the last 0. Raises DataError."""
        if not (0 < source_fps < 1e6):
            raise DataError("frame rate of a clip", found=source_fps, expected="above 0")
        stride = source_fps / self.view_fps
        if not self.nearest and stride != int(stride):
            raise DataError(
                "data.view_fps does not divide the frame rate",
                found=f"view_fps={self.view_fps:g}, frames at {source_fps:g} fps",
                expected=f"one of {[fps for fps in range(1, int(source_fps) + 1) if not source_fps % fps]}",
                fix="another view_fps, or the nearest frames",
            )
        back = np.arange(self.length - 1, -1, -1, dtype=np.int64) * stride
        # a hair below one half counts as one half: 2.5 must not depend on how the rate was divided
        nearest: Ints = np.floor(back + 0.5 + 1e-6).astype(np.int64)
        return nearest


class WindowIndex:
    """The windows of C clips in the order of the clips; about 24 bytes a clip, whatever the number of windows.

    `frames` [C] is the length of each clip (0 where unknown or unreadable), `fps` [C] or one for all. Raises DataError.
    """

    def __init__(self, frames: ArrayLike, fps: ArrayLike, rule: WindowRule) -> None:
        self.rule = rule
        self.frames: Ints = np.asarray(frames, dtype=np.int64)
        rates = np.broadcast_to(np.asarray(fps, dtype=np.float64), self.frames.shape)
        usable = self.frames > 0
        distinct, place = np.unique(rates[usable], return_inverse=True)
        nothing = np.zeros(rule.length, dtype=np.int64)
        self._offsets = np.array([rule.offsets(rate) for rate in distinct.tolist()] or [nothing])
        # clips without frames have no rate either
        self._rate = np.zeros(len(self.frames), dtype=np.int32)
        self._rate[usable] = place.reshape(-1)
        self._span = self._offsets[:, 0][self._rate] + 1
        # frames from the first possible target to the last one
        over = self.frames - (np.ones_like(self._span) if rule.padding == "repeat" else self._span)
        counts = np.where(usable & (over >= 0), over // rule.step + 1, 0)
        self._first = self.frames - 1 - (counts - 1) * rule.step  # the first target
        if rule.with_start:
            start = self._first - self._span + 1
            counts += (counts > 0) & (start > np.minimum(0.3 * rates, 5))
        self.ends: Ints = np.cumsum(counts)

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    @property
    def counts(self) -> Ints:
        """Windows of each clip [C]."""
        return np.diff(self.ends, prepend=0)

    @property
    def left_out(self) -> Ints:
        """The clips without any window: too short, or of unknown length."""
        return np.flatnonzero(self.counts == 0)

    def targets(self, numbers: ArrayLike) -> tuple[Ints, Ints]:
        """(clip, frame that is judged) of windows by number, int64 [n] each."""
        wanted = np.asarray(numbers, dtype=np.int64)
        if wanted.size and (int(wanted.min()) < 0 or int(wanted.max()) >= len(self)):
            raise IndexError(f"windows {int(wanted.min())} .. {int(wanted.max())} of {len(self)}")
        clip = np.searchsorted(self.ends, wanted, side="right")
        before = np.where(clip > 0, self.ends[clip - 1], 0)
        target = self._first[clip] + (wanted - before) * self.rule.step
        # only the window at the start, which comes last, would lie beyond the clip
        target = np.where(target >= self.frames[clip], self._span[clip] - 1, target)
        return clip, target

    def positions(self, numbers: ArrayLike) -> tuple[Ints, Ints]:
        """(clip int64 [n], frames of the clip int64 [n, T]) of windows by number."""
        clip, target = self.targets(numbers)
        frames: Ints = np.maximum(target[..., None] - self._offsets[self._rate[clip]], 0)
        return clip, frames
