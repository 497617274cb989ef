"""Where the numbers of each parameter lie in DeepSpeed's flat tensors, for ZeRO stages 0 to 3.

A parameter is a list of `Place`s. The masters, both moments and the running averages are laid out alike, so one list
serves them all. Knows the layouts; opens no files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dsvid.errors import CheckpointError

Shapes = dict[str, torch.Size]


class Place(NamedTuple):
    """`numel` numbers of a parameter from `start` on lie in flat tensor `part` of `rank`, from `offset` on."""

    start: int
    numel: int
    rank: int
    part: int
    offset: int


class Layout(NamedTuple):
    """How the optimizer's numbers are arranged: the same for every kind.

    `groups`: shapes by name, an optimizer group each. `masters` and `states`: by rank, then by part.
    """

    groups: list[Shapes]
    places: dict[str, list[Place]]
    masters: Sequence[Sequence[Tensor]]
    states: Sequence[Sequence[Mapping[str, Any]]]
    hypers: list[dict[str, Any]]


def clean(name: str) -> str:
    """A parameter's name without what wrappers put in front of or into it."""
    return name.removeprefix("module.").replace("_orig_mod.", "")


def stage0(
    path: Path, module: Mapping[str, Tensor], optimizer: Any, group_names: list[list[str]] | None, trained: Shapes
) -> Layout:
    """Everything is in one file, `path`. Which parameter an optimizer state belongs to, only dsvid's manifest says:
    without `group_names` the weights alone can be read, and all of `trained` count as one group.
    """
    optimizer = optimizer if isinstance(optimizer, Mapping) else {}
    if group_names is None:
        half = any(tensor.dtype in (torch.bfloat16, torch.float16) for tensor in module.values())
        places = {name: [Place(0, math.prod(shape), 0, i, 0)] for i, (name, shape) in enumerate(trained.items())}
        return Layout([trained], places, [] if half else [[module[name] for name in trained]], [], [])
    names = [name for group in group_names for name in group]
    absent = [name for name in names if name not in module]
    if absent:
        raise CheckpointError(f"{path} lacks a parameter that its manifest.json lists", found=f"no {absent[0]}")
    groups = [{name: module[name].shape for name in group} for group in group_names]
    states, hypers, ids = _states_of(optimizer.get("optimizer_state_dict", optimizer))
    if "fp32_groups_flat" in optimizer:  # FP16_Optimizer: a group is one flat tensor
        flats = list(optimizer["fp32_groups_flat"])
        _check_counts(path, [flat.numel() for flat in flats], [sum(map(math.prod, g.values())) for g in groups])
        return Layout(groups, _in_a_row(groups), [flats], [states], hypers)
    singles = optimizer.get("fp32_groups")  # FP16_UnfusedOptimizer; in fp32 the weights themselves are the masters
    _check_counts(path, [len(held) for held in (singles or ids)], [len(group) for group in groups])
    masters = [one for group in singles for one in group] if singles else [module[name] for name in names]
    for name, master in zip(names, masters, strict=True):
        if master.shape != module[name].shape:
            raise CheckpointError(
                f"{path}: the master of {name} has another shape than the parameter",
                found=list(master.shape),
                expected=list(module[name].shape),
            )
    places = {name: [Place(0, module[name].numel(), 0, index, 0)] for index, name in enumerate(names)}
    return Layout(groups, places, [masters], [states], hypers)


def _check_counts(path: Path, found: list[int], expected: list[int]) -> None:
    if found != expected:
        raise CheckpointError(
            f"{path}: the optimizer groups are not those of manifest.json", found=found, expected=expected
        )


def _in_a_row(groups: Sequence[Shapes]) -> dict[str, list[Place]]:
    """Places of parameters that lie whole and one after the other in the part of their group."""
    places = {}
    for part, group in enumerate(groups):
        offset = 0
        for name, shape in group.items():
            places[name] = [Place(0, math.prod(shape), 0, part, offset)]
            offset += math.prod(shape)
    return places


def _states_of(base: Any) -> tuple[list[Mapping[str, Any]], list[dict[str, Any]], list[list[int]]]:
    """The optimizer's state of every flat tensor in order, each group's values, and its tensors' numbers."""
    if isinstance(base, Sequence):  # `elastic_checkpoint`: a list of states, without the groups' values
        return list(base), [{} for _ in base], [[index] for index in range(len(base))]
    base = base or {}
    listed, state = base.get("param_groups") or [], base.get("state") or {}
    ids = [list(group["params"]) for group in listed]
    hypers = [{key: value for key, value in group.items() if key != "params"} for group in listed]
    return [state.get(number, {}) for group in ids for number in group], hypers, ids


def _check_parts(files: Sequence[Path], masters: Sequence[Sequence[Tensor]], parts: int) -> None:
    for path, held in zip(files, masters, strict=True):
        if len(held) != parts:
            raise CheckpointError(
                f"{path} has another number of groups than the model", found=len(held), expected=parts
            )


def stage12(groups: list[Shapes], shards: Sequence[Mapping[str, Any]], files: Sequence[Path]) -> Layout:
    """A group is one flat row of parameters, cut into equal partitions over the ranks, the last ones padded.

    The masters are saved without the padding at the end, the moments with it. `parameter_alignment` puts gaps behind
    parameters. A group that holds fewer numbers than there are ranks leaves some of them nothing.
    """
    masters = [list(shard["single_partition_of_fp32_groups"]) for shard in shards]
    _check_parts(files, masters, len(groups))
    places: dict[str, list[Place]] = {}
    for part, group in enumerate(groups):
        lean = "zero_stage" in shards[0]  # BF16_Optimizer saves its partitions whole
        padding = int(shards[0]["group_paddings"][part]) if lean else 0
        size = max(1, masters[0][part].numel() + padding)
        gaps = (shards[0].get("param_alignment_paddings") or [[0] * len(group)] * len(groups))[part]
        begin = 0
        for (name, shape), gap in zip(group.items(), gaps, strict=True):
            end = begin + math.prod(shape)
            places[name] = []
            for rank in range(begin // size, min(math.ceil(end / size), len(shards))):
                low, high = max(begin, rank * size), min(end, (rank + 1) * size)
                places[name].append(Place(low - begin, high - low, rank, part, low - rank * size))
            begin = end + int(gap)
    loaded = [_states_of(shard.get("base_optimizer_state")) for shard in shards]
    return Layout(groups, places, masters, [states for states, *_ in loaded], loaded[0][1])


def stage3(shapes: list[Shapes], shards: Sequence[Mapping[str, Any]], files: Sequence[Path]) -> Layout:
    """Every parameter is cut into equal parts over the ranks, the last ones padded; the parts of a sub-group lie in a
    row. A group is one or several sub-groups.
    """
    masters = [list(shard["fp32_flat_groups"]) for shard in shards]
    _check_parts(files, masters, len(shapes))
    places: dict[str, list[Place]] = {}
    for part, group in enumerate(shapes):
        offset = 0
        for name, shape in group.items():
            count = math.prod(shape)
            share = math.ceil(count / len(shards))
            places[name] = [
                Place(rank * share, min(share, count - rank * share), rank, part, offset)
                for rank in range(len(shards))
                if rank * share < count
            ]
            offset += share
    loaded = [_states_of(shard.get("optimizer_state_dict")) for shard in shards]
    _, hypers, ids = loaded[0]
    if sum(map(len, ids)) != len(shapes):
        raise CheckpointError(f"{files[0]}: its groups hold {sum(map(len, ids))} sub-groups", expected=len(shapes))
    parts = iter(shapes)
    groups = [{name: shape for _ in held for name, shape in next(parts).items()} for held in ids]
    return Layout(groups, places, masters, [states for states, *_ in loaded], hypers)
