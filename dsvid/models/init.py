"""Initial values as a pure function of (seed, parameter name): the same under ZeRO-3, any world size and any thread
count.

The rules are the originals': xavier-uniform in the pre-training model, truncated normal .02 in the fine-tuning model,
torch's convolution and linear defaults where the originals left them in place.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dsvid.tokens import position_table, separate_tables

_STD = 0.02
_LAYER_SCALE = 1e-5
_BRANCH_END = re.compile(r"blocks\.(\d+)\.(?:attn\.proj|mlp\.fc2)\.weight")


def initial_value(
    name: str,
    shape: Sequence[int],
    seed: int,
    *,
    patch_values: int = 1536,
    head_init_scale: float = 1.0,
    sincos_grid: tuple[int, int, int] | None = None,
    depth_scaled: bool = False,
) -> Tensor:
    """The fp32 CPU tensor that parameter `name` (relative to the model) starts from.

    `patch_values` is P, the fan-in of the patch embedding; `head_init_scale` multiplies the classifier's weight;
    learned positions start as the sin-cos table of `sincos_grid` (t, h, w) where it is given; `depth_scaled` divides
    the last product of each branch of block l by sqrt(2 (l + 1)) (InternVideo2): a model's `init_options()` gives all.
    Raises KeyError for a name that no rule covers.
    """
    name = name.removeprefix("model.")
    if name.startswith("pos_embed") and sincos_grid is not None and shape[-1] % 16 == 0:
        return _sincos_start(name, sincos_grid, shape[-1])
    value = _drawn(name, tuple(shape), seed, patch_values, head_init_scale)
    end = _BRANCH_END.fullmatch(name)
    return value.div_(math.sqrt(2.0 * (int(end[1]) + 1))) if depth_scaled and end else value


def _sincos_start(name: str, grid: tuple[int, int, int], dim: int) -> Tensor:
    cls = torch.zeros(1, 1, dim)  # the class token has no place of its own
    if name == "pos_embed":
        return torch.cat((cls, position_table("sincos_separable", *grid, dim)[None]), dim=1)
    space, time = separate_tables(*grid, dim)
    return {"pos_embed_spatial": space[None], "pos_embed_temporal": time[None], "pos_embed_cls": cls}[name]


def _drawn(name: str, shape: tuple[int, ...], seed: int, patch_values: int, head_init_scale: float) -> Tensor:
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
    if leaf in ("bias", "q_bias", "k_bias", "v_bias"):
        return value.zero_()
    if leaf == "gamma":
        return value.fill_(_LAYER_SCALE)
    if name == "cls_token" or name.startswith("pos_embed"):
        return nn.init.trunc_normal_(value, std=_STD, generator=generator)
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


def fill_meta(model: nn.Module, fill: Callable[[str, Tensor], object], dtype: torch.dtype) -> None:
    """Give the parameters of a model on the meta device their memory and values: `fill(name, parameter)` sets one.

    All memory is asked for first: what lasts and what is needed for a moment would else lie by turns in the heap, whose
    holes cost a third of ViT-L (measured). Raises ValueError where the model has buffers, which would stay empty.
    """
    for name, _ in model.named_buffers():
        raise ValueError(f"{name} is a buffer: it has no value to start from")
    for module in model.modules():
        for leaf, parameter in list(module.named_parameters(recurse=False)):
            memory = torch.empty(parameter.shape, dtype=dtype)
            setattr(module, leaf, nn.Parameter(memory, requires_grad=parameter.requires_grad))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            fill(name, parameter)
