"""Position tables: the rules of the families, their widths, and what resizing keeps."""

import math

import pytest
import torch
import torch.nn.functional as F

from dsvid.errors import RecipeError
from dsvid.models.blocks import FixedPositions
from dsvid.tokens import TubeletGrid, position_table, resize_table, separate_tables


def test_the_flat_table_by_its_formula() -> None:
    table = position_table("sincos_flat", 2, 3, 4, 10)
    for n, j in ((0, 0), (7, 3), (23, 8), (13, 9)):
        angle = n / 10000 ** (2 * (j // 2) / 10)
        assert float(table[n, j]) == pytest.approx(math.sin(angle) if j % 2 == 0 else math.cos(angle), abs=1e-7)


def test_the_separable_table_has_time_column_row() -> None:
    table = position_table("sincos_separable", 2, 3, 4, 32).view(2, 3, 4, 32)
    assert torch.equal(table[1, 0, 0, :8], table[1, 2, 3, :8])
    assert torch.equal(table[0, 0, 3, 8:20], table[1, 2, 3, 8:20]) and not torch.equal(table[0, 0, 3], table[0, 0, 2])
    assert torch.equal(table[0, 2, 0, 20:], table[1, 2, 3, 20:])
    assert float(table[1, 0, 0, 0]) == pytest.approx(math.sin(1.0))


def test_umt_s_own_grid_is_the_flat_table_and_others_are_resized() -> None:
    flat = position_table("sincos_flat", 8, 14, 14, 16)
    assert torch.equal(position_table("sincos_umt", 8, 14, 14, 16), flat)
    pairs = flat.view(4, 2, 196, 16).mean(dim=1).view(-1, 16)  # halving a line by linear interpolation is averaging
    assert torch.allclose(position_table("sincos_umt", 4, 14, 14, 16), pairs, atol=1e-6)
    assert not torch.allclose(
        position_table("sincos_umt", 4, 14, 14, 16), position_table("sincos_flat", 4, 14, 14, 16), atol=0.1
    )


def test_resizing_is_bicubic_over_space_and_linear_over_time_in_either_order() -> None:
    table = torch.randn(2 * 4 * 3, 5, generator=torch.Generator().manual_seed(0))
    ours = resize_table(table, (2, 4, 3), (6, 5, 7))
    lines = F.interpolate(table.view(2, 60).t()[None], size=6, mode="linear")[0].t()
    planes = lines.reshape(6, 4, 3, 5).permute(0, 3, 1, 2)
    expected = F.interpolate(planes, size=(5, 7), mode="bicubic").permute(0, 2, 3, 1).reshape(-1, 5)
    assert torch.allclose(ours, expected, atol=1e-6)
    assert torch.equal(resize_table(table, (2, 4, 3), (2, 4, 3)), table)
    assert resize_table(table.half(), (2, 4, 3), (1, 4, 3)).dtype == torch.float32
    assert resize_table(table.double(), (2, 4, 3), (1, 4, 3)).dtype == torch.float64


def test_separate_tables() -> None:
    space, time = separate_tables(3, 2, 4, 32)
    assert space.shape == (8, 32) and time.shape == (3, 32)
    assert torch.equal(space.view(2, 4, 32)[0, 1, :16], space.view(2, 4, 32)[1, 1, :16])
    assert float(time[2, 0]) == pytest.approx(math.sin(2.0))


@pytest.mark.parametrize(("kind", "dim"), [("sincos_separable", 24), ("learned", 32)])
def test_a_table_that_cannot_be_is_refused(kind: str, dim: int) -> None:
    with pytest.raises(RecipeError):
        FixedPositions(kind, TubeletGrid(4, 16, 16, 2, 8), dim)


def test_a_table_for_other_sites_is_kept_and_stays_fp32() -> None:
    positions = FixedPositions("sincos_flat", TubeletGrid(4, 16, 16, 2, 8), 32).to(torch.bfloat16)
    device = torch.device("cpu")
    wider = positions.sized(2, 5, device)
    assert wider.shape == (20, 32) and wider.dtype == torch.float32
    assert positions.sized(2, 5, device) is wider
    assert torch.equal(positions.sized(2, 2, device), position_table("sincos_flat", 2, 2, 2, 32))
