"""One fp32 state dict out of a DeepSpeed checkpoint of ZeRO stage 0, 1, 2 or 3. Needs no GPU, engine or deepspeed.

The master weights are used wherever the checkpoint has them: bf16 copies differ by up to 1e-3. Frozen parameters have
no masters and come as the engine held them. Files are opened with `weights_only=True`; the few DeepSpeed classes that
its shards mention are replaced by empty stand-ins.
"""

from __future__ import annotations

import enum
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from dsvid.errors import CheckpointError

OBJECTIVE_PREFIX = "model."
EMA_FILE = "ema_rank_{:05d}.pt"
Source = Literal["last", "ema"]
# What takes the place of one rank's fp32 masters, in their layout: a flat tensor a group, or (stage 0) its parameters.
Groups = Sequence[Any]


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


def consolidate(folder: Path, weights: Source = "last") -> dict[str, Tensor]:
    """fp32 weights of the checkpoint in `folder` (one tag), by the model's own parameter names.

    `weights` "ema": the running averages beside DeepSpeed's files (`ema_rank_XXXXX.pt`, one per rank) in place of the
    masters; what is frozen has no average and comes as it is. Stage 0 in bf16, fp16 or with averages also needs the
    parameter names of each optimizer group, which dsvid's manifest.json holds.
    Raises CheckpointError that names the missing or damaged file.
    """
    models = _model_files(folder)
    model = _load(models[0])
    shards = _optimizer_shards(folder)
    averages = _averages(folder, len(shards) or 1) if weights == "ema" else None
    if not shards:
        found = _stage0(model, _group_names(folder), averages[0] if averages else None)
    elif "fp32_flat_groups" in shards[0]:
        masters = _flat(averages) if averages else [shard["fp32_flat_groups"] for shard in shards]
        found = _stage3(model["param_shapes"], masters)
        found.update(_frozen_stage3(model, models, len(shards)))
    else:
        masters = _flat(averages) if averages else [shard["single_partition_of_fp32_groups"] for shard in shards]
        found = _stage12(model["param_shapes"], masters)
        found.update(_others(model["module"], found))
    return {_own_name(name): tensor for name, tensor in found.items()}


def _model_files(folder: Path) -> list[Path]:
    """The model-state files in rank order (one below stage 3)."""
    files = list(folder.glob("*model_states.pt"))
    if not files:
        raise CheckpointError(
            f"{folder} holds no DeepSpeed checkpoint",
            found=", ".join(sorted(p.name for p in folder.iterdir())[:6]) if folder.is_dir() else "nothing there",
            expected="*_model_states.pt files",
        )
    return sorted(files, key=_rank_of)


def _rank_of(path: Path) -> int:
    _, _, rest = path.name.partition("zero_pp_rank_")
    return int(rest.split("_")[0]) if rest else -1


def _averages(folder: Path, ranks: int) -> list[Groups]:
    """Each rank's running averages, in the layout of its masters."""
    paths = [folder / EMA_FILE.format(rank) for rank in range(ranks)]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise CheckpointError(
            f"{folder} holds no running averages of the weights"
            if len(missing) == ranks
            else f"{folder} is incomplete",
            found=f"no {', '.join(missing[:4])}",
            expected="a run that was trained with an EMA",
            fix="--weights last, or another checkpoint",
        )
    loaded = [_load(path).get("groups") for path in paths]
    for path, groups in zip(paths, loaded, strict=True):
        if not isinstance(groups, Sequence):
            raise CheckpointError(f"checkpoint file {path}", found=type(groups).__name__, expected='a list "groups"')
    return [groups for groups in loaded if groups is not None]


def _flat(ranks: list[Groups]) -> list[Groups]:
    """A group may be one flat tensor or a list of its parts."""
    return [
        [torch.cat([part.reshape(-1) for part in ([group] if isinstance(group, Tensor) else group)]) for group in rank]
        for rank in ranks
    ]


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
        files[_rank_of(path)] = path
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


def _stage0(model: dict[str, Any], group_names: list[list[str]] | None, averages: Groups | None) -> dict[str, Tensor]:
    module: dict[str, Tensor] = model["module"]
    optimizer = model.get("optimizer")
    groups = averages or (optimizer.get("fp32_groups") if isinstance(optimizer, Mapping) else None)
    if groups is None:
        if any(tensor.dtype in (torch.bfloat16, torch.float16) for tensor in module.values()):
            raise CheckpointError(
                "a stage-0 half-precision checkpoint without fp32 masters", expected="one that dsvid wrote"
            )
        return {name: tensor.clone() for name, tensor in module.items()}
    if group_names is None:
        raise CheckpointError(
            "a stage-0 checkpoint in bf16, fp16 or with averages does not say which parameter is where",
            expected="a checkpoint that dsvid wrote, with its manifest.json",
        )
    if [len(names) for names in group_names] != [len(group) for group in groups]:
        raise CheckpointError(
            "the groups of a stage-0 checkpoint are not those of its manifest.json",
            found=f"{[len(group) for group in groups]} parameters",
            expected=[len(names) for names in group_names],
        )
    weights: dict[str, Tensor] = {}
    for names, masters in zip(group_names, groups, strict=True):
        for name, master in zip(names, masters, strict=True):
            if name in module and module[name].shape != master.shape:
                raise CheckpointError(
                    f"the master of {name} has another shape than the parameter",
                    found=list(master.shape),
                    expected=list(module[name].shape),
                )
            weights[name] = master.float().clone()
    weights.update(_others(module, weights))
    return weights


def _stage12(shapes: list[Mapping[str, torch.Size]], groups: Sequence[Groups]) -> dict[str, Tensor]:
    if any(len(rank) != len(shapes) for rank in groups):
        raise CheckpointError(
            "optimizer shards have another number of groups than the model", found=len(groups[0]), expected=len(shapes)
        )
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


def _stage3(shapes: list[Mapping[str, torch.Size]], groups: Sequence[Groups]) -> dict[str, Tensor]:
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


def _frozen_stage3(model: dict[str, Any], paths: list[Path], ranks: int) -> dict[str, Tensor]:
    """Parameters that need no gradient: each rank's model file holds its part of them, in the compute dtype."""
    shapes: Mapping[str, torch.Size] = model.get("frozen_param_shapes") or {}
    if not shapes:
        return {}
    if [_rank_of(path) for path in paths] != list(range(ranks)):
        raise CheckpointError(
            f"{paths[0].parent} is incomplete",
            found=f"frozen parameters of ranks {[_rank_of(path) for path in paths]}",
            expected=f"ranks 0 to {ranks - 1}",
        )
    fragments = [_load(path).get("frozen_param_fragments") or {} for path in paths]
    weights: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        parts = [part[name].reshape(-1) for part in fragments if name in part]
        count, held = math.prod(shape), sum(part.numel() for part in parts)
        if held < count:
            raise CheckpointError(f"frozen parameter {name} is cut off", found=f"{held} numbers", expected=count)
        weights[name] = torch.cat(parts)[:count].view(shape).float()
    return weights


def _others(module: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Frozen parameters and buffers: they have no master copy and are taken from the module."""
    return {name: tensor.float().clone() for name, tensor in module.items() if name not in found}
