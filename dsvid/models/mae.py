"""The masked autoencoder of VideoMAE and VideoMAE V2: encode the visible tokens, decode the ones asked for.

Knows neither targets nor losses. Legend: B batch, V visible tokens, K decoded tokens, L predicted tokens, P values of a
token, D encoder width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dsvid.models.blocks import Block, FixedPositions, LayerNorm, Linear, PatchEmbed
from dsvid.models.depth import Checkpoint, branch_scales, checkpoint_blocks, run_blocks
from dsvid.models.init import init_weights
from dsvid.models.sizes import DecoderSize, EncoderSize
from dsvid.models.vit import check_patch, describe_attention
from dsvid.tokens import FixedKind, TubeletGrid


class Encoder(nn.Module):
    """Visible patches -> normalised tokens."""

    def __init__(
        self,
        size: EncoderSize,
        grid: TubeletGrid,
        positions: FixedKind,
        attention: str,
        drop_path: float,
        norm_eps: float = 1e-6,
        gelu: str = "erf",
    ) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.patch_embed = PatchEmbed(size.dim, grid)
        self.positions = FixedPositions(positions, grid, size.dim)
        self.blocks = nn.ModuleList(
            Block(size.dim, size.heads, size.hidden, attention, norm_eps, gelu) for _ in range(size.depth)
        )
        self.norm = LayerNorm(size.dim, norm_eps)

    def forward(self, patches: Tensor, visible: Tensor, seeds: Tensor | None) -> Tensor:
        x = self.patch_embed(patches) + self.positions.rows(visible)  # [B, V, D] fp32
        scales = branch_scales(seeds, self.drop_path, len(self.blocks), self.training)
        tokens: Tensor = self.norm(run_blocks(self.blocks, x, scales))
        return tokens


class Decoder(nn.Module):
    """Tokens [B, V+K, Dd] -> predicted values of `n_predict` tokens from position `first` on."""

    def __init__(
        self,
        size: DecoderSize,
        values: int,
        attention: str,
        norm_eps: float = 1e-6,
        last_eps: float = 1e-6,
        gelu: str = "erf",
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            Block(size.dim, size.heads, size.hidden, attention, norm_eps, gelu) for _ in range(size.depth)
        )
        self.norm = LayerNorm(size.dim, last_eps)
        self.head = Linear(size.dim, values)

    def forward(self, x: Tensor, first: int, n_predict: int) -> Tensor:
        x = run_blocks(self.blocks, x, None, first)
        predictions: Tensor = self.head(self.norm(x[:, :n_predict]))
        return predictions


class MaskedAutoencoder(nn.Module):
    """VideoMAE's asymmetric autoencoder (arXiv 2203.12602 §3.3), with V2's partial decoding (arXiv 2303.16727 §3.2).

    Parameter names are VideoMAE's; `last_eps` belongs to the decoder's own norm. `seed` sets the initial values (None
    leaves the memory as it is: for weights that are loaded or set later).
    """

    def __init__(
        self,
        encoder: EncoderSize,
        decoder: DecoderSize,
        grid: TubeletGrid,
        positions: FixedKind = "sincos_flat",
        attention: str = "auto",
        drop_path: float = 0.0,
        norm_eps: float = 1e-6,
        last_eps: float = 1e-6,
        gelu: str = "erf",
        seed: int | None = 0,
    ) -> None:
        super().__init__()
        check_patch(encoder, grid)
        self.encoder_size, self.decoder_size, self.grid, self.attention = encoder, decoder, grid, attention
        self.encoder = Encoder(encoder, grid, positions, attention, drop_path, norm_eps, gelu)
        self.decoder = Decoder(decoder, grid.values, attention, norm_eps, last_eps, gelu)
        self.decoder_positions = FixedPositions(positions, grid, decoder.dim)
        self.encoder_to_decoder = Linear(encoder.dim, decoder.dim, bias=False)
        self.mask_token = nn.Parameter(torch.empty(1, 1, decoder.dim))
        if seed is not None:
            init_weights(self, seed)

    def init_options(self) -> dict[str, Any]:
        """What `initial_value` needs to know of this model."""
        return {"patch_values": self.grid.values}

    def set_checkpointing(self, checkpoint: Checkpoint | None, count: int = 0) -> None:
        """Run the first `count` blocks (0: all) of encoder and of decoder as `checkpoint(block, *args)`; None: none."""
        for blocks in (self.encoder.blocks, self.decoder.blocks):
            checkpoint_blocks(blocks, checkpoint, count)

    def attention_choices(
        self, dtype: torch.dtype | None = None, visible: int | None = None, decoded: int | None = None
    ) -> list[str]:
        """One line per kind of attention call; `visible` and `decoded` are token counts (default: a tenth, all)."""
        seen = visible or max(1, self.grid.tokens // 10)
        total = seen + decoded if decoded else self.grid.tokens
        weight = self.mask_token
        return [
            describe_attention("encoder", self.attention, weight, dtype, seen, self.encoder_size),
            describe_attention("decoder", self.attention, weight, dtype, total, self.decoder_size),
        ]

    def forward(
        self, patches: Tensor, visible: Tensor, decoded: Tensor, n_predict: int, seeds: Tensor | None = None
    ) -> Tensor:
        """Visible patches [B, V, P] in convolution order -> predictions [B, L, P] for decoded[:, :n_predict].

        They have the dtype of the last product; the loss turns them into fp32 where they are in cache.

        `visible` [B, V] and `decoded` [B, K] are token indices; the decoder sees the visible tokens, then the decoded
        ones, in that order and not un-shuffled, as the originals do. `seeds` [B] serve stochastic depth.
        """
        tokens = self.encoder_to_decoder(self.encoder(patches, visible, seeds))
        seen = tokens + self.decoder_positions.rows(visible)
        asked = self.mask_token + self.decoder_positions.rows(decoded)
        x = torch.cat((seen, asked), dim=1)  # [B, V+K, Dd] fp32
        predictions: Tensor = self.decoder(x, visible.shape[1], n_predict)
        return predictions
