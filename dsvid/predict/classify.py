"""A video -> classes over time: clips one after the other, each classified. Legend: T frames of a clip, C classes."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from dsvid.data.stream import VideoStream, clips_of
from dsvid.data.windows import Window
from dsvid.errors import DataError
from dsvid.objectives import ClassifyObjective
from dsvid.predict.clips import centre_square, clip_windows, undecodable
from dsvid.predict.settings import Settings, video_of
from dsvid.predict.weights import Predictor
from dsvid.timeline import Clip, ClipTimeline


def classify(stream: VideoStream, predictor: Predictor, settings: Settings, device: torch.device) -> ClipTimeline:
    """Read the video once and classify every clip of it. Raises DataError where no clip has a frame."""
    notes: list[str] = []
    plan = clip_windows(stream, predictor, settings, notes)
    scores = np.zeros((len(plan), len(predictor.names.names)))
    done = np.zeros(len(plan), dtype=bool)
    waiting: list[tuple[int, torch.Tensor]] = []

    def flush() -> None:
        for (place, _), row in zip(waiting, _probabilities(predictor, [clip for _, clip in waiting], device),
                                   strict=True):  # fmt: skip
            scores[place], done[place] = row, True
        waiting.clear()

    prepare = centre_square(predictor.short_side, predictor.input_size)
    pictures = settings.watched(stream.pictures())
    for place, clip in clips_of(pictures, [window.indices for window in plan], prepare):
        waiting.append((place, torch.stack(clip)))
        if len(waiting) == settings.batch:
            flush()
    if waiting:
        flush()
    if not done.any():
        raise DataError(
            f"{stream.path}: no frame of the clips can be decoded", fix="another --every or --sampling-rate"
        )
    notes += undecodable(int(done.sum()), len(plan))
    return _timeline(stream, predictor, settings, [plan[i] for i in np.flatnonzero(done)], scores[done], notes)


@torch.inference_mode()
def _probabilities(predictor: Predictor, clips: list[torch.Tensor], device: torch.device) -> NDArray[np.float64]:
    """uint8 [T, S, S, 3] each -> [n, C]."""
    assert isinstance(predictor.objective, ClassifyObjective)
    batch = {"clip": torch.stack(clips).to(device, non_blocking=True)}
    shares: NDArray[np.float64] = predictor.objective.logits(batch).double().softmax(dim=-1).cpu().numpy()
    return shares


def _timeline(
    stream: VideoStream, predictor: Predictor, settings: Settings, shown: list[Window], scores: NDArray[np.float64],
    notes: list[str],
) -> ClipTimeline:  # fmt: skip
    names, top, seconds = predictor.names, settings.top, stream.seconds
    there = stream.reached + 1  # less than `frames` where the rest cannot be decoded
    best = names.best(scores.mean(axis=0), top)
    clips = [
        Clip(
            window.start,
            min(window.end, there),
            float(seconds[window.start]),
            float(seconds[min(window.end, there)]) if min(window.end, there) < stream.frames else stream.duration_s,
            window.padded or window.end > there,
            names.best(row, top),
        )
        for window, row in zip(shown, scores, strict=True)
    ]
    curves = [scores[:, names.numbers.index(each.number)].tolist() for each in best]
    return ClipTimeline(video_of(stream), clips, best, curves, [*predictor.notes, *stream.notes, *notes])
