"""Crops, resizes, flips and erasing of uint8 clips [T, H, W, 3]; every choice comes from the generator handed in.

The same box serves all frames of a clip. Nothing leaves uint8: resizing 16 frames costs 1 ms that way and 8 in float.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dsvid.ops import resample

SCALES = (1.0, 0.875, 0.75, 0.66)
CROP_TRIES, ERASE_TRIES = 10, 100  # boxes drawn until one lies inside the frame
SNAP = 3  # a crop side less than this many pixels from the wanted side is taken as the wanted side: no resize


def resize(clip: Tensor, height: int, width: int, *, antialias: bool = True) -> Tensor:
    """Bilinear, uint8 [T, H, W, 3] -> [T, height, width, 3]; within a level of PIL, without antialiasing of OpenCV."""
    if clip.shape[1:3] == (height, width):
        return clip
    return (
        resample.resize(clip, height, width) if antialias else resample.by_torch(clip, height, width, antialias=False)
    )


def squash(clip: Tensor, side: int) -> Tensor:
    """Bicubic to a square without keeping the shape, uint8 [T, H, W, 3] -> [T, side, side, 3]; OpenCV's cubic."""
    if clip.shape[1:3] == (side, side):
        return clip
    out = torch.empty((len(clip), side, side, 3), dtype=torch.uint8)
    for place, frame in enumerate(clip):
        # in float: torch's uint8 kernel has Pillow's cubic (a = -0.5), OpenCV and torch's float one a = -0.75
        planes = frame.permute(2, 0, 1)[None].float()
        cubic = torch.nn.functional.interpolate(planes, (side, side), mode="bicubic", align_corners=False)
        out[place] = cubic[0].permute(1, 2, 0).round().clamp(0, 255).to(torch.uint8)
    return out


def resize_short_side(clip: Tensor, size: int) -> Tensor:
    """Scale so that the shorter side is `size`; the longer one is int(size * long / short), as in the originals."""
    height, width = clip.shape[1:3]
    if height <= width:
        return resize(clip, size, int(size * width / height))
    return resize(clip, int(size * height / width), size)


def crop(clip: Tensor, top: int, left: int, height: int, width: int) -> Tensor:
    """A box of every frame, uint8 [T, height, width, 3]."""
    return clip[:, top : top + height, left : left + width]


def center_crop(clip: Tensor, size: int) -> Tensor:
    """The middle square; a frame that is too small is enlarged first."""
    clip = _at_least(clip, size)
    height, width = clip.shape[1:3]
    return crop(clip, (height - size) // 2, (width - size) // 2, size, size)


def random_crop(clip: Tensor, size: int, rng: np.random.Generator) -> Tensor:
    """A square anywhere, without scaling; a frame that is too small is enlarged first."""
    clip = _at_least(clip, size)
    top, left = (int(rng.integers(0, side - size + 1)) for side in clip.shape[1:3])
    return crop(clip, top, left, size, size)


def random_resized_crop(
    clip: Tensor,
    size: int,
    rng: np.random.Generator,
    area: tuple[float, float] = (0.08, 1.0),
    aspect: tuple[float, float] = (0.75, 1.3333),
) -> Tensor:
    """A box of random area (share of the frame) and aspect (width / height, log-uniform), resized to size x size."""
    height, width = clip.shape[1:3]
    return resize(crop(clip, *resized_crop_box(height, width, rng, area, aspect)), size, size)


def resized_crop_box(
    height: int, width: int, rng: np.random.Generator, area: tuple[float, float], aspect: tuple[float, float]
) -> tuple[int, int, int, int]:
    """(top, left, height, width); after ten boxes that do not fit, the largest centred one within the aspects."""
    for _ in range(CROP_TRIES):
        box_height, box_width = _drawn_sides(height * width, rng, area, (1 / aspect[1], 1 / aspect[0]))
        if 0 < box_height <= height and 0 < box_width <= width:
            top, left = int(rng.integers(0, height - box_height + 1)), int(rng.integers(0, width - box_width + 1))
            return top, left, box_height, box_width
    box_height = min(height, round(width / aspect[0]))
    box_width = min(width, round(height * aspect[1]))
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


def _drawn_sides(
    pixels: int, rng: np.random.Generator, area: tuple[float, float], aspect: tuple[float, float]
) -> tuple[int, int]:
    """(height, width) of random area, and of random height / width drawn evenly between its logarithms."""
    target = pixels * float(rng.uniform(*area))
    ratio = math.exp(float(rng.uniform(math.log(aspect[0]), math.log(aspect[1]))))
    return round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))


def multi_scale_crop(
    clip: Tensor, size: int, rng: np.random.Generator, scales: tuple[float, ...] = SCALES, max_distort: int = 1
) -> Tensor:
    """VideoMAE's pre-training crop: sides from `scales` of the short side, one of 13 places, resized to size x size."""
    height, width = clip.shape[1:3]
    boxes = multi_scale_sizes(height, width, size, scales, max_distort)
    box_height, box_width = boxes[int(rng.integers(0, len(boxes)))]
    places = thirteen_places(height, width, box_height, box_width)
    top, left = places[int(rng.integers(0, len(places)))]
    return resize(crop(clip, top, left, box_height, box_width), size, size)


def multi_scale_sizes(
    height: int, width: int, size: int, scales: tuple[float, ...] = SCALES, max_distort: int = 1
) -> list[tuple[int, int]]:
    """(height, width) of every allowed box: scale numbers of the two sides differ by `max_distort` at most."""
    short = min(height, width)
    sides = [int(short * scale) for scale in scales]
    # the originals snap also upwards over the frame's edge and so show black there; a box here never leaves the frame
    sides = [size if abs(side - size) < SNAP and size <= short else side for side in sides]
    pairs = [(i, j) for i in range(len(sides)) for j in range(len(sides)) if abs(i - j) <= max_distort]
    return [(sides[i], sides[j]) for i, j in pairs]


def thirteen_places(height: int, width: int, box_height: int, box_width: int) -> list[tuple[int, int]]:
    """(top, left) on a 5 x 5 raster of the free space: every place where row and column number have the same parity."""
    down, right = (height - box_height) // 4, (width - box_width) // 4
    return [(i * down, j * right) for i in range(5) for j in range(5) if (i + j) % 2 == 0]


def spatial_crop(clip: Tensor, size: int, crops: int, number: int) -> Tensor:
    """Test crop `number` of `crops`, evenly spaced along the longer side, centred on the shorter; one = the middle."""
    clip = _at_least(clip, size)
    height, width = clip.shape[1:3]
    if crops == 1:
        return center_crop(clip, size)
    along = int(number * ((max(height, width) - size) / (crops - 1)))  # divided first: the originals' rounding
    top, left = (along, (width - size) // 2) if height > width else ((height - size) // 2, along)
    return crop(clip, top, left, size, size)


def flip(clip: Tensor, probability: float, rng: np.random.Generator) -> Tensor:
    """Mirror left-right with the given probability; always draws one number, so that later draws do not shift."""
    return clip.flip(2) if rng.random() < probability else clip


def shift_colour(clip: Tensor, hue: int, saturation: int, value: int) -> Tensor:
    """Add to hue (of 180, wraps), saturation and value (0 to 255, clipped) of every pixel, as OpenCV's 8-bit HSV has
    them; within two levels of it.
    """
    red, green, blue = clip.float().unbind(-1)
    high = torch.maximum(torch.maximum(red, green), blue)
    spread = high - torch.minimum(torch.minimum(red, green), blue)
    safe = spread.clamp(min=1)
    sector = torch.where(
        high == red,
        (green - blue) / safe,
        torch.where(high == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    angle = ((30 * sector).round() + hue).remainder(180) / 30  # 8 bits hold whole steps of 2 degrees
    share = ((255 * spread / high.clamp(min=1)).round() + saturation).clamp(0, 255) / 255
    bright = (high + value).clamp(0, 255)
    channels = []
    for offset in (5, 3, 1):  # red, green, blue
        place = (offset + angle).remainder(6)
        fall = torch.minimum(torch.minimum(place, 4 - place), torch.ones_like(place)).clamp(min=0)
        channels.append(bright * (1 - share * fall))
    return torch.stack(channels, dim=-1).round().to(torch.uint8)


def erase(
    clip: Tensor,
    probability: float,
    rng: np.random.Generator,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    area: tuple[float, float] = (0.02, 1 / 3),
    aspect: float = 0.3,
    count: int = 1,
) -> Tensor:
    """Random erasing (arXiv 1708.04896): with `probability` 1 to `count` boxes of noise, the same for all frames.

    `area` is the share of the frame that the boxes cover together, height / width lies between `aspect` and its
    inverse. The noise is redrawn for each frame and pixel.
    """
    if rng.random() >= probability:
        return clip
    clip = clip.clone()  # may be a view of frames that are kept
    frames, height, width = clip.shape[:3]
    boxes = int(rng.integers(1, count + 1))
    share = (area[0] / boxes, area[1] / boxes)
    for _ in range(boxes):
        for _ in range(ERASE_TRIES):
            box_height, box_width = _drawn_sides(height * width, rng, share, (aspect, 1 / aspect))
            if 0 < box_height < height and 0 < box_width < width:
                top, left = int(rng.integers(0, height - box_height + 1)), int(rng.integers(0, width - box_width + 1))
                inside = crop(clip, top, left, box_height, box_width)
                inside.copy_(torch.from_numpy(_noise((frames, box_height, box_width), rng, mean, std)))
                break
    return clip


def _noise(
    shape: tuple[int, int, int], rng: np.random.Generator, mean: Sequence[float], std: Sequence[float]
) -> NDArray[np.uint8]:
    """What N(0, 1) in normalised space is in pixels [*shape, 3].

    uint8 ends at black and white, so the 3 to 4 % of the values beyond are clipped; the originals keep them.
    """
    values = rng.standard_normal((*shape, 3), dtype=np.float32)
    values *= np.asarray(std, dtype=np.float32) * 255
    values += np.asarray(mean, dtype=np.float32) * 255 + 0.5  # the half rounds: the cast cuts off
    return np.clip(values, 0, 255, out=values).astype(np.uint8)


def _at_least(clip: Tensor, size: int) -> Tensor:
    return resize_short_side(clip, size) if min(clip.shape[1:3]) < size else clip
