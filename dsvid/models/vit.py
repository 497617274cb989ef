"""The vision transformer on tubelets that VideoMAE fine-tunes: all tokens, mean pooling, `fc_norm`, a linear head.

Knows no data, no ranks. Legend: B batch, T frames, H W pixels, N tokens, P values of a token, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dsvid.errors import RecipeError
from dsvid.models.attention import choose_backend
from dsvid.models.blocks import Block, FixedPositions, LayerNorm, Linear, PatchEmbed
from dsvid.models.depth import Checkpoint, branch_scales, dropout, run_blocks
from dsvid.models.init import init_weights
from dsvid.models.sizes import EncoderSize
from dsvid.tokens import PositionKind, TubeletGrid


def video_patches(video: Tensor, grid: TubeletGrid) -> Tensor:
    """Float video [B, 3, T, H, W] -> patches [B, N, P] in convolution order (c, u, p, p)."""
    b = video.shape[0]
    cut = video.reshape(b, 3, grid.t, grid.tubelet, grid.h, grid.patch, grid.w, grid.patch)
    return cut.permute(0, 2, 4, 6, 1, 3, 5, 7).reshape(b, grid.tokens, grid.values)


def check_patch(size: EncoderSize, grid: TubeletGrid) -> None:
    """Raise RecipeError where the grid was cut with another patch size than the model's."""
    if size.patch != grid.patch:
        raise RecipeError("the token grid does not suit the model", found=f"patch {grid.patch}", expected=size.patch)


class VisionTransformer(nn.Module):
    """Encoder over all tokens with a classifier; parameter names are VideoMAE's fine-tuning names.

    `seed` sets the initial values (None leaves the memory as it is: for weights that are loaded or set later).
    """

    def __init__(
        self,
        size: EncoderSize,
        grid: TubeletGrid,
        num_classes: int = 0,
        positions: PositionKind = "sincos_flat",
        drop_path: float = 0.0,
        head_drop: float = 0.0,
        attention: str = "auto",
        head_init_scale: float = 0.001,
        seed: int | None = 0,
    ) -> None:
        super().__init__()
        check_patch(size, grid)
        self.size, self.grid, self.num_classes = size, grid, num_classes
        self.drop_path, self.head_drop, self.head_init_scale = drop_path, head_drop, head_init_scale
        self.attention = attention
        self.checkpoint: Checkpoint | None = None
        self.patch_embed = PatchEmbed(size.dim, grid)
        self.positions = FixedPositions(positions, grid, size.dim)
        self.blocks = nn.ModuleList(Block(size.dim, size.heads, size.hidden, attention) for _ in range(size.depth))
        self.fc_norm = LayerNorm(size.dim)
        self.head: nn.Module = Linear(size.dim, num_classes) if num_classes else nn.Identity()
        if seed is not None:
            init_weights(self, seed)

    def init_options(self) -> dict[str, Any]:
        """What `initial_value` needs to know of this model."""
        return {"patch_values": self.grid.values, "head_init_scale": self.head_init_scale}

    def set_checkpointing(self, checkpoint: Checkpoint | None) -> None:
        """Run each block as `checkpoint(block, *args)`; None switches it off."""
        self.checkpoint = checkpoint

    def attention_choices(self, dtype: torch.dtype | None = None) -> list[str]:
        """One line per kind of attention call: where, how long, which backend; `dtype` where autocast sets it."""
        weight = self.fc_norm.weight
        return [describe_attention("encoder", self.attention, weight, dtype, self.grid.tokens, self.size)]

    def encode(self, patches: Tensor, seeds: Tensor | None = None) -> Tensor:
        """Patches of all tokens [B, N, P] in convolution order -> tokens after the last block, fp32 [B, N, D]."""
        x = self.patch_embed(patches) + self.positions.on(patches.device)
        scales = branch_scales(seeds, self.drop_path, self.size.depth, self.training)
        return run_blocks(self.blocks, x, scales, self.checkpoint)

    def forward_patches(self, patches: Tensor, seeds: Tensor | None = None) -> Tensor:
        """Patches [B, N, P] in convolution order and the clips' seeds (for drop path and dropout) -> logits [B,
        classes].
        """
        features = self.fc_norm(self.encode(patches, seeds).mean(dim=1))
        logits: Tensor = self.head(dropout(features, seeds, self.head_drop, self.training).to(features.dtype))
        return logits

    def forward_features(self, video: Tensor) -> Tensor:
        """Normalised float video [B, 3, T, H, W] -> pooled features [B, D], the input of the head."""
        features: Tensor = self.fc_norm(self.encode(video_patches(video, self.grid)).mean(dim=1))
        return features

    def forward(self, video: Tensor) -> Tensor:
        """Normalised float video [B, 3, T, H, W] -> logits [B, classes]."""
        logits: Tensor = self.head(self.forward_features(video))
        return logits


def describe_attention(
    part: str, requested: str, weight: Tensor, dtype: torch.dtype | None, tokens: int, size: Any
) -> str:
    """A line for the start of the log."""
    kind = dtype or weight.dtype
    backend = choose_backend(requested, weight.device.type, kind, tokens, size.dim // size.heads)
    place = f"{weight.device.type} {str(kind).removeprefix('torch.')}"
    return f"{part}: {backend} ({place}, {tokens} tokens, {size.heads} heads of {size.dim // size.heads})"
