"""One fp32 state dict out of a DeepSpeed checkpoint of ZeRO stage 0, 1, 2 or 3. Needs no GPU, engine or deepspeed.

The master weights are used wherever the checkpoint has them: bf16 copies differ by up to 1e-3. Files are opened with
`weights_only=True`; the few DeepSpeed classes that its shards mention are replaced by empty stand-ins.
"""

from __future__ import annotations

import enum
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dsvid.errors import CheckpointError

OBJECTIVE_PREFIX = "model."


class _Stage(enum.Enum):
    disabled = 0
    optimizer_states = 1
    gradients = 2
    weights = 3


class _StandIn:
    """Takes the state of a DeepSpeed object that a shard mentions and that the weights do not need."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass


def _named(name: str) -> tuple[Any, str]:
    return (type(name.rsplit(".", 1)[1], (_StandIn,), {}), name)


_ALLOWED: list[Any] = [
    (_Stage, "deepspeed.runtime.zero.config.ZeroStageEnum"),
    _named("deepspeed.runtime.fp16.loss_scaler.LossScaler"),
    _named("deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler"),
    _named("deepspeed.utils.tensor_fragment.fragment_address"),
]


def consolidate(folder: Path) -> dict[str, Tensor]:
    """fp32 weights of the checkpoint in `folder` (one tag), by the model's own parameter names.

    Stage 0 in bf16 or fp16 also needs the parameter names of each optimizer group, which dsvid's manifest.json holds.
    Raises CheckpointError that names the missing or damaged file.
    """
    model_files = sorted(folder.glob("*model_states.pt"))
    if not model_files:
        raise CheckpointError(
            f"{folder} holds no DeepSpeed checkpoint",
            found=", ".join(sorted(p.name for p in folder.iterdir())[:6]) if folder.is_dir() else "nothing there",
            expected="*_model_states.pt files",
        )
    model = _load(model_files[0])
    shards = _optimizer_shards(folder)
    if not shards:
        weights = _stage0(model, _group_names(folder))
    elif "fp32_flat_groups" in shards[0]:
        weights = _stage3(model["param_shapes"], [shard["fp32_flat_groups"] for shard in shards])
    else:
        groups = [shard["single_partition_of_fp32_groups"] for shard in shards]
        weights = _stage12(model["param_shapes"], groups)
        weights.update(_others(model["module"], weights))
    return {_own_name(name): tensor for name, tensor in weights.items()}


def _group_names(folder: Path) -> list[list[str]] | None:
    path = folder / "manifest.json"
    if not path.is_file():
        return None
    try:
        groups: list[list[str]] | None = json.loads(path.read_text(encoding="utf-8")).get("groups")
    except ValueError as error:
        raise CheckpointError(f"{path} cannot be read", found=str(error)) from error
    return groups


def _own_name(name: str) -> str:
    return name.removeprefix("module.").removeprefix("_orig_mod.").removeprefix(OBJECTIVE_PREFIX)


def _load(path: Path) -> dict[str, Any]:
    try:
        with torch.serialization.safe_globals(_ALLOWED):
            loaded = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise CheckpointError(
            f"checkpoint file {path} cannot be read", found=reason, expected="a file that DeepSpeed wrote completely"
        ) from error
    if not isinstance(loaded, dict):
        raise CheckpointError(f"checkpoint file {path}", found=type(loaded).__name__, expected="a dictionary")
    return loaded


def _optimizer_shards(folder: Path) -> list[dict[str, Any]]:
    """Each rank's optimizer state in rank order; empty at stage 0. Raises CheckpointError where one is missing."""
    files: dict[int, Path] = {}
    for path in folder.glob("*zero_pp_rank_*_optim_states.pt"):
        files[int(path.name.split("zero_pp_rank_")[1].split("_")[0])] = path
    if not files:
        return []
    shards = [_load(files[rank])["optimizer_state_dict"] for rank in sorted(files)]
    count = shards[0]["partition_count"]
    expected = int(max(count)) if isinstance(count, list) else int(count)
    if sorted(files) != list(range(expected)):
        raise CheckpointError(
            f"{folder} is incomplete",
            found=f"optimizer shards of ranks {sorted(files)}",
            expected=f"ranks 0 to {expected - 1}",
        )
    return shards


def _stage0(model: dict[str, Any], group_names: list[list[str]] | None) -> dict[str, Tensor]:
    module: dict[str, Tensor] = model["module"]
    optimizer = model.get("optimizer")
    groups = optimizer.get("fp32_groups") if isinstance(optimizer, Mapping) else None
    if groups is None:
        if any(tensor.dtype in (torch.bfloat16, torch.float16) for tensor in module.values()):
            raise CheckpointError(
                "a stage-0 half-precision checkpoint without fp32 masters", expected="one that dsvid wrote"
            )
        return {name: tensor.clone() for name, tensor in module.items()}
    if group_names is None:
        raise CheckpointError(
            "a stage-0 bf16 or fp16 checkpoint does not say which parameter is where",
            expected="a checkpoint that dsvid wrote, with its manifest.json",
        )
    weights: dict[str, Tensor] = {}
    for names, masters in zip(group_names, groups, strict=True):
        weights.update({name: master.float().clone() for name, master in zip(names, masters, strict=True)})
    weights.update(_others(module, weights))
    return weights


def _stage12(shapes: list[Mapping[str, torch.Size]], groups: list[list[Tensor]]) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = {}
    for index, group in enumerate(shapes):
        weights.update(_cut(torch.cat([rank[index] for rank in groups]), group))
    return weights


def _cut(flat: Tensor, shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    needed = sum(math.prod(shape) for shape in shapes.values())
    if flat.numel() < needed:
        raise CheckpointError(
            "optimizer shards are too short", found=f"{flat.numel()} numbers", expected=f"at least {needed}"
        )
    weights, start = {}, 0
    for name, shape in shapes.items():
        count = math.prod(shape)
        # Copied: a view would keep the whole memory-mapped shard alive and be written with it.
        weights[name] = flat[start : start + count].view(shape).float().clone()
        start += count
    return weights


def _stage3(shapes: list[Mapping[str, torch.Size]], groups: list[list[Tensor]]) -> dict[str, Tensor]:
    """At stage 3 every parameter is cut into equal parts over the ranks, the last one padded."""
    flats = [torch.cat([flat.reshape(-1) for flat in rank]) for rank in groups]
    weights: dict[str, Tensor] = {}
    start = 0
    for group in shapes:
        for name, shape in group.items():
            count = math.prod(shape)
            share = math.ceil(count / len(flats))
            if start + share > flats[0].numel():
                raise CheckpointError(f"optimizer shards are too short: {name} is missing")
            whole = torch.cat([flat[start : start + share] for flat in flats])
            weights[name] = whole[:count].view(shape).float()
            start += share
    return weights


def _others(module: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Frozen parameters and buffers: they have no master copy and are taken from the module."""
    return {name: tensor.float().clone() for name, tensor in module.items() if name not in found}
