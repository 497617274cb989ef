"""Windows by number: those of counting one by one, every frame once with padding, nearest frames, little memory."""

from __future__ import annotations

import numpy as np
import pytest

from dsvid.data.window_index import WindowIndex, WindowRule
from dsvid.errors import DataError


def slow_windows(frames: int, fps: float, rule: WindowRule) -> list[list[int]]:
    """As simple-tad makes them, one after the other."""
    stride = fps / rule.view_fps
    back = [int(k * stride + 0.5) for k in range(rule.length)][::-1]
    ends = list(range(frames - 1, -1 if rule.padding == "repeat" else back[0] - 1, -rule.step))[::-1]
    windows = [[max(0, end - offset) for offset in back] for end in ends]
    if rule.with_start and windows and windows[0][0] > min(0.3 * fps, 5):
        windows.append([back[0] - offset for offset in back])
    return windows


RULES = [
    WindowRule(16, 10),
    WindowRule(16, 10, step=3),
    WindowRule(8, 5, step=7),
    WindowRule(16, 10, step=16, with_start=True),
    WindowRule(16, 10, step=1, padding="repeat"),
    WindowRule(8, 5, step=4, padding="repeat"),
    WindowRule(8, 4, step=3, nearest=True),
    WindowRule(8, 4, step=50, nearest=True, with_start=True),
    WindowRule(5, 12, step=2, nearest=True, padding="repeat"),
    WindowRule(1, 10),
]


@pytest.mark.parametrize("rule", RULES)
def test_windows_are_those_of_counting_one_by_one(rule: WindowRule) -> None:
    lengths = [0, 60, 46, 47, 1, 2, 15, 16, 200, 45, 0, 91, 31, 35, 36, 37]
    fps = [30, 30, 10, 30, 10, 30, 10, 10, 30, 30, 10, 10, 30, 10, 10, 10]
    index = WindowIndex(lengths, fps, rule)
    expected = [
        (clip, window)
        for clip, (n, rate) in enumerate(zip(lengths, fps, strict=True))
        for window in slow_windows(n, rate, rule)
    ]
    clip, frames = index.positions(np.arange(len(index)))
    assert [(int(c), w.tolist()) for c, w in zip(clip, frames, strict=True)] == expected
    assert index.counts.tolist() == [len(slow_windows(n, r, rule)) for n, r in zip(lengths, fps, strict=True)]
    assert index.left_out.tolist() == [n for n, count in enumerate(index.counts.tolist()) if count == 0]
    order = np.random.default_rng(0).permutation(len(index))
    shuffled = index.positions(order)
    assert (shuffled[0] == clip[order]).all() and (shuffled[1] == frames[order]).all()


@pytest.mark.parametrize("fps", [10, 30, 25, 29.97, 7])
def test_with_padding_and_step_1_every_frame_is_a_target_once(fps: float) -> None:
    lengths = [1, 2, 15, 16, 17, 80]
    index = WindowIndex(lengths, fps, WindowRule(16, 10, padding="repeat", nearest=True))
    clip, target = index.targets(np.arange(len(index)))
    seen = sorted(zip(clip.tolist(), target.tolist(), strict=True))
    assert seen == [(number, frame) for number, length in enumerate(lengths) for frame in range(length)]
    assert len(index.left_out) == 0


def test_nearest_frames_stay_within_half_a_frame() -> None:
    for fps, view in ((25, 10), (29.97, 10), (24, 10), (10, 4), (7, 10)):
        offsets = WindowRule(16, view, nearest=True).offsets(fps)
        exact = np.arange(15, -1, -1) * fps / view
        assert np.abs(offsets - exact).max() <= 0.5 + 1e-5 and offsets[-1] == 0
    assert WindowRule(6, 10, nearest=True).offsets(25).tolist() == [13, 10, 8, 5, 3, 0]  # halves: further back


def test_a_rate_that_does_not_divide_is_an_error_unless_nearest_is_asked_for() -> None:
    with pytest.raises(DataError, match=r"view_fps=4[\s\S]*10 fps[\s\S]*\[1, 2, 5, 10\]"):
        WindowIndex([100], 10, WindowRule(8, 4))
    with pytest.raises(DataError, match="29.97 fps"):
        WindowIndex([100, 100], [30, 29.97], WindowRule(8, 10))
    for fps in (0, -1, float("nan"), float("inf")):
        with pytest.raises(DataError, match="frame rate of a clip"):
            WindowIndex([100], fps, WindowRule(8, 10, nearest=True))
    assert WindowIndex([0, 100], [0, 30], WindowRule(8, 10)).left_out.tolist() == [0]  # no frames: no rate needed


@pytest.mark.parametrize(
    "wrong",
    [
        {"length": 0},
        {"view_fps": 0},
        {"step": 0},
        {"padding": "zeros"},
        {"padding": "repeat", "with_start": True},
        {"view_fps": float("nan")},
    ],
)
def test_a_rule_that_makes_no_windows_is_an_error(wrong: dict) -> None:
    with pytest.raises(DataError, match="windows"):
        WindowRule(**{"length": 8, "view_fps": 10, **wrong})


def test_a_number_beyond_the_last_window_is_no_window() -> None:
    index = WindowIndex([20, 20], 10, WindowRule(16, 10))
    for number in (-1, 10):
        with pytest.raises(IndexError, match="of 10"):
            index.positions([number])
    empty = WindowIndex([], 10, WindowRule(16, 10))
    assert len(empty) == 0 and empty.counts.tolist() == [] and len(empty.left_out) == 0
    short = WindowIndex([15], 10, WindowRule(16, 10))
    assert len(short) == 0 and short.left_out.tolist() == [0]


def test_memory_is_that_of_the_clips() -> None:
    index = WindowIndex(np.full(20_000, 1015), 10, WindowRule(16, 10))
    assert len(index) == 20_000_000
    held = sum(value.nbytes for value in vars(index).values() if isinstance(value, np.ndarray))
    assert held < 20_000 * 40
    clip, frames = index.positions([19_999_999, 1000])
    assert clip.tolist() == [19_999, 1] and frames[:, -1].tolist() == [1014, 15]
