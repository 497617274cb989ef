"""Initial values as a pure function of (seed, parameter name): the same under ZeRO-3, any world size and any thread
count.

The rules are the originals': xavier-uniform in the pre-training model, truncated normal .02 in the fine-tuning model,
torch's convolution and linear defaults where the originals left them in place.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

_STD = 0.02


def initial_value(
    name: str, shape: Sequence[int], seed: int, *, patch_values: int = 1536, head_init_scale: float = 1.0
) -> Tensor:
    """The fp32 CPU tensor that parameter `name` (relative to the model) starts from.

    `patch_values` is P, the fan-in of the patch embedding; `head_init_scale` multiplies the classifier's weight: a
    model's `init_options()` gives both. Raises KeyError for a name that no rule covers.
    """
    name = name.removeprefix("model.")
    shape = tuple(shape)
    module, _, leaf = name.rpartition(".")
    generator = torch.Generator().manual_seed(_name_seed(name, seed))
    value = torch.empty(shape, dtype=torch.float32)
    if name == "mask_token":
        return nn.init.trunc_normal_(value, std=_STD, a=-_STD, b=_STD, generator=generator)
    if module.endswith("patch_embed.proj"):
        return value.uniform_(-1.0, 1.0, generator=generator).mul_(1.0 / math.sqrt(patch_values))
    if name == "encoder_to_decoder.weight":
        return value.uniform_(-1.0, 1.0, generator=generator).mul_(1.0 / math.sqrt(shape[1]))
    if "norm" in module.rpartition(".")[2]:
        return value.fill_(1.0 if leaf == "weight" else 0.0)
    if leaf in ("bias", "q_bias", "v_bias"):
        return value.zero_()
    if leaf == "weight" and len(shape) == 2:
        if module.startswith(("encoder.", "decoder.")):
            return nn.init.xavier_uniform_(value, generator=generator)
        scale = head_init_scale if module == "head" else 1.0
        return nn.init.trunc_normal_(value, std=_STD, generator=generator).mul_(scale)
    raise KeyError(f"no initial value is defined for parameter {name!r} of shape {shape}")


def _name_seed(name: str, seed: int) -> int:
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def init_weights(model: nn.Module, seed: int, names: Iterable[str] | None = None) -> None:
    """Set every parameter of `model` (or those of `names`) to its initial value, in place; meta tensors are left alone.

    A parameter whose storage is partitioned (ZeRO-3) has another shape than it claims: gather it first, or take
    `initial_value` for it. Raises ValueError there.
    """
    wanted = None if names is None else set(names)
    options: dict[str, Any] = model.init_options() if hasattr(model, "init_options") else {}  # type: ignore[operator]
    for name, parameter in model.named_parameters():
        if (wanted is not None and name not in wanted) or parameter.is_meta:
            continue
        if parameter.numel() == 0:
            raise ValueError(f"{name} holds no values here (partitioned?): gather it before its initial value is set")
        with torch.no_grad():
            parameter.copy_(initial_value(name, parameter.shape, seed, **options))
