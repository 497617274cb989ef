"""What every evaluation does: an objective over this rank's batches, and what all ranks met told to each of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dsvid.errors import DataError

Batch = Mapping[str, Any]


@dataclass
class Met:
    """Records of clips that could not be read, and (index, path) of videos with fewer frames than a clip shows."""

    unreadable: list[dict[str, Any]] = field(default_factory=list)
    short: list[tuple[int, str]] = field(default_factory=list)


@torch.no_grad()
def run_batches(
    objective: nn.Module,
    batches: Iterable[Batch],
    device: torch.device,
    take: Callable[[dict[str, Tensor]], None],
) -> Met:
    """`take` every batch, its tensors on `device`, the objective in evaluation mode; what all ranks met. A collective.

    Every rank must have the same number of batches: at ZeRO-3 each forward is a collective.
    """
    unreadable: list[dict[str, Any]] = []
    short: set[tuple[int, str]] = set()
    training = objective.training
    objective.eval()
    for batch in batches:
        take({name: value.to(device, non_blocking=True) for name, value in batch.items() if isinstance(value, Tensor)})
        unreadable += batch.get("bad", [])
        short.update(batch.get("short", []))
    objective.train(training)
    if world() > 1:
        told: list[Any] = [None] * world()
        dist.all_gather_object(told, (unreadable, short))
        unreadable = [record for each in told for record in each[0]]
        short = set().union(*(each[1] for each in told))
    return Met(unreadable, sorted(short))


def add_up(table: Tensor) -> Tensor:
    """The sum of a table over all ranks, in place. A collective."""
    if world() > 1:
        dist.all_reduce(table)
    return table


def largest(own: int, device: torch.device) -> int:
    """The largest number of any rank. A collective."""
    if world() == 1:
        return own
    most = torch.tensor([own], device=device)
    dist.all_reduce(most, op=dist.ReduceOp.MAX)
    return int(most)


def world() -> int:
    """How many ranks there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def not_finite(what: str, where: str) -> DataError:
    """The error of scores that are not finite: measures of them look like numbers."""
    return DataError(
        f"{what} are not finite", found=f"the first at {where}",
        fix="bf16 or fp32 instead of fp16, or weights that are whole",
    )  # fmt: skip
