"""The head of AVA action detection: features in people's boxes -> logits of actions (VideoMAE-Action-Detection).

The backbone is a VisionTransformer with the norm on all tokens; its feature map is the mean over time, its `head` the
classifier of a box. Legend: B clips, N boxes, D width, C classes, h w cells of the map.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from dsvid.models.roi import roi_align


def box_features(features: Tensor, boxes: Tensor, image: Tensor, patch: int) -> Tensor:
    """Feature map [B, D, h, w] in boxes [N, 4] (pixels) of clips `image` [N] -> fp32 [N, D], the largest of 7 x 7."""
    wide = features if features.dtype == torch.float64 else features.float()
    return roi_align(wide, boxes.to(wide.dtype), image, 1.0 / patch).amax(dim=(2, 3))


def box_logits(head: nn.Module, pooled: Tensor) -> Tensor:
    """Logits [N, C] of boxes with features [N, D]."""
    return cast("Tensor", head(pooled.to(next(head.parameters()).dtype)))
