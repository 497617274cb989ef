"""`dsvid bench ava`: mAP of many detections against a plain loop over images and classes, same rules, same arrays.

Arms take turns, so that a change of the machine's load meets both; CPU time of the one thread counts.
"""

from __future__ import annotations

import argparse
import statistics
import time
import tracemalloc
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from dsvid.errors import DsvidError
from dsvid.metrics.ava import MIN_OVERLAP, BoxRows, average_precision, overlaps, score_detections

Floats = NDArray[np.float64]


def run(args: argparse.Namespace) -> dict[str, object]:
    """Measure, print and return medians in s, their ratio, the peak of memory. Raises DsvidError where arms differ."""
    truth, found = make_rows(args.images, args.people, args.classes)
    classes = list(range(1, args.classes + 1))
    arms: dict[str, Callable[[], Floats]] = {
        "vectorised": lambda: score_detections(truth, found, classes).ap,
        "plain loop": lambda: loop_areas(truth, found, classes),
    }
    areas = [arm() for arm in arms.values()]
    difference = float(np.nanmax(np.abs(areas[0] - areas[1]), initial=0.0))
    if not difference <= 1e-12:
        raise DsvidError("bench ava: the two arms disagree", found=difference, expected="<= 1e-12")
    times: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(max(1, args.repeats)):
        for name, arm in arms.items():
            start = time.thread_time()
            arm()
            times[name].append(time.thread_time() - start)
    medians = {name: statistics.median(each) for name, each in times.items()}
    result: dict[str, object] = {
        "settings": {name: getattr(args, name) for name in ("images", "people", "classes", "repeats")},
        "detections": len(found),
        "boxes": len(truth),
        "seconds": medians,
        "spread": {name: [min(each), max(each)] for name, each in times.items()},
        "times_faster_than_loop": medians["plain loop"] / medians["vectorised"],
        "peak_mb": _peak_mb(arms["vectorised"]),
    }
    print(f"{len(found)} detections and {len(truth)} boxes of {args.classes} classes in {args.images} key frames")
    for name, each in times.items():
        print(f"  {name:<12}{medians[name]:8.3f} s   ({min(each):.3f} to {max(each):.3f})")
    print(f"{result['times_faster_than_loop']:.1f} times faster than the plain loop; peak {result['peak_mb']:.0f} MB")
    return result


def make_rows(images: int, people: int, classes: int, seed: int = 0) -> tuple[BoxRows, BoxRows]:
    """Ground truth and detections of `people` jittered boxes an image: every class scored, two in ten people missed."""
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 0.6, size=(images, people, 2))
    box = np.concatenate([corner, corner + rng.uniform(0.1, 0.4, size=(images, people, 2))], axis=2)
    actions = rng.random((images, people, classes)) < 1.5 / classes
    image, person, action = np.nonzero(actions)
    truth = BoxRows(image, box[image, person], action + 1, np.ones(len(image)))
    seen = box + rng.normal(scale=0.02, size=box.shape)
    everyone = np.indices(actions.shape).reshape(3, -1)
    score = rng.random(len(everyone[0])) * np.where(actions.reshape(-1), 1.0, 0.8)
    return truth, BoxRows(everyone[0], seen[everyone[0], everyone[1]], everyone[2] + 1, score)


def loop_areas(truth: BoxRows, found: BoxRows, classes: list[int]) -> Floats:
    """AP of the `seed` protocol, one image and class at a time, as the original scripts go about it."""
    images = np.union1d(truth.image, found.image)
    boxes, detections = (_by_image(rows, images) for rows in (truth, found))
    areas = []
    for label in classes:
        scores: list[Floats] = []
        hits: list[NDArray[np.bool_]] = []
        for ours, theirs in zip(boxes, detections, strict=True):
            mine = theirs.take(theirs.label == label)
            mine = mine.take((mine.box[:, 2] > mine.box[:, 0]) & (mine.box[:, 3] > mine.box[:, 1]))
            mine = mine.take(np.argsort(-mine.score, kind="stable"))
            scores.append(mine.score)
            hits.append(_loop_hits(ours.box[ours.label == label], mine.box))
        order = np.argsort(-np.concatenate(scores), kind="stable")
        areas.append(average_precision(np.concatenate(hits)[order], int((truth.label == label).sum())))
    return np.array(areas)


def _by_image(rows: BoxRows, images: NDArray[np.int64]) -> list[BoxRows]:
    order = np.argsort(rows.image, kind="stable")
    edges = (
        np.searchsorted(rows.image[order], images, side="left"),
        np.searchsorted(rows.image[order], images, side="right"),
    )
    return [rows.take(order[low:high]) for low, high in zip(*edges, strict=True)]


def _loop_hits(boxes: Floats, found: Floats) -> NDArray[np.bool_]:
    hits = np.zeros(len(found), dtype=bool)
    if not len(boxes):
        return hits
    table = overlaps(np.repeat(found, len(boxes), axis=0), np.tile(boxes, (len(found), 1)))
    table = table.reshape(len(found), len(boxes))
    taken = np.zeros(len(boxes), dtype=bool)
    for number, row in enumerate(table):
        best = int(row.argmax())
        if row[best] >= MIN_OVERLAP and not taken[best]:
            hits[number] = taken[best] = True
    return hits


def _peak_mb(arm: Callable[[], Floats]) -> float:
    tracemalloc.start()
    try:
        arm()
        return tracemalloc.get_traced_memory()[1] / 1e6
    finally:
        tracemalloc.stop()
