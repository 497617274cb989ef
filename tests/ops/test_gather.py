"""Visible patches and targets: against a float64 computation, and native against the specification bit for bit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dsvid import ops
from dsvid.errors import OpError
from dsvid.ops import native, reference
from dsvid.tokens import TubeletGrid, patchify

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
GRIDS = [  # frames, height, width, tubelet, patch
    TubeletGrid(4, 64, 48, 2, 16),
    TubeletGrid(4, 24, 40, 2, 8),
    TubeletGrid(4, 42, 28, 2, 14),
    TubeletGrid(3, 32, 32, 1, 16),
    TubeletGrid(6, 32, 32, 2, 8),
    TubeletGrid(4, 15, 25, 4, 5),
    TubeletGrid(2, 3, 4, 2, 1),
    TubeletGrid(2, 64, 64, 2, 32),
]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# Relative rounding step of the type; results stay below 32 in size.
STEP = {torch.float32: 2.0**-23, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}


def make_case(grid: TubeletGrid, batch: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(grid.tokens + grid.patch)
    clip = torch.randint(0, 256, (batch, grid.frames, grid.height, grid.width, 3), generator=generator)
    order = torch.stack([torch.randperm(grid.tokens, generator=generator) for _ in range(batch)]).int()
    visible, targets = order[:, : grid.tokens // 4 + 1], order[:, grid.tokens // 4 + 1 :]
    return clip.to(torch.uint8), visible.sort(dim=1).values, targets.sort(dim=1).values


def straightforward(
    clip: Tensor, visible: Tensor, targets: Tensor, grid: TubeletGrid, norm_pix: bool
) -> tuple[Tensor, Tensor]:
    """float64, formula by formula: normalise, cut, pick; mean and unbiased deviation per token and channel."""
    values = clip.double() / 255
    normal = (values - torch.tensor(MEAN, dtype=torch.float64)) / torch.tensor(STD, dtype=torch.float64)
    rows = torch.arange(clip.shape[0])[:, None]
    seen = patchify(normal, grid)[rows, visible.long()].unflatten(2, (grid.pixels, 3))
    hidden = patchify(values, grid)[rows, targets.long()].unflatten(2, (grid.pixels, 3))
    if norm_pix:
        deviation = hidden.var(dim=2, unbiased=True, keepdim=True).sqrt() + 1e-6
        hidden = (hidden - hidden.mean(dim=2, keepdim=True)) / deviation
    return seen.transpose(2, 3).flatten(2), hidden.flatten(2)


def gather(case: tuple[Tensor, Tensor, Tensor], grid: TubeletGrid, norm_pix: bool, dtype: torch.dtype):
    return ops.gather_tokens(*case, grid, mean=MEAN, std=STD, norm_pix=norm_pix, dtype=dtype, target_dtype=dtype)


@pytest.mark.parametrize("norm_pix", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_values_are_those_of_the_formula(
    each_backend: str, grid: TubeletGrid, dtype: torch.dtype, norm_pix: bool
) -> None:
    case = make_case(grid)
    made, wanted = gather(case, grid, norm_pix, dtype), straightforward(*case, grid, norm_pix)
    for mine, expected in zip(made, wanted, strict=True):
        assert mine.dtype == dtype and mine.shape == expected.shape and mine.is_contiguous()
        error = (mine.double() - expected).abs()
        # One rounding to the output type, and a few of float32 before it.
        assert (error <= expected.abs() * STEP[dtype] + 4 * STEP[torch.float32]).all(), float(error.max())


@pytest.mark.parametrize("lanes", ["auto", "portable", "avx2", "avx512", "avx512_bf16"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.usefixtures("native_cpu")
def test_native_has_the_bits_of_the_specification(grid: TubeletGrid, dtype: torch.dtype, lanes: str) -> None:
    library = native.load("cpu")[0]
    assert library is not None
    if not library.dsvid_has_lanes(native.LANES[lanes]):
        pytest.skip(f"this processor or compiler has no {lanes}")
    clip, visible, targets = make_case(grid)
    for norm_pix in (True, False):
        settings = (grid.tubelet, grid.patch, MEAN, STD, norm_pix, dtype, dtype)
        wanted = reference.gather_tokens(clip, visible, targets, *settings)
        made = tuple(torch.full_like(each, torch.nan) for each in wanted)
        scale = reference.channel_scale(MEAN, STD)
        native.gather_tokens(clip, (visible, targets), (grid.tubelet, grid.patch), scale, norm_pix, made, lanes)
        assert torch.equal(made[0], wanted[0])
        assert torch.equal(made[1], wanted[1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.usefixtures("native_cpu")
def test_large_outputs_take_the_streaming_path_with_the_same_bits(dtype: torch.dtype) -> None:
    grid = TubeletGrid(8, 224, 224, 2, 16)
    case = make_case(grid, batch=2)
    assert 2 * grid.tokens * grid.values * dtype.itemsize > 4 << 20
    wanted = reference.gather_tokens(*case, 2, 16, MEAN, STD, True, dtype, dtype)
    assert all(map(torch.equal, gather(case, grid, True, dtype), wanted))
    # A buffer that is not aligned for streaming must not crash.
    store = [torch.empty(each.numel() + 1, dtype=dtype) for each in wanted]
    out = tuple(flat[1:].view(each.shape) for flat, each in zip(store, wanted, strict=True))
    ops.gather_tokens(
        *case, grid, mean=MEAN, std=STD, norm_pix=True, dtype=dtype, target_dtype=dtype, out=(out[0], out[1])
    )
    assert all(map(torch.equal, out, wanted))


def test_constant_patches_give_zero(each_backend: str) -> None:
    grid = GRIDS[0]
    for level in (0, 1, 127, 255):
        clip = torch.full((1, 4, 64, 48, 3), level, dtype=torch.uint8)
        tokens = torch.arange(grid.tokens, dtype=torch.int32)[None]
        _, targets = gather((clip, tokens[:, :1], tokens), grid, True, torch.float32)
        assert torch.equal(targets, torch.zeros_like(targets))


def test_bright_flat_patches_keep_their_digits(each_backend: str) -> None:
    """One pixel of 512 differs by one level: computed naively in float32, the deviation loses half its digits."""
    grid = TubeletGrid(2, 16, 16, 2, 16)
    clip = torch.full((1, 2, 16, 16, 3), 254, dtype=torch.uint8)
    clip[0, 1, 7, 5] = 255
    tokens = torch.zeros(1, 1, dtype=torch.int32)
    _, targets = gather((clip, tokens, tokens), grid, True, torch.float32)
    _, wanted = straightforward(clip, tokens, tokens, grid, True)
    assert wanted.abs().max() > 22
    assert ((targets.double() - wanted).abs() / wanted.abs()).max() < 3e-7


def test_patches_project_like_a_convolution(each_backend: str) -> None:
    grid = GRIDS[0]
    clip, visible, targets = make_case(grid)
    patches, _ = gather((clip, visible, targets), grid, True, torch.float32)
    convolution = torch.nn.Conv3d(3, 8, (2, 16, 16), (2, 16, 16), dtype=torch.float64)
    normal = (clip.double() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    wanted = convolution(normal.permute(0, 4, 1, 2, 3)).flatten(2).transpose(1, 2)
    made = patches.double() @ convolution.weight.reshape(8, -1).T + convolution.bias
    assert (made - wanted[torch.arange(3)[:, None], visible.long()]).abs().max() < 1e-5


def test_buffers_are_reused_and_inputs_may_be_strided(each_backend: str) -> None:
    grid = GRIDS[1]
    clip, visible, targets = make_case(grid)
    wanted = gather((clip, visible, targets), grid, True, torch.float32)
    out = (torch.full_like(wanted[0], torch.nan), torch.full_like(wanted[1], torch.nan))
    places = [each.data_ptr() for each in out]
    strided_clip = clip.permute(0, 4, 1, 2, 3).contiguous().permute(0, 2, 3, 4, 1)
    strided_targets = torch.cat([targets, targets], dim=1)[:, : targets.shape[1]]
    assert not strided_clip.is_contiguous() and not strided_targets.is_contiguous()
    for _ in range(2):
        made = ops.gather_tokens(
            strided_clip, visible, strided_targets, grid, mean=MEAN, std=STD, norm_pix=True, out=out
        )
        assert [each.data_ptr() for each in made] == places
        assert all(map(torch.equal, made, wanted))


def test_without_targets(each_backend: str) -> None:
    grid = GRIDS[1]
    clip, visible, targets = make_case(grid)
    patches, none = gather((clip, visible, None), grid, True, torch.float32)
    assert none.shape == (3, 0, grid.values)
    assert torch.equal(patches, gather((clip, visible, targets), grid, True, torch.float32)[0])


def test_inputs_stay_as_they_were(each_backend: str) -> None:
    case = make_case(GRIDS[0])
    before = [each.clone() for each in case]
    gather(case, GRIDS[0], True, torch.bfloat16)
    assert all(map(torch.equal, case, before))


@pytest.mark.parametrize("index", [-1, 1000])
def test_index_out_of_range(each_backend: str, index: int) -> None:
    clip, visible, targets = make_case(GRIDS[0])
    for which in (visible, targets):
        kept = which[1, 0].clone()
        which[1, 0] = index
        with pytest.raises(OpError, match=f"out of range(.|\n)*{index}"):
            gather((clip, visible, targets), GRIDS[0], True, torch.float32)
        which[1, 0] = kept


def test_wrong_arguments_are_named(each_backend: str) -> None:
    grid = GRIDS[0]
    clip, visible, targets = make_case(grid)
    with pytest.raises(OpError, match="clips stay bytes"):
        gather((clip.float(), visible, targets), grid, True, torch.float32)
    with pytest.raises(OpError, match="grid's size"):
        gather((clip[:, :2], visible, targets), grid, True, torch.float32)
    with pytest.raises(OpError, match="visible must list"):
        gather((clip, visible.long(), targets), grid, True, torch.float32)
    with pytest.raises(OpError, match="targets must list"):
        gather((clip, visible, targets[:2]), grid, True, torch.float32)
    with pytest.raises(OpError, match="not an output type"):
        gather((clip, visible, targets), grid, True, torch.float64)
    with pytest.raises(OpError, match="std > 0"):
        ops.gather_tokens(clip, visible, targets, grid, mean=MEAN, std=(0.2, 0.0, 0.2), norm_pix=True)
    with pytest.raises(OpError, match="divide into tubelets"):
        torch.ops.dsvid.gather_tokens(
            clip, visible, targets, 3, 16, list(MEAN), list(STD), True, torch.float32, torch.float32
        )
    single = TubeletGrid(4, 64, 48, 1, 1)
    with pytest.raises(OpError, match="deviation"):
        gather((clip, visible, targets), single, True, torch.float32)


def test_buffers_that_do_not_fit_are_named(each_backend: str) -> None:
    grid = GRIDS[0]
    clip, visible, targets = make_case(grid)
    patches, values = gather((clip, visible, targets), grid, True, torch.float32)
    strided = torch.empty(3, values.shape[1], 2 * grid.values)[:, :, ::2]
    for out, text in [
        ((patches[:, 1:].contiguous(), values), "buffer for patches"),
        ((patches, strided), "not contiguous"),
        ((patches.half(), values), "disagree"),
    ]:
        with pytest.raises(OpError, match=text):
            ops.gather_tokens(clip, visible, targets, grid, mean=MEAN, std=STD, norm_pix=True, out=out)
