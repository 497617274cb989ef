"""The released sizes: encoder widths and depths, the decoder that belongs to each, and what sets an architecture apart.

Knows numbers only (arXiv 2203.12602, 2303.16727, 2403.15377 and 2103.15691); builds nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from dsvid.errors import RecipeError

Flavour = Literal["videomae", "videomaev2"]


@dataclass(frozen=True)
class EncoderSize:
    """Width, depth, heads, patch and MLP ratio of an encoder (`mlp_hidden` 0: the ratio decides); raises RecipeError
    where the heads do not divide the width.
    """

    dim: int
    depth: int
    heads: int
    patch: int
    mlp_ratio: float = 4.0
    mlp_hidden: int = 0

    def __post_init__(self) -> None:
        check_heads("encoder", self.dim, self.heads)

    @property
    def hidden(self) -> int:
        """Width of the MLP, truncated as in the originals."""
        return self.mlp_hidden or int(self.dim * self.mlp_ratio)


@dataclass(frozen=True)
class DecoderSize:
    """Width, depth and heads of a decoder; raises RecipeError where the heads do not divide the width."""

    dim: int
    depth: int
    heads: int
    mlp_ratio: float = 4.0
    mlp_hidden: int = 0

    def __post_init__(self) -> None:
        check_heads("decoder", self.dim, self.heads)

    @property
    def hidden(self) -> int:
        """Width of the MLP, truncated as in the originals."""
        return self.mlp_hidden or int(self.dim * self.mlp_ratio)


def check_heads(part: str, dim: int, heads: int) -> None:
    """Raise RecipeError unless `heads` divides `dim`."""
    if heads < 1 or dim % heads:
        divisors = [n for n in range(1, dim + 1) if dim % n == 0]
        nearest = min(divisors, key=lambda n: abs(n - heads))
        raise RecipeError(
            f"the number of attention heads of the {part} does not divide its width",
            found=f"dim={dim}, heads={heads}",
            expected=f"a divisor of {dim}, for example {nearest}",
            fix=f"heads={nearest}",
        )


ENCODERS: dict[str, EncoderSize] = {
    "vit_micro": EncoderSize(128, 4, 4, 8),
    "vit_tiny": EncoderSize(192, 12, 3, 16),
    "vit_small": EncoderSize(384, 12, 6, 16),
    "vit_base": EncoderSize(768, 12, 12, 16),
    "vit_large": EncoderSize(1024, 24, 16, 16),
    "vit_huge": EncoderSize(1280, 32, 16, 16),
    "vit_giant": EncoderSize(1408, 40, 16, 14, 48 / 11),
    "vit_6b": EncoderSize(3200, 48, 25, 14),
}

# Architectures that have classifiers only: nothing here pre-trains them as autoencoders.
CLASSIFIERS: dict[str, EncoderSize] = {
    "vivit_base": EncoderSize(768, 12, 12, 16),
    "internvideo2_small": EncoderSize(384, 12, 6, 14),
    "internvideo2_base": EncoderSize(768, 12, 12, 14),
    "internvideo2_large": EncoderSize(1024, 24, 16, 14),
    "internvideo2_1b": EncoderSize(1408, 40, 16, 14, 48 / 11),
    "internvideo2_6b": EncoderSize(3200, 48, 25, 14),
}

# Sizes that are registered under no name: every number is given.
CUSTOM, CUSTOM_INTERNVIDEO2 = "custom", "internvideo2_custom"

VIVIT_TRAITS: Mapping[str, Any] = {
    "positions": "learned",
    "cls_token": True,
    "pool": "first",
    "final_norm": "tokens",
    "gelu": "tanh",
}

_DECODERS: dict[str, DecoderSize] = {
    "vit_micro": DecoderSize(64, 2, 2),
    "vit_tiny": DecoderSize(192, 4, 3),
    "vit_small": DecoderSize(192, 4, 3),
    "vit_base": DecoderSize(384, 4, 6),
    "vit_large": DecoderSize(512, 4, 8),
    "vit_huge": DecoderSize(512, 4, 8),
    "vit_giant": DecoderSize(512, 4, 8),
    "vit_6b": DecoderSize(512, 4, 8),
}

# VideoMAE's released L and H decode all tokens with 12 blocks; from V2 on every size keeps 4.
_DECODERS_VIDEOMAE: dict[str, DecoderSize] = {
    "vit_large": DecoderSize(512, 12, 8),
    "vit_huge": DecoderSize(640, 12, 8),
}


def is_internvideo2(arch: str) -> bool:
    """Whether `arch` has InternVideo2's block (else it is a transformer of the VideoMAE kind)."""
    return arch.startswith("internvideo2_")


def encoder_size(arch: str) -> EncoderSize:
    """The size registered under `arch`; raises RecipeError for an unknown name."""
    known = ENCODERS | CLASSIFIERS
    try:
        return known[arch]
    except KeyError:
        raise RecipeError("model.arch is unknown", found=arch, expected=", ".join(known)) from None


def decoder_size(arch: str, flavour: Flavour) -> DecoderSize:
    """The released decoder of `arch` in VideoMAE (all tokens) or VideoMAE V2 (dual masking)."""
    if arch != CUSTOM_INTERNVIDEO2:
        encoder_size(arch)
    if arch not in _DECODERS:
        raise RecipeError(
            f"model.arch={arch} has no decoder: it cannot be pre-trained as an autoencoder",
            expected=", ".join(_DECODERS),
        )
    if flavour == "videomae" and arch in _DECODERS_VIDEOMAE:
        return _DECODERS_VIDEOMAE[arch]
    return _DECODERS[arch]
