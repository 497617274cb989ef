"""The CUDA kernels against the specification. They are compiled everywhere and run only where there is a GPU."""

from __future__ import annotations

import os

import pytest
import torch

from dsvid import ops
from dsvid.ops import build, native, reference
from dsvid.tokens import TubeletGrid
from tests.ops.test_gather import DTYPES, GRIDS, MEAN, STD, make_case
from tests.ops.test_plan import SHAPES, make_seeds


def test_cuda_object_loads_and_is_current(build_report: dict[str, build.Record]) -> None:
    if build_report["cuda"]["status"] == "absent":
        pytest.skip(str(build_report["cuda"]["reason"]))
    library, reason = native.load("cuda")
    assert library is not None, reason
    assert library.dsvid_cuda_error_text(1000 + 2).decode()


@pytest.mark.cuda
@pytest.mark.parametrize("shape", SHAPES)
def test_lists_have_the_bits_of_the_specification(
    cuda_device: torch.device, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int, int, int, int]
) -> None:
    monkeypatch.setenv("DSVID_OPS", "native")
    seeds = make_seeds(30)
    made = torch.ops.dsvid.plan_tokens(seeds.to(cuda_device), *shape)
    for got, expected in zip(made, reference.plan_tokens(seeds, *shape), strict=True):
        assert torch.equal(got.cpu(), expected)


@pytest.mark.cuda
@pytest.mark.parametrize("norm_pix", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_values_are_those_of_the_specification(
    cuda_device: torch.device,
    monkeypatch: pytest.MonkeyPatch,
    grid: TubeletGrid,
    dtype: torch.dtype,
    norm_pix: bool,
) -> None:
    monkeypatch.setenv("DSVID_OPS", "native")
    case = make_case(grid)
    made = ops.gather_tokens(
        *(each.to(cuda_device) for each in case),
        grid,
        mean=MEAN,
        std=STD,
        norm_pix=norm_pix,
        dtype=dtype,
        target_dtype=dtype,
    )
    wanted = reference.gather_tokens(*case, grid.tubelet, grid.patch, MEAN, STD, norm_pix, dtype, dtype)
    for mine, expected in zip(made, wanted, strict=True):
        torch.testing.assert_close(mine.cpu(), expected)


@pytest.mark.cuda
def test_index_out_of_range_gives_nan(cuda_device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSVID_OPS", "native")
    clip, visible, targets = (each.to(cuda_device) for each in make_case(GRIDS[0]))
    targets[1, 0] = GRIDS[0].tokens
    _, values = ops.gather_tokens(clip, visible, targets, GRIDS[0], mean=MEAN, std=STD, norm_pix=True)
    assert values[1, 0].isnan().all() and not values[1, 1:].isnan().any()


def test_required_cuda_is_there() -> None:
    if os.environ.get("DSVID_REQUIRE_CUDA") == "1":
        assert torch.cuda.is_available()
