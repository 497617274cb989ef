"""The geometry of boxes: bounds, inverses, the seed's faults."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dsvid.data import ava_boxes

CASE = Path(__file__).parents[1] / "reference" / "cases" / "ava" / "pipeline_boxes" / "case.json"


def some(count: int, width: int, height: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    low = rng.random((count, 2)) * (width - 10, height - 10)
    return np.concatenate([low, low + 1 + rng.random((count, 2)) * 8], axis=1).astype(np.float32)


def test_the_arithmetic_is_the_reference_s_to_the_bit() -> None:
    for entry in json.loads(CASE.read_text())["cases"]:
        size, new = (entry["width"], entry["height"]), tuple(entry["resized_wh"])
        clipped = np.array(entry["xyxy_clipped"], dtype=np.float32)
        small = ava_boxes.resize_boxes(clipped, size, new)
        assert np.array_equal(small, np.array(entry["resized"], dtype=np.float32))
        cropped = ava_boxes.crop_boxes(small, tuple(entry["crop_xy"]), 224)
        assert np.array_equal(cropped, np.array(entry["cropped"], dtype=np.float32))
        assert np.array_equal(ava_boxes.flip_boxes(cropped, 224), np.array(entry["flipped"], dtype=np.float32))
        widened = ava_boxes.widen_boxes(small, new)
        assert np.abs(widened - np.array(entry["test_extended"], dtype=np.float32)).max() <= 3.1e-5  # one float32 step


def test_a_flip_undoes_itself() -> None:
    boxes = some(50, 300, 200)
    assert np.allclose(ava_boxes.flip_boxes(ava_boxes.flip_boxes(boxes, 300), 300), boxes, atol=1e-4)
    assert ava_boxes.has_area(ava_boxes.flip_boxes(boxes, 300)).all()


def test_widened_boxes_hold_the_old_and_stay_inside() -> None:
    boxes = some(200, 300, 200)
    wide = ava_boxes.widen_boxes(boxes, (300, 200))
    assert (wide[:, :2] <= boxes[:, :2]).all() and (wide[:, 2:] >= boxes[:, 2:]).all()
    assert wide.min() >= 0 and (wide[:, 2:] <= (299, 199)).all()


def test_jittered_boxes_stay_inside_and_within_their_shares() -> None:
    boxes = some(500, 60, 40)
    rng = np.random.default_rng(1)
    moved = ava_boxes.jitter_boxes(boxes, (60, 40), rng.random((4, 500)))
    sides = boxes[:, 2:] - boxes[:, :2] + 1
    assert (moved[:, :2] >= 0).all() and (moved[:, 2:] <= (59, 39)).all()
    assert (moved[:, 2:] >= moved[:, :2] + 1).all()
    assert (np.abs(moved - boxes).reshape(-1, 2, 2).max(axis=1) <= sides * (0.2, 0.1) + 1).all()
    still = ava_boxes.jitter_boxes(boxes, (60, 40), np.array([[2 / 3], [2 / 3], [1 / 3], [1 / 3]]).repeat(500, axis=1))
    assert np.abs(still - boxes).max() < 1e-3
    outwards = ava_boxes.jitter_boxes(boxes, (1000, 1000), np.array([[0.0], [0.0], [1.0], [1.0]]).repeat(500, axis=1))
    assert outwards[:, 2] - boxes[:, 2] == pytest.approx(0.2 * sides[:, 0], abs=1e-4)


def test_the_short_side_is_what_was_asked_for_in_both_orientations() -> None:
    for size in ((640, 360), (360, 640), (455, 256), (256, 455), (256, 256), (300, 299)):
        new = ava_boxes.resized(size, 256)
        assert min(new) == 256 and (new[0] >= new[1]) == (size[0] >= size[1])
    assert ava_boxes.resized((455, 256), 256) == (455, 256)
    assert ava_boxes.resized((455, 256), 256, swapped_sides=True) == (256, 455)
    assert ava_boxes.resized((640, 360), 256, swapped_sides=True) == (455, 256)


def test_padding_reaches_the_next_multiple() -> None:
    assert ava_boxes.padded((455, 256), 16) == (464, 256)
    assert ava_boxes.padded_batch([(455, 256), (256, 460)], 16) == (464, 464)


def test_shares_of_the_frame_undo_the_inclusive_ends() -> None:
    xywh = np.array([[10, 20, 30, 40], [0, 0, 200, 100], [190, 90, 100, 100]], dtype=np.float32)
    boxes, kept = ava_boxes.clip_boxes(ava_boxes.corners(xywh), 200, 100)
    assert kept.all()
    assert ava_boxes.frame_shares(boxes, (200, 100)).tolist() == [
        [0.05, 0.2, 0.2, 0.6],
        [0, 0, 1, 1],
        [0.95, 0.9, 1, 1],
    ]
