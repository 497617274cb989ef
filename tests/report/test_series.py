"""Means, thinning, ticks and directions of rows of numbers."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from dsvid.report.series import (
    axis_range,
    equal_steps,
    log_helps,
    points,
    smoothed,
    smoothing_window,
    thinned,
    ticks,
    trend,
)


def test_gaps_are_left_out() -> None:
    assert points([1, 2, 3], [5.0, None, 7.0]) == [(1.0, 5.0), (3.0, 7.0)]


def test_a_median_of_the_points_around() -> None:
    line = [(float(x), float(y)) for x, y in enumerate([0, 0, 10, 0, 0])]
    assert smoothed(line, 3) == [(float(x), 0.0) for x in range(5)], "one spike does not move the median"
    steep = [(float(x), float(-x * x)) for x in range(50)]
    assert smoothed(steep, 7) == steep, "a steep curve stays where it is, at its ends too"
    draw = random.Random(1)
    wild = [(float(x), draw.choice([0.0, 1.0, 5.0, 5.0, 9.0])) for x in range(40)]
    assert smoothed(wild, 9)[20][1] == sorted(y for _, y in wild[16:25])[4]
    assert all(smoothing_window(count) % 2 for count in (1, 10, 400, 4000)) and smoothing_window(4000) == 101


def test_thinning_keeps_every_spike_and_the_order() -> None:
    line = [(float(x), 1.0) for x in range(20_000)]
    line[1234], line[15_000] = (1234.0, 99.0), (15_000.0, -99.0)
    thin = thinned(line)
    assert len(thin) <= 600 and all(a < b for (a, _), (b, _) in pairwise(thin))
    assert (1234.0, 99.0) in thin and (15_000.0, -99.0) in thin
    assert thin[0][0] == 0.0 and thin[-1][0] > 19_900
    assert thinned(line[:600]) == line[:600]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1.0]), (0.98, 1.26, [1.0, 1.1, 1.2]), (0, 3200, [0, 1000, 2000, 3000])],
)
def test_ticks_are_round(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected)


def test_ticks_of_a_logarithmic_axis() -> None:
    assert ticks(0.8, 30, log=True) == pytest.approx([1, 2, 5, 10, 20])
    assert ticks(1e-9, 1e9, log=True) == pytest.approx([1e-9, 1e-5, 1e-1, 1e3, 1e7])
    assert len(ticks(2e-5, 6e-4, log=True)) <= 5


def test_a_logarithmic_axis_where_most_numbers_are_far_apart() -> None:
    assert log_helps([10.0**-at for at in range(5)])
    assert not log_helps([1.0] * 99 + [1000.0]), "one spike is no reason"
    assert not log_helps([0.0, 1.0, 1000.0]) and not log_helps([])


def test_a_spike_does_not_flatten_the_axis() -> None:
    values = [1 + 0.001 * at for at in range(100)]
    assert axis_range([*values, 40.0], log=False)[1] < 2
    assert axis_range([1.0, 40.0], log=False)[1] > 40, "among few values none is an outlier"
    low, high = axis_range([3.0, 3.0], log=False)
    assert low < 3 < high


def noisy(start: float, slope: float, count: int = 300) -> list[float | None]:
    draw = random.Random(0)
    return [start + slope * at / count + draw.gauss(0, 0.01) for at in range(count)]


def test_the_direction_of_noisy_numbers() -> None:
    falling, rising, flat = trend(noisy(1, -0.5)), trend(noisy(1, 0.5)), trend(noisy(1, 0))
    assert falling and rising and flat
    assert (falling.late, rising.late, flat.late) == ("falling", "rising", "flat")
    assert falling.first == pytest.approx(0.975, abs=0.01) and falling.last == pytest.approx(0.525, abs=0.01)
    assert trend([1.0] * 11) is None and trend([None] * 50) is None


def test_a_fall_that_ended_is_flat() -> None:
    found = trend([*noisy(2, -1, 200), *noisy(1, 0, 200)])
    assert found is not None and found.late == "flat" and found.last < found.first


def test_steps_evenly_spread() -> None:
    assert equal_steps(list(range(100)), 4) == [0, 33, 66, 99]
    assert equal_steps([1, 2], 4) == [1, 2]
