"""The transformer block of the VideoMAE family and its parts, for fp32 weights, half-precision weights and autocast
alike.

The residual stream is fp32 in every mode: with a bf16 stream in the decoder the gradient norm is 1 % wrong while the
loss looks right. Knows no objective and no ranks. Legend: B batch, N tokens, D width, h heads, d head dim, P values
of a token.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsvid.models.attention import attend_packed, choose_backend
from dsvid.models.depth import Checkpoint
from dsvid.tokens import FixedKind, TubeletGrid, check_positions, position_table, resize_table


class Linear(nn.Linear):
    """nn.Linear whose values come from `dsvid.models.init` only: drawing a billion numbers twice costs seconds."""

    def reset_parameters(self) -> None:
        """Leave the memory as it is."""


def wide(x: Tensor) -> Tensor:
    """`x` in fp32, or in float64 where it is that already: what the residual stream and the norms compute in."""
    return x if x.dtype == torch.float64 else x.float()


class LayerNorm(nn.LayerNorm):
    """LayerNorm computed in fp32 (float64 weights: float64); the result has the dtype of the weights, which is what the
    next product takes.
    """

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__(dim, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        if self.weight.dtype in (torch.float32, torch.float64):
            return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        y = F.layer_norm(x.float(), self.normalized_shape, self.weight.float(), self.bias.float(), self.eps)
        return y.to(self.weight.dtype)


class TubeletProjection(nn.Conv3d):
    """VideoMAE's Conv3d patch embedding [D, 3, u, p, p], applied as a linear map to patches that are already cut out.

    Input [B, V, P] in convolution order (c, u, p, p), output [B, V, D]: equal to Conv3d over the clip, then dropping
    tokens.
    """

    def __init__(self, dim: int, grid: TubeletGrid) -> None:
        size = (grid.tubelet, grid.patch, grid.patch)
        super().__init__(3, dim, kernel_size=size, stride=size)

    def reset_parameters(self) -> None:
        """Leave the memory as it is; values come from `dsvid.models.init`."""

    def forward(self, patches: Tensor) -> Tensor:
        return F.linear(patches.to(self.weight.dtype), self.weight.flatten(1), self.bias)


class PatchEmbed(nn.Module):
    """Holds `proj` under VideoMAE's name."""

    def __init__(self, dim: int, grid: TubeletGrid) -> None:
        super().__init__()
        self.proj = TubeletProjection(dim, grid)

    def forward(self, patches: Tensor) -> Tensor:
        projected: Tensor = self.proj(patches)
        return projected


class FixedPositions(nn.Module):
    """A sin-cos table [N, D] that stays fp32 whatever the module is cast to, and is in no state dict.

    It is no buffer: DeepSpeed casts buffers to half precision, and `deepspeed.zero.Init` casts even the tensors made
    inside a constructor. So it is computed when the module first moves or runs.
    """

    def __init__(self, kind: FixedKind, grid: TubeletGrid, dim: int) -> None:
        super().__init__()
        check_positions(kind, dim)
        self.key = (kind, grid.t, grid.h, grid.w, dim)
        self.table: Tensor | None = None
        self.resized: tuple[tuple[int, int], Tensor] | None = None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FixedPositions:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        device = fn(torch.empty(0)).device
        if device.type != "meta":
            self.on(device)  # made in the first forward, it would be compiled into that, and all once more without it
        return self

    def on(self, device: torch.device) -> Tensor:
        """The table on `device`."""
        if self.table is None or self.table.device != device:
            self.table = position_table(*self.key).to(device)
        return self.table

    def sized(self, h: int, w: int, device: torch.device) -> Tensor:
        """The table on `device` for another number of sites, bicubic per temporal slot; the last one made is kept."""
        _, t, own_h, own_w, _ = self.key
        if (h, w) == (own_h, own_w):
            return self.on(device)
        if self.resized is None or self.resized[0] != (h, w) or self.resized[1].device != device:
            self.resized = (h, w), resize_table(self.on(device), (t, own_h, own_w), (t, h, w))
        return self.resized[1]

    def rows(self, index: Tensor) -> Tensor:
        """The rows of `index` [B, K] -> fp32 [B, K, D]."""
        return F.embedding(index, self.on(index.device))


class QkvLinear(nn.Linear):
    """The joint projection [3D, D] without a bias of its own; q and v biases belong to the attention, k has none."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, 3 * dim, bias=False)

    def reset_parameters(self) -> None:
        """Leave the memory as it is; values come from `dsvid.models.init`."""

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:  # type: ignore[override]
        return F.linear(x, self.weight, bias)


class Attention(nn.Module):
    """Multi-head self-attention [B, N, D] -> [B, N - first, D] (queries from token `first` on), VideoMAE's parameter
    names.
    """

    def __init__(self, dim: int, heads: int, attention: str) -> None:
        super().__init__()
        self.heads = heads
        self.requested = attention
        self.q_bias = nn.Parameter(torch.empty(dim))
        self.v_bias = nn.Parameter(torch.empty(dim))
        self.qkv = QkvLinear(dim)
        self.proj = Linear(dim, dim)

    def forward(self, x: Tensor, first: int = 0) -> Tensor:
        b, n, width = x.shape
        bias = torch.cat((self.q_bias, torch.zeros_like(self.q_bias), self.v_bias))
        qkv = self.qkv(x, bias).view(b, n, 3, self.heads, width // self.heads)
        backend = choose_backend(self.requested, x.device.type, qkv.dtype, n, width // self.heads)
        out: Tensor = self.proj(attend_packed(qkv, backend, first).reshape(b, n - first, width))
        return out


class Mlp(nn.Module):
    """fc2(GELU(fc1(x))), GELU by the error function ("erf") or its tanh approximation ("tanh")."""

    def __init__(self, dim: int, hidden: int, gelu: str = "erf") -> None:
        super().__init__()
        self.approximate = {"erf": "none", "tanh": "tanh"}[gelu]
        self.fc1 = Linear(dim, hidden)
        self.fc2 = Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.gelu(self.fc1(x), approximate=self.approximate))
        return out


class Block(nn.Module):
    """Pre-norm block on an fp32 residual stream [B, N, D] -> [B, N - first, D].

    `scale` [B, 2] is stochastic depth's factor of the two branches. Tokens before `first` are only attended to: a
    last block whose reader wants the others alone need not compute them.
    """

    checkpoint: Checkpoint | None = None  # how `run_blocks` runs it

    def __init__(
        self, dim: int, heads: int, hidden: int, attention: str, norm_eps: float = 1e-6, gelu: str = "erf"
    ) -> None:
        super().__init__()
        self.norm1 = LayerNorm(dim, norm_eps)
        self.attn = Attention(dim, heads, attention)
        self.norm2 = LayerNorm(dim, norm_eps)
        self.mlp = Mlp(dim, hidden, gelu)

    def forward(self, x: Tensor, scale: Tensor | None = None, first: int = 0) -> Tensor:
        branch = self.attn(self.norm1(x), first)
        x = x[:, first:] + (branch if scale is None else branch * scale[:, 0, None, None])
        branch = self.mlp(self.norm2(x))
        out: Tensor = x + (branch if scale is None else branch * scale[:, 1, None, None])
        return out
