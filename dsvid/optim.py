"""Parameter groups (no-decay rule, layer-wise lr decay) and the per-step schedule of the VideoMAE scripts.

Pure functions of names, shapes and numbers; knows nothing of DeepSpeed or ranks.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any

from torch import nn

NO_DECAY_NAMES = ("pos_embed", "cls_token", "mask_token")
_BLOCK = re.compile(r"(?:^|\.)blocks\.(\d+)\.")
_INPUT = re.compile(r"(?:^|\.)(patch_embed\b|pos_embed$|cls_token$|mask_token$)")


def has_decay(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies: not to 1-D parameters, biases, position tables and special tokens (VideoMAE)."""
    # Under ZeRO-3 the local shape is (0,); DeepSpeed keeps the real one in ds_shape.
    shape = getattr(parameter, "ds_shape", parameter.shape)
    return len(shape) > 1 and not name.endswith(".bias") and name.split(".")[-1] not in NO_DECAY_NAMES


def layer_of(name: str, depth: int) -> int:
    """Layer index of a parameter: 0 for the input side, k+1 for block k, depth+1 for everything behind the blocks."""
    block = _BLOCK.search(name)
    if block:
        return int(block.group(1)) + 1
    return 0 if _INPUT.search(name) else depth + 1


def parameter_groups(
    named: Iterable[tuple[str, nn.Parameter]], *, lr: float, weight_decay: float, layer_decay: float, depth: int
) -> list[dict[str, Any]]:
    """Optimizer groups with their own `lr` and `weight_decay`; each group lists the `names` of its parameters.

    Layer i of a `depth`-block encoder gets lr * layer_decay^(depth + 1 - i); layer_decay 1 gives two groups.
    """
    groups: dict[str, dict[str, Any]] = {}
    for name, parameter in named:
        if not parameter.requires_grad:
            continue
        decay = has_decay(name, parameter)
        layer = layer_of(name, depth) if layer_decay < 1 else depth + 1
        key = f"layer_{layer}_{'decay' if decay else 'no_decay'}"
        if key not in groups:
            groups[key] = {
                "params": [],
                "names": [],
                "lr": lr * layer_decay ** (depth + 1 - layer),
                "weight_decay": weight_decay if decay else 0.0,
                "label": key,
            }
        groups[key]["params"].append(parameter)
        groups[key]["names"].append(name)
    return list(groups.values())


def cosine_factor(step: int, *, total: int, warmup: int, min_ratio: float) -> float:
    """Multiplier of a group's lr at optimizer step `step` (0-based), as VideoMAE's cosine_scheduler.

    The warm-up rises linearly from exactly 0 at step 0 to 1 at step warmup-1; then half a cosine falls from 1 towards
    min_ratio. Defined for every step: from `total` on it stays at min_ratio.
    """
    if step < warmup:
        return step / (warmup - 1) if warmup > 1 else 0.0
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return min_ratio + 0.5 * (1.0 - min_ratio) * (1.0 + math.cos(math.pi * progress))
