"""Weights to start from: a dsvid weight folder or a VideoMAE-layout file -> tensors by our names, or a model."""

from __future__ import annotations

import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dsvid.errors import CheckpointError
from dsvid.models.mae import MaskedAutoencoder
from dsvid.models.sizes import ENCODERS, Flavour, decoder_size
from dsvid.models.spec import ModelSpec, build_model
from dsvid.models.vit import VisionTransformer
from dsvid.weights.folder import check_finite, read_config, read_state
from dsvid.weights.videomae import LoadReport, autoencoder_state, encoder_state, read_file

FAMILIES = ("auto", "dsvid", "videomae")


def initial_state(path: Path, spec: ModelSpec) -> tuple[dict[str, Tensor], LoadReport]:
    """Tensors of `path` for the model of `spec`, and what became of each. Raises CheckpointError where they do not fit.

    Pre-training weights for a classifier: the encoder alone. Parameters that are not in the result keep their initial
    values; the report names them as missing.
    """
    state = read_state(path) if path.is_dir() else read_file(path)
    check_finite(state, path)
    if path.is_dir():
        theirs = ModelSpec.from_config(read_config(path)["model"], str(path))
        if theirs.positions != spec.positions:  # the table has no parameters, so nothing else would notice
            raise CheckpointError(
                f"{path} was trained with other positions",
                found=theirs.positions,
                expected=spec.positions,
                fix=f"model.positions={theirs.positions}",
            )
    tensors, report = _fit(state, spec, str(path))
    if report.unexpected:
        raise CheckpointError(
            f"{path} holds tensors that the model has no place for",
            found=", ".join(report.unexpected[:6]),
            expected=f"weights of {spec.arch}",
        )
    return tensors, report


def _fit(state: dict[str, Tensor], spec: ModelSpec, source: str) -> tuple[dict[str, Tensor], LoadReport]:
    with torch.device("meta"):
        model = build_model(spec, seed=None)
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    if spec.task == "pretrain":
        return autoencoder_state(state, shapes, source)
    return encoder_state(state, shapes, source)


def load_model(
    path: Path | str, family: str = "auto", num_classes: int | None = None, **overrides: Any
) -> tuple[MaskedAutoencoder | VisionTransformer, LoadReport]:
    """The model of a weight folder or file, with its weights, in fp32 on the CPU; and the report of the loading.

    `num_classes` asks for a classifier with that many classes (0: features only); without it the model is the one that
    was trained. `overrides` change fields of `ModelSpec` (attention, drop_path, …). Raises CheckpointError.
    """
    path = Path(path)
    if family not in FAMILIES:
        raise CheckpointError(f"unknown checkpoint family {family!r}", expected=", ".join(FAMILIES))
    if not path.exists():
        raise CheckpointError(f"{path}: nothing there", expected="a weight folder of dsvid or a VideoMAE .pth file")
    if path.is_dir():
        state, spec = read_state(path), ModelSpec.from_config(read_config(path)["model"], str(path))
    else:
        state = read_file(path)
        spec = _spec_of_file(state, path, named=num_classes is not None or "decoder_heads" in overrides)
    check_finite(state, path)
    if num_classes is not None:
        spec = replace(spec, task="classify", num_classes=num_classes)
    unknown = sorted(set(overrides) - {field.name for field in fields(ModelSpec)})
    if unknown:
        raise CheckpointError(f"unknown model override {unknown[0]!r}", expected="a field of ModelSpec")
    spec = replace(spec, **overrides)
    tensors, report = _fit(state, spec, str(path))
    model = build_model(spec, seed=0)  # what the file does not hold (a new head) starts from its initial values
    model.load_state_dict(tensors, strict=False)
    return model, report


def _spec_of_file(state: dict[str, Tensor], path: Path, *, named: bool) -> ModelSpec:
    """What a VideoMAE pre-training file was trained as, read off its tensors; frames and size are the family's.

    `named`: the caller says what the decoder is, or wants none.
    """
    patches = next((v for k, v in state.items() if k.endswith("patch_embed.proj.weight")), None)
    blocks = {int(m[1]) for k in state if (m := re.match(r"(?:encoder\.)?blocks\.(\d+)\.", k))}
    if patches is None or patches.ndim != 5 or not blocks:
        raise CheckpointError(
            f"{path} is of no family that dsvid knows yet",
            found=", ".join(sorted(state)[:4]),
            expected="VideoMAE or VideoMAE V2 (encoder.patch_embed.proj.weight, encoder.blocks.0.…)",
        )
    dim, patch, depth = patches.shape[0], patches.shape[-1], max(blocks) + 1
    arch = next((n for n, s in ENCODERS.items() if (s.dim, s.depth, s.patch) == (dim, depth, patch)), None)
    if arch is None:
        raise CheckpointError(
            f"{path}: no registered size has this shape", found=f"width {dim}, depth {depth}, patch {patch}"
        )
    spec = ModelSpec("pretrain", arch, num_frames=16, input_size=224, tubelet=patches.shape[2])
    decoder = {int(m[1]) for k in state if (m := re.match(r"decoder\.blocks\.(\d+)\.", k))}
    token = state.get("mask_token")
    if decoder and token is not None:
        return spec if named else _with_decoder(spec, token.shape[-1], max(decoder) + 1, path)
    return replace(spec, task="classify", num_classes=state["head.weight"].shape[0] if "head.weight" in state else 0)


def _with_decoder(spec: ModelSpec, dim: int, depth: int, path: Path) -> ModelSpec:
    """The released decoder of this width and depth. No tensor shows its heads: wrong ones load and compute rubbish."""
    flavours: tuple[Flavour, ...] = ("videomae", "videomaev2")
    for flavour in flavours:
        own = decoder_size(spec.arch, flavour)
        if (own.dim, own.depth) == (dim, depth):
            return replace(spec, decoder=flavour)
    raise CheckpointError(
        f"{path}: the decoder is not a released one of {spec.arch}, and a file does not say how many heads it has",
        found=f"width {dim}, depth {depth}",
        fix="give decoder_dim=, decoder_depth= and decoder_heads=, or num_classes=0 for the encoder alone",
    )
