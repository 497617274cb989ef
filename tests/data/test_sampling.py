"""Clip sampling against numbers computed with the original systems' own code (and their numpy draws)."""

from __future__ import annotations

import numpy as np
import pytest

from dsvid.data import sampling


@pytest.mark.parametrize(
    ("frames", "seed", "end", "expected"),
    [
        (300, 0, 236, [172, 176, 180, 184, 189, 193, 197, 201, 206, 210, 214, 218, 223, 227, 231, 235]),
        (300, 1, 101, [37, 41, 45, 49, 54, 58, 62, 66, 71, 75, 79, 83, 88, 92, 96, 100]),
        (64, 0, None, [0, 4, 8, 12, 17, 21, 25, 29, 34, 38, 42, 46, 51, 55, 59, 63]),
    ],
)
def test_dense_training_clip_follows_the_originals_draw(frames, seed, end, expected):
    drawn = sampling.dense_range(frames, 16, 4)
    assert (np.random.RandomState(seed).randint(*drawn) if drawn else None) == end
    assert sampling.dense_clip(frames, 16, 4, end).tolist() == expected


def test_dense_validation_clip_is_v2s_centre():
    expected = [118, 122, 126, 130, 135, 139, 143, 147, 152, 156, 160, 164, 169, 173, 177, 181]
    assert sampling.dense_centre(300, 16, 4).tolist() == expected
    assert sampling.eval_indices("dense", 300, 16, 4.0, 1, 0).tolist() == expected


def test_dense_test_clips_keep_the_true_distance_and_reach_both_ends():
    starts = [sampling.dense_test(300, 16, 4, 5, chunk)[0] for chunk in range(5)]
    assert starts == [0, 56, 116, 176, 236]
    assert sampling.dense_test(300, 16, 4, 5, 4).tolist() == list(range(236, 300, 4))
    short = sampling.dense_test(17, 16, 4, 5, 3).tolist()
    assert short == [0, 4, 8, 12] + [16] * 12
    assert len(sampling.dense_test(300, 16, 4, 1, 0)) == 16  # the originals divide by zero with one segment


def test_segment_training_clip_follows_the_originals_draw():
    offsets = np.random.RandomState(0).randint(sampling.segment_range(120, 16), size=16)
    assert offsets.tolist() == [4, 5, 0, 3, 3, 3, 1, 3, 5, 2, 4, 6, 0, 0, 4, 2]
    expected = [4, 12, 14, 24, 31, 38, 43, 52, 61, 65, 74, 83, 84, 91, 102, 107]
    assert sampling.segment_clip(120, 16, offsets).tolist() == expected


def test_short_videos_of_the_segment_rule_differ_between_v1_and_v2():
    assert sampling.segment_clip(9, 16, None, "zeros").tolist() == [0] * 16
    assert sampling.segment_clip(9, 16, None, "pad").tolist() == [0] * 7 + list(range(9))


def test_segment_validation_and_test_clips():
    assert (sampling.segment_centre(62, 16) + 1).tolist() == list(range(2, 50, 3))
    assert sampling.segment_test(62, 16, 2, 0).tolist() == [0, 3, 7, 11, 15, 19, 23, 27, 31, 34, 38, 42, 46, 50, 54, 58]
    both = np.sort(np.concatenate([sampling.segment_test(120, 16, 2, chunk) for chunk in (0, 1)]))
    assert both.tolist() == sorted(int(3.75 * x) for x in range(32))


@pytest.mark.parametrize("step", [1.0, 2.0, 4.0, 2.5])
def test_pretraining_clip_has_its_distance_and_uses_the_whole_video(step):
    frames, length = 100, 8
    starts = sampling.stride_range(frames, length, step)
    assert starts == frames - int(np.ceil(length * step)) + 1
    first, last = (sampling.stride_clip(frames, length, step, start) for start in (0, starts - 1))
    assert first[0] == 0 and last[-1] <= frames - 1 and last[-1] >= frames - 1 - step
    assert set(np.diff(first)) <= {int(np.floor(step)), int(np.ceil(step))}


def test_a_short_video_repeats_the_last_frame_that_pretraining_reaches():
    assert sampling.stride_range(10, 8, 4.0) == 1
    assert sampling.stride_clip(10, 8, 4.0, 0).tolist() == [0, 4, 8, 8, 8, 8, 8, 8]
    assert sampling.stride_clip(1, 8, 4.0, 0).tolist() == [0] * 8


def test_demo_evaluation_clip_starts_in_the_middle():
    assert sampling.eval_indices("stride", 20, 8, 2.0, 1, 0).tolist() == [2, 4, 6, 8, 10, 12, 14, 16]


def test_view_fps_sets_the_distance_and_never_goes_below_one_frame():
    assert sampling.frame_step(4, None, 30.0) == 4
    assert sampling.frame_step(4, 10.0, 30.0) == 3
    assert sampling.frame_step(4, 12.0, 30.0) == 2.5
    assert sampling.frame_step(4, 60.0, 30.0) == 1


@pytest.mark.parametrize("rule", ["stride", "dense", "segment"])
@pytest.mark.parametrize("frames", [1, 2, 7, 8, 15, 16, 17, 31, 63, 64, 65, 300])
def test_every_rule_stays_inside_every_video(rule, frames):
    for seed in range(5):
        picked = sampling.train_indices(rule, frames, 16, 4.0, np.random.default_rng(seed))
        assert picked.shape == (16,) and picked.min() >= 0 and picked.max() < frames
    for segments in (1, 2, 5, 40):  # also more segments than frames
        for segment in range(segments):
            picked = sampling.eval_indices(rule, frames, 16, 4.0, segments, segment)
            assert picked.shape == (16,) and picked.min() >= 0 and picked.max() < frames
