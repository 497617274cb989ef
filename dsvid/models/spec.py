"""A model as plain data: what a recipe asks for, what `weights/config.json` stores, and what builds it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from dsvid.errors import CheckpointError, RecipeError
from dsvid.models.mae import MaskedAutoencoder
from dsvid.models.sizes import DecoderSize, EncoderSize, Flavour, decoder_size, encoder_size
from dsvid.models.vit import VisionTransformer
from dsvid.tokens import PositionKind, TubeletGrid


@dataclass(frozen=True)
class ModelSpec:
    """Everything that fixes a model's parameters and output; `task` is "pretrain" or "classify"."""

    task: str
    arch: str
    num_frames: int
    input_size: int
    tubelet: int = 2
    num_classes: int = 0
    positions: PositionKind = "sincos_flat"
    drop_path: float = 0.0
    head_drop: float = 0.0
    head_init_scale: float = 0.001
    attention: str = "auto"
    decoder: Flavour = "videomae"
    decoder_dim: int = 0
    decoder_depth: int = 0
    decoder_heads: int = 0

    @property
    def encoder_size(self) -> EncoderSize:
        return encoder_size(self.arch)

    @property
    def decoder_size(self) -> DecoderSize:
        """The size's own decoder, with the numbers that are set here in their place."""
        own = decoder_size(self.arch, self.decoder)
        return replace(
            own,
            dim=self.decoder_dim or own.dim,
            depth=self.decoder_depth or own.depth,
            heads=self.decoder_heads or own.heads,
        )

    @property
    def grid(self) -> TubeletGrid:
        """The token grid; raises RecipeError where frames or pixels do not divide."""
        return TubeletGrid(
            self.num_frames, self.input_size, self.input_size, self.tubelet, encoder_size(self.arch).patch
        )

    def to_config(self) -> dict[str, Any]:
        """A JSON-ready dict that `from_config` reads."""
        return asdict(self)

    @classmethod
    def from_config(cls, config: dict[str, Any], source: str) -> ModelSpec:
        """The spec in a `config.json`. Raises CheckpointError for missing or unknown keys."""
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(config) - known)
        try:
            if unknown:
                raise TypeError(f"unknown keys {', '.join(unknown)}")
            return cls(**config)
        except TypeError as error:
            raise CheckpointError(f"{source}: the model description is not understood", found=str(error)) from error


def build_model(spec: ModelSpec, *, seed: int | None) -> MaskedAutoencoder | VisionTransformer:
    """The model of `spec`; `seed` None leaves the parameters unset. Raises RecipeError for sizes that do not fit."""
    if spec.task == "pretrain":
        return MaskedAutoencoder(
            spec.encoder_size,
            spec.decoder_size,
            spec.grid,
            positions=spec.positions,
            attention=spec.attention,
            drop_path=spec.drop_path,
            seed=seed,
        )
    if spec.task == "classify":
        return VisionTransformer(
            spec.encoder_size,
            spec.grid,
            num_classes=spec.num_classes,
            positions=spec.positions,
            drop_path=spec.drop_path,
            head_drop=spec.head_drop,
            attention=spec.attention,
            head_init_scale=spec.head_init_scale,
            seed=seed,
        )
    raise RecipeError(f"no model is known for task {spec.task!r}", expected="pretrain or classify")
