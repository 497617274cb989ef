"""The same person keeps a number from key frame to key frame."""

from __future__ import annotations

import numpy as np

from dsvid.predict.shots import Shots
from dsvid.predict.tracks import link

LEFT, RIGHT, FAR = (0.1, 0.2, 0.2, 0.8), (0.5, 0.2, 0.6, 0.8), (0.8, 0.0, 0.9, 0.2)


def moved(box: tuple[float, float, float, float], by: float) -> tuple[float, float, float, float]:
    return box[0] + by, box[1], box[2] + by, box[3]


def test_people_keep_their_number_in_any_order_and_while_walking() -> None:
    frames = [[LEFT, RIGHT], [moved(RIGHT, 0.08), moved(LEFT, 0.09)], [moved(LEFT, 0.18), FAR]]
    assert link(frames, [False, True, True]) == [[1, 2], [2, 1], [1, 3]]


def test_frames_that_are_not_joined_begin_anew() -> None:
    assert link([[LEFT], [LEFT], [], [LEFT]], [False, False, True, True]) == [[1], [2], [], [3]]


def test_one_person_goes_on_as_one() -> None:
    near = [moved(LEFT, 0.01), moved(LEFT, 0.02)]
    assert link([[LEFT], near], [False, True]) == [[1], [1, 2]]


def test_of_two_people_the_nearer_one_goes_on() -> None:
    assert link([[moved(LEFT, 0.05), LEFT], [moved(LEFT, 0.01)]], [False, True]) == [[1, 2], [2]]
    assert link([[LEFT, moved(LEFT, 0.05)], [moved(LEFT, 0.01)]], [False, True]) == [[1, 2], [1]]


def test_a_cut_is_a_change_of_colours_and_no_motion() -> None:
    rng = np.random.default_rng(0)
    first, second = (rng.integers(low, low + 90, (60, 400, 3), dtype=np.uint8) for low in (0, 120))
    second[:30] = first[:30]  # half of the picture stays
    shots = Shots()
    for number in range(20):  # a swinging camera, then another place
        scene = first if number < 12 else second
        shots.see(number, scene[:, 8 * number : 8 * number + 100])
    assert shots.cuts == [12]
