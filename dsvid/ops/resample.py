"""Bilinear resampling of uint8 clips on the CPU: csrc's kernel where the processor has its instructions, else torch's.

Both give the same bytes: Pillow's filter (its support grows with the reduction) with 16-bit weights, rows first. Called
in loader processes; knows nothing of crops and randomness. Legend: T frames, H W pixels.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dsvid.ops import native

_WEIGHT_BITS = 15


class Axis(NamedTuple):
    """Output i is the rounded sum over k of weights[i, k] / 2^precision times input first[i] + k.

    `first` int32 [out], `weights` int16 [out, taps], taps even.
    """

    first: NDArray[np.int32]
    weights: NDArray[np.int16]
    precision: int


class _Axis(ctypes.Structure):
    """dsvid_axis of csrc/resize.h, field for field."""

    _fields_ = (
        ("first", ctypes.c_void_p),
        ("weights", ctypes.c_void_p),
        ("taps", ctypes.c_int64),
        ("precision", ctypes.c_int64),
    )


class _ResizeArgs(ctypes.Structure):
    """dsvid_resize_args of csrc/resize.h, field for field."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("source", "out")),
        *((name, ctypes.c_int64) for name in ("frames", "height", "width", "out_height", "out_width")),
        *((name, ctypes.c_int64) for name in ("frame_stride", "row_stride")),
        ("x", _Axis),
        ("y", _Axis),
    )


def resize(clip: Tensor, height: int, width: int) -> Tensor:
    """uint8 [T, H, W, 3], also a box of larger frames, -> [T, height, width, 3]."""
    if clip.device.type != "cpu":
        return in_float(clip, height, width)
    return _native(clip, height, width) if _takes(clip, height, width) else by_torch(clip, height, width)


def by_torch(clip: Tensor, height: int, width: int, *, antialias: bool = True) -> Tensor:
    """The same by torch, without `antialias` as OpenCV does it."""
    # the permuted view is torch's channels-last layout, which has a uint8 kernel: no float copy, no transposition
    planes = clip.permute(0, 3, 1, 2)
    out = torch.nn.functional.interpolate(
        planes, (height, width), mode="bilinear", align_corners=False, antialias=antialias
    )
    return out.permute(0, 2, 3, 1).contiguous()


def in_float(clip: Tensor, height: int, width: int) -> Tensor:
    """The same within one level, rounded once: CUDA has no antialiased kernel for uint8."""
    planes = clip.permute(0, 3, 1, 2).to(dtype=torch.float32, memory_format=torch.contiguous_format)
    out = torch.nn.functional.interpolate(planes, (height, width), mode="bilinear", align_corners=False, antialias=True)
    return out.round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def _takes(clip: Tensor, height: int, width: int) -> bool:
    if clip.dtype != torch.uint8 or clip.device.type != "cpu" or clip.shape[1:3] == (height, width) or not clip.numel():
        return False
    if clip.shape[3] != 3 or clip.stride()[2:] != (3, 1):
        return False
    return native.resizes()


def _native(clip: Tensor, height: int, width: int) -> Tensor:
    frames, in_height, in_width = clip.shape[:3]
    out = torch.empty((frames, height, width, 3), dtype=torch.uint8)
    x, y = axis(in_width, width), axis(in_height, height)
    arguments = _ResizeArgs(
        clip.data_ptr(),
        out.data_ptr(),
        frames,
        in_height,
        in_width,
        height,
        width,
        *clip.stride()[:2],
        *(_Axis() if each is None else _pointers(each) for each in (x, y)),
    )
    native.resize(arguments)
    return out


def _pointers(axis: Axis) -> _Axis:
    return _Axis(axis.first.ctypes.data, axis.weights.ctypes.data, axis.weights.shape[1], axis.precision)


@lru_cache(maxsize=256)
def axis(size: int, out: int) -> Axis | None:
    """The taps of an axis of `size` pixels resampled to `out`; None where it stays.

    Triangle filter of half width max(1, size / out) around (i + 1/2) size / out, weights normalised to 1 and rounded
    with as many binary places as leave the largest below 2^15.
    """
    if size == out:
        return None
    scale = size / out
    support = max(1.0, scale)
    centre = scale * (np.arange(out) + 0.5)
    first = np.maximum((centre - support + 0.5).astype(np.int64), 0)
    count = np.minimum((centre + support + 0.5).astype(np.int64), size) - first
    taps = int(count.max())
    place = np.arange(taps + taps % 2)
    distance = np.abs((first[:, None] + place - centre[:, None] + 0.5) / support)
    values = np.where(place < count[:, None], np.maximum(1 - distance, 0), 0)
    values /= values.sum(axis=1, keepdims=True)
    precision = _precision(float(values.max()))
    weights = (values * (1 << precision) + 0.5).astype(np.int64)
    return Axis(first.astype(np.int32), weights.astype(np.int16), precision)


def _precision(largest: float) -> int:
    precision = 0
    while precision < 22 and int(0.5 + largest * (1 << (precision + 1))) < 1 << _WEIGHT_BITS:
        precision += 1
    return precision
