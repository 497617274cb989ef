"""The frames around a key frame of AVA, from one-second files or whole videos, and what becomes of clip and boxes.

Legend: T frames of a clip, k boxes. Offsets count frames from the key frame whatever the frame rate, as in the
originals: 16 frames at distance 4 lie at -31, -27, ..., +29.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dsvid.data import augment, ava_boxes
from dsvid.data.ava import AvaSample, Bits
from dsvid.data.ava_annotations import KeyFrame
from dsvid.data.ava_boxes import Boxes
from dsvid.data.ava_files import MICRO
from dsvid.data.decode import ClipSource, open_clip_source
from dsvid.data.manifest import Entry
from dsvid.errors import DataError

Ints = NDArray[np.int64]
FRAMES, RATE, CROP, MAX_BOXES = 16, 4, 224, 100
MEAN = (122.7717 / 255, 115.9465 / 255, 102.9801 / 255)
STD = (57.375 / 255,) * 3
HUE, SATURATION, VALUE = 10, 26, 26  # largest shifts of the colour jitter
TRIED = 5  # seconds that are opened to learn the size of a video
SUFFIXES = (".mp4", ".mkv", ".webm", ".avi", ".mov")


# ---- which frames --------------------------------------------------------------------------------------------------


def window_indices(raw: int, frames: int = FRAMES, rate: int = RATE) -> Ints:
    """Frames of a window of `raw` frames whose middle is the key frame, clipped to the window (the seed's rule)."""
    start = (raw - frames * rate) // 2 + (rate - 1) // 2
    return np.clip(start + rate * np.arange(frames, dtype=np.int64), 0, raw - 1)


def key_offsets(frames: int = FRAMES, rate: int = RATE) -> Ints:
    """The same as distances from the key frame, for a window that is long enough."""
    half = frames * rate
    return window_indices(2 * half, frames, rate) - half


def read_clip(
    root: Path, frame: KeyFrame, *, frames: int = FRAMES, rate: int = RATE, decoder: str = "pyav", start_s: float = 0.0
) -> Tensor:
    """The clip around a key frame, uint8 [T, H, W, 3]: from `root/<video>/<second>.mp4` if there is such a folder, else
    from `root/<video>.mp4` (or .mkv, ...), whose first frame is at second `start_s`.

    Beyond the first and last frame there is, that frame is repeated. Raises DataError where the key frame is missing.
    """
    offsets = key_offsets(frames, rate)
    if (root / frame.video).is_dir():
        return _read_seconds(root / frame.video, frame, offsets, decoder)
    files = [path for suffix in SUFFIXES if (path := root / f"{frame.video}{suffix}").is_file()]
    if not files:
        raise DataError(
            f"{root / frame.video}: no such video",
            expected=f"a folder with {frame.micros // MICRO}.mp4, or {frame.video} with one of {', '.join(SUFFIXES)}",
        )
    with open_clip_source(Entry(str(files[0]), -1, 0, -1, "video"), decoder) as source:
        if source.fps is None:
            raise DataError(f"{files[0]}: its frame rate is not known", fix="cut it into one-second files")
        key = round((frame.micros / MICRO - start_s) * source.fps)
        if not 0 <= key < source.frames:
            raise DataError(
                f"{files[0]}: no key frame of {frame}",
                found=f"{source.frames} frames at {source.fps:g} fps from second {start_s:g}",
                expected=f"frame {key}",
            )
        return torch.from_numpy(source.read(np.clip(key + offsets, 0, source.frames - 1)))


def video_size(root: Path, video: str) -> tuple[int, int]:
    """(width, height) of a video of `read_clip`'s layouts. Raises DataError where there is none."""
    folder = root / video
    seconds = sorted(folder.glob("*.mp4")) if folder.is_dir() else []
    whole = [path for suffix in SUFFIXES if (path := root / f"{video}{suffix}").is_file()]
    if not seconds and not whole:
        raise DataError(f"{folder}: no such video", expected=f"a folder of seconds, or one of {', '.join(SUFFIXES)}",
                        fix="drop its rows, or give the annotations as json")  # fmt: skip
    broken: DataError | None = None
    for path in (seconds or whole)[:TRIED]:
        try:
            with open_clip_source(Entry(str(path), -1, 0, -1, "video"), "pyav") as source:
                height, width = source.read([0]).shape[1:3]
                return width, height
        except DataError as error:  # one broken second says nothing of the others
            broken = broken or error
    assert broken is not None
    raise broken


def _read_seconds(folder: Path, frame: KeyFrame, offsets: Ints, decoder: str) -> Tensor:
    """Frames at `offsets` from the first frame of the key second's file, out of this and its neighbours."""
    second, rest = divmod(frame.micros, MICRO)
    if rest:
        raise DataError(
            f"{folder}: a key frame between two seconds", found=frame, expected="a whole second, or whole videos"
        )
    with ExitStack() as opened:

        def enter(number: int) -> ClipSource | None:
            path = _second_file(folder, number)
            if path is None:
                return None
            return opened.enter_context(open_clip_source(Entry(str(path), -1, 0, -1, "video"), decoder))

        parts: list[tuple[int, ClipSource]] = []  # where each file begins, counted from the key frame
        right, number = 0, second
        while right <= offsets.max() and (source := enter(number)) is not None:
            parts.append((right, source))
            right, number = right + source.frames, number + 1
        if not parts:
            raise DataError(
                f"{folder / f'{second}.mp4'}: no such file", expected=f"the second of the key frame of {frame}"
            )
        left, number = 0, second - 1
        while left > offsets.min() and (source := enter(number)) is not None:
            left, number = left - source.frames, number - 1
            parts.append((left, source))
        wanted = np.clip(offsets, left, right - 1)
        return torch.from_numpy(_pick(parts, wanted, folder))


def _pick(parts: Sequence[tuple[int, ClipSource]], wanted: Ints, folder: Path) -> NDArray[np.uint8]:
    pictures: dict[int, NDArray[np.uint8]] = {}
    for begin, source in parts:
        here = wanted[(wanted >= begin) & (wanted < begin + source.frames)]
        if len(here):
            pictures.update(zip(here.tolist(), source.read(here - begin), strict=True))
    if len({picture.shape for picture in pictures.values()}) != 1:
        raise DataError(f"{folder}: seconds of one video", found="several picture sizes", expected="one size")
    return np.stack([pictures[number] for number in wanted.tolist()])


def _second_file(folder: Path, second: int) -> Path | None:
    for name in (f"{second}.mp4", f"{second:04d}.mp4"):
        if (folder / name).is_file():
            return folder / name
    return None


# ---- clip and boxes together ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AvaView:
    """What the model sees of a sample: clip uint8 [T, h, w, 3], its boxes [k, 4], labels [k, classes], scores [k], and
    which rows of the sample they are [k]."""

    clip: Tensor
    boxes: Boxes
    labels: Bits
    scores: NDArray[np.float32]
    rows: Ints


def train_view(
    clip: Tensor,
    sample: AvaSample,
    rng: np.random.Generator,
    *,
    short: int = ava_boxes.SHORT_SIDE,
    side: int = CROP,
    flip: float = 0.5,
    colour: bool = True,
    max_boxes: int = MAX_BOXES,
    bugs: Collection[str] = (),
) -> AvaView:
    """Resize, random crop, colour jitter, flip, at most `max_boxes` boxes, each moved by chance.

    Boxes that the crop leaves without an area are dropped (`bugs`: "cut_boxes" keeps them, as the seed does), so a view
    may have none. Every call draws the same numbers in the same order, whatever the settings.
    """
    draws = {name: rng.random(2) for name in ("crop", "flip")}
    shifts = [int(rng.integers(-most, most + 1)) for most in (HUE, SATURATION, VALUE)]
    clip, boxes = _resize(clip, sample, short, bugs)
    height, width = clip.shape[1:3]
    if min(height, width) < side:
        raise DataError(
            f"the short side of a clip is {min(height, width)} pixels", expected=f"at least the crop, {side}"
        )
    x, y = corner = ava_boxes.crop_corner((width, height), side, draws["crop"].tolist())
    clip, boxes = augment.crop(clip, y, x, side, side), ava_boxes.crop_boxes(boxes, corner, side)
    rows = np.arange(len(boxes)) if "cut_boxes" in bugs else np.flatnonzero(ava_boxes.has_area(boxes))
    if colour:
        clip = augment.shift_colour(clip, *shifts)
    if draws["flip"][0] < flip:
        clip, boxes = clip.flip(2), ava_boxes.flip_boxes(boxes, side)
    rows = np.sort(rng.permutation(rows)[:max_boxes])
    boxes = ava_boxes.jitter_boxes(boxes[rows], (side, side), rng.random((4, len(rows))))
    return AvaView(clip.contiguous(), boxes, sample.labels[rows], sample.scores[rows], rows)


def eval_view(
    clip: Tensor, sample: AvaSample, *, short: int = ava_boxes.SHORT_SIDE, bugs: Collection[str] = ()
) -> AvaView:
    """The whole frame, resized, its boxes widened; all of them, in the order of the sample."""
    clip, boxes = _resize(clip, sample, short, bugs)
    height, width = clip.shape[1:3]
    rows = np.arange(len(boxes), dtype=np.int64)
    return AvaView(clip, ava_boxes.widen_boxes(boxes, (width, height)), sample.labels, sample.scores, rows)


def _resize(clip: Tensor, sample: AvaSample, short: int, bugs: Collection[str]) -> tuple[Tensor, Boxes]:
    height, width = clip.shape[1:3]
    new = ava_boxes.resized((width, height), short, swapped_sides="swapped_sides" in bugs)
    boxes = ava_boxes.resize_boxes(sample.boxes, (sample.frame.width, sample.frame.height), new)
    # without antialiasing, as the originals' OpenCV
    return augment.resize(clip, new[1], new[0], antialias=False), boxes


def collate(views: Sequence[AvaView], patch: int) -> dict[str, Tensor]:
    """A batch: clip uint8 [B, T, H, W, 3], size [B, 2], boxes [B, K, 4], labels uint8 [B, K, classes],
    box_scores [B, K], boxes_count [B].

    Zeros right and below fill the clips up to a multiple of the patch; `size` is height and width without them. Rows of
    zeros fill up to the largest number of boxes, one at least.
    """
    sizes = [(int(view.clip.shape[2]), int(view.clip.shape[1])) for view in views]
    width, height = ava_boxes.padded_batch(sizes, patch)
    most = max(1, *(len(view.boxes) for view in views))
    count, frames, classes = len(views), views[0].clip.shape[0], views[0].labels.shape[1]
    batch = {
        "clip": torch.zeros(count, frames, height, width, 3, dtype=torch.uint8),
        "size": torch.tensor([(h, w) for w, h in sizes]),
        "boxes": torch.zeros(count, most, 4),
        "labels": torch.zeros(count, most, classes, dtype=torch.uint8),
        "box_scores": torch.zeros(count, most),
        "boxes_count": torch.tensor([len(view.boxes) for view in views]),
    }
    for place, view in enumerate(views):
        k = len(view.boxes)
        batch["clip"][place, :, : view.clip.shape[1], : view.clip.shape[2]] = view.clip
        for name, values in (("boxes", view.boxes), ("labels", view.labels), ("box_scores", view.scores)):
            batch[name][place, :k] = torch.from_numpy(np.ascontiguousarray(values))
    return batch
