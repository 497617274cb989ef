"""Activation bytes by formula against the storages that autograd really saves."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dsvid.models.flops import TokenCounts, token_counts
from dsvid.models.spec import ModelSpec, build_model
from dsvid.objectives.pretrain import masked_loss
from dsvid.plan.activations import Activations, Setting, activations

SHARE = 0.1
TINY = {"arch": "vit_tiny", "num_frames": 8, "input_size": 96, "depth": 2, "decoder_depth": 2, "drop_path": 0.1}
SMALL = {"arch": "vit_small", "num_frames": 8, "input_size": 128, "depth": 2}
SHAPES: dict[str, tuple[dict[str, Any], float]] = {
    "v1": ({**TINY, "task": "pretrain"}, 0.0),
    "dual": ({**TINY, "task": "pretrain"}, 0.5),
    "classify": ({**TINY, "task": "classify", "num_classes": 10}, 0.0),
    "small v1": ({**SMALL, "task": "pretrain", "decoder_depth": 2}, 0.0),
    "small classify": ({**SMALL, "task": "classify", "num_classes": 10}, 0.0),
}
OTHERS: dict[str, dict[str, Any]] = {
    "detect": {**TINY, "task": "detect", "num_classes": 10, "final_norm": "tokens"},
    "vivit": {**TINY, "task": "anomaly", "arch": "vivit_base", "dim": 192, "heads": 3, "num_classes": 2},
    "internvideo2": {
        "task": "classify", "arch": "internvideo2_custom", "dim": 96, "depth": 3, "heads": 3, "patch": 16,
        "mlp_hidden": 384, "num_frames": 8, "input_size": 96, "num_classes": 10, "tubelet": 2,
    },
}  # fmt: skip


def again(block: nn.Module, *inputs: Any) -> Any:
    return checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False)


def saved_bytes(model: nn.Module, forward: Callable[[], Any]) -> int:
    """Bytes of the unique storages that autograd saves in `forward`, without the parameters'."""
    own = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    storages: dict[int, Any] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            storages[storage._cdata] = storage  # held, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        kept = forward()
    del kept
    return sum(storage.nbytes() for storage in storages.values())


def forward_of(model: Any, spec: ModelSpec, count: TokenCounts, clips: int, device: str) -> Callable[[], Any]:
    dtype, grid = next(model.parameters()).dtype, model.grid
    seeds = torch.zeros(clips, dtype=torch.int64, device=device)
    patches = torch.zeros(clips, count.encoded - spec.extra_tokens, grid.values, dtype=dtype, device=device)
    if spec.task == "detect":
        return lambda: model.map_patches(patches, grid, seeds)
    if spec.task != "pretrain":
        return lambda: model.forward_patches(patches, seeds)
    visible = torch.zeros(clips, count.encoded, dtype=torch.int64, device=device)
    decoded = torch.zeros(clips, count.decoded, dtype=torch.int64, device=device)
    targets = torch.zeros(clips, count.predicted, grid.values, device=device)
    return lambda: masked_loss(model(patches, visible, decoded, count.predicted, seeds), targets, None)


def both(
    spec: ModelSpec,
    dual: float,
    dtype: torch.dtype,
    clips: int,
    checkpointed: bool,
    device: str = "cpu",
    blocks: int = 0,
) -> tuple[Activations, int]:
    """(the formula, what autograd saves)."""
    count = token_counts(spec, mask_ratio=0.9, decoder_mask_ratio=dual)
    with torch.device(device):
        model: Any = build_model(spec, seed=None).to(dtype)
    for parameter in model.parameters():
        parameter.data.zero_()  # whatever was in that memory may be slow to compute with
    model.set_checkpointing(again if checkpointed else None, blocks)
    setting = Setting(clips, dtype.itemsize, spec.attention, checkpointing=checkpointed, blocks=blocks)
    return activations(spec, count, setting), saved_bytes(model, forward_of(model, spec, count, clips, device))


KINDS = list(itertools.product(("math", "sdpa"), (torch.float32, torch.bfloat16), (False, True)))


@pytest.mark.parametrize(("attention", "dtype", "checkpointed"), KINDS)
@pytest.mark.parametrize("shape", list(SHAPES))
def test_what_autograd_saves(shape: str, attention: str, dtype: torch.dtype, checkpointed: bool) -> None:
    fields, dual = SHAPES[shape]
    formula, real = both(ModelSpec(attention=attention, **fields), dual, dtype, 2, checkpointed)
    assert formula.saved == pytest.approx(real, rel=SHARE)
    assert (formula.recomputed > 0) is checkpointed


@pytest.mark.parametrize(("attention", "dtype", "checkpointed"), KINDS)
@pytest.mark.parametrize("shape", list(OTHERS))
def test_other_architectures_and_heads(shape: str, attention: str, dtype: torch.dtype, checkpointed: bool) -> None:
    formula, real = both(ModelSpec(attention=attention, **OTHERS[shape]), 0.0, dtype, 2, checkpointed)
    assert formula.saved == pytest.approx(real, rel=SHARE)


@pytest.mark.parametrize("blocks", [1, 2, 3, 9])
@pytest.mark.parametrize("shape", ["v1", "dual", "classify"])
def test_some_blocks_computed_twice(shape: str, blocks: int) -> None:
    fields, dual = SHAPES[shape]
    deeper = {**fields, "depth": 4} | ({"decoder_depth": 2} if shape != "classify" else {})
    spec = ModelSpec(attention="sdpa", **deeper)
    formula, real = both(spec, dual, torch.float32, 2, True, blocks=blocks)
    assert formula.saved == pytest.approx(real, rel=0.02)
    fewer, _ = both(spec, dual, torch.float32, 2, True)
    assert (formula.saved > fewer.saved) is (blocks < 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("clips", [1, 2])
def test_explicit_attention_as_a_gpu_runs_it_at_real_sizes(clips: int, dtype: torch.dtype) -> None:
    """On the CPU long sequences go head by head; tensors without memory take the batched way, as on a GPU."""
    spec = ModelSpec("pretrain", "vit_giant", 16, 224, attention="math", decoder="videomaev2", depth=2, decoder_depth=2)
    formula, real = both(spec, 0.5, dtype, clips, False, device="meta")
    assert formula.saved == pytest.approx(real, rel=0.01)


def test_the_block_that_is_run_again_is_a_whole_block() -> None:
    """What checkpointing holds at once besides the inputs: everything that one block saves."""
    spec = ModelSpec("classify", "vit_tiny", 8, 96, num_classes=10, attention="sdpa", depth=3)
    count = token_counts(spec)
    whole, real_3 = both(spec, 0.0, torch.float32, 2, False)
    fewer = ModelSpec("classify", "vit_tiny", 8, 96, num_classes=10, attention="sdpa", depth=2)
    _, real_2 = both(fewer, 0.0, torch.float32, 2, False)
    formula = activations(spec, count, Setting(2, 4, "sdpa", checkpointing=True))
    inputs = 4 * 2 * count.encoded * 192
    assert formula.recomputed + inputs == pytest.approx(real_3 - real_2, rel=SHARE)
    assert formula.saved < whole.saved / 2


def test_checkpoints_on_the_host_leave_the_device() -> None:
    spec = ModelSpec("classify", "vit_tiny", 8, 96, num_classes=10, attention="sdpa", depth=3)
    count = token_counts(spec)
    here = activations(spec, count, Setting(2, 4, "sdpa", checkpointing=True))
    there = activations(spec, count, Setting(2, 4, "sdpa", checkpointing=True, on_host=True))
    assert there.host == here.saved - there.saved == 3 * 4 * 2 * count.encoded * 192
