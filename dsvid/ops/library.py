"""The op's schema, fake kernels and dispatch: `torch.ops.dsvid.plan_tokens` and `torch.ops.dsvid.gather_tokens`.

`Library.define/impl` and not `custom_op`, which costs three times as much per call. A kernel here checks, allocates and
hands over to the native build or to the plain-torch reference; which one is decided once, in native.py.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dsvid.ops import native, reference
from dsvid.ops.checks import bad_index, check_gather, check_out, check_plan

# `Any`, because only some torch versions annotate this class.
_open_library: Any = torch.library.Library
_LIBRARY = _open_library("dsvid", "FRAGMENT")

_GATHER_ARGUMENTS = (
    "Tensor clip, Tensor visible, Tensor targets, int tubelet, int patch, float[] mean, float[] std, bool norm_pix"
)
_LIBRARY.define(
    "plan_tokens(Tensor seeds, int t, int h, int w, int masked_sites, int cell_drop)"
    " -> (Tensor visible, Tensor decoded, Tensor n_targets)"
)
_LIBRARY.define(
    f"gather_tokens({_GATHER_ARGUMENTS}, ScalarType dtype, ScalarType target_dtype) -> (Tensor patches, Tensor values)"
)
# Returns nothing: torch.compile cannot functionalise an op that returns an alias of the buffers it writes.
_LIBRARY.define(f"gather_tokens.out({_GATHER_ARGUMENTS}, *, Tensor(a!) patches, Tensor(b!) values) -> ()")


def _empty_plan(seeds: Tensor, t: int, sites: int, masked_sites: int, cell_drop: int) -> tuple[Tensor, Tensor, Tensor]:
    b = seeds.shape[0]
    decoded = reference.decoded_count(t, sites, masked_sites, cell_drop)
    return (
        seeds.new_empty((b, t * (sites - masked_sites)), dtype=torch.int32),
        seeds.new_empty((b, decoded), dtype=torch.int32),
        seeds.new_empty((b,), dtype=torch.int32),
    )


def _plan(seeds: Tensor, t: int, h: int, w: int, masked_sites: int, cell_drop: int) -> tuple[Tensor, Tensor, Tensor]:
    check_plan(seeds, t, h, w, masked_sites, cell_drop)
    if not native.runs_plan(seeds.device.type, h * w):
        return reference.plan_tokens(seeds, t, h, w, masked_sites, cell_drop)
    lists = _empty_plan(seeds, t, h * w, masked_sites, cell_drop)
    native.plan_tokens(seeds.contiguous(), (t, h, w), masked_sites, cell_drop, lists)
    return lists


def _fake_plan(
    seeds: Tensor, t: int, h: int, w: int, masked_sites: int, cell_drop: int
) -> tuple[Tensor, Tensor, Tensor]:
    check_plan(seeds, t, h, w, masked_sites, cell_drop)
    return _empty_plan(seeds, t, h * w, masked_sites, cell_drop)


def _gather(
    clip: Tensor,
    visible: Tensor,
    targets: Tensor,
    tubelet: int,
    patch: int,
    mean: list[float],
    std: list[float],
    norm_pix: bool,
    dtype: torch.dtype,
    target_dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    outputs = _fake_gather(clip, visible, targets, tubelet, patch, mean, std, norm_pix, dtype, target_dtype)
    _gather_out(clip, visible, targets, tubelet, patch, mean, std, norm_pix, patches=outputs[0], values=outputs[1])
    return outputs


def _fake_gather(
    clip: Tensor,
    visible: Tensor,
    targets: Tensor,
    tubelet: int,
    patch: int,
    mean: list[float],
    std: list[float],
    norm_pix: bool,
    dtype: torch.dtype,
    target_dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    check_gather(clip, visible, targets, tubelet, patch, mean, std, norm_pix, dtype, target_dtype)
    values = 3 * tubelet * patch * patch
    patches = clip.new_empty((clip.shape[0], visible.shape[1], values), dtype=dtype)
    return patches, clip.new_empty((clip.shape[0], targets.shape[1], values), dtype=target_dtype)


def _gather_out(
    clip: Tensor,
    visible: Tensor,
    targets: Tensor,
    tubelet: int,
    patch: int,
    mean: list[float],
    std: list[float],
    norm_pix: bool,
    *,
    patches: Tensor,
    values: Tensor,
) -> None:
    arguments = (clip, visible, targets, tubelet, patch, mean, std, norm_pix)
    _fake_gather_out(*arguments, patches=patches, values=values)
    if native.backend(clip.device.type) == "native":
        scale = reference.channel_scale(tuple(mean), tuple(std))
        lists = (visible.contiguous(), targets.contiguous())
        native.gather_tokens(clip.contiguous(), lists, (tubelet, patch), scale, norm_pix, (patches, values))
        return
    _check_indices(clip, visible, targets, tubelet, patch)
    results = reference.gather_tokens(*arguments, patches.dtype, values.dtype)
    patches.copy_(results[0])
    values.copy_(results[1])


def _fake_gather_out(
    clip: Tensor,
    visible: Tensor,
    targets: Tensor,
    tubelet: int,
    patch: int,
    mean: list[float],
    std: list[float],
    norm_pix: bool,
    *,
    patches: Tensor,
    values: Tensor,
) -> None:
    check_gather(clip, visible, targets, tubelet, patch, mean, std, norm_pix, patches.dtype, values.dtype)
    b, size = clip.shape[0], 3 * tubelet * patch * patch
    check_out(patches, "patches", (b, visible.shape[1], size), patches.dtype, clip.device)
    check_out(values, "targets", (b, targets.shape[1], size), values.dtype, clip.device)


def _check_indices(clip: Tensor, visible: Tensor, targets: Tensor, tubelet: int, patch: int) -> None:
    # A GPU's own indexing asserts; asking here would make it wait for the host.
    if clip.device.type != "cpu":
        return
    tokens = clip.shape[1] // tubelet * (clip.shape[2] // patch) * (clip.shape[3] // patch)
    for indices in (visible, targets):
        wrong = indices[(indices < 0) | (indices >= tokens)]
        if wrong.numel():
            raise bad_index(int(wrong[0]), tokens)


# One kernel for every device: where no native build serves the device, it takes the reference inside.
_LIBRARY.impl("plan_tokens", _plan, "CompositeExplicitAutograd")
_LIBRARY.impl("gather_tokens", _gather, "CompositeExplicitAutograd")
_LIBRARY.impl("gather_tokens.out", _gather_out, "CompositeExplicitAutograd")
torch.library.register_fake("dsvid::plan_tokens", _fake_plan, lib=_LIBRARY)
torch.library.register_fake("dsvid::gather_tokens", _fake_gather, lib=_LIBRARY)
torch.library.register_fake("dsvid::gather_tokens.out", _fake_gather_out, lib=_LIBRARY)
