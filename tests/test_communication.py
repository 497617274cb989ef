"""What ranks send, by formula, and the model of many devices: by hand, and at its limits."""

from __future__ import annotations

import pytest

from dsvid.communication import Links, communication_s, ring_share, step_s, values_in_collectives


def test_the_formulas_of_zero() -> None:
    assert [values_in_collectives(stage, 10) for stage in range(4)] == [20, 20, 20, 30]
    assert [ring_share(ranks) for ranks in (1, 2, 4)] == [0, 0.5, 0.75]


def test_inside_of_a_node_and_over_nodes() -> None:
    links = Links(device=100.0, node=20.0, devices_a_node=4)
    assert communication_s(1000, 1, links) == 0
    assert communication_s(1000, 2, links) == pytest.approx(0.5 * 1000 / 100)
    assert communication_s(1000, 4, links) == pytest.approx(0.75 * 1000 / 100)
    # a flat ring of 8: 7/8 of the volume crosses each border, also that of a node
    assert communication_s(1000, 8, links) == pytest.approx(7 / 8 * 1000 / 20)
    assert communication_s(1000, 40, links) == pytest.approx(39 / 40 * 1000 / 20)
    fast = Links(device=100.0, node=1e9, devices_a_node=4)
    assert communication_s(1000, 40, fast) == pytest.approx(39 / 40 * 1000 / 100), "the links inside hold the ring up"
    single = Links(device=100.0, node=20.0, devices_a_node=1)
    assert communication_s(1000, 2, single) == pytest.approx(0.5 * 1000 / 20)


def test_sending_hides_behind_the_backward_only_as_long_as_it_lasts() -> None:
    assert step_s(3.0, 1.0, overlap=0.0) == 4.0
    assert step_s(3.0, 1.0, overlap=1.0) == 3.0
    assert step_s(3.0, 10.0, overlap=1.0) == pytest.approx(3 + 10 - 2)
    assert step_s(3.0, 0.0, overlap=0.8) == 3.0
