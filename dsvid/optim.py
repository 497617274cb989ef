"""Parameter groups (no-decay rule, layer-wise lr decay), what is frozen, and the per-step schedules of the VideoMAE
scripts: lr and weight decay.

Functions of names, shapes and numbers; knows nothing of DeepSpeed or ranks.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.optim.lr_scheduler import LambdaLR

NO_DECAY_NAMES = (
    "pos_embed", "pos_embed_spatial", "pos_embed_temporal", "pos_embed_cls", "cls_token", "mask_token",
)  # fmt: skip
_BLOCK = re.compile(r"(?:^|\.)blocks\.(\d+)\.")
_INPUT = re.compile(r"(?:^|\.)(patch_embed\b|pos_embed(_spatial|_temporal|_cls)?$|cls_token$|mask_token$)")


def has_decay(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies: not to 1-D parameters, biases, position tables, special tokens (VideoMAE), nor to
    the temperatures of cosine attention (V2, names that end in `.scale`).
    """
    # Under ZeRO-3 the local shape is (0,); DeepSpeed keeps the real one in ds_shape.
    shape = getattr(parameter, "ds_shape", parameter.shape)
    return len(shape) > 1 and not name.endswith((".bias", ".scale")) and name.split(".")[-1] not in NO_DECAY_NAMES


def layer_of(name: str, depth: int) -> int:
    """Layer index of a parameter: 0 for the input side, k+1 for block k, depth+1 for everything behind the blocks."""
    block = _BLOCK.search(name)
    if block:
        return int(block.group(1)) + 1
    return 0 if _INPUT.search(name) else depth + 1


def is_frozen(name: str, *, depth: int, freeze_blocks: int, linear_probe: bool) -> bool:
    """Whether a parameter rests: all but the head (`linear_probe`), or the input side and the first blocks.

    The norms of resting blocks stay trainable, as in simple-tad. A probe needs no `fc_norm`: the head absorbs it.
    """
    if linear_probe:
        return not name.removeprefix("model.").startswith("head.")
    layer = layer_of(name, depth)
    if freeze_blocks == 0 or layer > freeze_blocks:
        return False
    return layer == 0 or ".norm" not in name


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


def weight_decay_at(step: int, *, total: int, start: float, end: float) -> float:
    """Half a cosine from `start` at step 0 to `end` at step `total`, without warm-up (VideoMAE's second schedule)."""
    progress = min(1.0, step / max(1, total))
    return end + 0.5 * (start - end) * (1.0 + math.cos(math.pi * progress))


class CosineSchedule(LambdaLR):
    """`cosine_factor` for the lr of every group and, where `weight_decay_end` is given, `weight_decay_at` for the decay
    of those that decay. Steps are optimizer steps.
    """

    def __init__(
        self,
        optimizer: Any,
        *,
        total: int,
        warmup: int,
        min_ratio: float,
        weight_decay_end: float | None = None,
    ) -> None:
        self.total, self.weight_decay_end = total, weight_decay_end
        self.starts = [group["weight_decay"] for group in optimizer.param_groups]

        def factor(step: int) -> float:
            return cosine_factor(step, total=total, warmup=warmup, min_ratio=min_ratio)

        super().__init__(optimizer, factor)

    def step(self, epoch: int | None = None) -> None:
        """Advance by one optimizer step."""
        super().step(epoch)
        self._set_weight_decay()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the schedule where it was saved."""
        super().load_state_dict(state_dict)
        self._set_weight_decay()

    def _set_weight_decay(self) -> None:
        if self.weight_decay_end is None:
            return
        for group, start in zip(self.optimizer.param_groups, self.starts, strict=True):
            if start > 0:
                group["weight_decay"] = weight_decay_at(
                    self.last_epoch, total=self.total, start=start, end=self.weight_decay_end
                )
