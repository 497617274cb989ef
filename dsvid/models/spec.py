"""A model as plain data: what a recipe asks for, what `weights/config.json` stores, and what builds it."""

from __future__ import annotations

import functools
import math
import typing
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, cast

import torch

from dsvid.errors import CheckpointError, RecipeError
from dsvid.models.attention import REQUESTS
from dsvid.models.init import fill_meta, initial_value
from dsvid.models.internvideo2 import InternVideo2
from dsvid.models.mae import MaskedAutoencoder
from dsvid.models.sizes import (
    CUSTOM,
    CUSTOM_INTERNVIDEO2,
    VIVIT_TRAITS,
    DecoderSize,
    EncoderSize,
    Flavour,
    decoder_size,
    encoder_size,
    is_internvideo2,
)
from dsvid.models.vit import FinalNorm, Pool, VisionTransformer
from dsvid.tokens import FixedKind, PositionKind, TubeletGrid

Model = MaskedAutoencoder | VisionTransformer | InternVideo2
TASKS = ("pretrain", "classify", "detect", "anomaly")

_AT_LEAST_1 = ("num_frames", "input_size", "tubelet", "pool_heads", "pool_dim")
_SHARES = ("drop_path", "head_drop")


@dataclass(frozen=True)
class ModelSpec:
    """Everything that fixes a model's parameters and output.

    `task` "pretrain" gives an autoencoder, every other one an encoder with a head. A size of 0 is the architecture's
    own; the architectures "custom" and "internvideo2_custom" have none, so there every one is given. Architectures with
    learned positions (InternVideo2, ViViT) have them whatever fixed table `positions` names. Raises RecipeError for a
    value that a field cannot have.
    """

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
    decoder_hidden: int = 0
    dim: int = 0
    depth: int = 0
    heads: int = 0
    patch: int = 0
    mlp_hidden: int = 0
    final_norm: FinalNorm = "pooled"
    cls_token: bool = False
    pool: Pool = "mean"
    norm_eps: float = 1e-6
    pooled_eps: float = 1e-6
    gelu: Literal["erf", "tanh"] = "erf"
    pool_heads: int = 16
    pool_dim: int = 768

    def __post_init__(self) -> None:
        for field in fields(self):
            check_value(field.name, getattr(self, field.name))
        if self.arch == "vivit_base":
            for name, value in VIVIT_TRAITS.items():
                object.__setattr__(self, name, value)
        if self.internvideo2 and self.positions != "learned_separate":
            object.__setattr__(self, "positions", "learned")

    @property
    def internvideo2(self) -> bool:
        """Whether the model has InternVideo2's block."""
        return is_internvideo2(self.arch)

    @property
    def extra_tokens(self) -> int:
        """Tokens besides those of the clip: the class token."""
        return 1 if self.cls_token or self.internvideo2 else 0

    @property
    def encoder_size(self) -> EncoderSize:
        """The architecture's own size, with the numbers that are set here in their place."""
        if self.arch in (CUSTOM, CUSTOM_INTERNVIDEO2):
            for name in ("dim", "depth", "heads", "patch", "mlp_hidden"):
                if not getattr(self, name):
                    raise RecipeError(f"model.arch={self.arch} has no size of its own", fix=f"give {name}=")
            return EncoderSize(self.dim, self.depth, self.heads, self.patch, mlp_hidden=self.mlp_hidden)
        own = encoder_size(self.arch)
        return replace(
            own,
            dim=self.dim or own.dim,
            depth=self.depth or own.depth,
            heads=self.heads or own.heads,
            patch=self.patch or own.patch,
            mlp_hidden=self.mlp_hidden,
        )

    @property
    def decoder_size(self) -> DecoderSize:
        """The size's own decoder, with the numbers that are set here in their place."""
        if self.arch == CUSTOM:
            for name in ("decoder_dim", "decoder_depth", "decoder_heads"):
                if not getattr(self, name):
                    raise RecipeError("model.arch=custom has no decoder of its own", fix=f"give {name}=")
            numbers = self.decoder_dim, self.decoder_depth, self.decoder_heads
            return DecoderSize(*numbers, mlp_hidden=self.decoder_hidden)
        own = decoder_size(self.arch, self.decoder)
        return replace(
            own,
            dim=self.decoder_dim or own.dim,
            depth=self.decoder_depth or own.depth,
            heads=self.decoder_heads or own.heads,
            mlp_hidden=self.decoder_hidden,
        )

    @property
    def grid(self) -> TubeletGrid:
        """The token grid; raises RecipeError where frames or pixels do not divide."""
        return TubeletGrid(self.num_frames, self.input_size, self.input_size, self.tubelet, self.encoder_size.patch)

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
        except (TypeError, RecipeError) as error:
            what = error.what if isinstance(error, RecipeError) else str(error)
            expected = error.expected if isinstance(error, RecipeError) else None
            raise CheckpointError(
                f"{source}: the model description is not understood", found=what, expected=expected
            ) from error


def check_value(name: str, value: Any, shown: str = "") -> None:
    """Raise RecipeError, by the name `shown`, where `value` is none that field `name` of ModelSpec can have."""
    good, expected = _judge(name, value)
    if not good:
        raise RecipeError(f"{shown or name}={value} is no value of {shown or name}", expected=expected)


@functools.lru_cache(maxsize=1)
def _hints() -> dict[str, Any]:
    return typing.get_type_hints(ModelSpec)


def _judge(name: str, value: Any) -> tuple[bool, str]:
    """Whether the value is allowed, and what is."""
    hint = _hints()[name]
    words = {"attention": REQUESTS, "task": TASKS}.get(name, typing.get_args(hint))
    if words:
        return value in words, ", ".join(words)
    if hint is bool:
        return isinstance(value, bool), "true or false"
    if hint is str:
        return isinstance(value, str), "a text"
    if hint is int:
        least = 1 if name in _AT_LEAST_1 else 0
        return isinstance(value, int) and not isinstance(value, bool) and value >= least, f"a whole number >= {least}"
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if name in _SHARES:
        return number and 0 <= value < 1, "a number from 0 to below 1"
    return number and value > 0, "a number above 0"


def build_model(spec: ModelSpec, *, seed: int | None, dtype: torch.dtype = torch.float32) -> Model:
    """The model of `spec`; `seed` None leaves the parameters unset. Raises RecipeError for sizes that do not fit.

    In another dtype than fp32 (on the CPU) the values are set one parameter at a time: an fp32 model never exists.
    """
    if seed is None or dtype == torch.float32:
        return _construct(spec, seed)
    with torch.device("meta"):
        model = _construct(spec, None)
    options = model.init_options()
    fill_meta(model, lambda name, out: out.copy_(initial_value(name, out.shape, seed, **options)), dtype)
    return model


def _construct(spec: ModelSpec, seed: int | None) -> Model:
    if spec.task == "pretrain":
        return MaskedAutoencoder(
            spec.encoder_size,
            spec.decoder_size,
            spec.grid,
            positions=cast("FixedKind", spec.positions),
            attention=spec.attention,
            drop_path=spec.drop_path,
            norm_eps=spec.norm_eps,
            last_eps=spec.pooled_eps,
            gelu=spec.gelu,
            seed=seed,
        )
    shared: dict[str, Any] = {
        "num_classes": spec.num_classes,
        "positions": spec.positions,
        "drop_path": spec.drop_path,
        "head_drop": spec.head_drop,
        "attention": spec.attention,
        "head_init_scale": spec.head_init_scale,
        "gelu": spec.gelu,
        "seed": seed,
    }
    if spec.internvideo2:
        return InternVideo2(spec.encoder_size, spec.grid, pool_heads=spec.pool_heads, pool_dim=spec.pool_dim, **shared)
    return VisionTransformer(
        spec.encoder_size,
        spec.grid,
        final_norm="tokens" if spec.task == "detect" else spec.final_norm,
        cls_token=spec.cls_token,
        pool=spec.pool,
        norm_eps=spec.norm_eps,
        pooled_eps=spec.pooled_eps,
        **shared,
    )
