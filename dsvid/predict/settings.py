"""What the user chooses for a prediction, whatever the task."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from dsvid.data import sampling
from dsvid.data.decode import Frames
from dsvid.data.stream import VideoStream
from dsvid.timeline import Video

Pictures = Iterable[tuple[int, Frames]]


class ClipInput(Protocol):
    """How a model wants its clips: `frames` of them, so far apart."""

    frames: int
    sampling_rate: int
    view_fps: float | None


def _as_they_are(pictures: Pictures) -> Pictures:
    return pictures


@dataclass(frozen=True)
class Settings:
    """`every_s`: seconds between two predictions, 0 = the task's own. `top` classes are kept; in detection those with
    a score of `threshold` or more, and the best. A risk of `threshold` is an alarm. People below `person_score` are
    left out. `sampling_rate` and `view_fps` replace those of the weights. `watched` passes pictures on and shows how
    far they are.
    """

    every_s: float = 0.0
    top: int = 5
    threshold: float = 0.0
    person_score: float = 0.0
    batch: int = 4
    sampling_rate: int | None = None
    view_fps: float | None = None
    watched: Callable[[Pictures], Pictures] = _as_they_are

    def step(self, model: ClipInput, fps: float) -> float:
        """Distance of two frames of a clip, in frames of the video."""
        rate = self.sampling_rate or model.sampling_rate
        view_fps = self.view_fps or (None if self.sampling_rate else model.view_fps)
        return sampling.frame_step(rate, view_fps, fps)


def video_of(stream: VideoStream) -> Video:
    """The facts of an open video."""
    return Video(stream.path, stream.frames, stream.fps, stream.duration_s, stream.width, stream.height)
