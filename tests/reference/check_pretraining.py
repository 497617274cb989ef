"""VideoMAE and VideoMAE V2: weights, clip and masks -> targets, predictions, loss and every gradient norm."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from dsvid.models import DecoderSize, EncoderSize, MaskedAutoencoder
from dsvid.objectives.pretrain import IMAGENET_MEAN, IMAGENET_STD, PretrainObjective, masked_loss
from dsvid.ops import TokenPlan, gather_tokens, plan_from_masks
from dsvid.tokens import TubeletGrid
from dsvid.weights.videomae import load_autoencoder
from tests.reference.comparing import assert_close, assert_moments, assert_number, rows_of, sorted_rows
from tests.reference.registry import checks

ATOL, LOSS_ATOL, GRAD_RTOL = 1e-5, 5e-6, 1e-4
ALIASES = {
    "patch_embed.proj.weight": "encoder.patch_embed.proj.weight",
    "first_qkv.weight": "encoder.blocks.0.attn.qkv.weight",
}


@checks("VideoMAE", "VideoMAE V2")
def check_pretraining(folder: Path, case: dict[str, Any]) -> None:
    io = load_file(folder / "io.safetensors")
    for attention in ("sdpa", "math"):
        objective = _objective(folder, case, attention)
        plan = plan_from_masks(io["mask"], io.get("decode_mask"))
        _check_plan(plan, case, io)
        _check_clip(objective, io)
        _check_every_decoded_token(objective, plan, case, io)
        _check_loss_and_gradients(objective, plan, case, io)


def _objective(folder: Path, case: dict[str, Any], attention: str) -> PretrainObjective:
    config = case["config"]
    t, h, w = case["window"]
    patch, tubelet = config["patch_size"], config["tubelet_size"]
    grid = TubeletGrid(t * tubelet, h * patch, w * patch, tubelet, patch)
    assert grid.frames == config["num_frames"]
    ratio = config["mlp_ratio"]
    encoder = EncoderSize(
        config["encoder_embed_dim"], config["encoder_depth"], config["encoder_num_heads"], patch, ratio
    )
    decoder = DecoderSize(config["decoder_embed_dim"], config["decoder_depth"], config["decoder_num_heads"], ratio)
    model = MaskedAutoencoder(encoder, decoder, grid, attention=attention)
    report = load_autoencoder(model, folder / "checkpoint.pth")
    assert not report.missing and not report.unexpected, report.lines()
    return PretrainObjective(
        model,
        grid,
        mask_ratio=config["mask_ratio"],
        decoder_mask_ratio=config.get("decoder_mask_ratio", 0.0),
        norm_pix=config["normlize_target"],
    )


def _check_plan(plan: TokenPlan, case: dict[str, Any], io: dict[str, Tensor]) -> None:
    clips, visible = plan.visible.shape
    for key, found in (
        ("n_visible_per_sample", [visible] * clips),
        ("n_decoded_per_sample", [plan.decoded.shape[1]] * clips),
        ("n_loss_tokens_per_sample", plan.n_targets.tolist()),
    ):
        if key in case:
            assert found == case[key], f"{key}: {found}, expected {case[key]}"
    if "loss_mask" in io:
        hidden = torch.gather(io["mask"], 1, plan.decoded.long().sort(dim=1).values)
        assert torch.equal(hidden, io["loss_mask"]), "loss_mask"


def _check_clip(objective: PretrainObjective, io: dict[str, Tensor]) -> None:
    """The op's normalised pixels against the original's, by way of patches of all tokens."""
    clip, grid = io["clip_u8"], objective.grid
    every = torch.arange(grid.tokens, dtype=torch.int32).expand(clip.shape[0], -1).contiguous()
    patches, _ = gather_tokens(clip, every, None, grid, mean=IMAGENET_MEAN, std=IMAGENET_STD, norm_pix=True)
    cut = patches.view(-1, grid.t, grid.h, grid.w, 3, grid.tubelet, grid.patch, grid.patch)
    video = cut.permute(0, 4, 1, 5, 2, 6, 3, 7).reshape(-1, 3, grid.frames, grid.height, grid.width)
    if "clip" in io:
        assert_close("clip", video, io["clip"], 1e-6)
    if "clip_t0" in io:
        assert_close("clip_t0", video[:, :, 0], io["clip_t0"], 1e-6)


def _check_every_decoded_token(
    objective: PretrainObjective, plan: TokenPlan, case: dict[str, Any], io: dict[str, Tensor]
) -> None:
    """Predictions and targets of all tokens that the decoder sees, the case's order being that of the token index."""
    patches, targets = gather_tokens(
        io["clip_u8"],
        plan.visible,
        plan.decoded,
        objective.grid,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        norm_pix=objective.norm_pix,
    )
    with torch.no_grad():
        predictions = objective.model(patches, plan.visible, plan.decoded, plan.decoded.shape[1])
    for name, values in (("targets", targets), ("pred", predictions)):
        values = sorted_rows(values, plan.decoded)
        expected = io[f"{name}_rows"] if "rows" in io else io[name]
        assert_close(name, rows_of(values, io), expected, ATOL)
        if f"{name}_moments" in case:
            assert_moments(name, values, case[f"{name}_moments"], ATOL)


def _check_loss_and_gradients(
    objective: PretrainObjective, plan: TokenPlan, case: dict[str, Any], io: dict[str, Tensor]
) -> None:
    predictions, targets = objective.predict(io["clip_u8"], plan)
    loss = masked_loss(predictions, targets, plan.target_weight)
    assert_number("loss", float(loss.detach()), case["loss"], atol=LOSS_ATOL)
    loss.backward()
    norms = {name: float(p.grad.norm()) for name, p in objective.model.named_parameters() if p.grad is not None}
    for name, expected in case.get("grad_norm_all", {}).items():
        assert name in norms, f"gradient norm of {name}: no such parameter here"
        assert_number(f"gradient norm of {name}", norms[name], expected, rtol=GRAD_RTOL)
    if "grad_norm_all" in case:
        assert set(norms) == set(case["grad_norm_all"])
    for name, expected in case["grad_norm"].items():
        assert_number(f"gradient norm of {name}", norms[ALIASES.get(name, name)], expected, rtol=GRAD_RTOL)
    total = math.sqrt(sum(norm**2 for norm in norms.values()))
    assert_number("total gradient norm", total, case["grad_norm_total"], rtol=GRAD_RTOL)
