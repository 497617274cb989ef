"""Weights out: our tensors and names -> a Hugging Face VideoMAE folder, a VideoMAE `.pth`, or a dsvid weight folder.

Every layout takes a whole model or refuses it by name: what a layout cannot hold is never left out in silence.
Destinations appear complete or not at all. Reads no model and no engine; `dsvid.weights.load` reads all three back.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor

from dsvid.errors import CheckpointError
from dsvid.models.spec import ModelSpec
from dsvid.publish import publish_file, publish_folder
from dsvid.tokens import FixedKind, position_table
from dsvid.weights.card import Card
from dsvid.weights.folder import write_folder
from dsvid.weights.hf import POOLED_EPS as HF_POOLED_EPS
from dsvid.weights.stream import write_safetensors

Layout = Literal["dsvid", "hf", "videomae"]
LAYOUTS: tuple[Layout, ...] = ("dsvid", "hf", "videomae")
HF_FILES = ("config.json", "model.safetensors", "preprocessor_config.json")
DSVID_FILES = ("config.json", "model.safetensors")

VIDEOMAE_EPS = 1e-6


def export(
    layout: Layout, destination: Path, state: Mapping[str, Tensor], spec: ModelSpec, card: Card, *, overwrite: bool
) -> list[str]:
    """Write `state` (our names, fp32) under `destination`; returns remarks for the user.

    Raises CheckpointError where the layout cannot hold the model, where the destination exists (with `overwrite`: where
    it is not one that dsvid writes) or cannot be written.
    """
    check_destination(layout, destination, overwrite=overwrite)
    if layout == "hf":
        write_hf(destination, state, spec, card)
    elif layout == "videomae":
        write_videomae(destination, state, spec, card)
    else:
        write_dsvid(destination, state, spec, card)
    return remarks(layout, spec)


def remarks(layout: Layout, spec: ModelSpec) -> list[str]:
    """Where the layout's own code computes a little else than dsvid, and by how much."""
    out: list[str] = []
    if layout == "hf":
        if spec.pooled_eps != HF_POOLED_EPS:
            name = "decoder.norm" if spec.task == "pretrain" else "fc_norm"
            share = abs(HF_POOLED_EPS - spec.pooled_eps) / 2
            out.append(
                f"{name}: transformers adds {HF_POOLED_EPS:g} to the variance there and cannot be told otherwise, this "
                f"model {spec.pooled_eps:g}: a relative difference of {share:.1e} / variance, and none elsewhere"
            )
        out.append("transformers before 5.18 says that some biases were not used: they stand there under two names")
    if layout == "videomae" and {spec.norm_eps, spec.pooled_eps} != {VIDEOMAE_EPS}:
        out.append(
            f"norms: VideoMAE's code adds {VIDEOMAE_EPS:g} to the variance, this model {spec.norm_eps:g} in its blocks "
            f"and {spec.pooled_eps:g} at its end"
        )
    return out


def check_destination(layout: Layout, destination: Path, *, overwrite: bool) -> None:
    """Raise CheckpointError where `destination` must not or cannot be written: before minutes of reading."""
    if layout == "videomae":
        if destination.is_dir():
            raise CheckpointError(
                f"{destination} is a folder", expected="a file: --to videomae writes one .pth", fix=f"{destination}.pth"
            )
    elif destination.exists():
        own = HF_FILES if layout == "hf" else DSVID_FILES
        foreign = [p.name for p in destination.iterdir() if p.name not in own] if destination.is_dir() else ["a file"]
        if foreign:
            raise CheckpointError(
                f"weight folder {destination} holds other files"
                if destination.is_dir()
                else f"{destination} is a file",
                found=", ".join(sorted(foreign)[:5]),
                expected="a new folder, or one that dsvid wrote",
                fix="choose another destination",
            )
    occupied = destination.is_file() or (destination.is_dir() and any(destination.iterdir()))
    if occupied and not overwrite:
        raise CheckpointError(f"{destination} exists", fix="another destination, or --overwrite")
    check_writable(destination)


def check_writable(destination: Path) -> None:
    """Raise CheckpointError where nothing can be made at `destination`."""
    parent = destination.absolute().parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise CheckpointError(
            f"{destination} cannot be written",
            found=f"{parent} is a file" if not parent.is_dir() else f"no permission in {parent}",
            fix="choose another destination",
        )


def write_dsvid(folder: Path, state: Mapping[str, Tensor], spec: ModelSpec, card: Card) -> None:
    """The self-describing weight folder of dsvid."""
    write_folder(folder, state, {"model": spec.to_config(), **card.to_config()})


# ---- VideoMAE ------------------------------------------------------------------------------------------------------


def write_videomae(path: Path, state: Mapping[str, Tensor], spec: ModelSpec, card: Card) -> None:
    """A `.pth` that the originals' loaders read: pre-training weights under "model", a classifier under "module".

    Our names are theirs already. Beside the tensors "dsvid" holds what the layout has no place for; the originals
    ignore it, and it loads with `weights_only=True`. Raises CheckpointError where their model differs from `spec`.
    """
    _refuse_other_models(spec, "VideoMAE's layout")
    if spec.gelu != "erf":
        raise _not_there("VideoMAE's layout", f"GELU {spec.gelu}; VideoMAE's is erf")
    _check_names(state, _videomae_names(spec), "VideoMAE's layout")
    described = {"model": spec.to_config(), **card.to_config()}
    tensors = {name: _alone(tensor.detach().float()) for name, tensor in state.items()}
    content = {"model" if spec.task == "pretrain" else "module": tensors, "dsvid": described}
    _publish_file(path, content)


def _videomae_names(spec: ModelSpec) -> set[str]:
    prefix = "encoder." if spec.task == "pretrain" else ""
    names = {f"{prefix}patch_embed.proj.weight", f"{prefix}patch_embed.proj.bias"}
    names |= {f"{prefix}blocks.{i}.{part}" for i in range(spec.encoder_size.depth) for part in _BLOCK}
    if spec.task == "pretrain":
        names |= {f"decoder.blocks.{i}.{part}" for i in range(spec.decoder_size.depth) for part in _BLOCK}
        norms = ("encoder.norm", "decoder.norm", "decoder.head")
        return names | {f"{n}.{k}" for n in norms for k in _AFFINE} | {"encoder_to_decoder.weight", "mask_token"}
    ends = ("fc_norm", "head") if spec.num_classes else ("fc_norm",)
    return names | {f"{name}.{kind}" for name in ends for kind in _AFFINE}


_AFFINE = ("weight", "bias")
_BLOCK = (
    "norm1.weight", "norm1.bias", "attn.qkv.weight", "attn.q_bias", "attn.v_bias", "attn.proj.weight", "attn.proj.bias",
    "norm2.weight", "norm2.bias", "mlp.fc1.weight", "mlp.fc1.bias", "mlp.fc2.weight", "mlp.fc2.bias",
)  # fmt: skip


# ---- Hugging Face --------------------------------------------------------------------------------------------------


def write_hf(folder: Path, state: Mapping[str, Tensor], spec: ModelSpec, card: Card) -> None:
    """A folder for VideoMAEForPreTraining or VideoMAEForVideoClassification of transformers 4.57 and later.

    The biases of q and v stand there under both names that transformers gave them: each release reads its own, and
    takes the other's for absent without an error. Raises CheckpointError where its VideoMAE cannot be `spec`.
    """
    _refuse_other_models(spec, "transformers' VideoMAE")
    _check_names(state, _videomae_names(spec), "transformers' VideoMAE")
    tensors = hf_tensors(state, spec)
    texts = {"config.json": hf_config(spec, card), "preprocessor_config.json": _processor(spec, card)}

    def fill(scratch: Path) -> None:
        with (scratch / "model.safetensors").open("wb") as out:
            write_safetensors(out, tensors)
        for name, content in texts.items():
            (scratch / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    _publish_folder(folder, fill)


def hf_tensors(state: Mapping[str, Tensor], spec: ModelSpec) -> dict[str, Tensor]:
    """Our tensors by transformers' names, fp32, each with memory of its own."""
    out: dict[str, Tensor] = {}
    for name, tensor in state.items():
        entries = _hf_entries(name, tensor.detach().float())
        for theirs, value in entries:
            out[theirs] = value.clone() if len(entries) > 1 else _alone(value)
    return out


def _alone(tensor: Tensor) -> Tensor:
    """The tensor in memory that holds nothing else: of a view both formats would write the whole, or refuse it."""
    whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return tensor if whole and tensor.is_contiguous() else tensor.contiguous().clone()


def _hf_entries(name: str, tensor: Tensor) -> list[tuple[str, Tensor]]:
    own = name.removeprefix("encoder.")
    if own.startswith("patch_embed.proj."):
        kind = own.rpartition(".")[2]
        return [(f"videomae.embeddings.patch_embeddings.projection.{kind}", tensor)]
    for ours, theirs in (("decoder.blocks.", "decoder.decoder_layers."), ("blocks.", "videomae.encoder.layer.")):
        if own.startswith(ours):
            number, _, part = own.removeprefix(ours).partition(".")
            return [(f"{theirs}{number}.{key}", value) for key, value in _hf_block(part, tensor)]
    if name.startswith("encoder.norm."):
        return [(f"videomae.layernorm.{name.rpartition('.')[2]}", tensor)]
    if name.startswith("head."):
        return [(f"classifier.{name.rpartition('.')[2]}", tensor)]
    return [(name, tensor)]  # fc_norm, encoder_to_decoder, mask_token, decoder.norm, decoder.head


_HF_BLOCK = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}


def _hf_block(part: str, tensor: Tensor) -> list[tuple[str, Tensor]]:
    inner = "attention.attention"
    if part == "attn.qkv.weight":
        names = ("query", "key", "value")
        return [(f"{inner}.{n}.weight", third) for n, third in zip(names, tensor.chunk(3), strict=True)]
    if part in ("attn.q_bias", "attn.v_bias"):
        short = part.removeprefix("attn.")
        whole = "query" if short == "q_bias" else "value"
        return [(f"{inner}.{short}", tensor), (f"{inner}.{whole}.bias", tensor)]
    ours, _, kind = part.rpartition(".")
    return [(f"{_HF_BLOCK[ours]}.{kind}", tensor)]


_HF_GELU = {"erf": "gelu", "tanh": "gelu_pytorch_tanh"}


def hf_config(spec: ModelSpec, card: Card) -> dict[str, Any]:
    """transformers' `config.json`; the key "dsvid" holds what transformers has no key for, and ignores."""
    size, pretrain = spec.encoder_size, spec.task == "pretrain"
    config: dict[str, Any] = {
        "architectures": ["VideoMAEForPreTraining" if pretrain else "VideoMAEForVideoClassification"],
        "model_type": "videomae",
        "image_size": spec.input_size,
        "num_frames": spec.num_frames,
        "num_channels": 3,
        "tubelet_size": spec.tubelet,
        "patch_size": size.patch,
        "hidden_size": size.dim,
        "num_hidden_layers": size.depth,
        "num_attention_heads": size.heads,
        "intermediate_size": size.hidden,
        "hidden_act": _HF_GELU[spec.gelu],
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": spec.norm_eps,
        "use_mean_pooling": not pretrain,
        "torch_dtype": "float32",
    }
    if pretrain:
        decoder = spec.decoder_size
        config |= {
            "decoder_hidden_size": decoder.dim,
            "decoder_num_hidden_layers": decoder.depth,
            "decoder_num_attention_heads": decoder.heads,
            "decoder_intermediate_size": decoder.hidden,
            "norm_pix_loss": card.norm_pix,
        }
    else:
        names = card.labels or tuple(f"LABEL_{i}" for i in range(spec.num_classes))
        config["id2label"] = {str(i): name for i, name in enumerate(names)}
        config["label2id"] = {name: i for i, name in enumerate(names)}
    described = card.to_config()
    own = {"model": {"pooled_eps": spec.pooled_eps}, "input": described["input"], "trained": described["trained"]}
    return {**config, "dsvid": own}


def _processor(spec: ModelSpec, card: Card) -> dict[str, Any]:
    return {
        "image_processor_type": "VideoMAEImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": card.short_side(spec.input_size)},
        "resample": 2,  # bilinear
        "do_center_crop": True,
        "crop_size": {"height": spec.input_size, "width": spec.input_size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(card.mean),
        "image_std": list(card.std),
    }


# ---- what a layout cannot hold -------------------------------------------------------------------------------------


def _refuse_other_models(spec: ModelSpec, layout: str) -> None:
    """Raise CheckpointError where the layout's own code would compute something else from these tensors."""
    if spec.internvideo2:
        raise _not_there(layout, f"{spec.arch}: RMSNorm, normalised queries and keys, LayerScale, attention pooling")
    if spec.cls_token or spec.positions.startswith("learned"):
        raise _not_there(layout, "a class token" if spec.cls_token else "learned positions")
    if not _has_flat_positions(spec):
        raise _not_there(layout, f"positions {spec.positions}; VideoMAE adds its table over the flat token index")
    if spec.task == "detect" or spec.final_norm != "pooled" or spec.pool != "mean":
        raise _not_there(layout, "a norm over all tokens at the end; VideoMAE's classifier pools first")


def _not_there(layout: str, found: str) -> CheckpointError:
    return CheckpointError(
        f"{layout} cannot hold this model", found=found, expected="a plain VideoMAE transformer", fix="--to dsvid"
    )


def _has_flat_positions(spec: ModelSpec) -> bool:
    """Whether the fixed table is VideoMAE's: UMT's is at the grid that UMT was pre-trained with."""
    grid, dim = spec.grid, spec.encoder_size.dim
    kind = cast("FixedKind", spec.positions)
    if kind == "sincos_flat":
        return True
    theirs, ours = (position_table(k, grid.t, grid.h, grid.w, dim) for k in ("sincos_flat", kind))
    return torch.equal(theirs, ours)


def _check_names(state: Mapping[str, Tensor], expected: set[str], layout: str) -> None:
    extra, missing = sorted(set(state) - expected), sorted(expected - set(state))
    if extra:
        raise CheckpointError(
            f"{layout} has no place for {len(extra)} tensors of this model",
            found=", ".join(extra[:4]),
            fix="--to dsvid",
        )
    if missing:
        raise CheckpointError(f"the model lacks {len(missing)} tensors", found=f"no {', '.join(missing[:4])}")


# ---- publishing ----------------------------------------------------------------------------------------------------


def _publish_file(path: Path, content: dict[str, Any]) -> None:
    """Publish a torch file. Raises CheckpointError where the file system refuses."""
    try:
        publish_file(path, lambda out: torch.save(content, out))
    except (OSError, RuntimeError) as error:  # torch.save raises RuntimeError where the disk is full
        raise _unwritable(path, error) from error


def _publish_folder(folder: Path, fill: Callable[[Path], None]) -> None:
    """Publish a folder. Raises CheckpointError where the file system refuses."""
    try:
        publish_folder(folder, fill)
    except (OSError, RuntimeError) as error:
        raise _unwritable(folder, error) from error


def _unwritable(path: Path, error: Exception) -> CheckpointError:
    reason = str(error).strip().partition("\n")[0]
    return CheckpointError(f"{path} cannot be written", found=reason, fix="choose another destination")
