"""Where labels go: beside their boxes, inside of the frame, not over each other. Geometry in pixels, no drawing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

Size = tuple[int, int]
Spot = tuple[float, float]
Rect = tuple[float, float, float, float]

# What is paid for: labels on labels, the shares of other people's boxes and of their own that are covered, the distance
# in heights of the label, another side than before.
ON_LABEL, ON_OTHER, ON_OWN, FAR, CHANGED = 1000.0, 12.0, 8.0, 1.0, 2.0
HEAD, ON_HEAD = 0.35, 2.0  # the upper part of a box is the face's: covering it costs more


@dataclass(frozen=True)
class Wish:
    """A label: the `key` that knows it in the next frame, its box, the size of its text block."""

    key: int
    box: Rect
    size: Size


def common(one: Rect, other: Rect) -> float:
    """Area that two rectangles share."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return width * height if width > 0 and height > 0 else 0.0


class Placer:
    """Places the labels of one frame after the other; a label stays on its side of the box where it can."""

    def __init__(self) -> None:
        self._side: dict[int, int] = {}

    def place(self, wishes: Sequence[Wish], frame: Size) -> tuple[list[Spot], bool]:
        """Upper left corners, in the order given, and whether no label covers another."""
        placed: list[Rect] = []
        spots: list[Spot] = []
        free = True
        for number, wish in enumerate(wishes):
            others = [other.box for place, other in enumerate(wishes) if place != number]
            options = list(self._options(wish, frame, others, placed))
            cost, side, spot = min(options)
            if cost >= ON_LABEL:
                options = [*options, *self._elsewhere(wish, frame, others, placed)]
                cost, side, spot = min(options)
            free = free and cost < ON_LABEL
            self._side[wish.key] = side
            placed.append(_at(spot, wish.size))
            spots.append(spot)
        return spots, free

    def _options(
        self, wish: Wish, frame: Size, others: Sequence[Rect], placed: Sequence[Rect]
    ) -> Iterator[tuple[float, int, Spot]]:
        (x1, y1, x2, y2), (w, h) = wish.box, wish.size
        sides = (
            (x1, y1 - h), (x2 - w, y1 - h), (x1, y2), (x2 - w, y2), (x2, y1), (x1 - w, y1), (x2, y2 - h),
            (x1 - w, y2 - h), (x1, y1), (x1, y2 - h), (x2 - w, y1),
        )  # fmt: skip
        for side, wanted in enumerate(sides):
            yield self._priced(side, wanted, wish, frame, others, placed)

    def _elsewhere(
        self, wish: Wish, frame: Size, others: Sequence[Rect], placed: Sequence[Rect]
    ) -> Iterator[tuple[float, int, Spot]]:
        """Every place of a coarse grid, for frames in which the sides of the box are taken."""
        w, h = wish.size
        for row in range(0, max(1, frame[1] - h), max(4, h // 2)):
            for column in range(0, max(1, frame[0] - w), max(8, w // 4)):
                yield self._priced(-1, (column, row), wish, frame, others, placed)

    def _priced(
        self, side: int, wanted: Spot, wish: Wish, frame: Size, others: Sequence[Rect], placed: Sequence[Rect]
    ) -> tuple[float, int, Spot]:
        w, h = wish.size
        spot = (min(max(wanted[0], 0.0), max(0.0, frame[0] - w)), min(max(wanted[1], 0.0), max(0.0, frame[1] - h)))
        rect, area = _at(spot, wish.size), float(w * h)
        cost = 0.05 * side if side >= 0 else 3.0
        covered = sum(common(rect, other) for other in placed)
        if covered > 0:
            cost += ON_LABEL * (1 + covered / area)
        cost += ON_OTHER * sum(_covered(rect, other) for other in others) + ON_OWN * _covered(rect, wish.box)
        cost += FAR * _gap(rect, wish.box) / max(1, h)
        if self._side.get(wish.key, side) != side:
            cost += CHANGED
        return cost, side, spot


def _covered(rect: Rect, box: Rect) -> float:
    """The share of a box that a label covers, its upper part counted more."""
    x1, y1, x2, y2 = box
    head = (x1, y1, x2, y1 + HEAD * (y2 - y1))
    return (common(rect, box) + ON_HEAD * common(rect, head)) / max(1.0, (x2 - x1) * (y2 - y1))


def _at(spot: Spot, size: Size) -> Rect:
    return spot[0], spot[1], spot[0] + size[0], spot[1] + size[1]


def _gap(one: Rect, other: Rect) -> float:
    """Distance between two rectangles, 0 where they touch."""
    across = max(one[0] - other[2], other[0] - one[2], 0.0)
    down = max(one[1] - other[3], other[1] - one[3], 0.0)
    return float(across + down)
