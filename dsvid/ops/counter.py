"""Counter-based random bits in plain torch: a pure function of (seed, stream, counter), the same on every device.

csrc/tube_math.h has the same function for the native kernels. Streams below 16 belong to this package; callers
(stochastic depth, dropout) use 16 and more.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dsvid.errors import OpError

STREAM_TUBE_MASK = 1
STREAM_CELL_START = 2


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


_STREAM_STEP = 0xD1342543DE82EF95
_COUNTER_STEP = _signed(0x9E3779B97F4A7C15)
_MIX_1 = _signed(0xBF58476D1CE4E5B9)
_MIX_2 = _signed(0x94D049BB133111EB)


def shift_right(z: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64 (torch's own keeps the sign)."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _mix(z: Tensor) -> Tensor:
    """The finaliser of SplitMix64 (doi 10.1145/2660193.2660195) in wrap-around int64."""
    z = (z ^ shift_right(z, 30)) * _MIX_1
    z = (z ^ shift_right(z, 27)) * _MIX_2
    return z ^ shift_right(z, 31)


def counter_bits(seeds: Tensor, stream: int, count: int) -> Tensor:
    """64 random bits for each seed and counter 0..count-1: int64 [B] -> int64 [B, count]."""
    start = _mix(seeds + _signed((stream + 1) * _STREAM_STEP % (1 << 64)))
    steps = torch.arange(1, count + 1, dtype=torch.int64, device=seeds.device) * _COUNTER_STEP
    return _mix(start[:, None] + steps[None, :])


def counter_uniform(seeds: Tensor, stream: int, count: int) -> Tensor:
    """Uniform numbers in [0, 1), multiples of 2^-24: int64 seeds [B] -> float32 [B, count], equal on every device.

    Raises OpError for seeds of another type or shape.
    """
    if seeds.dtype != torch.int64 or seeds.dim() != 1:
        raise OpError(
            "counter_uniform: seeds must be one int64 per clip",
            found=f"{seeds.dtype} {list(seeds.shape)}",
            expected="torch.int64 [B]",
        )
    return shift_right(counter_bits(seeds, stream, count), 40).to(torch.float32) * 2.0**-24
