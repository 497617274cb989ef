"""Mask generators: running-cell maps bit by bit; tube masks by their law, the original's draws and ours alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from dsvid.ops import running_cell_maps, running_cell_mask, tube_mask
from dsvid.tokens import TubeletGrid, dropped_per_cell, masked_sites
from tests.reference.comparing import assert_number
from tests.reference.registry import checks


@checks("VideoMAE TubeMaskingGenerator", "VideoMAE V2 mask generators")
def check_masks(folder: Path, case: dict[str, Any]) -> None:
    io = load_file(folder / "io.safetensors")
    assert case["cases"]
    for entry in case["cases"]:
        kind = entry.get("kind", "tube")
        assert kind in ("tube", "run_cell"), f"{folder}: unknown mask generator {kind!r}"
        t, h, w = entry["window"]
        grid = TubeletGrid(2 * t, 16 * h, 16 * w, 2, 16)
        masks = io[entry["key"]].flatten(1)
        assert masks.dtype == torch.bool and masks.shape[1] == grid.tokens
        assert torch.Size(entry["shape"]).numel() == grid.tokens
        if kind == "tube":
            _check_tube(entry, grid, masks)
        else:
            _check_running_cell(entry, grid, masks, io[entry["all_key"]].flatten(1))


def _check_tube(entry: dict[str, Any], grid: TubeletGrid, theirs: Tensor) -> None:
    sites = masked_sites(grid, entry["mask_ratio"])
    assert sites == entry["masked_per_frame"], f"{sites} sites masked, expected {entry['masked_per_frame']}"
    ours = tube_mask(torch.arange(8), grid, sites)
    for masks in (theirs, ours):
        slots = masks.view(-1, grid.t, grid.sites)
        assert bool((slots.sum(dim=2) == sites).all()), "sites masked in a slot"
        assert bool((slots == slots[:, :1]).all()) == entry["same_in_time"]
        assert_number("realised ratio", float(masks.double().mean()), entry["realised_ratio"], atol=1e-12)
        for key in ("total_masked", "repr_total_masks"):
            if key in entry:
                assert bool((masks.sum(dim=1) == entry[key]).all()), key
        if "differs_between_samples" in entry:
            assert (len(masks.unique(dim=0)) > 1) == entry["differs_between_samples"]
    if "n_samples" in entry:
        assert len(theirs) == entry["n_samples"]


def _check_running_cell(entry: dict[str, Any], grid: TubeletGrid, draws: Tensor, every: Tensor) -> None:
    dropped = dropped_per_cell(grid, entry["decoder_mask_ratio"])
    assert dropped == entry["masked_per_cell"]
    maps = running_cell_maps(grid, dropped)
    assert torch.equal(maps, every), f"running-cell maps differ in {int((maps != every).sum())} places"
    assert len(maps.unique(dim=0)) == entry["n_distinct_maps"]
    ours = running_cell_mask(torch.arange(64), grid, dropped)
    assert len(ours.unique(dim=0)) == entry["n_distinct_maps"]
    for masks in (draws, ours):
        known = (masks[:, None] == every[None]).all(dim=2).any(dim=1)
        assert bool(known.all()), "a draw is none of the four maps"
    slots = every.view(4, grid.t, grid.sites)
    assert bool((slots.sum(dim=2) == entry["masked_per_frame"]).all())
    assert bool((slots == slots[:, :1]).all()) == entry["same_in_time"]
    period = entry["period_in_time"]
    assert bool((slots[:, period:] == slots[:, :-period]).all()) == entry["periodic"]
    cells = every.view(4, grid.t, grid.h // 2, 2, grid.w // 2, 2).sum(dim=(3, 5))
    assert bool((cells == dropped).all()) == entry["every_cell_same_count"]
    assert_number("realised ratio", float(every.double().mean()), entry["realised_ratio"], atol=1e-12)
