"""Masks and index lists: native against the specification, and the specification against its own rules."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dsvid import ops
from dsvid.errors import OpError
from dsvid.ops import native, reference
from dsvid.tokens import TubeletGrid

SHAPES = [  # t, h, w, masked_sites, cell_drop
    (1, 1, 2, 1, 0),
    (8, 14, 14, 176, 0),
    (8, 14, 14, 176, 2),
    (8, 16, 16, 230, 2),
    (4, 10, 10, 75, 1),
    (6, 4, 6, 21, 3),
    (3, 5, 7, 33, 0),
    (5, 2, 2, 3, 1),
    (16, 32, 32, 921, 2),
    (2, 1, 300, 299, 0),
]


def make_seeds(count: int) -> Tensor:
    edges = torch.tensor([0, 1, -1, 2**63 - 1, -(2**63)])
    many = torch.randint(-(2**63), 2**63 - 1, (count,), generator=torch.Generator().manual_seed(1))
    return torch.cat([edges, many])


def grid_of(t: int, h: int, w: int) -> TubeletGrid:
    return TubeletGrid(frames=2 * t, height=8 * h, width=8 * w, tubelet=2, patch=8)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.usefixtures("native_cpu")
def test_native_lists_have_the_bits_of_the_specification(shape: tuple[int, int, int, int, int]) -> None:
    seeds = make_seeds(30)
    assert native.runs_plan("cpu", shape[1] * shape[2])
    mine = torch.ops.dsvid.plan_tokens(seeds, *shape)
    wanted = reference.plan_tokens(seeds, *shape)
    for got, expected in zip(mine, wanted, strict=True):
        assert got.dtype == torch.int32
        assert torch.equal(got, expected)


def test_masks_stay_what_they_were() -> None:
    """A change here changes every run that is resumed: it must never happen by accident."""
    seeds = torch.tensor([0, 1, 2**40])
    grid = grid_of(1, 4, 4)
    sites = [row.nonzero().flatten().tolist() for row in ~ops.tube_mask(seeds, grid, 12)]
    assert sites == FROZEN_VISIBLE_SITES
    assert ops.running_cell_mask(seeds, grid_of(1, 2, 2), 1).int().argmax(dim=1).tolist() == FROZEN_CELLS


@pytest.mark.parametrize("cell_drop", [0, 1, 2, 3])
@pytest.mark.parametrize("t", [1, 4, 6, 7])
def test_lists_say_what_the_masks_say(each_backend: str, t: int, cell_drop: int) -> None:
    grid, seeds = grid_of(t, 4, 6), make_seeds(20)
    plan = ops.plan_tokens(seeds, grid, 17, cell_drop)
    mask = ops.tube_mask(seeds, grid, 17)
    dropped = ops.running_cell_mask(seeds, grid, cell_drop) if cell_drop else ~mask
    weight = plan.target_weight if plan.target_weight is not None else torch.ones_like(plan.targets)
    assert plan.max_targets <= plan.decoded.shape[1]
    for clip in range(len(seeds)):
        visible = (~mask[clip]).nonzero().flatten()
        loss = (mask[clip] & ~dropped[clip]).nonzero().flatten()
        kept_visible = (~mask[clip] & ~dropped[clip]).nonzero().flatten()
        assert plan.visible[clip].tolist() == visible.tolist()
        assert plan.decoded[clip].tolist() == loss.tolist() + kept_visible.tolist()
        assert int(plan.n_targets[clip]) == len(loss) <= plan.max_targets
        assert weight[clip].sum() == len(loss)
    assert plan.exact == (cell_drop == 0 or t % 4 == 0)
    assert (plan.target_weight is None) == plan.exact


def test_bound_of_unequal_counts_is_reached() -> None:
    plan = ops.plan_tokens(torch.arange(400), grid_of(6, 4, 4), 14, 2)
    assert len(set(plan.n_targets.tolist())) > 1
    assert int(plan.n_targets.max()) <= plan.max_targets < plan.decoded.shape[1] + 1


def test_every_site_is_masked_equally_often() -> None:
    """Chi-square over 20000 masks of 100 sites, each masked with probability 0.75."""
    draws, sites, masked = 20000, 100, 75
    hits = ops.tube_mask(torch.arange(draws), grid_of(1, 10, 10), masked).sum(dim=0).double()
    share = masked / sites
    chi_square = ((hits - draws * share) ** 2 / (draws * share * (1 - share))).sum() * (sites - 1) / sites
    assert abs(float(chi_square) - (sites - 1)) < 5 * math.sqrt(2 * (sites - 1))


def test_pairs_of_sites_are_independent() -> None:
    """Neighbours, and the same site under neighbouring seeds, are masked together as often as chance says."""
    draws, sites, masked = 20000, 100, 50
    mask = ops.tube_mask(torch.arange(draws), grid_of(1, 10, 10), masked)
    together = masked * (masked - 1) / (sites * (sites - 1))
    neighbours = (mask[:, :-1] & mask[:, 1:]).double().mean(dim=0)
    assert (neighbours - together).abs().max() < 5 * math.sqrt(together * (1 - together) / draws)
    neighbouring_seeds = (mask[:-1] & mask[1:]).double().mean(dim=0)
    assert (neighbouring_seeds - 0.25).abs().max() < 5 * math.sqrt(0.25 * 0.75 / draws)


def test_cell_starts_are_uniform_and_independent_of_the_mask() -> None:
    seeds, grid = torch.arange(8000), grid_of(1, 2, 2)
    cells = ops.running_cell_mask(seeds, grid, 1).int().argmax(dim=1)
    masks = ops.tube_mask(seeds, grid, 1).int().argmax(dim=1)
    counts = torch.bincount(4 * cells + masks, minlength=16).double()
    assert ((counts - 500) ** 2 / 500).sum() < 15 + 5 * math.sqrt(30)


@pytest.mark.parametrize("cell_drop", [1, 2, 3])
def test_running_cell_follows_its_definition(cell_drop: int) -> None:
    """arXiv 2303.16727: a queue of ones and zeros, rotated left by start+1+slot, shown in every 2x2 cell."""
    t, h, w = 9, 4, 6
    maps = ops.running_cell_maps(grid_of(t, h, w), cell_drop).reshape(4, t, h, w)
    for start in range(4):
        for slot in range(t):
            queue = [1] * cell_drop + [0] * (4 - cell_drop)
            turn = (start + 1 + slot) % 4
            queue = queue[turn:] + queue[:turn]
            expected = torch.tensor(queue).view(2, 2).repeat(h // 2, w // 2).bool()
            assert torch.equal(maps[start, slot], expected)
    assert (maps[:, :8].reshape(4, 2, 4, h, w).sum(dim=2) == cell_drop).all()
    drawn = ops.running_cell_mask(torch.arange(64), grid_of(t, h, w), cell_drop)
    assert {tuple(row.tolist()) for row in drawn} == {tuple(row.tolist()) for row in maps.reshape(4, -1)}


def test_plan_from_masks_equals_plan_from_seeds() -> None:
    seeds, grid = make_seeds(9), grid_of(8, 4, 4)
    wanted = ops.plan_tokens(seeds, grid, 12, 2)
    given = ops.plan_from_masks(ops.tube_mask(seeds, grid, 12), ops.running_cell_mask(seeds, grid, 2))
    assert torch.equal(given.visible, wanted.visible) and torch.equal(given.decoded, wanted.decoded)
    assert given.max_targets == wanted.max_targets and given.exact
    alone = ops.plan_from_masks(ops.tube_mask(seeds, grid, 12), None)
    assert torch.equal(alone.decoded, ops.plan_tokens(seeds, grid, 12).decoded)
    ragged = grid_of(6, 4, 4)
    plan = ops.plan_from_masks(ops.tube_mask(seeds, ragged, 12), ops.running_cell_mask(seeds, ragged, 2))
    assert not plan.exact and plan.target_weight is not None
    assert torch.equal(plan.target_weight.sum(dim=1).int(), plan.n_targets)


def test_plan_from_masks_refuses_unequal_clips() -> None:
    mask = torch.tensor([[True, False, False, False], [True, True, False, False]])
    with pytest.raises(OpError, match="visible"):
        ops.plan_from_masks(mask, None)
    with pytest.raises(OpError, match="wrong type"):
        ops.plan_from_masks(mask.int(), None)


@pytest.mark.parametrize(
    ("seeds", "masked", "drop", "text"),
    [
        (torch.zeros(2, dtype=torch.int32), 3, 0, "seeds"),
        (torch.zeros(2, 1, dtype=torch.int64), 3, 0, "seeds"),
        (torch.zeros(2, dtype=torch.int64), 0, 0, "at least one site"),
        (torch.zeros(2, dtype=torch.int64), 15, 0, "at least one site"),
        (torch.zeros(2, dtype=torch.int64), 3, 4, "4 sites"),
        (torch.zeros(2, dtype=torch.int64), 3, 1, "even grid"),
    ],
)
def test_wrong_arguments_are_named(each_backend: str, seeds: Tensor, masked: int, drop: int, text: str) -> None:
    with pytest.raises(OpError, match=text):
        ops.plan_tokens(seeds, grid_of(2, 3, 5), masked, drop)


def test_uniform_numbers() -> None:
    values = ops.counter_uniform(torch.arange(200), 17, 500)
    assert values.dtype == torch.float32 and float(values.min()) >= 0 and float(values.max()) < 1
    assert torch.equal(values * 2**24, (values * 2**24).round())
    assert abs(float(values.double().mean()) - 0.5) < 5 * math.sqrt(1 / 12 / values.numel())
    assert abs(float(values.double().var()) - 1 / 12) < 0.001
    assert not torch.equal(values, ops.counter_uniform(torch.arange(200), 18, 500))
    assert torch.equal(values[:, :7], ops.counter_uniform(torch.arange(200), 17, 7))
    assert torch.corrcoef(values[:20]).fill_diagonal_(0).abs().max() < 0.25
    with pytest.raises(OpError):
        ops.counter_uniform(torch.arange(3).int(), 17, 2)


FROZEN_VISIBLE_SITES = [[2, 9, 11, 14], [9, 11, 14, 15], [3, 7, 8, 15]]
FROZEN_CELLS = [3, 2, 2]
