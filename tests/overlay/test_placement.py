"""Labels lie in the frame, not over each other, near their boxes, and do not jump."""

from __future__ import annotations

import itertools

import numpy as np

from dsvid.overlay.placement import Placer, Wish, common

FRAME = (800, 480)


def rects(placer: Placer, wishes: list[Wish]) -> tuple[list[tuple[float, float, float, float]], bool]:
    spots, free = placer.place(wishes, FRAME)
    return [(x, y, x + w.size[0], y + w.size[1]) for (x, y), w in zip(spots, wishes, strict=True)], free


def test_near_boxes_have_labels_apart_and_inside() -> None:
    rng = np.random.default_rng(0)
    for _ in range(40):
        count = int(rng.integers(2, 7))
        low = rng.random((count, 2)) * (250, 150) + (300, 100) * rng.random(2)  # close together
        high = low + rng.random((count, 2)) * (150, 200) + 10
        wishes = [
            Wish(i, (*map(float, a), *map(float, b)), (int(rng.integers(60, 240)), int(rng.integers(20, 80))))
            for i, (a, b) in enumerate(zip(low, high, strict=True))
        ]
        placed, free = rects(Placer(), wishes)
        assert free
        for i, one in enumerate(placed):
            assert one[0] >= 0 and one[1] >= 0 and one[2] <= FRAME[0] and one[3] <= FRAME[1]
            assert all(common(one, other) == 0 for other in placed[:i])


def test_a_label_lies_above_its_box_or_inside_of_one_that_fills_the_frame() -> None:
    (alone,), _ = rects(Placer(), [Wish(0, (300.0, 200.0, 400.0, 400.0), (120, 30))])
    assert alone == (300, 170, 420, 200)
    (whole,), _ = rects(Placer(), [Wish(0, (0.0, 0.0, 799.0, 479.0), (120, 30))])
    assert whole[1] > 240  # not where faces are


def test_too_many_labels_are_said_not_to_fit() -> None:
    crowd = [Wish(i, (10.0, 10.0, 50.0, 50.0), (700, 100)) for i in range(6)]
    placed, free = rects(Placer(), crowd)
    assert not free and all(rect[2] <= FRAME[0] and rect[3] <= FRAME[1] for rect in placed)


def test_a_label_stays_on_its_side_while_the_boxes_move_and_tremble() -> None:
    placer = Placer()
    sides = []
    for step in range(120):
        x, other, shake = 100.0 + 2 * step, 300.0 - 2 * step, 3.0 * (step % 2)
        wishes = [
            Wish(1, (x, 150.0 + shake, x + 80, 350.0 + shake), (130, 40)),
            Wish(2, (other, 160.0 - shake, other + 80, 340.0 - shake), (130, 40)),
        ]
        placed, free = rects(placer, wishes)
        assert free
        sides.append([(round(r[0] - w.box[0]), round(r[1] - w.box[1])) for r, w in zip(placed, wishes, strict=True)])
    changes = sum(before != after for before, after in itertools.pairwise(sides))
    assert changes <= 3  # without memory they are 6
