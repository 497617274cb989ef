"""Every family's checkpoint file, by `load_model` -> features, logits, tokens and tables of the original model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from dsvid.models.vit import video_patches
from dsvid.tokens import position_table
from dsvid.weights import load_model
from dsvid.weights.vivit import simple_tad_state
from tests.reference.comparing import assert_close
from tests.reference.registry import checks

ATOL, TOKENS_ATOL, F64_ATOL, FP16_TABLE_ATOL = 1e-5, 2e-5, 1e-6, 5e-4
Case = dict[str, Any]
Io = dict[str, Tensor]
FAMILIES = {"videomae-hf": "hf"}
# Keys that are inputs or are compared by `_check_outputs` under the policy of a suffix.
_INPUTS = ("clip", "clip_square", "head.weight", "head.bias")


class Checked:
    """The expected tensors of a case, and which of them have been compared: none may be passed over."""

    def __init__(self, folder: Path, case: Case) -> None:
        self.io = load_file(folder / "io.safetensors")
        self.left = set(self.io) - set(_INPUTS)
        self.shuffled = case["family"] == "mme"
        limits = case["tolerance"]
        self.atol = min(ATOL, limits["float32"]["atol"])
        self.f64_atol = min(F64_ATOL, limits.get("float64", {"atol": F64_ATOL})["atol"])

    def close(self, key: str, ours: Tensor, atol: float | None = None) -> None:
        """Compare `ours` with the case's tensor `key`."""
        self.left.discard(key)
        default = self.f64_atol if key.endswith("_f64") else self.atol
        assert_close(key, ours, self.io[key], default if atol is None else atol)

    def finish(self) -> None:
        """Fail where the case holds a tensor that nothing has looked at."""
        assert not self.left, f"not compared: {', '.join(sorted(self.left))}"


@checks(
    "pretraining checkpoint -> fine-tuning model",
    "pretraining/distillation checkpoint -> fine-tuning model",
    "fine-tuned checkpoint",
    "fine-tuned/distilled checkpoint used as backbone init for another class count",
    "HF VideoMAEForVideoClassification",
    "HF VideoMAEForPreTraining -> classification",
    "HF VivitForVideoClassification, hub naming",
    "ViViT (HF VivitModel, fp16) converted by simple-tad other_models/ViViT/ckpt_vivit.py",
)
@torch.no_grad()
def check_backbone(folder: Path, case: Case) -> None:
    checked = Checked(folder, case)
    io = checked.io
    for suffix in ("", "_simple_tad", "_ckpt_pos"):
        if f"logits{suffix}" in io:
            _check_outputs(_load(folder, case, io, suffix), checked, suffix)
    if "logits_gelu_tanh" in io:
        checked.close("logits_gelu_tanh", _load(folder, case, io, gelu="tanh")(io["clip"]))
    for key in [key for key in checked.left if key.startswith("logits_own_head_")]:
        checked.close(key, _load(folder, case, {}, num_classes=None)(io["clip"]))
    if "pos_embed_sincos" in io:
        checked.close("pos_embed_sincos", _table(_load(folder, case, io, "_simple_tad")))
    _check_same_weights(folder, case, io)
    if (folder / "hf_state_dict.pth").is_file():
        _check_conversion(folder, case, io)
    checked.finish()


def _load(folder: Path, case: Case, io: Io, suffix: str = "", file: str = "checkpoint.pth", **overrides: Any) -> Any:
    """The model of the case; its head set from `io` where the case gives one."""
    arch = case["arch"]
    given: dict[str, Any] = {
        "family": FAMILIES.get(case["family"], case["family"]),
        "num_classes": arch["num_classes"],
        "num_heads": arch["num_heads"],
        "num_frames": arch["num_frames"],
        "image_size": arch["img_size"],
        "tubelet": arch["tubelet_size"],
    }
    if "attn_pool_num_heads" in arch:
        given["attn_pool_num_heads"] = arch["attn_pool_num_heads"]
    if suffix:
        given["final_norm_policy"] = "simple_tad"
    if suffix == "_ckpt_pos":
        given["positions"] = "checkpoint"
    model, report = load_model(folder / file, **given | overrides)
    assert not report.unexpected, report.table()
    if "head.weight" in io:
        assert {"head.weight", "head.bias"} <= set(report.missing), report.table()
        with torch.no_grad():
            model.head.weight.copy_(io["head.weight"])
            model.head.bias.copy_(io["head.bias"])
    return model


def _check_outputs(model: Any, checked: Checked, suffix: str) -> None:
    io = checked.io
    clip, grid = io["clip"], model.grid
    if f"features{suffix}" in io:
        checked.close(f"features{suffix}", model.forward_features(clip))
    checked.close(f"logits{suffix}", model(clip))
    if not suffix:
        patches = video_patches(clip, grid)
        tokens = model.encode(patches)
        _compare_tokens(checked, "tokens_in", model.embed(patches))
        _compare_tokens(checked, "tokens_out", tokens)
        if "last_hidden_state" in io:
            checked.close("last_hidden_state", model.norm(tokens), TOKENS_ATOL)
        if "pooled_before_fc_norm" in io:
            checked.close("pooled_before_fc_norm", model.clip_projector(tokens))
        if "pos_embed" in io:
            checked.close("pos_embed", _table(model))
        for key in ("pos_embed_spatial", "pos_embed_temporal", "pos_embed_cls"):
            if key in io:
                checked.close(key, getattr(model, key))
    keys = [f"{kind}{suffix}_f64" for kind in ("features", "logits")]
    if any(key in io for key in keys):
        exact = model.double()
        for key, ours in zip(keys, (exact.forward_features(clip.double()), exact(clip.double())), strict=True):
            if key in io:
                checked.close(key, ours)


def _compare_tokens(checked: Checked, key: str, ours: Tensor) -> None:
    if key not in checked.io:
        return
    if checked.shuffled:
        ours, expected = _matched(ours, checked.io[key])
        checked.io[key] = expected
    checked.close(key, ours, TOKENS_ATOL)


def _matched(ours: Tensor, expected: Tensor) -> tuple[Tensor, Tensor]:
    """`ours` in the order of `expected`, clip by clip: MME shuffles its tokens. Each row is used exactly once."""
    order = torch.cdist(expected.double(), ours.double()).argmin(dim=2)
    for row in order:
        assert row.unique().numel() == row.numel(), "tokens: two of the expected are nearest to the same of ours"
    return torch.gather(ours, 1, order[:, :, None].expand_as(ours)), expected


def _table(model: Any) -> Tensor:
    """What the model adds to its tokens, [1, N, D]."""
    if getattr(model, "pos_embed", None) is not None:
        return model.pos_embed.detach()
    return position_table(*model.positions.key)[None]


def _check_same_weights(folder: Path, case: Case, io: Io) -> None:
    """Other files of the case hold the same model: other names, safetensors, a folder with its config.json alone."""
    expected = None
    for file in ("checkpoint_v5_names.pth", "model.safetensors", "."):
        if not (folder / file).exists() or (file == "." and not (folder / "model.safetensors").exists()):
            continue
        expected = expected or _load(folder, case, io).state_dict()
        if file == ".":
            model, _ = load_model(folder)
            assert model.spec == _load(folder, case, io).spec
        else:
            model = _load(folder, case, io, file=file)
        state = model.state_dict()
        assert set(state) == set(expected)
        for name, tensor in expected.items():
            assert torch.equal(state[name], tensor), f"{file}: {name}"


def _check_conversion(folder: Path, case: Case, io: Io) -> None:
    """ViViT by transformers' names, converted as simple-tad does it, equals the converted file bit by bit."""
    ours = simple_tad_state(folder / "hf_state_dict.pth")
    expected = torch.load(folder / "checkpoint.pth", weights_only=True)["model"]
    assert set(ours) == set(expected)
    for name, tensor in expected.items():
        assert ours[name].dtype == tensor.dtype, name
        if name == "encoder.pos_embed":
            assert_close(name, ours[name], tensor, FP16_TABLE_ATOL)
        else:
            assert torch.equal(ours[name], tensor), name
    for suffix in ("_simple_tad", "_ckpt_pos"):
        pair = [_load(folder, case, io, suffix, file=file) for file in ("checkpoint.pth", "hf_state_dict.pth")]
        first, second = (model.state_dict() for model in pair)
        assert set(first) == set(second)
        for name in first:
            atol = FP16_TABLE_ATOL if name == "pos_embed" else 0.0
            assert_close(name, second[name], first[name], atol)


@checks("pretraining checkpoint -> AVA detection backbone (seed 1), RoI pooling stubbed")
@torch.no_grad()
def check_feature_map(folder: Path, case: Case) -> None:
    checked = Checked(folder, case)
    io, arch = checked.io, case["arch"]
    given = {
        "num_heads": arch["num_heads"],
        "num_frames": arch["num_frames"],
        "image_size": arch["img_size"],
        "tubelet": arch["tubelet_size"],
        "final_norm_policy": "ava",
        "num_classes": 0,
    }
    model, _ = load_model(folder / "checkpoint.pth", **given)
    checked.close("feature_map", model.forward_map(io["clip"]))
    checked.close("feature_map_square", model.forward_map(io["clip_square"]))
    checked.close("feature_map_f64", model.double().forward_map(io["clip"].double()))
    if "feature_map_from_finetuned" in io:
        fine_tuned, _ = load_model(folder / "checkpoint_finetuned.pth", **given)
        checked.close("feature_map_from_finetuned", fine_tuned.forward_map(io["clip"]))
    checked.finish()
