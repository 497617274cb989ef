"""Parameter groups and the schedule of the VideoMAE scripts."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from dsvid.models.spec import ModelSpec, build_model
from dsvid.optim import (
    CosineSchedule,
    cosine_factor,
    has_decay,
    is_frozen,
    layer_of,
    parameter_groups,
    weight_decay_at,
)


def names_of(task: str) -> list[tuple[str, nn.Parameter]]:
    spec = ModelSpec(task, "vit_micro", 4, 16, num_classes=3 if task == "classify" else 0)
    return list(build_model(spec, seed=None).named_parameters())


@pytest.mark.parametrize("task", ["pretrain", "classify"])
def test_each_parameter_is_in_exactly_one_group(task: str) -> None:
    named = names_of(task)
    groups = parameter_groups(named, lr=1.0, weight_decay=0.05, layer_decay=0.75, depth=4)
    listed = [name for group in groups for name in group["names"]]
    assert sorted(listed) == sorted(name for name, _ in named)
    assert [len(group["names"]) for group in groups] == [len(group["params"]) for group in groups]


def test_vectors_biases_and_the_mask_token_do_not_decay() -> None:
    decaying = {name for name, parameter in names_of("pretrain") if has_decay(name, parameter)}
    assert "encoder.blocks.0.attn.qkv.weight" in decaying
    assert "encoder.patch_embed.proj.weight" in decaying
    assert not any(name.endswith(("bias", "norm1.weight", "mask_token")) for name in decaying)


def test_layers_are_counted_from_the_input() -> None:
    assert layer_of("model.patch_embed.proj.weight", 12) == 0
    assert layer_of("model.blocks.0.norm1.weight", 12) == 1
    assert layer_of("blocks.11.mlp.fc2.bias", 12) == 12
    assert layer_of("fc_norm.weight", 12) == layer_of("head.bias", 12) == 13
    assert layer_of("model.pos_embed_temporal", 12) == layer_of("cls_token", 12) == 0


def test_position_tables_do_not_decay() -> None:
    table = nn.Parameter(torch.zeros(1, 4, 8))
    assert not any(has_decay(f"model.{name}", table) for name in ("pos_embed", "pos_embed_spatial", "pos_embed_cls"))
    assert has_decay("model.clip_projector.cross_attn.q.weight", table)


def test_layer_decay_scales_the_lr_of_each_layer() -> None:
    groups = parameter_groups(names_of("classify"), lr=2.0, weight_decay=0.05, layer_decay=0.5, depth=4)
    rates = {group["label"]: group["lr"] for group in groups}
    assert rates["layer_5_decay"] == 2.0
    assert rates["layer_4_decay"] == 1.0
    assert rates["layer_0_decay"] == 2.0 * 0.5**5
    assert {group["weight_decay"] for group in groups if group["label"].endswith("no_decay")} == {0.0}


def test_without_layer_decay_there_are_two_groups_and_frozen_parameters_are_left_out() -> None:
    named = names_of("classify")
    named[0][1].requires_grad_(False)
    groups = parameter_groups(named, lr=1.0, weight_decay=0.1, layer_decay=1.0, depth=4)
    assert len(groups) == 2
    assert named[0][0] not in [name for group in groups for name in group["names"]]


def reference_schedule(lr: float, low: float, total: int, warmup: int) -> list[float]:
    """linspace(0, lr, warmup), then low + (lr - low) / 2 * (1 + cos(pi i / n)) for i = 0 .. n-1."""
    rise = torch.linspace(0, lr, warmup, dtype=torch.float64).tolist()
    n = total - warmup
    return rise + [low + 0.5 * (lr - low) * (1 + math.cos(math.pi * i / n)) for i in range(n)]


@pytest.mark.parametrize(("total", "warmup"), [(100, 10), (57, 1), (30, 0), (1000, 999)])
def test_the_schedule_is_videomae_s_at_every_step(total: int, warmup: int) -> None:
    ours = [3e-4 * cosine_factor(step, total=total, warmup=warmup, min_ratio=0.1) for step in range(total)]
    assert ours == pytest.approx(reference_schedule(3e-4, 3e-5, total, warmup), rel=1e-12, abs=1e-18)


def test_the_schedule_is_defined_behind_its_end() -> None:
    assert cosine_factor(100, total=100, warmup=10, min_ratio=0.1) == pytest.approx(0.1)
    assert cosine_factor(5000, total=100, warmup=10, min_ratio=0.1) == pytest.approx(0.1)


def test_the_first_blocks_rest_save_their_norms() -> None:
    names = [name for name, _ in names_of("classify")]
    resting = {name for name in names if is_frozen(name, depth=4, freeze_blocks=2, linear_probe=False)}
    assert "patch_embed.proj.weight" in resting and "blocks.1.mlp.fc2.bias" in resting
    assert not any(".norm" in name or name.startswith(("blocks.2", "blocks.3", "fc_norm", "head")) for name in resting)
    assert not any(is_frozen(name, depth=4, freeze_blocks=0, linear_probe=False) for name in names)


def test_a_probe_trains_the_head_alone() -> None:
    names = [name for name, _ in names_of("classify")]
    trained = {name for name in names if not is_frozen(name, depth=4, freeze_blocks=0, linear_probe=True)}
    assert trained == {"head.weight", "head.bias"}


def test_weight_decay_follows_half_a_cosine_and_spares_what_does_not_decay() -> None:
    weight = nn.Parameter(torch.zeros(2, 2))
    bias = nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.AdamW(
        [{"params": [weight], "weight_decay": 0.05}, {"params": [bias], "weight_decay": 0.0}], lr=1.0
    )
    schedule = CosineSchedule(optimizer, total=10, warmup=2, min_ratio=0.0, weight_decay_end=0.2)
    seen = []
    for _ in range(11):
        seen.append(optimizer.param_groups[0]["weight_decay"])
        optimizer.step()
        schedule.step()
    assert seen[0] == pytest.approx(0.05) and seen[5] == pytest.approx(0.125) and seen[10] == pytest.approx(0.2)
    assert seen == [pytest.approx(weight_decay_at(step, total=10, start=0.05, end=0.2)) for step in range(11)]
    assert optimizer.param_groups[1]["weight_decay"] == 0.0


def test_a_resumed_schedule_goes_on_where_it_was() -> None:
    def fresh() -> tuple[torch.optim.Optimizer, CosineSchedule]:
        optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(2, 2))], lr=1.0, weight_decay=0.05)
        return optimizer, CosineSchedule(optimizer, total=10, warmup=2, min_ratio=0.1, weight_decay_end=0.2)

    first, schedule = fresh()
    for _ in range(6):
        first.step()
        schedule.step()
    second, resumed = fresh()
    resumed.load_state_dict(schedule.state_dict())
    assert second.param_groups[0]["weight_decay"] == first.param_groups[0]["weight_decay"] != 0.05
