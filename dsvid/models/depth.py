"""Stochastic depth and head dropout from counters: the draw depends on a clip's seed only, and every rank runs every
block.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from dsvid.ops import counter_uniform

# Streams of the counter-based generator; `dsvid.ops` uses small numbers for its masks.
DEPTH_STREAM = 1001
HEAD_DROP_STREAM = 1002

Checkpoint = Callable[..., Tensor]


def branch_scales(seeds: Tensor | None, rate: float, depth: int, training: bool) -> Tensor | None:
    """Factors [B, depth, 2] of the residual branches: 0 with the block's probability, else 1/keep; None where nothing
    drops.

    The probability grows linearly from 0 to `rate` over the blocks (arXiv 1603.09382), alike for both branches of a
    block.
    """
    if rate == 0.0 or not training:
        return None
    if seeds is None:
        raise ValueError("stochastic depth needs the seeds of the clips")
    drop = torch.linspace(0.0, rate, depth, device=seeds.device).repeat_interleave(2)
    kept = counter_uniform(seeds, DEPTH_STREAM, 2 * depth) >= drop
    return (kept / (1.0 - drop)).view(-1, depth, 2)


def dropout(x: Tensor, seeds: Tensor | None, rate: float, training: bool) -> Tensor:
    """Dropout of features [B, D] by the seeds of the clips."""
    if rate == 0.0 or not training:
        return x
    if seeds is None:
        raise ValueError("dropout needs the seeds of the clips")
    kept = counter_uniform(seeds, HEAD_DROP_STREAM, x.shape[1]) >= rate
    return x * kept / (1.0 - rate)


def run_blocks(blocks: nn.ModuleList, x: Tensor, scales: Tensor | None, first: int = 0) -> Tensor:
    """Run every block, under its checkpoint where it has one (see `checkpoint_blocks`); the last drops tokens before
    `first`.
    """
    last = len(blocks) - 1
    for i, block in enumerate(blocks):
        arguments = (x, None if scales is None else scales[:, i], first if i == last else 0)
        checkpoint = cast("Checkpoint | None", block.checkpoint)
        x = block(*arguments) if checkpoint is None else checkpoint(block, *arguments)
    return x


def checkpoint_blocks(blocks: nn.ModuleList, checkpoint: Checkpoint | None, count: int = 0) -> None:
    """Run the first `count` blocks (0: all) as `checkpoint(block, x, scale, first)`; None: none of them."""
    for place, block in enumerate(blocks):
        block.checkpoint = checkpoint if not count or place < count else None  # type: ignore[assignment]
