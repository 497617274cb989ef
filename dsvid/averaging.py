"""The exponential moving average of the weights, kept in fp32 beside the master weights, part by part.

Each rank averages what it owns, so that it costs one more fp32 copy over all ranks, whatever the ZeRO stage. Knows the
engine's parts; knows no task.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from dsvid import partition
from dsvid.errors import CheckpointError
from dsvid.runtime import Ranks
from dsvid.weights.shards import Shards


class MovingAverage:
    """average <- decay * average + (1 - decay) * weights, once per optimizer step; it starts as a copy."""

    def __init__(self, engine: Any, decay: float) -> None:
        self.engine, self.decay = engine, decay
        self.parts = partition.masters(engine)  # the same tensors for the engine's whole life
        self.groups: list[list[Tensor]] = [
            [part.master.detach().float().clone() for part in group] for group in self.parts
        ]

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights after a step."""
        for group, parts in zip(self.groups, self.parts, strict=True):
            torch._foreach_lerp_(group, [part.master.detach() for part in parts], 1.0 - self.decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, the model computes with the average; training goes on unchanged behind it. A collective.

        Not undone where the inside fails: the other ranks are not there for a collective, and the run ends.
        """
        self._swap()
        yield
        self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for group, parts in zip(self.groups, self.parts, strict=True):
            for average, part in zip(group, parts, strict=True):
                held = part.master.detach().clone()
                part.master.data.copy_(average)
                average.copy_(held)
        partition.refresh_weights(self.engine)

    def contents(self, ranks: Ranks) -> tuple[str, dict[str, Any]] | None:
        """Name and contents of this rank's file in a checkpoint; None where another rank writes the same."""
        if not ranks.first and not self.engine.zero_optimization():
            return None
        return f"ema_rank_{ranks.rank:05d}.pt", {"groups": [[part.cpu() for part in group] for group in self.groups]}

    @torch.no_grad()
    def fill(self, shards: Shards) -> None:
        """Take up the average of a checkpoint, whatever ranks and stage wrote it.

        Raises CheckpointError where the checkpoint holds none.
        """
        if not shards.has("average"):
            raise CheckpointError(
                "the checkpoint holds no moving average of the weights",
                expected="ema_rank_XXXXX.pt files",
                fix="optim.ema_decay as it was when this checkpoint was saved",
            )
        for group, parts in zip(self.groups, self.parts, strict=True):
            for average, part in zip(group, parts, strict=True):
                for fragment, slot in part.slots(average):
                    shards.read("average", fragment.name, fragment.start, slot)
