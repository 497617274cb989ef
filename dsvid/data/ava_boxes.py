"""The geometry of AVA's boxes, as pure functions of numbers: what happens to them beside the pixels.

Boxes are float32 [k, 4], x1, y1, x2, y2 in pixels, both ends included where a function counts pixels (the originals'
convention). Sizes are (width, height). What the seed gets wrong is mended; each of SEED_BUGS brings one fault back.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Boxes = NDArray[np.float32]
Flags = NDArray[np.bool_]
Size = tuple[int, int]
SHORT_SIDE = 256
# (left of x1, right of x1) and so on, as shares of the box; the seed's perturbation in training
JITTER_X, JITTER_Y = (0.2, 0.1), (0.1, 0.05)
WIDEN = (0.1, 0.05)  # at test: shares of width and height, half on either side
SEED_BUGS = {
    "swapped_sides": "a clip whose short side is already right is stretched to the other orientation",
    "cut_boxes": "boxes outside of the crop stay, without area, with their labels",
    "batch_padding": "clips are padded to the largest of their batch, so that results depend on batch mates",
}


def corners(xywh: Boxes) -> Boxes:
    """x, y, w, h -> x1, y1, x2, y2 with x2 = x + max(w - 1, 0)."""
    low = xywh[:, :2]
    return np.concatenate([low, low + np.maximum(xywh[:, 2:] - 1, 0)], axis=1).astype(np.float32)


def clip_boxes(boxes: Boxes, width: int, height: int) -> tuple[Boxes, Flags]:
    """Boxes clipped to [0, W-1] x [0, H-1], and which of them have an area left."""
    limits = np.array([width - 1, height - 1] * 2, dtype=np.float32)
    inside = np.clip(boxes, 0, limits).astype(np.float32)
    return inside, has_area(inside)


def has_area(boxes: Boxes) -> Flags:
    """Which boxes have x2 > x1 and y2 > y1."""
    flags: Flags = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    return flags


def resized(size: Size, short: int = SHORT_SIDE, *, swapped_sides: bool = False) -> Size:
    """The size with `short` as its shorter side, the other truncated; `swapped_sides` is the seed's fault."""
    width, height = size
    if swapped_sides and min(width, height) == short:
        return height, width
    if width < height:
        return short, int(short * height / width)
    return int(short * width / height), short


def resize_boxes(boxes: Boxes, old: Size, new: Size) -> Boxes:
    """Boxes of a picture of size `old` in one of size `new`."""
    ratio = np.array([new[0] / old[0], new[1] / old[1]] * 2, dtype=np.float32)
    moved: Boxes = (boxes * ratio).astype(np.float32)
    return moved


def crop_corner(size: Size, side: int, uniforms: Sequence[float]) -> tuple[int, int]:
    """(x, y) of a random square: int(u * (W - side)), int(u * (H - side)); u in [0, 1)."""
    (width, height), (u, v) = size, uniforms
    return int(u * (width - side)), int(v * (height - side))


def crop_boxes(boxes: Boxes, corner: tuple[int, int], side: int) -> Boxes:
    """Boxes shifted into the crop and clamped to [0, side]; those outside are left without area."""
    shift = np.array([*corner, *corner], dtype=np.float32)
    moved: Boxes = np.clip(boxes - shift, 0, side).astype(np.float32)
    return moved


def flip_boxes(boxes: Boxes, width: int) -> Boxes:
    """Mirrored left-right: x' = W - x - 1."""
    return np.stack([width - boxes[:, 2] - 1, boxes[:, 1], width - boxes[:, 0] - 1, boxes[:, 3]], axis=1).astype(
        np.float32
    )


def padded(size: Size, multiple: int) -> Size:
    """Sides rounded up to a multiple of the patch."""
    width, height = (-(-side // multiple) * multiple for side in size)
    return width, height


def padded_batch(sizes: Sequence[Size], multiple: int) -> Size:
    """The sides of a batch: the largest of each, rounded up."""
    return padded((max(width for width, _ in sizes), max(height for _, height in sizes)), multiple)


def widen_boxes(boxes: Boxes, size: Size, shares: tuple[float, float] = WIDEN) -> Boxes:
    """Boxes at test: `shares` of width and height wider, clamped to [0, W-1] x [0, H-1] of the unpadded clip."""
    sides = boxes[:, 2:] - boxes[:, :2] + 1
    more = sides * np.array(shares, dtype=np.float32) * 0.5
    limits = np.array([size[0] - 1, size[1] - 1], dtype=np.float32)
    low, high = np.clip(boxes[:, :2] - more, 0, limits), np.clip(boxes[:, 2:] + more, 0, limits)
    return np.concatenate([low, high], axis=1).astype(np.float32)


def jitter_boxes(
    boxes: Boxes,
    size: Size,
    uniforms: NDArray[np.floating],
    shares_x: tuple[float, float] = JITTER_X,
    shares_y: tuple[float, float] = JITTER_Y,
) -> Boxes:
    """Boxes in training, each side moved by chance: `uniforms` [4, k] in [0, 1) for x1, y1, x2, y2.

    x1 moves by width * U(-a, b), x2 by width * U(-b, a), likewise in y. Low ends are clamped to [0, W-2], high ends to
    at most W-1 and at least one pixel behind the low end.
    """
    moved = np.empty_like(boxes)
    for axis, (out, back) in enumerate((shares_x, shares_y)):
        low, high = boxes[:, axis], boxes[:, axis + 2]
        side = high - low + 1
        drawn = uniforms[[axis, axis + 2]].astype(np.float32)
        first = low + side * (drawn[0] * (out + back) - out)
        last = high + side * (drawn[1] * (out + back) - back)
        moved[:, axis] = np.clip(first, 0, size[axis] - 2)
        moved[:, axis + 2] = np.maximum(np.minimum(last, size[axis] - 1), moved[:, axis] + 1)
    return moved


def frame_shares(boxes: Boxes, size: Size) -> NDArray[np.float64]:
    """Boxes in pixels of the key frame -> shares of it for the csv: x2, y2 + 1, over W, H, clipped to [0, 1]."""
    wide = boxes.astype(np.float64) + np.array([0, 0, 1, 1])
    shares: NDArray[np.float64] = np.clip(wide / np.array([*size, *size]), 0, 1)
    return shares
