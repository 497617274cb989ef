"""RoIAlign: features inside of boxes, resampled to a fixed raster; torchvision's, or plain torch of the same numbers.

Parameters are those of AVA's fine-tuning: 7 x 7 bins, as many sample points in a bin as the box has cells there
(sampling_ratio 0), boxes not shifted by half a cell (aligned False). Legend: B images, N boxes, D width, h w cells.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

BINS = 7


def roi_align(features: Tensor, boxes: Tensor, image: Tensor, scale: float, bins: int = BINS) -> Tensor:
    """Features fp32 [B, D, h, w] in boxes [N, 4] (pixels; cell = pixel * scale) of images int64 [N] -> [N, D, 7, 7]."""
    own = _torchvision()
    if own is None:
        return plain_roi_align(features, boxes, image, scale, bins)
    rows = torch.cat([image[:, None].to(boxes.dtype), boxes], dim=1)
    pooled: Tensor = own(features, rows.to(features.dtype), bins, scale, 0, False)
    return pooled


def roi_backend() -> str:
    """`torchvision` or `plain torch`, for the start of the log."""
    return "plain torch" if _torchvision() is None else "torchvision"


def plain_roi_align(features: Tensor, boxes: Tensor, image: Tensor, scale: float, bins: int = BINS) -> Tensor:
    """The same without torchvision: bilinear sampling on a raster is a product of one matrix per axis."""
    height, width = features.shape[2:]
    edges = boxes.to(features.dtype) * scale
    rows = _axis_weights(edges[:, 1], edges[:, 3], height, bins)  # [N, bins, h]
    columns = _axis_weights(edges[:, 0], edges[:, 2], width, bins)  # [N, bins, w]
    upright = torch.einsum("npy,ndyx->ndpx", rows, features[image])
    return torch.einsum("ndpx,nqx->ndpq", upright, columns)


def _axis_weights(low: Tensor, high: Tensor, cells: int, bins: int) -> Tensor:
    """Mean bilinear weights of the sample points of each bin, [N, bins, cells]."""
    side = (high - low).clamp(min=1.0)
    points = (side / bins).ceil()  # in one bin
    most = int(points.max()) if len(points) else 1
    place = torch.arange(most, device=low.device, dtype=low.dtype)
    share = (place + 0.5) / points[:, None]  # [N, most]
    bin_number = torch.arange(bins, device=low.device, dtype=low.dtype)
    where = low[:, None, None] + (bin_number[None, :, None] + share[:, None, :]) * (side / bins)[:, None, None]
    # a point further than one cell outside counts nothing, a nearer one is moved to the edge
    counts = (where >= -1.0) & (where <= cells) & (place < points[:, None])[:, None, :]
    at = where.clamp(0, cells - 1)
    axis = torch.arange(cells, device=low.device, dtype=low.dtype)
    weights = (1 - (at[..., None] - axis).abs()).clamp(min=0) * counts[..., None]
    return weights.sum(dim=2) / points[:, None, None]


@lru_cache(maxsize=1)
def _torchvision() -> Callable[..., Any] | None:
    """torchvision's RoIAlign, or None where it is missing or does not fit this torch."""
    try:
        from torchvision.ops import roi_align as own

        own(torch.zeros(1, 1, 2, 2), torch.tensor([[0.0, 0.0, 0.0, 1.0, 1.0]]), 1, 1.0, 0, False)
    except (ImportError, RuntimeError, OSError, AttributeError):
        return None
    found: Callable[..., Any] = own
    return found
