"""The fp32 weights of a DeepSpeed checkpoint of ZeRO stage 0, 1, 2 or 3. Needs no GPU, engine or deepspeed.

The master weights are used wherever the checkpoint has them: bf16 copies differ by up to 1e-3. Frozen parameters and
buffers have no masters and come as the engine held them, tied weights under each of their names.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from dsvid.errors import CheckpointError
from dsvid.weights.shards import AVERAGE_FILE, Shards, open_shards
from dsvid.weights.stream import LazyState

OBJECTIVE_PREFIX = "model."
EMA_FILE = AVERAGE_FILE
Source = Literal["last", "ema"]


def consolidate(folder: Path, weights: Source = "last", *, prefix: str = OBJECTIVE_PREFIX) -> LazyState:
    """fp32 weights of the checkpoint in `folder` (one tag), by the model's own names, which lie behind `prefix`.

    A tensor is read from the files when it is asked for, and kept by nobody: `dict()` of the result holds them all.
    `weights` "ema": the running averages beside DeepSpeed's files (`ema_rank_XXXXX.pt`, one per rank) in place of the
    masters; what is frozen has no average and comes as it is. Stage 0 in bf16, fp16 or with averages also needs the
    parameter names of each optimizer group, which dsvid's manifest.json holds.
    Raises CheckpointError that names the missing or damaged file, also at a tensor that its file does not hold whole.
    """
    shards = open_shards(folder)
    _check_names(shards)
    kind = "average" if weights == "ema" else "master"
    shards.require(kind)
    sources = {_own_name(name, prefix): name for name in shards.names}
    entries = {ours: (_dtype(shards, name), _shape(shards, name)) for ours, name in sources.items()}
    return LazyState(entries, lambda ours: _tensor(shards, kind, sources[ours]))


def _own_name(name: str, prefix: str) -> str:
    return name.removeprefix(prefix)


def _stored(shards: Shards, name: str) -> str:
    return shards.tied.get(name, name)


def _shape(shards: Shards, name: str) -> torch.Size:
    name = _stored(shards, name)
    if name in shards.buffers:
        return shards.buffers[name].shape
    return shards.shapes[name] if name in shards.shapes else shards.frozen[name]


def _dtype(shards: Shards, name: str) -> torch.dtype:
    """fp32 for every number with a point; counters among the buffers stay whole numbers."""
    buffer: Mapping[str, Tensor] = shards.buffers
    return buffer[name].dtype if name in buffer and not buffer[name].is_floating_point() else torch.float32


def _tensor(shards: Shards, kind: str, name: str) -> Tensor:
    if name in shards.buffers:
        return shards.buffers[name].to(_dtype(shards, name), copy=True)
    name = _stored(shards, name)
    shape = _shape(shards, name)
    try:
        flat = torch.empty(math.prod(shape))
    except (RuntimeError, MemoryError, TypeError) as error:  # TypeError: more than 64 bits
        raise CheckpointError(f"{shards.folder}: {name} of shape {list(shape)} does not fit into memory") from error
    if name in shards.shapes:
        shards.read(kind, name, 0, flat)
    else:
        shards.read_frozen(name, 0, flat)
    return flat.view(shape)


def _check_names(shards: Shards) -> None:
    """Raise CheckpointError where the shards do not hold exactly the model whose names the model-states file lists."""
    held = {*shards.shapes, *shards.frozen, *shards.buffers, *shards.tied}
    wrong = sorted(held ^ set(shards.names))
    if wrong:
        missing = [name for name in wrong if name not in held]
        raise CheckpointError(
            f"{shards.folder}: the shards do not hold exactly the model's tensors",
            found=f"no {', '.join(missing[:4])}" if missing else f"{', '.join(wrong[:4])}, which the model lacks",
            expected=f"{len(shards.names)} names",
            fix="a checkpoint that was saved with its frozen parameters" if missing else None,
        )
