"""Every piece of (t, h, w, tubelet, patch) arithmetic: token grids, patchify, fixed position tables.

Knows nothing of models, data or devices beyond tensors. Legend: B batch, T frames, H W pixels, C=3 channels,
t h w grid cells, N = t*h*w tokens (order t, h, w; w fastest), p patch, u tubelet, P = u*p*p*3 values of a token,
D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from dsvid.errors import RecipeError

# Fixed tables are computed from the grid; learned ones are parameters, whole or as one part per axis kind.
FixedKind = Literal["sincos_flat", "sincos_separable", "sincos_umt"]
PositionKind = Literal["sincos_flat", "sincos_separable", "sincos_umt", "learned", "learned_separate"]
UMT_GRID = (8, 14, 14)  # what UMT was pre-trained with; other grids get its table resized


@dataclass(frozen=True)
class TubeletGrid:
    """How a clip of `frames` x `height` x `width` pixels is cut into tubelets of `tubelet` x `patch` x `patch`.

    Raises RecipeError where the sizes do not divide.
    """

    frames: int
    height: int
    width: int
    tubelet: int
    patch: int

    def __post_init__(self) -> None:
        for name, size in (("frames", self.frames), ("tubelet", self.tubelet), ("patch", self.patch)):
            if size < 1:
                raise RecipeError(f"token grid: {name} must be positive", found=size, expected="an integer >= 1")
        if self.frames % self.tubelet:
            raise RecipeError(
                "data.num_frames is not divisible by the tubelet size",
                found=f"num_frames={self.frames}, tubelet={self.tubelet}",
                expected=f"a multiple of {self.tubelet}",
                fix=f"data.num_frames={max(self.tubelet, self.frames // self.tubelet * self.tubelet)}",
            )
        for name, size in (("height", self.height), ("width", self.width)):
            if size < self.patch or size % self.patch:
                raise RecipeError(
                    f"data.input_size is not divisible by the patch size ({name})",
                    found=f"input_size={size}, patch={self.patch}",
                    expected=f"a multiple of {self.patch}",
                    fix=f"data.input_size={max(1, round(size / self.patch)) * self.patch}",
                )

    @property
    def t(self) -> int:
        return self.frames // self.tubelet

    @property
    def h(self) -> int:
        return self.height // self.patch

    @property
    def w(self) -> int:
        return self.width // self.patch

    @property
    def sites(self) -> int:
        """Spatial sites of one temporal slot: h*w."""
        return self.h * self.w

    @property
    def tokens(self) -> int:
        """N = t*h*w."""
        return self.t * self.sites

    @property
    def pixels(self) -> int:
        """Pixels of one token and channel: tubelet*patch*patch."""
        return self.tubelet * self.patch * self.patch

    @property
    def values(self) -> int:
        """P: values of one token over the three channels."""
        return 3 * self.pixels


def patchify(clip: Tensor, grid: TubeletGrid) -> Tensor:
    """[B, T, H, W, 3] -> [B, N, P], the values of a token in the order (u, p, p, channel), channel fastest.

    VideoMAE's target order `b c (t p0) (h p1) (w p2) -> b (t h w) (p0 p1 p2 c)` (arXiv 2203.12602).
    """
    b = clip.shape[0]
    cut = clip.reshape(b, grid.t, grid.tubelet, grid.h, grid.patch, grid.w, grid.patch, 3)
    return cut.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(b, grid.tokens, grid.values)


def unpatchify(patches: Tensor, grid: TubeletGrid) -> Tensor:
    """[B, N, P] -> [B, T, H, W, 3], the inverse of `patchify`."""
    b = patches.shape[0]
    cut = patches.reshape(b, grid.t, grid.h, grid.w, grid.tubelet, grid.patch, grid.patch, 3)
    return cut.permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(b, grid.frames, grid.height, grid.width, 3)


def check_positions(kind: str, dim: int) -> None:
    """Raise RecipeError where a table of this kind cannot have the width `dim`, or is no fixed table."""
    if kind == "sincos_separable" and dim % 16:
        raise RecipeError(
            "model.positions=sincos_separable needs a width divisible by 16",
            found=f"dim={dim}",
            expected="a multiple of 16 (a quarter for time, 3/8 for each axis of space, halves for sine and cosine)",
            fix="model.positions=sincos_flat, or another width",
        )
    if kind not in ("sincos_flat", "sincos_separable", "sincos_umt"):
        raise RecipeError(
            "model.positions is no fixed table", found=kind, expected="sincos_flat, sincos_separable or sincos_umt"
        )


@lru_cache(maxsize=32)
def position_table(kind: FixedKind, t: int, h: int, w: int, dim: int) -> Tensor:
    """Fixed sin-cos positions, fp32 [N, D], computed in float64. Cached: treat it as read-only.

    `sincos_flat`: VideoMAE's table over the flat token index n: column j has the angle n / 10000^(2*(j//2)/D), sine in
    even and cosine in odd columns. `sincos_separable`: MVD's table: D/4 columns for time, then 3D/8 for the column
    index, then 3D/8 for the row index; a code of width d is [sin(x*w_i) | cos(x*w_i)] with w_i = 10000^(-i/(d/2)).
    `sincos_umt`: the flat table of UMT's 8x14x14 grid, resized (arXiv 2303.16058's code).
    Raises RecipeError where D does not suit the table.
    """
    check_positions(kind, dim)
    if kind == "sincos_umt":
        return resize_table(position_table("sincos_flat", *UMT_GRID, dim), UMT_GRID, (t, h, w))
    if kind == "sincos_flat":
        columns = torch.arange(dim, dtype=torch.float64)
        rate = torch.pow(10000.0, -2.0 * torch.div(columns, 2, rounding_mode="floor") / dim)
        angles = torch.arange(t * h * w, dtype=torch.float64)[:, None] * rate[None, :]
        table = torch.where((columns % 2 == 0)[None, :], angles.sin(), angles.cos())
        return table.float()
    steps = [_steps(n) for n in (t, h, w)]
    time, row, column = (axis.reshape(-1) for axis in torch.meshgrid(*steps, indexing="ij"))
    parts = [_axis_code(time, dim // 4), _axis_code(column, dim // 8 * 3), _axis_code(row, dim // 8 * 3)]
    return torch.cat(parts, dim=1).float()


def separate_tables(t: int, h: int, w: int, dim: int) -> tuple[Tensor, Tensor]:
    """Where InternVideo2's separate learned tables start: sin-cos for space [h*w, D] (column, row) and time [t, D]."""
    row, column = (axis.reshape(-1) for axis in torch.meshgrid(_steps(h), _steps(w), indexing="ij"))
    space = torch.cat([_axis_code(column, dim // 2), _axis_code(row, dim // 2)], dim=1)
    return space.float(), _axis_code(_steps(t), dim).float()


def _steps(count: int) -> Tensor:
    return torch.arange(count, dtype=torch.float64)


def _axis_code(position: Tensor, width: int) -> Tensor:
    half = width // 2
    rate = torch.pow(10000.0, -torch.arange(half, dtype=torch.float64) / half)
    angles = position[:, None] * rate[None, :]
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def resize_table(table: Tensor, old: tuple[int, int, int], new: tuple[int, int, int]) -> Tensor:
    """Positions [t*h*w, D] of one grid for another: bicubic over space, then linear over time (align_corners False).

    The two are linear maps of different axes, so their order does not matter. fp32 at least; an axis that keeps its
    length keeps its values to the bit.
    """
    (t, h, w), (new_t, new_h, new_w) = old, new
    dim = table.shape[-1]
    table = table if table.dtype == torch.float64 else table.float()
    if (h, w) != (new_h, new_w):
        planes = table.reshape(t, h, w, dim).permute(0, 3, 1, 2)
        planes = F.interpolate(planes, size=(new_h, new_w), mode="bicubic", align_corners=False)
        table = planes.permute(0, 2, 3, 1).reshape(-1, dim)
    if t != new_t:
        lines = table.reshape(t, -1).t()[None]  # [1, h*w*D, t]
        lines = F.interpolate(lines, size=new_t, mode="linear", align_corners=False)
        table = lines[0].t().reshape(-1, dim)
    return table


def masked_sites(grid: TubeletGrid, mask_ratio: float) -> int:
    """Sites that a tube mask hides: int(ratio * h * w), truncated as in VideoMAE. Raises RecipeError at the ends."""
    masked = int(mask_ratio * grid.sites)
    if not 0.0 < mask_ratio < 1.0 or masked < 1 or masked >= grid.sites:
        low, high = 1.0 / grid.sites, (grid.sites - 1) / grid.sites
        raise RecipeError(
            "pretrain.mask_ratio must hide at least one site and leave at least one visible",
            found=f"mask_ratio={mask_ratio} hides {masked} of {grid.sites} sites",
            expected=f"a ratio from {low:.4f} to {high:.4f} for a {grid.h}x{grid.w} grid",
            fix="pretrain.mask_ratio=0.9",
        )
    return masked


def dropped_per_cell(grid: TubeletGrid, decoder_mask_ratio: float) -> int:
    """How many of the 4 sites of a running cell VideoMAE V2 drops from the decoder: int(4 * ratio); 0 = VideoMAE.

    arXiv 2303.16727. Raises RecipeError where the ratio drops none or all, or where the grid has an odd side.
    """
    if decoder_mask_ratio == 0:
        return 0
    dropped = int(4 * decoder_mask_ratio)
    if not 0 < dropped < 4 or decoder_mask_ratio >= 1:
        raise RecipeError(
            "pretrain.decoder_mask_ratio must drop 1, 2 or 3 of the 4 sites of a running cell, or be 0",
            found=f"decoder_mask_ratio={decoder_mask_ratio} drops {dropped} of 4",
            expected="0 (VideoMAE), 0.25, 0.5 or 0.75",
            fix="pretrain.decoder_mask_ratio=0.5",
        )
    if grid.h % 2 or grid.w % 2:
        raise RecipeError(
            "pretrain.decoder_mask_ratio: the running cell needs an even token grid",
            found=f"{grid.h}x{grid.w} sites",
            expected="even height and width in patches",
            fix="pretrain.decoder_mask_ratio=0, or an input size of an even number of patches",
        )
    return dropped
