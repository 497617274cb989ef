"""The exponential moving average of the weights, kept in fp32 beside the master weights, shard by shard.

Each rank averages what it owns, so that it costs one more fp32 copy over all ranks, whatever the ZeRO stage. Knows the
engine; knows no task.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dsvid import engine as ds
from dsvid.errors import CheckpointError
from dsvid.runtime import Ranks


class MovingAverage:
    """average <- decay * average + (1 - decay) * weights, once per optimizer step; it starts as a copy."""

    def __init__(self, engine: Any, decay: float) -> None:
        self.engine, self.decay = engine, decay
        self.groups: list[list[Tensor]] = [
            [tensor.detach().float().clone() for tensor in group] for group in ds.masters(engine)
        ]

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights after a step."""
        for group, masters in zip(self.groups, ds.masters(self.engine), strict=True):
            torch._foreach_lerp_(group, [master.detach() for master in masters], 1.0 - self.decay)

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
        for group, masters in zip(self.groups, ds.masters(self.engine), strict=True):
            for average, master in zip(group, masters, strict=True):
                held = master.detach().clone()
                master.data.copy_(average)
                average.copy_(held)
        ds.refresh_weights(self.engine)

    def save(self, folder: Path, ranks: Ranks) -> None:
        """Write this rank's part into a checkpoint folder."""
        torch.save({"groups": [[tensor.cpu() for tensor in group] for group in self.groups]}, folder / _name(ranks))

    @torch.no_grad()
    def load(self, folder: Path, ranks: Ranks) -> None:
        """Read this rank's part. Raises CheckpointError where it is missing or has other sizes."""
        path = folder / _name(ranks)
        if not path.is_file():
            raise CheckpointError(
                f"{folder} holds no moving average of rank {ranks.rank}",
                expected=path.name,
                fix="optim.ema_decay as it was when this checkpoint was saved",
            )
        stored = torch.load(path, map_location="cpu", mmap=True, weights_only=True)["groups"]
        sizes = [[tensor.shape for tensor in group] for group in self.groups]
        if [[tensor.shape for tensor in group] for group in stored] != sizes:
            raise CheckpointError(f"{path}: the parts have other sizes than this rank's")
        for group, values in zip(self.groups, stored, strict=True):
            for average, value in zip(group, values, strict=True):
                average.copy_(value)


def _name(ranks: Ranks) -> str:
    return f"ema_rank_{ranks.rank:05d}.pt"
