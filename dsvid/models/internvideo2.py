"""InternVideo2's video encoder (arXiv 2403.15377): RMSNorm, normalised queries and keys, LayerScale, a class token,
learned positions, attention pooling. Parameter names are those of its files (single_modality).

Knows no data, no ranks. Legend: B batch, N tokens (the class token first), D width, E pooled width, P values a token.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsvid.models.attention import attend, choose_backend
from dsvid.models.blocks import LayerNorm, Linear, Mlp, PatchEmbed, wide
from dsvid.models.depth import Checkpoint
from dsvid.models.init import init_weights
from dsvid.models.sizes import EncoderSize, check_heads
from dsvid.models.vit import (
    ClipClassifier,
    check_patch,
    sized_parameter,
)
from dsvid.tokens import PositionKind, TubeletGrid, resize_table

_NORM_EPS = 1e-6
_POOL_EPS = 1e-5  # torch's default, in the pooling and behind it


class RMSNorm(nn.Module):
    """x / rms(x) * weight, computed in fp32; the result has the dtype of the weight."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(dim))

    def forward(self, x: Tensor) -> Tensor:
        x = wide(x)
        x = x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + _NORM_EPS)
        return x.to(self.weight.dtype) * self.weight


class LayerScale(nn.Module):
    """gamma * x, in fp32."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.empty(dim))

    def forward(self, x: Tensor) -> Tensor:
        return wide(x) * self.gamma


class NormedAttention(nn.Module):
    """Self-attention without biases of q, k, v; q and k are normalised over the whole width, before the heads."""

    def __init__(self, dim: int, heads: int, attention: str) -> None:
        super().__init__()
        self.heads, self.requested = heads, attention
        self.qkv = Linear(dim, 3 * dim, bias=False)
        self.q_norm = RMSNorm(dim)
        self.k_norm = RMSNorm(dim)
        self.proj = Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        b, n, width = x.shape
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        q, k = self.q_norm(q).to(v.dtype), self.k_norm(k).to(v.dtype)
        q, k, v = (part.view(b, n, self.heads, -1).transpose(1, 2) for part in (q, k, v))
        backend = choose_backend(self.requested, x.device.type, v.dtype, n, width // self.heads)
        out: Tensor = self.proj(attend(q, k, v, backend).transpose(1, 2).reshape(b, n, width))
        return out


class NormedBlock(nn.Module):
    """x + ls1(attn(norm1(x))), then x + ls2(mlp(norm2(x))), on an fp32 residual stream [B, N, D].

    `scale` [B, 2] is stochastic depth's factor of the two branches; tokens before `first` are dropped at the end.
    """

    checkpoint: Checkpoint | None = None  # how `run_blocks` runs it

    def __init__(self, dim: int, heads: int, hidden: int, attention: str, gelu: str) -> None:
        super().__init__()
        self.norm1 = RMSNorm(dim)
        self.attn = NormedAttention(dim, heads, attention)
        self.ls1 = LayerScale(dim)
        self.norm2 = RMSNorm(dim)
        self.mlp = Mlp(dim, hidden, gelu)
        self.ls2 = LayerScale(dim)

    def forward(self, x: Tensor, scale: Tensor | None = None, first: int = 0) -> Tensor:
        branch = self.ls1(self.attn(self.norm1(x)))
        x = x + (branch if scale is None else branch * scale[:, 0, None, None])
        branch = self.ls2(self.mlp(self.norm2(x)))
        x = x + (branch if scale is None else branch * scale[:, 1, None, None])
        return x[:, first:]


class BiaslessLinear(Linear):
    """A product [D, D]; the bias is the caller's parameter (ZeRO-3 gathers a module's own parameters alone)."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, dim, bias=False)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:  # type: ignore[override]
        return F.linear(x, self.weight, bias)


class CrossAttention(nn.Module):
    """Attention of one query token [B, 1, D] to all tokens -> [B, 1, E]."""

    def __init__(self, dim: int, heads: int, out: int) -> None:
        super().__init__()
        check_heads("attention pooling", dim, heads)
        self.heads = heads
        self.q, self.k, self.v = (BiaslessLinear(dim) for _ in range(3))
        self.q_bias, self.k_bias, self.v_bias = (nn.Parameter(torch.empty(dim)) for _ in range(3))
        self.proj = Linear(dim, out)

    def forward(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        b, _, width = keys.shape
        parts = self.q(query, self.q_bias), self.k(keys, self.k_bias), self.v(values, self.v_bias)
        q, k, v = (part.view(b, -1, self.heads, width // self.heads).transpose(1, 2) for part in parts)
        pooled = F.scaled_dot_product_attention(q, k, v)  # one query: no kernel is worth choosing
        out: Tensor = self.proj(pooled.transpose(1, 2).reshape(b, 1, width))
        return out


class AttentionPool(nn.Module):
    """All tokens [B, N, D] -> [B, E]: their mean asks, all of them answer. There is no residual."""

    def __init__(self, dim: int, heads: int, out: int) -> None:
        super().__init__()
        self.norm1_q, self.norm1_k, self.norm1_v = (LayerNorm(dim, _POOL_EPS) for _ in range(3))
        self.cross_attn = CrossAttention(dim, heads, out)

    def forward(self, tokens: Tensor) -> Tensor:
        query = self.norm1_q(tokens.mean(dim=1, keepdim=True))
        return cast("Tensor", self.cross_attn(query, self.norm1_k(tokens), self.norm1_v(tokens)))[:, 0]


class InternVideo2(ClipClassifier):
    """InternVideo2's encoder with a classifier.

    `positions`: "learned" (one table) or "learned_separate" (space, time and class token). `gelu`: the released weights
    were trained with a fused kernel that computes "tanh"; the originals' plain code, and simple-tad, evaluate "erf".
    `pool_dim` is E, the width of the features. `seed` None leaves the parameters as they are.
    """

    def __init__(
        self,
        size: EncoderSize,
        grid: TubeletGrid,
        num_classes: int = 0,
        positions: PositionKind = "learned",
        drop_path: float = 0.0,
        head_drop: float = 0.0,
        attention: str = "auto",
        head_init_scale: float = 0.001,
        gelu: str = "erf",
        pool_heads: int = 16,
        pool_dim: int = 768,
        seed: int | None = 0,
    ) -> None:
        super().__init__()
        check_patch(size, grid)
        self.size, self.grid, self.num_classes = size, grid, num_classes
        self.drop_path, self.head_drop, self.head_init_scale = drop_path, head_drop, head_init_scale
        self.attention = attention
        self.patch_embed = PatchEmbed(size.dim, grid)
        self.cls_token = nn.Parameter(torch.empty(1, 1, size.dim))
        self.first = 1
        self.separate = positions == "learned_separate"
        if self.separate:
            self.pos_embed_spatial = nn.Parameter(torch.empty(1, grid.sites, size.dim))
            self.pos_embed_temporal = nn.Parameter(torch.empty(1, grid.t, size.dim))
            self.pos_embed_cls = nn.Parameter(torch.empty(1, 1, size.dim))
        else:
            self.pos_embed = nn.Parameter(torch.empty(1, 1 + grid.tokens, size.dim))
        self.blocks = nn.ModuleList(
            NormedBlock(size.dim, size.heads, size.hidden, attention, gelu) for _ in range(size.depth)
        )
        self.clip_projector = AttentionPool(size.dim, pool_heads, pool_dim)
        self.fc_norm = LayerNorm(pool_dim, _POOL_EPS)
        self.head: nn.Module = Linear(pool_dim, num_classes) if num_classes else nn.Identity()
        if seed is not None:
            init_weights(self, seed)

    def init_options(self) -> dict[str, Any]:
        """What `initial_value` needs to know of this model."""
        return {
            "patch_values": self.grid.values,
            "head_init_scale": self.head_init_scale,
            "sincos_grid": (self.grid.t, self.grid.h, self.grid.w),
            "depth_scaled": True,
        }

    def position_rows(self, grid: TubeletGrid) -> Tensor:
        """What is added to the class token and the tokens of a clip of `grid`, fp32 [1, 1 + N, D]."""
        if not self.separate:
            return sized_parameter(self.pos_embed, self.grid, grid, 1)
        own, dim = self.grid, self.size.dim
        space = resize_table(self.pos_embed_spatial[0], (1, own.h, own.w), (1, grid.h, grid.w))
        clip = (wide(self.pos_embed_temporal[0])[:, None] + space[None]).reshape(1, -1, dim)
        return torch.cat((wide(self.pos_embed_cls), clip), dim=1)

    def embed(self, patches: Tensor, grid: TubeletGrid | None = None) -> Tensor:
        """Patches of all tokens [B, N, P] in convolution order -> the input of the first block, fp32 [B, 1 + N, D]."""
        x = wide(self.patch_embed(patches))
        x = torch.cat((self.cls_token.to(x.dtype).expand(x.shape[0], -1, -1), x), dim=1)
        return x + self.position_rows(grid or self.grid)

    def pooled(self, tokens: Tensor) -> Tensor:
        """Tokens after the last block -> features [B, E], the input of the head."""
        return cast("Tensor", self.fc_norm(self.clip_projector(tokens)))
