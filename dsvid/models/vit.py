"""The vision transformer on tubelets that VideoMAE fine-tunes: all tokens, mean pooling, `fc_norm`, a linear head.

Its variations (other tables, a class token, the norm over all tokens that detection wants) are constructor arguments.
Knows no data, no ranks. Legend: B batch, T frames, H W pixels, t h w grid cells, N tokens, P values a token, D width.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from dsvid.errors import RecipeError
from dsvid.models.attention import choose_backend
from dsvid.models.blocks import Block, FixedPositions, LayerNorm, Linear, PatchEmbed, wide
from dsvid.models.depth import Checkpoint, branch_scales, checkpoint_blocks, dropout, run_blocks
from dsvid.models.init import init_weights
from dsvid.models.sizes import EncoderSize
from dsvid.tokens import FixedKind, PositionKind, TubeletGrid, resize_table

FinalNorm = Literal["pooled", "tokens"]
Pool = Literal["mean", "first"]


def video_patches(video: Tensor, grid: TubeletGrid) -> Tensor:
    """Float video [B, 3, T, H, W] -> patches [B, N, P] in convolution order (c, u, p, p)."""
    b = video.shape[0]
    cut = video.reshape(b, 3, grid.t, grid.tubelet, grid.h, grid.patch, grid.w, grid.patch)
    return cut.permute(0, 2, 4, 6, 1, 3, 5, 7).reshape(b, grid.tokens, grid.values)


def video_grid(video: Tensor, grid: TubeletGrid) -> TubeletGrid:
    """`grid` with the frames and the height and width of a video [B, 3, T, H, W]. Raises RecipeError for other T."""
    frames, height, width = video.shape[2:]
    if frames != grid.frames:
        raise RecipeError("the clip has another number of frames than the model", found=frames, expected=grid.frames)
    return replace(grid, height=height, width=width)


def check_patch(size: EncoderSize, grid: TubeletGrid) -> None:
    """Raise RecipeError where the grid was cut with another patch size than the model's."""
    if size.patch != grid.patch:
        raise RecipeError("the token grid does not suit the model", found=f"patch {grid.patch}", expected=size.patch)


def token_map(tokens: Tensor, grid: TubeletGrid) -> Tensor:
    """Tokens [B, N, D] -> feature map [B, D, h, w], the mean over time (AVA's backbone of VideoMAE)."""
    b, _, dim = tokens.shape
    return tokens.view(b, grid.t, grid.h, grid.w, dim).mean(dim=1).permute(0, 3, 1, 2)


class ClipClassifier(nn.Module):
    """What every encoder with a classifier offers, whatever its blocks; subclasses give `embed` and `pooled`.

    A subclass sets the attributes below in its constructor.
    """

    size: EncoderSize
    grid: TubeletGrid
    blocks: nn.ModuleList
    head: nn.Module
    patch_embed: PatchEmbed
    drop_path: float
    head_drop: float
    attention: str
    first: int  # where the tokens of the clip begin, behind a class token

    def embed(self, patches: Tensor, grid: TubeletGrid | None = None) -> Tensor:
        """Patches of all tokens [B, N, P] in convolution order -> the input of the first block, fp32 [B, first + N, D].

        `grid` where the clip has another height and width than the model was made for.
        """
        raise NotImplementedError

    def pooled(self, tokens: Tensor) -> Tensor:
        """Tokens after the last block -> features [B, E], the input of the head."""
        raise NotImplementedError

    def map_tokens(self, tokens: Tensor) -> Tensor:
        """Tokens after the last block -> what a feature map is made of, of the same shape."""
        return tokens

    def set_checkpointing(self, checkpoint: Checkpoint | None, count: int = 0) -> None:
        """Run the first `count` blocks (0: all) as `checkpoint(block, *args)`; None switches it off."""
        checkpoint_blocks(self.blocks, checkpoint, count)

    def attention_choices(self, dtype: torch.dtype | None = None) -> list[str]:
        """One line per kind of attention call: where, how long, which backend; `dtype` where autocast sets it."""
        weight, tokens = self.patch_embed.proj.weight, self.first + self.grid.tokens
        return [describe_attention("encoder", self.attention, weight, dtype, tokens, self.size)]

    def encode(self, patches: Tensor, seeds: Tensor | None = None, grid: TubeletGrid | None = None) -> Tensor:
        """Patches of all tokens [B, N, P] -> tokens after the last block, fp32 [B, first + N, D]."""
        x = self.embed(patches, grid)
        scales = branch_scales(seeds, self.drop_path, self.size.depth, self.training)
        return run_blocks(self.blocks, x, scales)

    def forward_patches(self, patches: Tensor, seeds: Tensor | None = None) -> Tensor:
        """Patches [B, N, P] in convolution order and the clips' seeds (for drop path and dropout) -> logits [B,
        classes].
        """
        features = self.pooled(self.encode(patches, seeds))
        logits: Tensor = self.head(dropout(features, seeds, self.head_drop, self.training).to(features.dtype))
        return logits

    def forward_features(self, video: Tensor) -> Tensor:
        """Normalised float video [B, 3, T, H, W] -> pooled features [B, E], the input of the head."""
        return self.pooled(self.encode(video_patches(video, self.grid)))

    def forward(self, video: Tensor) -> Tensor:
        """Normalised float video [B, 3, T, H, W] -> logits [B, classes]."""
        logits: Tensor = self.head(self.forward_features(video))
        return logits

    def map_patches(self, patches: Tensor, grid: TubeletGrid, seeds: Tensor | None = None) -> Tensor:
        """Patches [B, N, P] of clips of any height and width (`grid`) -> feature map [B, D, h, w], mean over time."""
        tokens = self.map_tokens(self.encode(patches, seeds, grid))
        return token_map(tokens[:, self.first :], grid)

    def forward_map(self, video: Tensor) -> Tensor:
        """Normalised float video [B, 3, T, H, W], any H and W -> feature map [B, D, h, w], mean over time."""
        grid = video_grid(video, self.grid)
        return self.map_patches(video_patches(video, grid), grid)


class VisionTransformer(ClipClassifier):
    """Encoder over all tokens with a classifier; parameter names are VideoMAE's fine-tuning names.

    `final_norm` "pooled": `fc_norm` after pooling (VideoMAE); "tokens": `norm` over all tokens (detection, ViViT).
    `cls_token` puts one learned token before the others; `pool` "first" reads the first token. `norm_eps` is the
    blocks' and `norm`'s, `pooled_eps` `fc_norm`'s. Fixed `positions` know nothing of a class token.
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
        final_norm: FinalNorm = "pooled",
        cls_token: bool = False,
        pool: Pool = "mean",
        norm_eps: float = 1e-6,
        pooled_eps: float = 1e-6,
        gelu: str = "erf",
        seed: int | None = 0,
    ) -> None:
        super().__init__()
        check_patch(size, grid)
        self.size, self.grid, self.num_classes, self.pool = size, grid, num_classes, pool
        self.drop_path, self.head_drop, self.head_init_scale = drop_path, head_drop, head_init_scale
        self.attention = attention
        self.patch_embed = PatchEmbed(size.dim, grid)
        self.cls_token = nn.Parameter(torch.empty(1, 1, size.dim)) if cls_token else None
        self.first = 1 if cls_token else 0  # where the tokens of the clip begin
        if positions == "learned":
            self.pos_embed = nn.Parameter(torch.empty(1, self.first + grid.tokens, size.dim))
            self.positions = None
        elif cls_token:
            raise RecipeError("a class token needs learned positions", found=f"positions={positions}")
        else:
            self.positions = FixedPositions(cast("FixedKind", positions), grid, size.dim)
        self.blocks = nn.ModuleList(
            Block(size.dim, size.heads, size.hidden, attention, norm_eps, gelu) for _ in range(size.depth)
        )
        self.norm = LayerNorm(size.dim, norm_eps) if final_norm == "tokens" else None
        self.fc_norm = LayerNorm(size.dim, pooled_eps) if final_norm == "pooled" else None
        self.head: nn.Module = Linear(size.dim, num_classes) if num_classes else nn.Identity()
        if seed is not None:
            init_weights(self, seed)

    def init_options(self) -> dict[str, Any]:
        """What `initial_value` needs to know of this model."""
        return {"patch_values": self.grid.values, "head_init_scale": self.head_init_scale}

    def embed(self, patches: Tensor, grid: TubeletGrid | None = None) -> Tensor:
        """Patches of all tokens [B, N, P] in convolution order -> the input of the first block, fp32 [B, N, D].

        `grid` where the clip has another height and width than the model was made for.
        """
        grid = grid or self.grid
        x = self.patch_embed(patches)
        if self.positions is not None:
            table = self.positions.sized(grid.h, grid.w, patches.device)
            return cast("Tensor", x + table)
        x = wide(x)
        if self.cls_token is not None:
            x = torch.cat((self.cls_token.to(x.dtype).expand(x.shape[0], -1, -1), x), dim=1)
        return x + sized_parameter(self.pos_embed, self.grid, grid, self.first)

    def pooled(self, tokens: Tensor) -> Tensor:
        """Tokens after the last block -> features [B, D], the input of the head."""
        if self.norm is not None:
            tokens = self.norm(tokens)
        features = tokens[:, 0] if self.pool == "first" else tokens.mean(dim=1)
        return features if self.fc_norm is None else cast("Tensor", self.fc_norm(features))

    def map_tokens(self, tokens: Tensor) -> Tensor:
        """The norm over all tokens, where the model has one."""
        return tokens if self.norm is None else cast("Tensor", self.norm(tokens))


def sized_parameter(table: Tensor, own: TubeletGrid, grid: TubeletGrid, first: int) -> Tensor:
    """A learned table [1, first + N, D] for the sites of `grid`; the rows before `first` stay as they are."""
    if (grid.h, grid.w) == (own.h, own.w):
        return wide(table)
    rows = resize_table(table[0, first:], (own.t, own.h, own.w), (own.t, grid.h, grid.w))
    return torch.cat((wide(table[0, :first]), rows))[None]


def describe_attention(
    part: str, requested: str, weight: Tensor, dtype: torch.dtype | None, tokens: int, size: Any
) -> str:
    """A line for the start of the log."""
    kind = dtype or weight.dtype
    backend = choose_backend(requested, weight.device.type, kind, tokens, size.dim // size.heads)
    place = f"{weight.device.type} {str(kind).removeprefix('torch.')}"
    return f"{part}: {backend} ({place}, {tokens} tokens, {size.heads} heads of {size.dim // size.heads})"
