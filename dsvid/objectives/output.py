"""What every objective returns, and the dtype in which the op hands patches to a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

Batch = Mapping[str, Tensor]


@dataclass
class Output:
    """`loss` is a scalar fp32 with gradient; `logs` are detached scalars, read only on logging steps."""

    loss: Tensor
    logs: dict[str, Tensor] = field(default_factory=dict)


def compute_dtype(model: nn.Module, device: torch.device) -> torch.dtype:
    """The dtype of the model's matrix products on `device`: autocast's where it is on, else that of the weights."""
    if torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    return next(model.parameters()).dtype
