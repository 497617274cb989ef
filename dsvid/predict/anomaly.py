"""A video -> the risk of its frames: windows that end at the judged frame. Legend: n judged frames, T of a window."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dsvid.data import augment
from dsvid.data.decode import Frames
from dsvid.data.stream import VideoStream, clips_of
from dsvid.data.window_index import Ints, WindowRule
from dsvid.errors import DataError
from dsvid.metrics.anomaly_groups import risk_of
from dsvid.objectives import AnomalyObjective
from dsvid.predict.clips import noted
from dsvid.predict.settings import Settings, video_of
from dsvid.predict.weights import Predictor
from dsvid.timeline import RiskTimeline

VIEW_FPS = {8: 5.0}  # of simple-tad's models, whose files do not say it, by frames of a window; of others 10
STEADY = 0.25  # of a frame: times nearer to the grid of the frame rate than this are a constant rate


class RiskWindows(Sequence[Ints]):
    """The frames [T] of each window, ascending, computed when asked for: nothing grows with the video.

    In a steady video those of the evaluation (`WindowRule`, the first frame repeated), else the frames whose times are
    nearest, the earlier one of two.
    """

    def __init__(self, targets: Ints, seconds: NDArray[np.float64], fps: float, rule: WindowRule) -> None:
        self.targets, self._seconds, self._rule = targets, seconds, rule
        self._offsets = rule.offsets(fps)
        grid = np.arange(len(seconds)) / fps
        self.steady = bool(np.abs(seconds - grid).max() < STEADY / fps)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, place: Any) -> Any:
        target = int(self.targets[place])
        if self.steady:
            return np.maximum(target - self._offsets, 0)
        wanted = self._seconds[target] - np.arange(self._rule.length - 1, -1, -1) / self._rule.view_fps
        right = np.minimum(np.searchsorted(self._seconds, wanted), target)
        left = np.maximum(right - 1, 0)
        return np.where(wanted - self._seconds[left] <= self._seconds[right] - wanted, left, right)


def judge(stream: VideoStream, predictor: Predictor, settings: Settings, device: torch.device) -> RiskTimeline:
    """Read the video once and judge its frames, all or every `settings.every_s` seconds.

    A frame that cannot be decoded is not judged. Raises DataError where none can.
    """
    fps, said = view_fps_of(stream, predictor, settings), bool(settings.view_fps or settings.sampling_rate)
    plan = RiskWindows(
        judged_frames(stream, settings.every_s),
        stream.seconds,
        stream.fps,
        WindowRule(predictor.frames, fps, padding="repeat", nearest=True),
    )
    risk, done = np.zeros(len(plan)), np.zeros(len(plan), dtype=bool)
    seen = np.zeros(stream.frames, dtype=bool)
    waiting: list[tuple[int, torch.Tensor]] = []

    def flush() -> None:
        places = [place for place, _ in waiting]
        if places:
            risk[places], done[places] = _risks(predictor, [clip for _, clip in waiting], device), True
        waiting.clear()

    def prepare(picture: Frames) -> torch.Tensor:
        return augment.squash(torch.from_numpy(picture[None]), predictor.input_size)[0]

    begun = time.perf_counter()
    pictures = noted(settings.watched(stream.pictures()), seen)
    for place, clip in clips_of(pictures, plan, prepare):
        if seen[plan.targets[place]]:
            waiting.append((place, torch.stack(clip)))
        if len(waiting) == settings.batch:
            flush()
    flush()
    took_s = max(time.perf_counter() - begun, 1e-9)
    if not done.any():
        raise DataError(f"{stream.path}: no frame that should be judged can be decoded", fix="without --every")
    if not np.isfinite(risk).all():
        raise DataError(f"{stream.path}: the weights give no number for a frame", found="NaN", expected="0 to 1",
                        fix="weights that are whole")  # fmt: skip
    notes = [*predictor.notes, *stream.notes, *_remarks(stream, predictor, plan, fps, said)]
    realtime = stream.duration_s / took_s
    notes.append(f"{realtime:.2f} seconds of video in a second of computing")
    frames = plan.targets[done]
    window = f"{predictor.frames} frames at {fps:g} a second, judged at the last one"
    return RiskTimeline(
        video_of(stream), frames, stream.seconds[frames], risk[done], settings.threshold, window, realtime, notes
    )


def view_fps_of(stream: VideoStream, predictor: Predictor, settings: Settings) -> float:
    """Frames a second within a window: as asked for, else as trained, else simple-tad's."""
    if settings.sampling_rate:
        return stream.fps / settings.sampling_rate
    return settings.view_fps or predictor.view_fps or VIEW_FPS.get(predictor.frames, 10.0)


def judged_frames(stream: VideoStream, every_s: float) -> Ints:
    """All frames, or those nearest to 0, every_s, 2 every_s, … seconds, ascending."""
    if not every_s:
        return np.arange(stream.frames)
    count = int(stream.seconds[-1] / every_s + 1e-9) + 1
    return np.unique([stream.frame_at(number * every_s) for number in range(count)])


@torch.inference_mode()
def _risks(predictor: Predictor, clips: list[torch.Tensor], device: torch.device) -> NDArray[np.float64]:
    """uint8 [T, S, S, 3] each -> [n]."""
    assert isinstance(predictor.objective, AnomalyObjective)
    batch = {"clip": torch.stack(clips).to(device, non_blocking=True)}
    return risk_of(predictor.objective.logits(batch).double().cpu().numpy())


def _remarks(stream: VideoStream, predictor: Predictor, plan: RiskWindows, fps: float, asked: bool) -> list[str]:
    notes = []
    if not predictor.view_fps and not asked:
        notes.append(f"the weights do not say their frame rate: {fps:g} is taken, as simple-tad has it (--view-fps F)")
    span_s = (predictor.frames - 1) / fps
    if stream.seconds[-1] < span_s:
        notes.append(
            f"the video is shorter than a window ({stream.duration_s:.1f} of {span_s + 1 / fps:.1f} s): "
            "its first frame is repeated"
        )
    if not plan.steady:
        notes.append("the frame rate varies: windows take the frames whose times are nearest")
    elif stream.fps < fps:
        notes.append(f"the video has {stream.fps:g} frames a second, a window {fps:g}: frames are repeated")
    elif abs(stream.fps / fps - round(stream.fps / fps)) > 1e-6:
        notes.append(f"{fps:g} of {stream.fps:g} frames a second: the nearest ones")
    return notes
