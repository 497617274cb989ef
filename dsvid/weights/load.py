"""Weights of any known family -> a model (`load_model`), or tensors to start training from (`open_start`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from dsvid.errors import CheckpointError, NoDecoderError
from dsvid.models.init import fill_meta, initial_value
from dsvid.models.sizes import (
    CLASSIFIERS,
    CUSTOM,
    CUSTOM_INTERNVIDEO2,
    ENCODERS,
    VIVIT_TRAITS,
    EncoderSize,
    Flavour,
    decoder_size,
    encoder_size,
    is_internvideo2,
)
from dsvid.models.spec import Model, ModelSpec, build_model, check_value
from dsvid.weights.families import choose_family, family_names
from dsvid.weights.family import Contents, Facts, Family
from dsvid.weights.fit import FINAL_NORM_POLICIES, FinalNormPolicy, Fitted, fit_shapes, read_head_map
from dsvid.weights.own import DSVID, own_spec
from dsvid.weights.report import LoadReport
from dsvid.weights.source import open_weights

__all__ = ["LoadReport", "Start", "family_names", "load_model", "open_start"]

# Names that users know -> fields of ModelSpec.
ALIASES = {
    "num_heads": "heads",
    "image_size": "input_size",
    "img_size": "input_size",
    "tubelet_size": "tubelet",
    "attn_pool_num_heads": "pool_heads",
}
_FIELDS = frozenset(field.name for field in fields(ModelSpec))
_SIZES = ("dim", "depth", "patch", "mlp_hidden")
# What a file may state that no tensor shows -> how a message calls it.
_WORDS = {
    "heads": "attention heads",
    "decoder_heads": "attention heads of the decoder",
    "pool_heads": "attention heads of the pooling",
    "gelu": "GELU",
}


class Start:
    """Weights to start from: `names` are our parameters that the file provides; `tensor` reads one of them."""

    def __init__(self, fitted: Fitted) -> None:
        self._fitted = fitted
        self.report: LoadReport = fitted.report
        self.names: frozenset[str] = frozenset(fitted.entries)

    def tensor(self, name: str) -> Tensor:
        """The fp32 CPU tensor of parameter `name`, read from the file now."""
        return self._fitted.tensor(name)


def open_start(
    path: Path,
    spec: ModelSpec,
    *,
    family: str = "auto",
    final_norm: str = "family",
    head_map: str = "",
    fresh_decoder: bool = False,
) -> Start:
    """The weights of `path` for the model of `spec`, every shape and every value checked, none kept in memory.

    `fresh_decoder`: of an autoencoder, only the encoder is taken, from a file with or without a decoder.
    Raises CheckpointError where a tensor is missing, of another shape, not finite, or has no known use.
    """
    policy = _policy(final_norm)
    file = open_weights(path)
    chosen, why = choose_family(file, family)
    contents = chosen.open(file, cls_token=spec.cls_token)
    _check_positions(contents, chosen, spec)
    fitted = _fit(contents, chosen, spec, policy, head_map, why, fresh_decoder)
    _check_stated(chosen.states(contents), fitted, spec)
    unexpected = fitted.report.unexpected
    if unexpected:
        raise CheckpointError(
            f"{path} holds tensors that the model has no place for",
            found=", ".join(unexpected[:6]),
            expected=f"weights of {spec.arch}",
        )
    for name in fitted.entries:
        fitted.tensor(name)
    return Start(fitted)


def _check_positions(contents: Contents, family: Family, spec: ModelSpec) -> None:
    """Raise CheckpointError where the model adds another table: it has no parameters, so nothing else would notice."""
    theirs = _facts(contents, family)["positions"]
    if theirs == spec.positions or spec.positions == "learned" or theirs == "learned":
        return
    fix = f"model.positions={theirs}"
    if family.name == "videomae" and spec.positions == "sincos_separable":
        fix += ", or model.init_family=mvd where it is a fine-tuned file of MVD"
    raise CheckpointError(
        f"{contents.file.path} was trained with other positions",
        found=f"{theirs} (family {family.name})",
        expected=spec.positions,
        fix=fix,
    )


def _check_stated(stated: Facts, fitted: Fitted, spec: ModelSpec) -> None:
    """Raise CheckpointError for other heads or another GELU than the file states: no shape shows them, and the weights
    would compute something else. Another eps goes into the report: training gets over it.
    """
    path = fitted.contents.file.path
    ours: Facts = {"heads": spec.encoder_size.heads, "gelu": spec.gelu}
    if spec.task == "pretrain" and "mask_token" in fitted.entries:
        ours["decoder_heads"] = spec.decoder_size.heads
    if spec.internvideo2:
        ours["pool_heads"] = spec.pool_heads
    for name, own in ours.items():
        if stated.get(name, own) != own:
            raise CheckpointError(
                f"{path} was trained with other {_WORDS[name]}",
                found=f"it states {stated[name]}",
                expected=own,
                fix=f"model.{name}={stated[name]}" if name != "pool_heads" else None,
            )
    end = "decoder.norm.weight" if spec.task == "pretrain" else "fc_norm.weight"
    places = {"norm_eps": "the norms of the blocks"}
    if end in fitted.entries and end in fitted.contents.entries:
        places["pooled_eps"] = end.removesuffix(".weight")
    for name, place in places.items():
        theirs, own = stated.get(name), getattr(spec, name)
        if theirs is not None and theirs != own:
            fitted.report.notes.append(f"the file states an eps of {theirs:g} for {place}, training uses {own:g}")


def load_model(
    path: Path | str, family: str = "auto", num_classes: int | None = None, **overrides: Any
) -> tuple[Any, LoadReport]:
    """The model of a weight file or folder, with its weights, on the CPU, in eval mode; and the report of the loading.

    `num_classes` None takes the file's own head, or none; 0 means features only. `overrides`: num_heads, num_frames,
    image_size, tubelet, final_norm_policy (family, simple_tad, ava), attn_pool_num_heads, gelu, positions
    ("checkpoint": the table in the file), head_map, dtype, task ("pretrain": the autoencoder), and any field of
    `ModelSpec`. A head of another class count is left out and reported; the parameters that the file does not hold
    start from seed 0. `model.spec` describes the model. Raises CheckpointError, and RecipeError for a value that a
    field of ModelSpec cannot have.
    """
    path = Path(path).expanduser()
    given = {ALIASES.get(name, name): value for name, value in overrides.items()}
    policy = _policy(given.pop("final_norm_policy", "family"))
    dtype = given.pop("dtype", torch.float32)
    head_map = given.pop("head_map", "")
    unknown = sorted(set(given) - _FIELDS)
    if unknown:
        raise CheckpointError(
            f"unknown model override {unknown[0]!r}",
            expected=f"final_norm_policy, dtype, head_map, {', '.join(ALIASES)}, or a field of ModelSpec",
        )
    if not path.exists():
        raise CheckpointError(f"{path}: nothing there", expected="a weight file or folder of a known family")
    file = open_weights(path)
    chosen, why = choose_family(file, family)
    contents = chosen.open(file, cls_token=policy != "simple_tad")
    spec = _describe(contents, chosen, given, num_classes, policy, head_map)
    fitted = _fit(contents, chosen, spec, policy, head_map, why)
    model = _filled(spec, fitted, dtype)
    model.spec = spec  # type: ignore[assignment]  # plain data on a module
    return model.eval(), fitted.report


def _policy(name: str) -> FinalNormPolicy:
    if name not in FINAL_NORM_POLICIES:
        raise CheckpointError("final_norm is unknown", found=name, expected=", ".join(FINAL_NORM_POLICIES))
    return cast("FinalNormPolicy", name)


def _fit(
    contents: Contents,
    family: Family,
    spec: ModelSpec,
    policy: FinalNormPolicy,
    head_map: str,
    why: str,
    fresh_decoder: bool = False,
) -> Fitted:
    with torch.device("meta"):
        model = build_model(spec, seed=None)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    return fit_shapes(
        contents,
        family,
        shapes,
        task=spec.task,
        grid=spec.grid,
        final_norm=policy,
        head_map=head_map,
        fresh_decoder=fresh_decoder,
        why=why,
    )


def _filled(spec: ModelSpec, fitted: Fitted, dtype: torch.dtype) -> Model:
    """The model, one tensor at a time: beside it there is never more than the largest of them."""
    with torch.device("meta"):
        model = build_model(spec, seed=None)
    options = model.init_options()

    def fill(name: str, out: Tensor) -> None:
        if name in fitted.entries:
            fitted.read_into(name, out)
        else:
            out.copy_(initial_value(name, out.shape, 0, **options))

    fill_meta(model, fill, dtype)
    return model


# ---- what a file says of its model ---------------------------------------------------------------------------------


def _facts(contents: Contents, family: Family) -> Facts:
    base = {"positions": family.positions, "num_frames": family.frames, "input_size": 224, "task": "classify"}
    return base | family.describe(contents)


def _describe(
    contents: Contents,
    family: Family,
    given: Mapping[str, Any],
    num_classes: int | None,
    policy: FinalNormPolicy,
    head_map: str,
) -> ModelSpec:
    """The spec of the model in a file, `given` fields in place of the file's own."""
    path = contents.file.path
    facts = _facts(contents, family) | dict(given)
    internvideo2 = facts.pop("internvideo2", False)
    if facts["positions"] == "checkpoint":
        if not {"pos_embed", "encoder.pos_embed"} & set(contents.entries) and not internvideo2:
            raise CheckpointError(f"{path} holds no position table", fix="leave positions=checkpoint out")
        facts["positions"] = "learned_separate" if "pos_embed_spatial" in contents.entries else "learned"
    if policy == "ava":
        facts["final_norm"] = "tokens"
    if num_classes is not None:
        facts["num_classes"] = num_classes
    elif head_map and facts["num_classes"]:
        facts["num_classes"] = len(read_head_map(Path(head_map), facts["num_classes"], None))
    if "arch" in given:
        facts |= _asked_size(given, contents, family)
    if "arch" not in facts:
        facts["heads"] = facts.get("heads") or _registered_heads(facts["dim"], path)
        facts |= _architecture(facts, internvideo2)
    if facts["task"] == "pretrain":
        facts["num_classes"] = 0
        facts |= {} if family is DSVID else _decoder(facts, path)
    elif family is not DSVID:
        facts = {name: value for name, value in facts.items() if not name.startswith("decoder")}
    return ModelSpec(**facts)


def _registered_heads(dim: int, path: Path) -> int:
    """The heads of the registered sizes of this width: no tensor shows them, and wrong ones compute rubbish."""
    known = {size.dim: size.heads for size in (*CLASSIFIERS.values(), *ENCODERS.values())}
    if dim not in known:
        raise CheckpointError(
            f"{path}: how many attention heads it has cannot be read from tensors",
            found=f"width {dim}, which no registered size has",
            expected="num_heads",
            fix="give num_heads=",
        )
    return known[dim]


def _asked_size(given: Mapping[str, Any], contents: Contents, family: Family) -> Facts:
    """The sizes of the architecture that is asked for. Raises CheckpointError where the file's are others."""
    check_value("arch", given["arch"])
    if given["arch"] in (CUSTOM, CUSTOM_INTERNVIDEO2):
        return {}
    facts = _facts(contents, family)
    theirs = _numbers(own_spec(contents).encoder_size) if family is DSVID else tuple(facts[name] for name in _SIZES)
    size = _numbers(encoder_size(given["arch"]))
    if theirs != size:
        raise CheckpointError(
            f"{contents.file.path} is not of the size of arch={given['arch']}",
            found=_size_words(theirs),
            expected=_size_words(size),
            fix="leave arch out, or give the file's own",
        )
    return dict.fromkeys(_SIZES, 0) | {name: given[name] for name in _SIZES if name in given}


def _size_words(size: tuple[int, ...]) -> str:
    return "width {}, {} blocks, patch {}, MLP {}".format(*size)


def _architecture(facts: Facts, internvideo2: bool) -> Facts:
    """The registered architecture of these sizes, or "custom"."""
    wanted = tuple(facts[name] for name in _SIZES)
    for arch, size in (ENCODERS | CLASSIFIERS).items():
        traits = VIVIT_TRAITS if arch == "vivit_base" else {"cls_token": False}
        if is_internvideo2(arch) != internvideo2 or _numbers(size) != wanted:
            continue
        if all(facts.get(name, False) == value for name, value in traits.items()):
            heads = 0 if facts["heads"] == size.heads else facts["heads"]
            return {"arch": arch, "heads": heads, **dict.fromkeys(_SIZES, 0)}
    return {"arch": CUSTOM_INTERNVIDEO2 if internvideo2 else CUSTOM}


def _numbers(size: EncoderSize) -> tuple[int, int, int, int]:
    return size.dim, size.depth, size.patch, size.hidden


def _decoder(facts: Facts, path: Path) -> Facts:
    """The decoder's fields: a released one of this width and depth, or one whose heads are given."""
    dim, depth = facts.get("decoder_dim", 0), facts.get("decoder_depth", 0)
    if not dim:
        raise NoDecoderError(
            f"{path} holds no decoder", expected="pre-training weights with VideoMAE's decoder", fix="leave task out"
        )
    if facts.get("decoder_heads"):
        return {}
    flavours: tuple[Flavour, ...] = ("videomae", "videomaev2")
    for flavour in flavours if facts["arch"] in ENCODERS else ():
        own = decoder_size(facts["arch"], flavour)
        if (own.dim, own.depth, own.hidden) == (dim, depth, facts.get("decoder_hidden", own.hidden)):
            return {"decoder": flavour, "decoder_dim": 0, "decoder_depth": 0, "decoder_hidden": 0}
    raise CheckpointError(
        f"{path}: the decoder is no released one, and a file does not say how many heads it has",
        found=f"width {dim}, depth {depth}",
        fix="give decoder_heads=",
    )
