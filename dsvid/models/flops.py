"""FLOPs of a clip, by formula: a multiply-add counts as two.

Legend: N tokens, D width, m MLP width, P values of a token.
"""

from __future__ import annotations

from dsvid.models.spec import ModelSpec
from dsvid.tokens import dropped_per_cell, masked_sites


def block_flops(tokens: int, dim: int, hidden: int) -> float:
    """Forward of one transformer block: 2N(4D^2 + 2Dm) for the projections and 4N^2 D for attention."""
    return 2.0 * tokens * (4 * dim * dim + 2 * dim * hidden) + 4.0 * tokens * tokens * dim


def training_flops(spec: ModelSpec, *, mask_ratio: float = 0.0, decoder_mask_ratio: float = 0.0) -> float:
    """Forward and backward of one clip: thrice the forward, twice the patch embedding (it has no input gradient).

    Recomputation under activation checkpointing is not counted: this is the model's work, the numerator of MFU.
    """
    grid, encoder = spec.grid, spec.encoder_size
    if spec.task != "pretrain":
        tokens = grid.tokens + spec.extra_tokens
        forward = encoder.depth * block_flops(tokens, encoder.dim, encoder.hidden)
        if spec.internvideo2:  # keys and values of the attention pooling
            forward += 4.0 * tokens * encoder.dim * encoder.dim
        return 3 * forward + 2 * 2.0 * grid.tokens * grid.values * encoder.dim
    masked = masked_sites(grid, mask_ratio)
    drop = dropped_per_cell(grid, decoder_mask_ratio)
    visible = grid.t * (grid.sites - masked)
    decoded = grid.tokens * (4 - drop) // 4 if drop else grid.tokens - visible
    predicted = grid.t * masked * (4 - drop) // 4
    decoder = spec.decoder_size
    forward = encoder.depth * block_flops(visible, encoder.dim, encoder.hidden)
    forward += decoder.depth * block_flops(visible + decoded, decoder.dim, decoder.hidden)
    forward += 2.0 * visible * encoder.dim * decoder.dim + 2.0 * predicted * decoder.dim * grid.values
    return 3 * forward + 2 * 2.0 * visible * grid.values * encoder.dim


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
