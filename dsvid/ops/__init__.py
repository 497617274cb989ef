"""The fused tube-masking op: masks, index lists, visible patches and targets straight from uint8 clips.

Names are looked up on first use: `python -m dsvid.ops.build` imports this package before it runs, on machines where
torch is not installed yet, so nothing here may import torch by itself.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dsvid.ops.counter import counter_uniform
    from dsvid.ops.gather import gather_tokens
    from dsvid.ops.native import backend, backend_reason, clear_message
    from dsvid.ops.plan import (
        TokenPlan,
        plan_from_masks,
        plan_tokens,
        running_cell_maps,
        running_cell_mask,
        tube_mask,
    )

__all__ = [
    "TokenPlan",
    "backend",
    "backend_reason",
    "clear_message",
    "counter_uniform",
    "gather_tokens",
    "plan_from_masks",
    "plan_tokens",
    "running_cell_maps",
    "running_cell_mask",
    "tube_mask",
]

_HOME = dict.fromkeys(__all__, "dsvid.ops.plan") | {
    "backend": "dsvid.ops.native",
    "backend_reason": "dsvid.ops.native",
    "clear_message": "dsvid.ops.native",
    "counter_uniform": "dsvid.ops.counter",
    "gather_tokens": "dsvid.ops.gather",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value
