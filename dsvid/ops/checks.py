"""What the op takes: every check of type, shape and range that stands before a native kernel, each an OpError."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from dsvid.errors import OpError

OUTPUT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MAX_TOKEN_BYTES = 1 << 20  # csrc/lanes.h: the 32-bit sums of the CPU kernel hold this much
MAX_TOKENS = 2**31 - 1  # index lists are int32


def describe(tensor: Tensor) -> str:
    return f"{tensor.dtype} {list(tensor.shape)} on {tensor.device}"


def check_seeds(seeds: Tensor, h: int, w: int, masked_sites: int) -> None:
    """Raises OpError unless seeds are int64 [B] and 1 <= masked_sites < h*w."""
    if seeds.dtype != torch.int64 or seeds.dim() != 1:
        raise OpError("tube op: seeds must be one integer per clip", found=describe(seeds), expected="torch.int64 [B]")
    if not 1 <= masked_sites < h * w:
        raise OpError(
            "tube op: a mask must hide at least one site and leave at least one visible",
            found=f"masked_sites={masked_sites}",
            expected=f"1 to {h * w - 1} of the {h}x{w} sites",
        )


def check_cell(h: int, w: int, cell_drop: int) -> None:
    """Raises OpError unless 0 <= cell_drop <= 3, and h and w are even where it is not 0."""
    if not 0 <= cell_drop <= 3:
        raise OpError("tube op: a running cell has 4 sites", found=f"cell_drop={cell_drop}", expected="0, 1, 2 or 3")
    if cell_drop and (h % 2 or w % 2):
        raise OpError("tube op: the running cell needs an even grid", found=f"{h}x{w} sites", expected="even h and w")


def check_plan(seeds: Tensor, t: int, h: int, w: int, masked_sites: int, cell_drop: int) -> None:
    """Raises OpError for arguments that `plan_tokens` does not take."""
    if min(t, h, w) < 1 or t * h * w > MAX_TOKENS:
        raise OpError("tube op: impossible token grid", found=f"{t}x{h}x{w}", expected="positive sides, N < 2^31")
    check_seeds(seeds, h, w, masked_sites)
    check_cell(h, w, cell_drop)


def check_gather(
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
) -> None:
    """Raises OpError for arguments that `gather_tokens` does not take; index values are checked by the kernels."""
    _check_clip(clip, tubelet, patch)
    for name, indices in (("visible", visible), ("targets", targets)):
        if indices.dtype != torch.int32 or indices.dim() != 2 or indices.shape[0] != clip.shape[0]:
            raise OpError(
                f"tube op: {name} must list token indices of each clip",
                found=describe(indices),
                expected=f"torch.int32 [{clip.shape[0]}, K]",
            )
        if indices.device != clip.device:
            raise OpError(
                f"tube op: {name} is on another device than the clip", found=indices.device, expected=clip.device
            )
    if len(mean) != 3 or len(std) != 3 or not all(map(math.isfinite, mean)) or not all(0 < s < math.inf for s in std):
        raise OpError(
            "tube op: mean and std need one finite number per channel, std > 0",
            found=f"mean={list(mean)}, std={list(std)}",
            expected="three numbers each, for pixel values in [0, 1]",
        )
    for name, given in (("dtype", dtype), ("target_dtype", target_dtype)):
        if given not in OUTPUT_DTYPES:
            raise OpError(
                f"tube op: {name} is not an output type", found=given, expected="float32, bfloat16 or float16"
            )
    if norm_pix and tubelet * patch * patch < 2:
        raise OpError("tube op: norm_pix needs a deviation", found="tokens of one pixel", expected="at least 2 pixels")


def _check_clip(clip: Tensor, tubelet: int, patch: int) -> None:
    if clip.dtype != torch.uint8 or clip.dim() != 5 or clip.shape[4] != 3:
        raise OpError("tube op: clips stay bytes", found=describe(clip), expected="torch.uint8 [B, T, H, W, 3]")
    frames, height, width = clip.shape[1:4]
    if tubelet < 1 or patch < 1 or frames % tubelet or height % patch or width % patch:
        raise OpError(
            "tube op: the clip does not divide into tubelets",
            found=f"clip {list(clip.shape)}, tubelet {tubelet}, patch {patch}",
            expected="T divisible by the tubelet, H and W by the patch",
        )
    if 3 * tubelet * patch * patch > MAX_TOKEN_BYTES:
        raise OpError("tube op: tokens too large", found=f"{tubelet}x{patch}x{patch}", expected="up to 2^20 bytes each")


def check_out(out: Tensor, name: str, shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device) -> None:
    """Raises OpError unless the buffer is contiguous and has exactly this shape, type and device."""
    if tuple(out.shape) != shape or out.dtype != dtype or out.device != device or not out.is_contiguous():
        layout = "" if out.is_contiguous() else ", not contiguous"
        raise OpError(
            f"tube op: the output buffer for {name} does not fit",
            found=describe(out) + layout,
            expected=f"contiguous {dtype} {list(shape)} on {device}",
        )


def bad_index(value: int, tokens: int) -> OpError:
    return OpError("tube op: token index out of range", found=value, expected=f"0 to {tokens - 1}")
