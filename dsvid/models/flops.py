"""FLOPs of a clip, by formula: a multiply-add counts as two.

Legend: N tokens, D width, m MLP width, P values of a token.
"""

from __future__ import annotations

from dataclasses import dataclass

from dsvid.models.spec import ModelSpec
from dsvid.tokens import dropped_per_cell, masked_sites


def block_flops(tokens: int, dim: int, hidden: int) -> float:
    """Forward of one transformer block: 2N(4D^2 + 2Dm) for the projections and 4N^2 D for attention."""
    return 2.0 * tokens * (4 * dim * dim + 2 * dim * hidden) + 4.0 * tokens * tokens * dim


@dataclass(frozen=True)
class TokenCounts:
    """Tokens of a clip: those the encoder sees, those the decoder fills in, those of them that are predicted."""

    encoded: int
    decoded: int = 0
    predicted: int = 0


def token_counts(spec: ModelSpec, *, mask_ratio: float = 0.0, decoder_mask_ratio: float = 0.0) -> TokenCounts:
    """Tokens of one clip; without a decoder all are encoded. Raises RecipeError for ratios that do not suit."""
    grid = spec.grid
    if spec.task != "pretrain":
        return TokenCounts(grid.tokens + spec.extra_tokens)
    masked = masked_sites(grid, mask_ratio)
    drop = dropped_per_cell(grid, decoder_mask_ratio)
    visible = grid.t * (grid.sites - masked)
    decoded = grid.tokens * (4 - drop) // 4 if drop else grid.tokens - visible
    return TokenCounts(visible, decoded, grid.t * masked * (4 - drop) // 4)


@dataclass(frozen=True)
class ForwardFlops:
    """FLOPs of one clip's forward, by part; `skipped` is what the decoder's last block leaves out of its own, because
    nobody reads the visible tokens there.
    """

    patch_embed: float
    encoder: float
    decoder: float
    rest: float
    skipped: float = 0.0

    @property
    def blocks(self) -> float:
        """The transformer blocks, which activation checkpointing computes twice."""
        return self.encoder + self.decoder

    @property
    def training(self) -> float:
        """Forward and backward: thrice the forward, twice the patch embedding (it has no input gradient)."""
        return 3 * (self.blocks + self.rest) + 2 * self.patch_embed


def forward_flops(spec: ModelSpec, *, mask_ratio: float = 0.0, decoder_mask_ratio: float = 0.0) -> ForwardFlops:
    """Forward of one clip, by part."""
    grid, encoder = spec.grid, spec.encoder_size
    count = token_counts(spec, mask_ratio=mask_ratio, decoder_mask_ratio=decoder_mask_ratio)
    blocks = encoder.depth * block_flops(count.encoded, encoder.dim, encoder.hidden)
    embedded = count.encoded - spec.extra_tokens
    embed = 2.0 * embedded * grid.values * encoder.dim
    if spec.task != "pretrain":
        # keys and values of the attention pooling
        rest = 4.0 * count.encoded * encoder.dim * encoder.dim if spec.internvideo2 else 0.0
        return ForwardFlops(embed, blocks, 0.0, rest)
    decoder, tokens = spec.decoder_size, count.encoded + count.decoded
    rest = 2.0 * count.encoded * encoder.dim * decoder.dim + 2.0 * count.predicted * decoder.dim * grid.values
    return ForwardFlops(
        embed,
        blocks,
        decoder.depth * block_flops(tokens, decoder.dim, decoder.hidden),
        rest,
        # the projection behind attention, the MLP and the queries' products of the visible tokens
        count.encoded * (2.0 * decoder.dim * (decoder.dim + 2 * decoder.hidden) + 4.0 * tokens * decoder.dim),
    )


def training_flops(spec: ModelSpec, *, mask_ratio: float = 0.0, decoder_mask_ratio: float = 0.0) -> float:
    """Forward and backward of one clip: thrice the forward, twice the patch embedding (it has no input gradient).

    Recomputation under activation checkpointing is not counted: this is the model's work, the numerator of MFU.
    """
    return forward_flops(spec, mask_ratio=mask_ratio, decoder_mask_ratio=decoder_mask_ratio).training


PEAK_TFLOPS = {
    # Dense bf16 peaks of the vendor's data sheets.
    "H200": 989.0, "H100 PCIe": 756.0, "H100": 989.0, "A100": 312.0, "A800": 312.0, "H800": 989.0, "B200": 2250.0,
    "L40S": 362.0, "A10": 125.0, "RTX 4090": 165.0, "V100": 125.0, "MI300X": 1307.0,
}  # fmt: skip


def peak_flops(device_name: str) -> float | None:
    """Dense bf16 peak of a GPU in FLOP/s by its name, or None where it is not listed."""
    for name, tflops in PEAK_TFLOPS.items():
        if name in device_name:
            return tflops * 1e12
    return None
