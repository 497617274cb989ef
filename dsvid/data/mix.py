"""Mixup and cutmix of pairs of uint8 clips: what is drawn, and the pixels (arXiv 1710.09412, 1905.04899).

Partners are the videos 2i and 2i+1 of the stream, clip by clip, whatever the micro-batches; both get the same draw, as
when a batch is mixed with its mirror image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from dsvid.data import order

if TYPE_CHECKING:
    from dsvid.recipe import AugmentConfig

Box = tuple[int, int, int, int]  # top, bottom, left, right
LEVELS = 256  # mixup's share of the pixels is one of so many: 255 * 256 and a half still fit 16 bits


@dataclass(frozen=True)
class Mix:
    """One pair's draw: `lam` weighs the own label; `box` changes sides where it is given, else pixels are blended."""

    lam: float = 1.0
    box: Box | None = None


def draw_mix(config: AugmentConfig, height: int, width: int, rng: np.random.Generator) -> Mix:
    """Nothing, mixup or cutmix for one pair; cutmix's `lam` is corrected to the box that lies inside the frame.

    Mixup's is a multiple of 1/256, so that whole numbers blend the pixels and the label has exactly their share.
    """
    if rng.random() >= config.mix_prob:
        return Mix()
    cuts = config.cutmix > 0 or config.cutmix_minmax is not None
    if cuts and (config.mixup <= 0 or rng.random() < config.cutmix_share):
        if config.cutmix_minmax is not None:
            box = minmax_box(height, width, config.cutmix_minmax, rng)
        else:
            box = cutmix_box(height, width, float(rng.beta(config.cutmix, config.cutmix)), rng)
        return Mix(lam=kept_share(box, height, width), box=box)
    return Mix(lam=round(float(rng.beta(config.mixup, config.mixup)) * LEVELS) / LEVELS)


def mixed_part(
    batch: dict[str, Any], config: AugmentConfig, repeats: int, start: int, count: int, *, stream: int
) -> dict[str, Any]:
    """Mix whole pairs of videos of `batch` (`repeats` clips each) and return `count` clips from clip `start` on.

    Adds "partner_label" int64 and "lam" float32.
    """
    clips, labels = batch["clip"], batch["label"]
    partner, lam = partners(len(clips), repeats), torch.ones(len(clips))
    height, width = clips.shape[2:4]
    for first, second in enumerate(partner.tolist()):
        if first > second:
            continue
        drawn = draw_mix(config, height, width, np.random.default_rng(order.mix(int(batch["seed"][first]), stream)))
        if drawn.box is not None:
            swap_box(clips, first, second, drawn.box)
        elif drawn.lam < 1:
            blend(clips, first, second, drawn.lam)
        lam[[first, second]] = drawn.lam
    kept = slice(start, start + count)
    mixed = {**batch, "partner_label": labels[partner], "lam": lam}
    return {key: value[kept] if isinstance(value, Tensor) else value for key, value in mixed.items()}


def blend(clips: Tensor, first: int, second: int, lam: float) -> None:
    """Replace clips `first` and `second` of [B, T, H, W, 3] by lam * own + (1 - lam) * the other's, in place, rounded.

    `lam` is a multiple of 1/256: 16-bit whole numbers are exact and three times as fast as a way through float.
    """
    one, other = clips[first].numpy(), clips[second].numpy()
    share = round(lam * LEVELS)
    near, far = one.astype(np.uint16), other.astype(np.uint16)
    half = LEVELS // 2
    one[...] = (near * np.uint16(share) + far * np.uint16(LEVELS - share) + np.uint16(half)) >> 8
    other[...] = (far * np.uint16(share) + near * np.uint16(LEVELS - share) + np.uint16(half)) >> 8


def cutmix_box(height: int, width: int, lam: float, rng: np.random.Generator) -> Box:
    """A box of the frame's shape and (1 - lam) of its area around any pixel, cut off at the edges."""
    side = math.sqrt(1 - lam)
    half_height, half_width = int(height * side) // 2, int(width * side) // 2
    y, x = int(rng.integers(0, height)), int(rng.integers(0, width))
    return (
        max(y - half_height, 0),
        min(y + half_height, height),
        max(x - half_width, 0),
        min(x + half_width, width),
    )


def minmax_box(height: int, width: int, shares: tuple[float, float], rng: np.random.Generator) -> Box:
    """A box whose sides are random shares of the frame's, anywhere inside it."""
    low, high = shares
    box_height, box_width = (
        int(rng.integers(int(side * low), max(int(side * high), int(side * low) + 1))) for side in (height, width)
    )
    top, left = int(rng.integers(0, height - box_height + 1)), int(rng.integers(0, width - box_width + 1))
    return top, top + box_height, left, left + box_width


def kept_share(box: Box, height: int, width: int) -> float:
    """The share of the frame outside the box: the weight of the own label after cutmix."""
    top, bottom, left, right = box
    return 1.0 - (bottom - top) * (right - left) / (height * width)


def partners(clips: int, repeats: int) -> Tensor:
    """Who is mixed with whom, int64 [clips]: videos 2i and 2i+1 of the stream, `repeats` clips each, clip by clip."""
    places = torch.arange(clips)
    pair = 2 * repeats
    assert clips % pair == 0, "the loader reads whole pairs"
    return places // pair * pair + (places + repeats) % pair


def swap_box(clips: Tensor, first: int, second: int, box: Box) -> None:
    """Let clips `first` and `second` of [B, T, H, W, 3] change what they show in the box, in place."""
    top, bottom, left, right = box
    ours, theirs = clips[first, :, top:bottom, left:right], clips[second, :, top:bottom, left:right]
    kept = ours.clone()
    ours.copy_(theirs)
    theirs.copy_(kept)
