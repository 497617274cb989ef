"""From the uint8 clip to what the model eats: normalised visible patches and targets, in one pass over the pixels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

import dsvid.ops.library  # noqa: F401  registers torch.ops.dsvid.*
from dsvid.errors import OpError
from dsvid.tokens import TubeletGrid


def gather_tokens(
    clip: Tensor,
    visible: Tensor,
    targets: Tensor | None,
    grid: TubeletGrid,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    norm_pix: bool,
    dtype: torch.dtype = torch.float32,
    target_dtype: torch.dtype = torch.float32,
    out: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Visible patches [B, V, P] and targets [B, L, P] of a clip uint8 [B, T, H, W, 3]; L = 0 where `targets` is None.

    patches: (x/255 - mean)/std in the order (channel, u, p, p), so that a Conv3d's weight.reshape(D, P) projects them.
    targets: order (u, p, p, channel); with norm_pix, each token and channel minus its mean, over its unbiased deviation
    + 1e-6 (VideoMAE, arXiv 2203.12602); else x/255. `out` = (patches, targets) buffers to write into: fresh ones cost
    several times the op itself, because the operating system must first map and clear their pages.
    Raises OpError for wrong types, shapes, devices, buffers, or an index outside [0, N) (on CUDA: a row of NaN).
    """
    if tuple(clip.shape[1:4]) != (grid.frames, grid.height, grid.width):
        raise OpError(
            "tube op: the clip is not of the grid's size",
            found=list(clip.shape),
            expected=f"[B, {grid.frames}, {grid.height}, {grid.width}, 3]",
        )
    if targets is None:
        targets = visible.new_empty(visible.shape[0], 0)
    settings = (grid.tubelet, grid.patch, list(mean), list(std), norm_pix)
    if out is None:
        made: tuple[Tensor, Tensor] = torch.ops.dsvid.gather_tokens(
            clip, visible, targets, *settings, dtype, target_dtype
        )
        return made
    for name, buffer, wanted in (("dtype", out[0], dtype), ("target_dtype", out[1], target_dtype)):
        if buffer.dtype != wanted:
            raise OpError(f"tube op: out= and {name} disagree", found=buffer.dtype, expected=wanted)
    torch.ops.dsvid.gather_tokens.out(clip, visible, targets, *settings, patches=out[0], values=out[1])
    return out
