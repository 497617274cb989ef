"""Patch projection against Conv3d, positions that stay fp32, and biases of the joint projection."""

import pytest
import torch
import torch.nn.functional as F

from dsvid.models.blocks import Attention, FixedPositions, LayerNorm, TubeletProjection
from dsvid.models.vit import video_patches
from dsvid.tokens import TubeletGrid, position_table

GRID = TubeletGrid(6, 24, 16, 2, 8)


def test_projecting_visible_patches_equals_convolution_then_dropping() -> None:
    torch.manual_seed(0)
    projection = TubeletProjection(10, GRID)
    torch.nn.init.normal_(projection.weight)
    torch.nn.init.normal_(projection.bias)
    video = torch.randn(2, 3, 6, 24, 16)
    every = F.conv3d(video, projection.weight, projection.bias, stride=(2, 8, 8)).flatten(2).transpose(1, 2)
    visible = torch.tensor([[0, 5, 7], [1, 2, 17]])
    rows = torch.arange(2)[:, None]
    patches = video_patches(video, GRID)[rows, visible]
    assert torch.allclose(projection(patches), every[rows, visible], atol=1e-4)


def test_positions_stay_fp32_and_out_of_the_state_dict() -> None:
    positions = FixedPositions("sincos_flat", GRID, 32).bfloat16().to(torch.float16)
    table = positions.on(torch.device("cpu"))
    assert table.dtype == torch.float32
    assert torch.equal(table, position_table("sincos_flat", GRID.t, GRID.h, GRID.w, 32))
    assert not positions.state_dict()
    rows = positions.rows(torch.tensor([[3, 0]], dtype=torch.int32))
    assert torch.equal(rows[0], table[[3, 0]])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_norm_is_computed_in_fp32_and_hands_on_the_dtype_of_its_weights(dtype: torch.dtype) -> None:
    norm = LayerNorm(64)
    x = 30.0 + torch.randn(5, 64)  # a large mean is lost in half precision
    exact = norm(x)
    half = norm.to(dtype)(x)
    assert half.dtype == dtype
    assert torch.allclose(half.float(), exact, atol=1e-2)
    assert norm.eps == 1e-6


def test_keys_have_no_bias() -> None:
    attention = Attention(16, 2, "auto")
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(1, 5, 16)
    bias = torch.cat((attention.q_bias, torch.zeros(16), attention.v_bias))
    q, k, v = (x @ attention.qkv.weight.T + bias).view(1, 5, 3, 2, 8).permute(2, 0, 3, 1, 4)
    mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(1, 5, 16)
    assert torch.allclose(attention(x), attention.proj(mixed), atol=1e-5)
    assert sum(p.numel() for p in attention.parameters()) == 16 * 48 + 2 * 16 + 16 * 16 + 16


def test_compiled_positions_are_compiled_once() -> None:
    """A table made in the first forward would be part of what is compiled: the second would compile it all again."""
    positions = FixedPositions("sincos_flat", GRID, 32).to("cpu")
    index = torch.tensor([[3, 0]], dtype=torch.int32)
    compiled = torch.compile(positions.rows, backend="eager", fullgraph=True)
    expected = position_table("sincos_flat", GRID.t, GRID.h, GRID.w, 32)[index.long()]
    with torch._dynamo.config.patch(error_on_recompile=True):
        assert torch.equal(compiled(index), expected)
        assert torch.equal(compiled(index), expected)
