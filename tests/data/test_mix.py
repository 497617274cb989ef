"""Mixup and cutmix: who is paired, what is drawn, what the boxes and targets are."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dsvid.data import mix
from dsvid.recipe import AugmentConfig


def drawn(count: int = 2000, **settings: object) -> list[mix.Mix]:
    config = AugmentConfig(**settings)
    return [mix.draw_mix(config, 32, 48, np.random.default_rng(seed)) for seed in range(count)]


@pytest.mark.parametrize(
    ("clips", "repeats", "expected"),
    [(4, 1, [1, 0, 3, 2]), (8, 2, [2, 3, 0, 1, 6, 7, 4, 5]), (6, 3, [3, 4, 5, 0, 1, 2])],
)
def test_partners(clips, repeats, expected):
    assert mix.partners(clips, repeats).tolist() == expected


def test_mixup_draws_the_beta_law_in_steps_of_a_256th():
    found = drawn(mixup=0.8)
    lams = np.array([one.lam for one in found])
    assert all(one.box is None and (one.lam * 256).is_integer() for one in found)
    assert abs(lams.mean() - 0.5) < 0.02 and abs(lams.var() - 1 / (4 * 2.6)) < 0.01


def test_cutmix_corrects_lam_to_the_box_that_is_left():
    for one in drawn(cutmix=1.0):
        assert one.box is not None
        top, bottom, left, right = one.box
        assert 0 <= top <= bottom <= 32 and 0 <= left <= right <= 48
        assert one.lam == 1 - (bottom - top) * (right - left) / (32 * 48)


def test_which_of_the_two_and_how_often():
    both = drawn(mixup=0.8, cutmix=1.0, mix_prob=0.6, cutmix_share=0.25)
    kinds = [(one.box is not None, one.box is None and one.lam < 1) for one in both]
    assert abs(np.mean([cut for cut, _ in kinds]) - 0.15) < 0.025
    assert abs(np.mean([blend for _, blend in kinds]) - 0.45) < 0.035
    assert all(one == mix.Mix() for one, (cut, blend) in zip(both, kinds, strict=True) if not cut and not blend)
    assert all(one.box is not None for one in drawn(100, cutmix=1.0, cutmix_share=0.0))
    assert all(one.box is None for one in drawn(100, mixup=1.0, cutmix_share=1.0))


def test_minmax_boxes_have_sides_between_the_shares_and_lie_inside():
    for one in drawn(mixup=0.0, cutmix_minmax=(0.25, 0.75)):
        assert one.box is not None
        top, bottom, left, right = one.box
        assert 8 <= bottom - top < 24 and 12 <= right - left < 36 and bottom <= 32 and right <= 48
    assert drawn(5, cutmix_minmax=(0.5, 0.5))[0].box is not None


def test_swapping_a_box_leaves_each_pixel_in_one_of_the_two():
    clips = torch.arange(2 * 3 * 8 * 10 * 3, dtype=torch.int64).remainder(251).to(torch.uint8).view(2, 3, 8, 10, 3)
    before = clips.clone()
    mix.swap_box(clips, 0, 1, (2, 5, 4, 9))
    assert torch.equal(clips[0, :, 2:5, 4:9], before[1, :, 2:5, 4:9])
    assert torch.equal(clips[1, :, 2:5, 4:9], before[0, :, 2:5, 4:9])
    clips[:, :, 2:5, 4:9] = before[:, :, 2:5, 4:9]
    assert torch.equal(clips, before)


@pytest.mark.parametrize("lam", [0.0, 77 / 256, 0.5, 1.0])
def test_blending_is_the_rounded_mix_of_both(lam):
    clips = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 2, 4, 5, 3)).astype(np.uint8))
    clips[0, 0, 0, 0], clips[2, 0, 0, 0] = 255, 255
    before = clips.double()
    mix.blend(clips, 0, 2, lam)
    for own, other in ((0, 2), (2, 0)):
        wanted = lam * before[own] + (1 - lam) * before[other]
        assert float((clips[own].double() - wanted).abs().max()) <= 0.5
    assert torch.equal(clips[1].double(), before[1])
