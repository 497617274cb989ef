"""The order of the training stream: a permutation in every pass, evaluated at single points."""

from __future__ import annotations

import collections
import math
import time

import numpy as np
import pytest

from dsvid.data import order


@pytest.mark.parametrize("size", [1, 2, 3, 5, 16, 17, 160, 1600, 4097])
def test_every_pass_is_a_permutation(size):
    for epoch in range(3):
        assert sorted(order.position(7, epoch, np.arange(size), size)) == list(range(size))


def test_single_points_equal_the_whole_and_other_passes_and_seeds_differ():
    whole = order.position(0, 3, np.arange(1000), 1000)
    assert [int(order.position(0, 3, i, 1000)[0]) for i in (0, 17, 999)] == whole[[0, 17, 999]].tolist()
    for other in (order.position(0, 4, np.arange(1000), 1000), order.position(1, 3, np.arange(1000), 1000)):
        assert (whole == other).mean() < 0.02


@pytest.mark.parametrize("size", [3, 5, 8, 12])
def test_every_video_is_equally_likely_at_every_place(size):
    passes = 3000
    table = np.zeros((size, size))
    for epoch in range(passes):
        table[np.arange(size), order.position(5, epoch, np.arange(size), size)] += 1
    expected = passes / size
    chi2 = ((table - expected) ** 2 / expected).sum()
    freedom = (size - 1) ** 2
    assert chi2 < freedom + 5 * np.sqrt(2 * freedom)


@pytest.mark.parametrize("size", [3, 4])
def test_every_order_of_a_short_list_comes_up_equally_often(size):
    orders = collections.Counter(tuple(order.position(1, epoch, np.arange(size), size)) for epoch in range(2400))
    expected = 2400 / math.factorial(size)
    assert len(orders) == math.factorial(size)
    freedom = len(orders) - 1
    assert sum((seen - expected) ** 2 / expected for seen in orders.values()) < freedom + 5 * np.sqrt(2 * freedom)


def test_neighbours_in_the_list_do_not_stay_neighbours():
    places = np.argsort(order.position(0, 0, np.arange(10_000), 10_000))
    assert (abs(np.diff(places)) < 100).mean() < 0.05  # 2 % by chance


def test_seeking_in_a_list_of_a_thousand_million_costs_nothing():
    size = 1_000_000_007
    started = time.perf_counter()
    found = order.position(0, 10**6, np.arange(size - 64, size), size)
    assert time.perf_counter() - started < 0.1
    assert len(set(found.tolist())) == 64 and found.max() < size


def test_locate_crosses_the_end_of_a_pass():
    epochs, indices = order.locate(3, 10, seed=0, dataset_size=5)
    assert epochs.tolist() == [0, 0, 1, 1, 1, 1, 1, 2, 2, 2]
    assert sorted(indices[2:7]) == [0, 1, 2, 3, 4]
    again = np.concatenate([order.locate(place, 1, seed=0, dataset_size=5)[1] for place in range(3, 13)])
    assert (again == indices).all()


def test_seeds_are_non_negative_and_differ_in_every_part():
    seeds = {
        order.sample_seed(seed, epoch, index, repeat)
        for seed in range(5)
        for epoch in range(5)
        for index in range(40)
        for repeat in range(4)
    }
    assert len(seeds) == 4000 and min(seeds) >= 0 and max(seeds) < 2**63
    assert order.sample_seed(1, 2, 3, 0) != order.sample_seed(2, 1, 3, 0)
    bits = np.array([[seed >> bit & 1 for bit in range(63)] for seed in seeds])
    assert abs(bits.mean(0) - 0.5).max() < 0.05


def test_the_numbers_do_not_change_with_versions():
    # a resumed run continues with these: a change here changes the data of every run that is under way
    assert order.mix(0) == 0xE220A8397B1DCDAF >> 1  # splitmix64's published first output for the seed 0
    assert order.sample_seed(1, 2, 3, 4) == order.mix(1, 2, 3, 4)
    assert order.position(0, 0, np.arange(8), 8).tolist() == [3, 4, 6, 7, 2, 5, 0, 1]


def test_a_short_pass_takes_new_places_each_epoch_and_none_twice():
    ranks = [order.short_pass(97, 50, epoch=1, rank=rank, world=3) for rank in range(3)]
    assert [len(rank) for rank in ranks] == [16, 16, 16]
    together = np.concatenate(ranks)
    assert len(set(together.tolist())) == 48 and together.max() < 97
    assert sorted(together) != sorted(np.concatenate([order.short_pass(97, 48, epoch=2)]))
    for everything in (0, 97, 1000):
        assert sorted(order.short_pass(97, everything, epoch=0)) == list(range(97))
