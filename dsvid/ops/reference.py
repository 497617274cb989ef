"""The op in plain torch: the specification that native kernels follow bit for bit, and the fallback on every device.

Knows nothing of backends. Legend: B clips, t h w grid cells, S = h*w sites, N = t*S tokens, V visible, L targets,
D decoded, u tubelet, p patch, n = u*p*p pixels of a token, P = 3n values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from dsvid.ops.counter import STREAM_CELL_START, STREAM_TUBE_MASK, counter_bits, shift_right


def masked_sites_of(seeds: Tensor, sites: int, masked_sites: int) -> Tensor:
    """Bool [B, S], True = masked: the `masked_sites` sites with the smallest random keys, ties by index."""
    keys = shift_right(counter_bits(seeds, STREAM_TUBE_MASK, sites), 1)
    chosen = keys.argsort(dim=1, stable=True)[:, :masked_sites]
    masked = torch.zeros(seeds.shape[0], sites, dtype=torch.bool, device=seeds.device)
    return masked.scatter(1, chosen, True)


def running_cell_maps(t: int, h: int, w: int, cell_drop: int, device: torch.device | None = None) -> Tensor:
    """Bool [4, N], True = dropped: VideoMAE V2's running cell for each start position (arXiv 2303.16727, section 3.2).

    The queue of `cell_drop` ones and then zeros is shown rotated left by start+1+slot, row by row in each 2x2 cell.
    """
    start = torch.arange(4, device=device).view(4, 1, 1, 1)
    slot = torch.arange(t, device=device).view(1, t, 1, 1)
    y = torch.arange(h, device=device).view(1, 1, h, 1)
    x = torch.arange(w, device=device).view(1, 1, 1, w)
    place = (y % 2) * 2 + x % 2 + start + 1 + slot
    return (place % 4 < cell_drop).reshape(4, t * h * w)


def running_cell_mask(seeds: Tensor, t: int, h: int, w: int, cell_drop: int) -> Tensor:
    """Bool [B, N], True = dropped from the decoder; the start position comes from the seed."""
    start = shift_right(counter_bits(seeds, STREAM_CELL_START, 1)[:, 0], 62)
    return running_cell_maps(t, h, w, cell_drop, seeds.device)[start]


def order_tokens(mask: Tensor, kept: Tensor, n_visible: int, n_decoded: int) -> tuple[Tensor, Tensor, Tensor]:
    """Index lists of bool masks [B, N]: visible [B, V] ascending, decoded [B, D] (targets first), targets per clip [B].

    Stable sorts instead of `nonzero`, because the latter makes a GPU wait for the host.
    """
    visible = mask.to(torch.uint8).argsort(dim=1, stable=True)[:, :n_visible]
    rank = torch.where(mask & kept, 0, torch.where(kept, 1, 2)).to(torch.uint8)
    decoded = rank.argsort(dim=1, stable=True)[:, :n_decoded]
    n_targets = (mask & kept).sum(dim=1)
    return visible.int(), decoded.int(), n_targets.int()


def decoded_count(t: int, sites: int, masked_sites: int, cell_drop: int) -> int:
    """D: the masked tokens without a running cell, else the tokens that the cell keeps."""
    return t * masked_sites if cell_drop == 0 else t * sites * (4 - cell_drop) // 4


def plan_tokens(
    seeds: Tensor, t: int, h: int, w: int, masked_sites: int, cell_drop: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Masks from int64 seeds [B] and their index lists, as `order_tokens` gives them."""
    sites = h * w
    mask = masked_sites_of(seeds, sites, masked_sites).repeat(1, t)
    kept = mask if cell_drop == 0 else ~running_cell_mask(seeds, t, h, w, cell_drop)
    return order_tokens(mask, kept, t * (sites - masked_sites), decoded_count(t, sites, masked_sites, cell_drop))


def _float32(value: float) -> float:
    return float(torch.tensor(value, dtype=torch.float64).to(torch.float32))


@lru_cache(maxsize=16)
def channel_scale(mean: tuple[float, ...], std: tuple[float, ...]) -> tuple[tuple[float, ...], ...]:
    """(whole, frac, inv) per channel, float32 values: (x/255 - mean)/std = ((x - whole) - frac) * inv for a byte x."""
    whole = [float(math.floor(255.0 * m + 0.5)) for m in mean]
    frac = [_float32(255.0 * m - near) for m, near in zip(mean, whole, strict=True)]
    inv = [_float32(1.0 / (255.0 * s)) for s in std]
    return tuple(whole), tuple(frac), tuple(inv)


def take_tokens(clip: Tensor, indices: Tensor, tubelet: int, patch: int) -> Tensor:
    """Bytes of the listed tokens: clip uint8 [B, T, H, W, 3], indices [B, K] -> uint8 [B, K, n, 3]."""
    b, frames, height, width, _ = clip.shape
    t, h, w = frames // tubelet, height // patch, width // patch
    cut = clip.reshape(b, t, tubelet, h, patch, w, patch, 3).permute(0, 1, 3, 5, 2, 4, 6, 7)
    tokens = cut.reshape(b, t * h * w, tubelet * patch * patch, 3)
    rows = torch.arange(b, device=clip.device)[:, None]
    return tokens[rows, indices.long()]


def norm_pix_scale(tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(whole, frac, inv) float32 [B, L, 1, 3] that normalise each token and channel: (x - mean) / (deviation + 1e-6).

    Mean and unbiased deviation are those of x/255 (VideoMAE, arXiv 2203.12602); 255e-6 is that epsilon for bytes. The
    sums are exact integers and only their last division rounds.
    """
    n = tokens.shape[2]
    total = tokens.sum(dim=2, keepdim=True, dtype=torch.int64)
    squares = tokens.to(torch.int32).square().sum(dim=2, keepdim=True, dtype=torch.int64)
    nearest = torch.div(2 * total + n, 2 * n, rounding_mode="floor")
    variance = (n * squares - total * total).double() / float(n * (n - 1))
    frac = (total - nearest * n).double() / float(n)
    inv = 1.0 / (variance.sqrt() + 255e-6)
    return nearest.float(), frac.float(), inv.float()


def gather_tokens(
    clip: Tensor,
    visible: Tensor,
    targets: Tensor,
    tubelet: int,
    patch: int,
    mean: Sequence[float],
    std: Sequence[float],
    norm_pix: bool,
    dtype: torch.dtype,
    target_dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Visible patches [B, V, P] in the order (channel, u, p, p), targets [B, L, P] in the order (u, p, p, channel)."""
    whole, frac, inv = (torch.tensor(part, device=clip.device) for part in channel_scale(tuple(mean), tuple(std)))
    seen = take_tokens(clip, visible, tubelet, patch)
    patches = ((seen.float() - whole) - frac) * inv
    patches = patches.transpose(2, 3).flatten(2).to(dtype)

    hidden = take_tokens(clip, targets, tubelet, patch)
    if norm_pix:
        whole, frac, inv = norm_pix_scale(hidden)
        values = ((hidden.float() - whole) - frac) * inv
    else:
        values = hidden.float() * _float32(1.0 / 255.0)
    return patches, values.flatten(2).to(target_dtype)
