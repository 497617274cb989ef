"""A video -> people and their actions at key frames. Legend: T frames of a clip, k people, C classes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from dsvid.data import augment, ava_annotations, ava_boxes
from dsvid.data.ava import CLASSES, AvaSample
from dsvid.data.ava_clips import AvaView, collate, eval_view, key_offsets
from dsvid.data.decode import Frames
from dsvid.data.stream import VideoStream, clips_of
from dsvid.objectives import DetectObjective
from dsvid.predict.people import Found, People, open_people
from dsvid.predict.settings import Pictures, Settings, video_of
from dsvid.predict.shots import Shots
from dsvid.predict.tracks import link
from dsvid.predict.weights import Predictor
from dsvid.timeline import KeyFrame, PeopleTimeline, Person

EVERY_S = 1.0  # as AVA's key frames
LONGEST_REACH_S = 1.0  # that boxes hold before and after their key frame
USUAL_FPS = (20.0, 32.0)  # of AVA's videos; the distance of a clip's frames is counted in frames


def detect(
    stream: VideoStream, predictor: Predictor, settings: Settings, device: torch.device, boxes: Path | None
) -> PeopleTimeline:
    """Read the video once; score the people of every key frame. Raises DataError for a box file that does not suit."""
    people = open_people(stream, boxes, settings.every_s or EVERY_S, settings.person_score, device)
    found: dict[int, Found] = {}
    size = ava_boxes.resized((stream.width, stream.height), predictor.short_side)
    step = settings.step(predictor, stream.fps)
    wanted = [
        np.clip(frame + clip_offsets(predictor.frames, step), 0, stream.frames - 1) for frame in people.frames
    ]  # fmt: skip

    def prepare(picture: Frames) -> torch.Tensor:
        # as the evaluation scales clips; here before they are held, so that long clips of large frames stay small
        return augment.resize(torch.from_numpy(picture[None]), size[1], size[0], antialias=False)[0]

    scores: dict[int, NDArray[np.float32]] = {}
    waiting: list[tuple[int, AvaView]] = []
    shots = Shots()
    pictures = _with_people(settings.watched(stream.pictures()), people, found, shots)
    for place, clip in clips_of(pictures, wanted, prepare):
        frame = people.frames[place]
        if frame not in found:  # it cannot be decoded
            continue
        found[frame], view = _view(stream, frame, torch.stack(clip), found[frame], predictor)
        if not found[frame]:
            scores[frame] = np.zeros((0, view.labels.shape[1]), dtype=np.float32)
            continue
        waiting.append((frame, view))
        if len(waiting) == settings.batch:
            _score(predictor, waiting, device, scores)
    _score(predictor, waiting, device, scores)
    kept = [place for place, frame in enumerate(people.frames) if frame in scores]
    return _timeline(stream, predictor, settings, people, kept, found, scores, step, shots.cuts)


def clip_offsets(frames: int, step: float) -> NDArray[np.int64]:
    """Distances from the key frame: those of the evaluation, and between whole numbers their like."""
    if step == int(step):
        return key_offsets(frames, int(step))
    middle = (step - 1) / 2 - frames * step / 2
    offsets: NDArray[np.int64] = np.rint(middle + step * np.arange(frames)).astype(np.int64)
    return offsets


def _with_people(
    pictures: Pictures, people: People, found: dict[int, Found], shots: Shots
) -> Iterator[tuple[int, Frames]]:
    keys = set(people.frames)
    for number, picture in pictures:
        shots.see(number, picture)
        if number in keys:
            found[number] = people.boxes(number, picture)
        yield number, picture


def _view(
    stream: VideoStream, frame: int, clip: torch.Tensor, boxes: Found, predictor: Predictor
) -> tuple[Found, AvaView]:
    """The boxes that are not empty in pixels, and what the model sees of them: as in the evaluation."""
    width, height = stream.width, stream.height
    shares = np.array([box for box, _ in boxes], dtype=np.float64).reshape(-1, 4)
    low, high = shares[:, :2] * (width, height), shares[:, 2:] * (width, height)
    pixels = ava_boxes.corners(np.concatenate([low, high - low], axis=1).astype(np.float32))
    pixels, kept = ava_boxes.clip_boxes(pixels, width, height)
    left = [each for each, keep in zip(boxes, kept, strict=True) if keep]
    key = ava_annotations.KeyFrame(stream.path, round(float(stream.seconds[frame]) * 1e6), width, height)
    labels = np.zeros((len(left), len(predictor.names.names)), dtype=np.uint8)
    sample = AvaSample(key, pixels[kept], labels, np.array([score for _, score in left], dtype=np.float32))
    return left, eval_view(clip, sample, short=predictor.short_side)


@torch.inference_mode()
def _score(
    predictor: Predictor, waiting: list[tuple[int, AvaView]], device: torch.device,
    scores: dict[int, NDArray[np.float32]],
) -> None:  # fmt: skip
    """Add the scores [k, C] of the frames that wait."""
    if not waiting:
        return
    assert isinstance(predictor.objective, DetectObjective)
    batch = collate([view for _, view in waiting], predictor.patch)
    rows = predictor.objective.scores({name: value.to(device) for name, value in batch.items()}).cpu().numpy()
    for (frame, view), row in zip(waiting, rows, strict=True):
        scores[frame] = row[: len(view.boxes)]
    waiting.clear()


def _timeline(
    stream: VideoStream, predictor: Predictor, settings: Settings, people: People, kept: Sequence[int],
    found: dict[int, Found], scores: dict[int, NDArray[np.float32]], step: float, cuts: Sequence[int],
) -> PeopleTimeline:  # fmt: skip
    frames = [people.frames[place] for place in kept]
    seconds = [people.seconds[place] for place in kept]
    gaps = np.diff(seconds)
    usual = float(np.median(gaps)) if len(gaps) else EVERY_S
    reach = min(usual / 2, LONGEST_REACH_S)
    # half a step more than usual is bridged, no cut is
    shot = np.searchsorted(np.asarray(cuts, dtype=np.int64), frames, side="right")
    joined = [False, *((gaps <= 3 * reach + 1e-6) & (np.diff(shot) == 0)).tolist()]
    tracks = link([[box for box, _ in found[frame]] for frame in frames], joined)
    names = predictor.names
    key_frames = [
        KeyFrame(
            frame,
            second,
            tuple(
                Person(track, box, score, names.best(row, settings.top, settings.threshold))
                for track, (box, score), row in zip(own, found[frame], scores[frame], strict=True)
            ),
        )
        for frame, second, own in zip(frames, seconds, tracks, strict=True)
    ]
    notes = [*predictor.notes, *stream.notes, *people.notes]
    low, high = USUAL_FPS
    chosen = settings.view_fps or predictor.view_fps
    if len(names.names) == CLASSES and not (low <= stream.fps <= high or chosen):
        notes.append(
            f"the video has {stream.fps:g} frames a second, AVA's have 24 to 30: a clip lasts "
            f"{predictor.frames * step / stream.fps:.1f} s (--view-fps 6.25 samples as in 25 frames a second)"
        )
    return PeopleTimeline(
        video_of(stream), key_frames, reach, people.said, [float(stream.seconds[cut]) for cut in cuts], notes
    )
