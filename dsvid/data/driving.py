"""Augmentation of driving clips: borders above and below the frame, then a square without keeping the shape.

What simple-tad does in training (arXiv 2504.12822, code): one of twelve kinds of border for a clip. Legend:
T frames, H W pixels.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

# twelve kinds with equal chance, some of them more than once
KINDS = ("none",) * 5 + ("black",) * 2 + ("colour",) + ("reflect",) * 2 + ("replicate",) * 2
MOST_SHADE = 0.7  # of black that a reflected border is mixed with


def add_borders(clip: Tensor, rng: np.random.Generator) -> Tensor:
    """uint8 [T, H, W, 3] -> [T, H + top + bottom, W, 3]: each border round(U(0, 1) * (W - H) / 2) pixels high.

    Every call draws the same numbers, whatever the kind. Frames that are higher than wide get none.
    """
    kind = KINDS[int(rng.integers(0, len(KINDS)))]
    shares, colour, shade = rng.random(2), rng.integers(0, 256, size=3), float(rng.uniform(0, MOST_SHADE))
    height, width = clip.shape[1:3]
    top, bottom = (round(float(share) * max(0, width - height) / 2) for share in shares)
    if kind == "none" or not (top or bottom):
        return clip
    above, below = (_border(clip, kind, size, side, colour, shade) for size, side in ((top, "top"), (bottom, "bottom")))
    return torch.cat([above, clip, below], dim=1)


def _border(clip: Tensor, kind: str, size: int, side: str, colour: np.ndarray, shade: float) -> Tensor:
    frames, height, width = clip.shape[:3]
    if kind == "replicate":
        edge = clip[:, :1] if side == "top" else clip[:, -1:]
        return edge.expand(frames, size, width, 3)
    if kind == "reflect":
        # rows beside the edge, which itself is not repeated; a border may be higher than the frame
        away = torch.arange(size, 0, -1) if side == "top" else torch.arange(1, size + 1)
        place = away % max(1, 2 * (height - 1))
        place = torch.minimum(place, 2 * (height - 1) - place)
        rows = clip[:, place if side == "top" else height - 1 - place]
        return (rows.float() * (1 - shade)).round().to(torch.uint8)
    value = torch.zeros(3, dtype=torch.uint8) if kind == "black" else torch.from_numpy(colour.astype(np.uint8))
    return value.expand(frames, size, width, 3)
