"""Rows of numbers with gaps: means, thinning, ticks, and which way they go. Pure functions."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Numbers = Sequence[float | None]
Points = list[tuple[float, float]]
MOST_POINTS = 600  # of a drawn line
FEWEST = 12  # numbers below which nothing is said of their direction


@dataclass(frozen=True)
class Trend:
    """Where a row of numbers comes from and goes to: means of its first and last tenth, and what its last third does.

    `late` compares the two halves of the last third: "flat" where their means differ by less than two standard errors
    or a thousandth.
    """

    first: float
    last: float
    late: Literal["falling", "rising", "flat"]


def known(values: Numbers) -> list[float]:
    """The numbers without the gaps."""
    return [value for value in values if value is not None]


def points(xs: Sequence[float], ys: Numbers) -> Points:
    """(x, y) where there is a y."""
    return [(float(x), y) for x, y in zip(xs, ys, strict=True) if y is not None]


def quantile(values: Sequence[float], share: float) -> float:
    """The value that a share of the values does not exceed, one of them. `values` must not be empty."""
    ordered = sorted(values)
    return ordered[int(share * (len(ordered) - 1))]


def median(values: Sequence[float]) -> float | None:
    """The middle value; None of none."""
    return quantile(values, 0.5) if values else None


def smoothing_window(count: int) -> int:
    """An odd number of points to take the median of: about a fortieth of all, at least 5."""
    return max(5, count // 40) | 1


def smoothed(line: Points, window: int) -> Points:
    """Each y replaced by the median of `window` points around it, which no single spike moves.

    Towards the ends there are as many points before as behind, so that a steep start is not flattened; at the very
    ends an eighth of the window.
    """
    count, half = len(line), window // 2
    found: Points = []
    inside: list[float] = []
    low = high = 0
    for at, (x, _) in enumerate(line):
        reach = max(min(half, at, count - 1 - at), half // 4)
        while high < min(count, at + reach + 1):
            insort(inside, line[high][1])
            high += 1
        while low < at - reach:
            del inside[bisect_left(inside, line[low][1])]
            low += 1
        found.append((x, inside[len(inside) // 2]))
    return found


def thinned(line: Points, most: int = MOST_POINTS) -> Points:
    """At most `most` points: of each stretch of the x axis the lowest and the highest, so that no spike is lost."""
    if len(line) <= most:
        return line
    low, high = line[0][0], line[-1][0]
    stretches = most // 2
    kept: dict[int, list[tuple[float, float]]] = {}
    for point in line:
        place = min(stretches - 1, int((point[0] - low) / max(high - low, 1e-300) * stretches))
        kept.setdefault(place, []).append(point)
    thin: Points = []
    for group in kept.values():
        least, most_y = min(group, key=lambda one: one[1]), max(group, key=lambda one: one[1])
        thin += sorted({least, most_y})
    return thin


def trend(values: Numbers) -> Trend | None:
    """Which way the numbers go; None where there are too few to say."""
    there = known(values)
    if len(there) < FEWEST:
        return None
    tenth = max(3, len(there) // 10)
    late = there[-max(FEWEST // 2, len(there) // 3) :]
    before, after = late[: len(late) // 2], late[len(late) // 2 :]
    change = _mean(after) - _mean(before)
    error = math.sqrt(_variance(before) / len(before) + _variance(after) / len(after))
    moves = abs(change) > max(2 * error, 1e-3 * abs(_mean(before)))
    direction: Literal["falling", "rising", "flat"] = "flat" if not moves else "falling" if change < 0 else "rising"
    return Trend(_mean(there[:tenth]), _mean(there[-tenth:]), direction)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _variance(values: Sequence[float]) -> float:
    mean = _mean(values)
    return sum((value - mean) ** 2 for value in values) / max(1, len(values) - 1)


def log_helps(values: Sequence[float]) -> bool:
    """Whether a logarithmic axis shows more: all numbers above zero, and most of them over a factor of 30 apart."""
    return bool(values) and min(values) > 0 and quantile(values, 0.98) > 30 * quantile(values, 0.02)


def axis_range(values: Sequence[float], *, log: bool) -> tuple[float, float]:
    """The lowest and highest value of an axis, with a margin; single outliers among many values stay outside."""
    low, high = min(values), max(values)
    if len(values) >= 50 and not log:
        inner = quantile(values, 0.01), quantile(values, 0.99)
        room = max(inner[1] - inner[0], 1e-12 * abs(inner[1]))
        low, high = max(low, inner[0] - room), min(high, inner[1] + room)
    if log:
        return low / 1.15, high * 1.15
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    bottom = 0.0 if 0 <= low < 0.3 * high else low - margin  # an axis that begins at zero, where that costs little
    return bottom, high + margin


def ticks(low: float, high: float, *, log: bool = False, most: int = 5) -> list[float]:
    """Round values from `low` to `high`: steps of 1, 2 or 5 times a power of ten; on a log axis such values."""
    if log:
        return _log_ticks(low, high, most)
    step = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(step * factor for factor in (1, 2, 5, 10, 20) if (high - low) / (step * factor) <= most)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [at * step for at in range(first, last + 1)]


def _log_ticks(low: float, high: float, most: int) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 2, 5), (1, 3), (1,)):
        found = [f * 10.0**p for p in powers for f in factors if low <= f * 10.0**p <= high]
        if len(found) <= most:
            return found
    every = -(-len(found) // most)
    return found[::every]


def equal_steps(values: Sequence[int], most: int) -> list[int]:
    """At most `most` of the ascending values, evenly spread, the last among them."""
    if len(values) <= most:
        return list(values)
    places = [round(at * (len(values) - 1) / (most - 1)) for at in range(most)]
    return [values[at] for at in places]
