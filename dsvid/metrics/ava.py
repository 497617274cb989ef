"""AVA's frame mAP at IoU 0.5, by the rules of the original scripts. Knows arrays, no files.

Legend: n rows, C classes. Boxes are x1, y1, x2, y2 as shares of the frame; an image is a number for one key frame of
one video, the same in ground truth and detections. Rules common to all protocols: a detection looks only at the box of
its image and class that it overlaps most (the first where several are equal) and is a hit if that overlap is >= 0.5 and
no better-scored detection took the box; AP is the area under the monotone envelope of precision over recall.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dsvid.errors import DataError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]
MIN_OVERLAP = 0.5
PAIRS_AT_ONCE = 1 << 19  # (detection, box) pairs whose overlaps are held in memory together


@dataclass(frozen=True)
class BoxRows:
    """Rows of a box file: image [n], box [n, 4], label [n], score [n] (1 where the file has none)."""

    image: Ints
    box: Floats
    label: Ints
    score: Floats

    def __len__(self) -> int:
        return len(self.image)

    def take(self, index: Flags | Ints) -> BoxRows:
        """The rows chosen by a mask or by numbers."""
        return BoxRows(self.image[index], self.box[index], self.label[index], self.score[index])


@dataclass(frozen=True)
class Protocol:
    """Where the original scripts differ.

    `cap`: best detections kept of an image, over all classes. `unlisted`: a detection in an image that the ground truth
    does not list is a false positive ("wrong") or dropped ("ignored"). `listed_by`: an image is listed by any line of
    the file, or only by a box of a class that counts. `keep_excluded_truth`: boxes of excluded images stay in the
    denominator of recall. `undetected_is_nan`: a class with boxes but without detections is left out of the
    mean instead of counting 0. `refuse_inverted`: an inverted box is an error and an empty one counts (as a miss);
    otherwise both are dropped. `order_by_score`: boxes of an image are looked at in descending order of the ground
    truth's last column. `precision`: of boxes, scores and overlaps.
    """

    name: str
    cap: int | None = None
    unlisted: Literal["wrong", "ignored"] = "ignored"
    listed_by: Literal["line", "box"] = "line"
    keep_excluded_truth: bool = False
    undetected_is_nan: bool = False
    refuse_inverted: bool = False
    order_by_score: bool = False
    precision: Literal["float64", "float32"] = "float64"

    def with_cap(self, cap: int | None) -> Protocol:
        """The same with another cap."""
        return replace(self, cap=cap)


PROTOCOLS = {
    "seed": Protocol("seed", unlisted="wrong"),
    "official": Protocol("official", cap=50, order_by_score=True),
    "mmaction2": Protocol(
        "mmaction2",
        listed_by="box",
        keep_excluded_truth=True,
        undetected_is_nan=True,
        refuse_inverted=True,
        order_by_score=True,
        precision="float32",
    ),
}
# Bounds of the class numbers of AVA's three groups, both included.
GROUPS = {"pose": (1, 14), "object": (15, 63), "person": (64, 80)}


@dataclass(frozen=True)
class AvaScores:
    """Results by class: ids, AP, its lowest and highest value over the orders of equal scores, boxes, detections [C].

    AP is NaN for a class that does not count. `detections` are those that took part. `images` is how many key frames
    had a box or a detection that took part.
    """

    protocol: Protocol
    classes: Ints
    ap: Floats
    lowest: Floats
    highest: Floats
    truths: Ints
    detections: Ints
    images: int

    @property
    def mean(self) -> float:
        """mAP over the classes that count; NaN where none does."""
        return mean_of(self.ap)

    @property
    def mean_range(self) -> tuple[float, float]:
        """The lowest and the highest mAP that some order of equally scored detections gives."""
        return mean_of(self.lowest), mean_of(self.highest)

    def group_means(self, groups: Mapping[str, tuple[int, int]] | None = None) -> dict[str, float]:
        """Mean AP of the classes of each group; NaN for a group in which no class counts."""
        bounds = GROUPS if groups is None else groups
        return {
            name: mean_of(self.ap[(self.classes >= low) & (self.classes <= high)])
            for name, (low, high) in bounds.items()
        }


def mean_of(values: Floats) -> float:
    """Mean over the values that are numbers; NaN for none, without numpy's warning."""
    numbers = values[~np.isnan(values)]
    return float(numbers.mean()) if len(numbers) else float("nan")


def score_detections(
    truth: BoxRows,
    found: BoxRows,
    classes: Sequence[int],
    protocol: Protocol = PROTOCOLS["seed"],
    *,
    listed: Ints | None = None,
    excluded: Ints | None = None,
) -> AvaScores:
    """AP of every class in `classes`; rows of other classes do not count.

    `listed`: the images of all lines of the ground-truth file (default: those with a box). `excluded`: images to leave
    out, of truth and detections. Raises DataError for an inverted box where the protocol refuses one.
    """
    ids = np.unique(np.asarray(classes, dtype=np.int64))
    truth, found = (rows.take(np.isin(rows.label, ids)) for rows in (truth, found))
    named = truth.image if listed is None or protocol.listed_by == "box" else listed
    counted = truth
    if excluded is not None:
        truth, found = (rows.take(~np.isin(rows.image, excluded)) for rows in (truth, found))
        named = np.setdiff1d(named, excluded)
    if protocol.cap is not None:
        found = _best_of_each_image(found, protocol.cap)
    if protocol.unlisted == "ignored":
        found = found.take(np.isin(found.image, named))
    found = _valid_rows(truth, found, protocol)
    denominators = np.searchsorted(ids, (counted if protocol.keep_excluded_truth else truth).label)
    truths = np.bincount(denominators, minlength=len(ids)).astype(np.int64)

    if protocol.order_by_score:
        truth = truth.take(np.argsort(-truth.score, kind="stable"))
    found, column = _ranked(found, ids, protocol)
    hits = _hits(truth, found, ids, column, protocol)
    detections = np.bincount(column, minlength=len(ids)).astype(np.int64)
    score = found.score.astype(protocol.precision)
    orders = [hits, *_tied_orders(hits, score, column)]
    ap, lowest, highest = (
        _class_areas(order, detections, truths, undetected_is_nan=protocol.undetected_is_nan) for order in orders
    )
    images = len(np.union1d(truth.image, found.image))
    return AvaScores(protocol, ids, ap, lowest, highest, truths, detections, images)


def average_precision(hits: Flags, truths: int) -> float:
    """AP of detections in descending order of score; NaN without boxes, 0 without a hit."""
    if truths == 0:
        return float("nan")
    places = np.flatnonzero(hits)
    precision = np.arange(1, len(places) + 1) / (places + 1)
    # precision rises at hits only, so the envelope is the largest value at this hit or a later one
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    # the originals' sum to the last bit: a step of recall for every hit, and one without height up to recall 1
    steps = np.diff(np.arange(len(places) + 1) / truths)
    rest = [0.0] if len(places) < truths else []
    return float(np.sum(np.concatenate([steps * envelope, rest])))


def overlaps(first: NDArray[Any], second: NDArray[Any]) -> NDArray[Any]:
    """Intersection over union of two lists of boxes [n, 4], pair by pair, in their own precision; 0 for two points."""
    low = np.maximum(first[:, :2], second[:, :2])
    high = np.minimum(first[:, 2:], second[:, 2:])
    sides = np.maximum(high - low, 0)
    shared = sides[:, 0] * sides[:, 1]
    areas = [(boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) for boxes in (first, second)]
    union = areas[0] + areas[1] - shared
    shares: NDArray[Any] = np.divide(shared, union, out=np.zeros_like(union), where=union > 0)
    return shares


def _valid_rows(truth: BoxRows, found: BoxRows, protocol: Protocol) -> BoxRows:
    """The detections without inverted and empty boxes, or an error, as the protocol has it."""
    if not protocol.refuse_inverted:
        return found.take((found.box[:, 2] > found.box[:, 0]) & (found.box[:, 3] > found.box[:, 1]))
    for name, rows in (("ground truth", truth), ("detections", found)):
        inverted = np.flatnonzero((rows.box[:, 2] < rows.box[:, 0]) | (rows.box[:, 3] < rows.box[:, 1]))
        if len(inverted):
            raise DataError(
                f"{name}: {len(inverted)} inverted boxes, which the {protocol.name} protocol refuses",
                found=f"x1, y1, x2, y2 = {rows.box[inverted[0]].tolist()}, class {rows.label[inverted[0]]}",
                expected="x1 <= x2 and y1 <= y2",
                fix="mend the file, or use --protocol seed or official, which drop such boxes",
            )
    return found


def _best_of_each_image(found: BoxRows, cap: int) -> BoxRows:
    """The `cap` detections of every image that the official reader keeps, in the order of the file."""
    order = np.lexsort((-found.score, found.image))
    _, starts, counts = np.unique(found.image[order], return_index=True, return_counts=True)
    place = np.arange(len(order)) - np.repeat(starts, counts)
    kept = np.zeros(len(found), dtype=bool)
    kept[order[place < cap]] = True
    full = np.flatnonzero(counts > cap)
    last, next_one = order[starts[full] + cap - 1], order[starts[full] + cap]
    # which of the equal scores at the edge stay depends on the order of the file: the reader's heap is run for those
    for number in full[found.score[last] == found.score[next_one]]:
        rows = np.sort(order[starts[number] : starts[number] + counts[number]])
        kept[rows] = False
        kept[_heap_survivors(found, rows, cap)] = True
    return found.take(kept)


def _heap_survivors(found: BoxRows, rows: Ints, cap: int) -> list[int]:
    columns = [found.score[rows], found.label[rows], *(found.box[rows][:, [1, 0, 3, 2]].T), rows]
    heap: list[tuple[Any, ...]] = []
    for entry in zip(*(column.tolist() for column in columns), strict=True):
        if len(heap) < cap:
            heapq.heappush(heap, entry)
        elif entry[0] > heap[0][0]:
            heapq.heapreplace(heap, entry)
    return [entry[-1] for entry in heap]


def _ranked(found: BoxRows, ids: Ints, protocol: Protocol) -> tuple[BoxRows, Ints]:
    """Detections by class, then descending score, and their column among `ids`.

    Equal scores: the image that comes later in the file first, within an image the earlier row first. That is what a
    stable sort gives in the original, whose own sort leaves the order open.
    """
    _, first_row, number = np.unique(found.image, return_index=True, return_inverse=True)
    order = np.argsort(-first_row[number], kind="stable")
    order = order[np.argsort(-found.score[order], kind="stable")]
    column = np.searchsorted(ids, found.label)
    order = order[np.argsort(column[order], kind="stable")]
    return found.take(order), column[order]


def _hits(truth: BoxRows, found: BoxRows, ids: Ints, column: Ints, protocol: Protocol) -> Flags:
    """Which of the detections, in descending order of score, are hits."""
    width = len(ids)
    images = np.unique(truth.image)
    keys = np.searchsorted(images, truth.image) * width + np.searchsorted(ids, truth.label)
    order = np.argsort(keys, kind="stable")
    keys, boxes = keys[order], truth.box[order].astype(protocol.precision)
    place = np.searchsorted(images, found.image)
    known = np.flatnonzero(np.isin(found.image, images))
    wanted = place[known] * width + column[known]
    low, high = np.searchsorted(keys, wanted, side="left"), np.searchsorted(keys, wanted, side="right")
    has_any = high > low
    known, low, count = known[has_any], low[has_any], (high - low)[has_any]
    best = _best_boxes(found.box[known].astype(protocol.precision), boxes, low, count)
    matched = best >= 0
    # the list is in descending order of score, so the first of those that chose a box takes it
    _, first = np.unique(best[matched], return_index=True)
    hits = np.zeros(len(found), dtype=bool)
    hits[known[matched][first]] = True
    return hits


def _best_boxes(found: NDArray[Any], boxes: NDArray[Any], low: Ints, count: Ints) -> Ints:
    """For each detection the number of the box among low .. low + count that it overlaps most, -1 below the limit."""
    best = np.full(len(found), -1, dtype=np.int64)
    ends = np.cumsum(count)
    begin = 0
    while begin < len(found):
        done = ends[begin - 1] if begin else 0
        end = max(begin + 1, int(np.searchsorted(ends, done + PAIRS_AT_ONCE, side="right")))
        part, sizes = slice(begin, end), count[begin:end]
        starts = np.cumsum(sizes) - sizes
        offset = np.arange(sizes.sum()) - np.repeat(starts, sizes)
        number = np.repeat(low[part], sizes) + offset
        overlap = overlaps(np.repeat(found[part], sizes, axis=0), boxes[number])
        largest = np.maximum.reduceat(overlap, starts)
        candidates = np.where(overlap == np.repeat(largest, sizes), number, np.iinfo(np.int64).max)
        best[part] = np.where(largest >= MIN_OVERLAP, np.minimum.reduceat(candidates, starts), -1)
        begin = end
    return best


def _tied_orders(hits: Flags, score: NDArray[Any], column: Ints) -> tuple[Flags, Flags]:
    """The hits with those of equal class and score moved behind the misses, and before them."""
    same = (score[1:] == score[:-1]) & (column[1:] == column[:-1])
    group = np.concatenate([[0], np.cumsum(~same)]) if len(hits) else np.zeros(0, dtype=np.int64)
    return hits[np.lexsort((hits, group))], hits[np.lexsort((~hits, group))]


def _class_areas(hits: Flags, detections: Ints, truths: Ints, *, undetected_is_nan: bool) -> Floats:
    ends = np.cumsum(detections)
    areas = np.array(
        [average_precision(hits[end - n : end], boxes) for end, n, boxes in zip(ends, detections, truths, strict=True)]
    )
    return np.where(detections == 0, np.nan, areas) if undetected_is_nan else areas
