"""AVA's samples: key frames with their boxes, the annotated ones in training, a person detector's in evaluation.

Boxes are x1, y1, x2, y2 in pixels of the key frame, both ends included (x2 = x + w - 1), as in the originals. Class
number k is column k - 1, or its place in a list of custom classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from dsvid.data.ava_annotations import Annotation, Annotations, KeyFrame
from dsvid.data.ava_boxes import Boxes, clip_boxes, corners, frame_shares
from dsvid.errors import DataError
from dsvid.metrics.ava import BoxRows

Ints = NDArray[np.int64]
Bits = NDArray[np.uint8]
CLASSES = 80
PERSON_SCORE = 0.8  # the seed's threshold


@dataclass(frozen=True)
class AvaSample:
    """A key frame with its boxes: float32 [k, 4], labels 0/1 [k, classes] (all 0 in evaluation), scores [k]."""

    frame: KeyFrame
    boxes: Boxes
    labels: Bits
    scores: NDArray[np.float32]


@dataclass
class AvaSamples:
    """Samples in the order of image ids; labels are kept packed, 8 classes a byte.

    `left_out` says what was not taken and how often, for the start of the log.
    """

    classes: int
    frames: list[KeyFrame]
    ids: Ints
    first: Ints
    boxes: Boxes
    packed: Bits
    scores: NDArray[np.float32]
    left_out: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.frames)

    def first_of(self, count: int) -> AvaSamples:
        """The first `count` samples, or all where there are fewer."""
        count = min(count, len(self))
        boxes = int(self.first[count])
        return replace(
            self, frames=self.frames[:count], ids=self.ids[:count], first=self.first[: count + 1],
            boxes=self.boxes[:boxes], packed=self.packed[:boxes], scores=self.scores[:boxes],
        )  # fmt: skip

    def __getitem__(self, number: int) -> AvaSample:
        part = slice(int(self.first[number]), int(self.first[number + 1]))
        labels = np.unpackbits(self.packed[part], axis=1, count=self.classes)
        return AvaSample(self.frames[number], self.boxes[part], labels, self.scores[part])


def class_columns(classes: int | Sequence[int] = CLASSES) -> dict[int, int]:
    """Class number -> column: 1 .. n for a count, or the place in a list of custom classes."""
    numbers = range(1, classes + 1) if isinstance(classes, int) else classes
    columns = {int(number): column for column, number in enumerate(numbers)}
    if len(columns) < len(numbers) or not columns or min(columns) < 1:
        raise DataError("custom classes", found=list(numbers), expected="different class numbers, each at least 1")
    return columns


def train_samples(
    annotations: Annotations, columns: Mapping[int, int], *, custom: bool = False, excluded: Sequence[int] = ()
) -> AvaSamples:
    """Images with at least one annotated box, by id. Raises DataError for a class number without a column.

    With `custom` classes, other numbers are dropped, and people whom that leaves without any. `excluded`: image ids to
    leave out (the seed trains on them, so none by default).
    """
    names = (
        "images without boxes",
        "boxes that are empty inside the frame",
        "people without one of the classes",
        "excluded images",
    )
    left_out = dict.fromkeys(names, 0)
    unwanted = set(excluded)
    by_image: dict[int, list[Annotation]] = {}
    for person in annotations.people:
        by_image.setdefault(person.image, []).append(person)
    rows: list[tuple[int, KeyFrame, Boxes, Bits]] = []
    for identity in sorted(by_image):
        frame = annotations.images[identity]
        if identity in unwanted:
            left_out[names[3]] += 1
            continue
        labels = np.stack([_labels(annotations.source, frame, each, columns, custom) for each in by_image[identity]])
        boxes, kept = clip_boxes(
            corners(np.array([each.xywh for each in by_image[identity]], dtype=np.float32)), frame.width, frame.height
        )
        wanted = labels.any(axis=1)
        left_out[names[1]] += int((~kept).sum())
        left_out[names[2]] += int((kept & ~wanted).sum())
        kept &= wanted
        if kept.any():
            rows.append((identity, frame, boxes[kept], labels[kept]))
    left_out[names[0]] = len(annotations.images) - len(rows) - left_out[names[3]]
    if not rows:
        raise DataError(
            f"{annotations.source}: no image with a box to train on", found=left_out,
            fix="other annotations, detect.classes, or a shorter detect.exclude_training",
        )  # fmt: skip
    return _gather(
        len(columns),
        [
            (identity, frame, boxes, labels, np.ones(len(boxes), dtype=np.float32))
            for identity, frame, boxes, labels in rows
        ],
        left_out,
    )


def _labels(source: str, frame: KeyFrame, person: Annotation, columns: Mapping[int, int], custom: bool) -> Bits:
    labels = np.zeros(len(columns), dtype=np.uint8)
    for action in person.actions:
        if action in columns:
            labels[columns[action]] = 1
        elif not custom:
            raise DataError(
                f"{source}: person {person.person} of {frame} has an unknown class",
                found=action,
                expected=f"1 to {len(columns)}",
                fix=f"model.num_classes={action}, detect.classes=[…] with the classes that count, or another file",
            )
    return labels


def val_samples(
    annotations: Annotations,
    people: Mapping[int, NDArray[np.float64]],
    columns: Mapping[int, int],
    *,
    min_score: float = PERSON_SCORE,
    excluded: Sequence[int] = (),
) -> AvaSamples:
    """Images with at least one person box of `min_score` or more; annotated boxes do not take part.

    `people`: image id -> [k, 5] x, y, w, h, score (`read_person_boxes`).
    """
    names = (
        "images without a person box of the score",
        "boxes below the score",
        "boxes that are empty inside the frame",
        "boxes of unknown images",
        "excluded images",
    )
    left_out = dict.fromkeys(names, 0)
    unwanted = set(excluded)
    left_out[names[3]] = sum(len(boxes) for identity, boxes in people.items() if identity not in annotations.images)
    rows: list[tuple[int, KeyFrame, Boxes, Bits, NDArray[np.float32]]] = []
    for identity in sorted(annotations.images):
        frame, found = annotations.images[identity], people.get(identity)
        if identity in unwanted:
            left_out[names[4]] += 1
            continue
        if found is None:
            left_out[names[0]] += 1
            continue
        enough = found[:, 4] >= min_score
        boxes, kept = clip_boxes(corners(found[enough, :4].astype(np.float32)), frame.width, frame.height)
        left_out[names[1]] += int((~enough).sum())
        left_out[names[2]] += int((~kept).sum())
        if kept.any():
            nothing = np.zeros((int(kept.sum()), len(columns)), dtype=np.uint8)
            rows.append((identity, frame, boxes[kept], nothing, found[enough, 4][kept].astype(np.float32)))
        else:
            left_out[names[0]] += 1
    if not rows:
        raise DataError(
            f"{annotations.source}: no image with a person box to evaluate",
            found=left_out,
            fix="a lower score threshold, or person boxes whose image ids are those of the annotations",
        )
    return _gather(len(columns), rows, left_out)


def detection_rows(sample: AvaSample, scores: NDArray[np.floating], image: int, columns: Mapping[int, int]) -> BoxRows:
    """Rows of `inference/result.csv` for scores [k, classes] of a sample: every box with every class.

    Boxes and scores are rounded to five decimals, as the original scores what it has written; writing and reading the
    rows again changes nothing.
    """
    labels = np.array(sorted(columns, key=lambda label: columns[label]), dtype=np.int64)
    shares = frame_shares(sample.boxes, (sample.frame.width, sample.frame.height))
    count = len(shares) * len(labels)
    return BoxRows(
        image=np.full(count, image, dtype=np.int64),
        box=_five_decimals(shares).repeat(len(labels), axis=0),
        label=np.tile(labels, len(shares)),
        score=_five_decimals(scores.astype(np.float64)).reshape(-1),
    )


def _five_decimals(values: NDArray[np.float64]) -> NDArray[np.float64]:
    # a whole number over 10^5 is the double that its decimals are read as; numpy's own rounding is not
    rounded: NDArray[np.float64] = np.rint(values * 1e5) / 1e5
    return rounded


def _gather(
    classes: int,
    rows: Sequence[tuple[int, KeyFrame, Boxes, Bits, NDArray[np.float32]]],
    left_out: dict[str, int],
) -> AvaSamples:
    counts = np.array([len(row[2]) for row in rows], dtype=np.int64)
    return AvaSamples(
        classes=classes,
        frames=[row[1] for row in rows],
        ids=np.array([row[0] for row in rows], dtype=np.int64),
        first=np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(counts)]),
        boxes=np.concatenate([row[2] for row in rows]),
        packed=np.packbits(np.concatenate([row[3] for row in rows]), axis=1),
        scores=np.concatenate([row[4] for row in rows]),
        left_out={name: count for name, count in left_out.items() if count},
    )
