"""Stochastic depth: rates, scaling, independence of the batch, and that every block runs."""

import pytest
import torch
from torch import nn

from dsvid.models.depth import branch_scales, dropout, run_blocks


def test_rates_grow_linearly_and_the_mean_is_kept() -> None:
    seeds = torch.arange(20000)
    scales = branch_scales(seeds, 0.4, 5, training=True)
    assert scales is not None and scales.shape == (20000, 5, 2)
    dropped = (scales == 0).float().mean(dim=0)
    for block, rate in enumerate((0.0, 0.1, 0.2, 0.3, 0.4)):
        assert dropped[block].tolist() == pytest.approx([rate, rate], abs=0.015)
        kept = scales[:, block][scales[:, block] > 0]
        assert torch.allclose(kept, torch.full_like(kept, 1.0 / (1.0 - rate)))
    assert scales.mean(dim=0).flatten().tolist() == pytest.approx([1.0] * 10, abs=0.02)


def test_a_clip_is_treated_alike_in_every_batch() -> None:
    seeds = torch.tensor([11, 7, 123456789])
    together = branch_scales(seeds, 0.5, 6, training=True)
    alone = branch_scales(seeds[2:], 0.5, 6, training=True)
    assert together is not None and alone is not None
    assert torch.equal(together[2:], alone)


def test_nothing_drops_in_evaluation_or_at_rate_zero() -> None:
    seeds = torch.arange(4)
    assert branch_scales(seeds, 0.5, 6, training=False) is None
    assert branch_scales(seeds, 0.0, 6, training=True) is None
    x = torch.randn(4, 8)
    assert dropout(x, None, 0.5, training=False) is x


def test_seeds_are_needed_where_something_drops() -> None:
    with pytest.raises(ValueError, match="seeds"):
        branch_scales(None, 0.1, 2, training=True)
    with pytest.raises(ValueError, match="seeds"):
        dropout(torch.zeros(1, 2), None, 0.1, training=True)


def test_dropout_keeps_the_mean() -> None:
    x = torch.ones(5000, 8)
    y = dropout(x, torch.arange(5000), 0.25, training=True)
    assert float(y.mean()) == pytest.approx(1.0, abs=0.01)
    assert float((y == 0).float().mean()) == pytest.approx(0.25, abs=0.01)


def test_every_block_runs_whatever_drops() -> None:
    calls: list[int] = []

    class Spy(nn.Module):
        checkpoint = None

        def __init__(self, index: int) -> None:
            super().__init__()
            self.index = index

        def forward(self, x: torch.Tensor, scale: torch.Tensor | None, first: int) -> torch.Tensor:
            calls.append(self.index)
            assert first == (2 if self.index == 3 else 0)
            return x

    scales = torch.zeros(1, 4, 2)
    run_blocks(nn.ModuleList(Spy(i) for i in range(4)), torch.zeros(1, 3, 2), scales, first=2)
    assert calls == [0, 1, 2, 3]
