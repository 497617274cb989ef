"""FLOPs by formula against two counters: torch's, of every operator that runs, and DeepSpeed's profiler."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dsvid.models.flops import ForwardFlops, forward_flops, token_counts, training_flops
from dsvid.models.spec import ModelSpec, build_model
from dsvid.plan.compute import executed_flops

DUAL = {"mask_ratio": 0.9, "decoder_mask_ratio": 0.5}
V1 = {"mask_ratio": 0.9, "decoder_mask_ratio": 0.0}
NONE = {"mask_ratio": 0.0, "decoder_mask_ratio": 0.0}
PUBLISHED_SIZES = {
    # GFLOP of a step by hand: 16 x 224 x 224, decoders of 4 blocks, but VideoMAE's 12 for L and H
    ("vit_small", "videomae", "v1"): 64, ("vit_base", "videomae", "v1"): 202, ("vit_large", "videomae", "v1"): 842,
    ("vit_huge", "videomae", "v1"): 1408, ("vit_giant", "videomaev2", "v1"): 1555, ("vit_6b", "videomaev2", "v1"): 7710,
    ("vit_small", "videomaev2", "dual"): 42, ("vit_base", "videomaev2", "dual"): 145,
    ("vit_large", "videomaev2", "dual"): 396, ("vit_huge", "videomaev2", "dual"): 715,
    ("vit_giant", "videomaev2", "dual"): 1425, ("vit_6b", "videomaev2", "dual"): 7580,
}  # fmt: skip
FINE_TUNING = {"vit_small": 339, "vit_base": 1078, "vit_large": 3576, "vit_huge": 7140, "vit_giant": 15250}


def inputs(spec: ModelSpec, ratios: dict[str, float], device: str) -> list[Any]:
    count, grid = token_counts(spec, **ratios), spec.grid
    patches = torch.zeros(1, count.encoded - spec.extra_tokens, grid.values, device=device)
    if spec.task != "pretrain":
        return [patches]
    index = [torch.zeros(1, n, dtype=torch.int64, device=device) for n in (count.encoded, count.decoded)]
    return [patches, *index, count.predicted]


def run(model: Any, spec: ModelSpec, given: list[Any]) -> Tensor:
    output: Tensor = model(*given) if spec.task == "pretrain" else model.forward_patches(*given)
    return output


def counted(spec: ModelSpec, ratios: dict[str, float], *, backward: bool = False) -> float:
    """What torch's counter counts on tensors without memory; explicit attention, of which it sees every product."""
    spec = replace(spec, attention="math")
    with torch.device("meta"):
        model = build_model(spec, seed=None)
    with FlopCounterMode(display=False) as counter:
        out = run(model, spec, inputs(spec, ratios, "meta"))
        if backward:
            out.sum().backward()
    return float(counter.get_total_flops())


SPECS = {
    "v1": (ModelSpec("pretrain", "vit_small", 16, 224, depth=2, decoder_depth=2), V1),
    "dual": (ModelSpec("pretrain", "vit_giant", 16, 224, decoder="videomaev2", depth=2, decoder_depth=2), DUAL),
    "classify": (ModelSpec("classify", "vit_huge", 16, 224, num_classes=400, depth=2), NONE),
    "detect": (ModelSpec("detect", "vit_base", 16, 224, num_classes=80, final_norm="tokens", depth=2), NONE),
    "anomaly, a class token": (ModelSpec("anomaly", "vivit_base", 16, 224, num_classes=2, depth=2), NONE),
    "internvideo2": (ModelSpec("classify", "internvideo2_small", 8, 224, 1, num_classes=2, depth=2), NONE),
}


@pytest.mark.parametrize("name", list(SPECS))
def test_forward_and_backward_against_torch_s_counter(name: str) -> None:
    spec, ratios = SPECS[name]
    parts = forward_flops(spec, **ratios)
    forward = parts.patch_embed + parts.blocks + parts.rest - parts.skipped
    assert forward == pytest.approx(counted(spec, ratios), rel=0.002)
    assert executed_flops(parts) == pytest.approx(counted(spec, ratios, backward=True), rel=0.02)


@pytest.mark.parametrize("attention", ["math", "sdpa"])
@pytest.mark.parametrize(("task", "ratios"), [("pretrain", V1), ("pretrain", DUAL), ("classify", NONE)])
def test_forward_against_deepspeed_s_profiler(
    task: str, ratios: dict[str, float], attention: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """It replaces torch's functions, the fused attention too, and counts norms, activations and softmax besides."""
    from deepspeed.profiling.flops_profiler import FlopsProfiler

    more = {"num_classes": 10} if task == "classify" else {"decoder_depth": 2}
    spec = ModelSpec(task, "vit_small", 8, 96, attention=attention, depth=2, **more)
    model: nn.Module = build_model(spec, seed=0).eval()
    profiler = FlopsProfiler(model)
    profiler.start_profile()
    with torch.no_grad():
        run(model, spec, inputs(spec, ratios, "cpu"))
    macs = profiler.get_total_macs()
    profiler.end_profile()
    capfd.readouterr()
    parts = forward_flops(spec, **ratios)
    assert parts.patch_embed + parts.blocks + parts.rest - parts.skipped == pytest.approx(2 * macs, rel=0.02)


def test_checkpointing_adds_the_forward_of_the_blocks() -> None:
    spec, ratios = SPECS["dual"]
    parts = forward_flops(spec, **ratios)
    once = executed_flops(parts)
    assert executed_flops(parts, encoder_again=1, decoder_again=1) - once == parts.blocks - parts.skipped
    half = executed_flops(parts, encoder_again=0.5, decoder_again=0.25) - once
    assert half == pytest.approx(0.5 * parts.encoder + 0.25 * parts.decoder), "the last block is not among them"


@pytest.mark.parametrize("key", list(PUBLISHED_SIZES), ids=lambda key: re.sub(r"\W+", "-", " ".join(key)))
def test_steps_of_the_released_sizes(key: tuple[str, Any, str]) -> None:
    arch, decoder, masking = key
    spec = ModelSpec("pretrain", arch, 16, 224, decoder=decoder)
    got = training_flops(spec, **(V1 if masking == "v1" else DUAL))
    assert got / 1e9 == pytest.approx(PUBLISHED_SIZES[key], rel=0.02)


@pytest.mark.parametrize("arch", list(FINE_TUNING))
def test_fine_tuning_of_the_released_sizes(arch: str) -> None:
    spec = ModelSpec("classify", arch, 16, 224, num_classes=400)
    assert training_flops(spec) / 1e9 == pytest.approx(FINE_TUNING[arch], rel=0.02)


def test_what_is_skipped_is_skipped_in_forward_and_backward() -> None:
    """The gradients of weights and of inputs cost as much again, each."""
    assert executed_flops(ForwardFlops(10, 100, 40, 5, 4)) == 2 * 10 + 3 * (100 + 40 + 5 - 4)
