"""The defaults that are taken for DeepSpeed's, and the textbook formulas for large models."""

from __future__ import annotations

from typing import Any

import pytest

from dsvid.deepspeed_json import SECTIONS, TOP_LEVEL
from dsvid.plan import zero
from dsvid.plan.sizes import ParameterSizes

P, N = 10_000_000, 8
SIZES = ParameterSizes(((6_000_000, 3_000_000), (1_000_000,)), (), 4_000_000)


def settings(stage: int, **more: Any) -> zero.ZeroSettings:
    config = {"bf16": {"enabled": True}, "zero_optimization": {"stage": stage, "overlap_comm": True, **more}}
    return zero.read_settings(config)


def test_the_defaults_are_deepspeed_s() -> None:
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    theirs = DeepSpeedZeroConfig(stage=2)
    for key, value in zero.DEFAULTS.items():
        assert getattr(theirs, key.removeprefix("stage3_")) == value, key
    assert theirs.contiguous_gradients and not theirs.overlap_comm
    assert DeepSpeedZeroConfig(stage=3).overlap_comm
    for stage in (2, 3):
        assert zero.read_settings({"zero_optimization": {"stage": stage}}).overlap is (stage == 3)


def test_every_key_that_is_named_exists() -> None:
    for key in zero.NOT_MODELLED:
        section, _, leaf = key.rpartition(".")
        assert leaf in (SECTIONS[section] if section else TOP_LEVEL), key


@pytest.mark.parametrize(
    ("stage", "textbook"), [(0, 16 * P), (1, 2 * P + 14 * P / N), (2, 2 * P + 14 * P / N), (3, 16 * P / N)]
)
def test_the_textbook_s_formulas(stage: int, textbook: float) -> None:
    """Stage 1 as DeepSpeed 0.19 runs it with overlap_comm: gradients of its own part only, as at stage 2."""
    assert zero.model_states(SIZES, settings(stage), N).device == pytest.approx(textbook, rel=1e-3)


def test_stage_1_without_overlap_keeps_every_gradient() -> None:
    one = settings(1, overlap_comm=False)
    assert zero.model_states(SIZES, one, N).device == pytest.approx(4 * P + 12 * P / N, rel=1e-3)


def test_offload_moves_the_optimizer_to_the_host() -> None:
    here, there = settings(2), settings(2, offload_optimizer={"device": "cpu"})
    states = zero.model_states(SIZES, there, N)
    assert states.device == zero.model_states(SIZES, here, N).weights
    assert states.host == pytest.approx(
        20 * P / N, rel=1e-3
    )  # 12 of the optimizer, gradients in fp32 and bf16, weights
    assert zero.step_buffers(SIZES, there, N) == 0
    both = settings(3, offload_optimizer={"device": "cpu"}, offload_param={"device": "cpu"})
    assert zero.model_states(SIZES, both, N).device == 0


def test_the_average_is_one_fp32_copy_over_all_ranks() -> None:
    assert zero.model_states(SIZES, settings(2), N, average=True).average == 4 * P // N


def test_stage_3_keeps_what_is_used_again_soon() -> None:
    assert zero.gathered_values(SIZES, settings(3)) == P
    far = settings(3, stage3_max_reuse_distance=2_000_000, stage3_prefetch_bucket_size=0)
    assert zero.gathered_values(SIZES, far) == 1_000_000 + SIZES.largest_block
    kept = settings(
        3, stage3_max_reuse_distance=0, stage3_prefetch_bucket_size=0, stage3_param_persistence_threshold=1_000_000
    )
    assert zero.gathered_values(SIZES, kept) == 1_000_000 + SIZES.largest_block


def test_buckets_count_whether_they_are_filled_or_not() -> None:
    two = zero.backward_buffers(SIZES, settings(2, reduce_bucket_size=200), N)
    assert two["reduce buckets"] == 2 * 2 * 200
    assert zero.backward_buffers(SIZES, settings(3, reduce_bucket_size=200), N)["reduce buckets"] == 2 * 200
    assert "reduce buckets" not in zero.backward_buffers(SIZES, settings(0), N)


def test_what_is_not_followed_is_named() -> None:
    config = {"torch_autocast": {"enabled": True}, "zero_optimization": {"zero_hpz_partition_size": 8}}
    assert zero.not_modelled(config) == ["torch_autocast.enabled", "zero_optimization.zero_hpz_partition_size"]
    assert zero.not_modelled({"zero_optimization": {"stage": 3, "zero_hpz_partition_size": 1}}) == []


def test_groups_are_padded_to_whole_pairs_of_every_rank() -> None:
    """5 and 3 values on 4 ranks: DeepSpeed makes 8 of each, 2 a rank."""
    tiny = ParameterSizes(((5,), (3,)), (), 8)
    working, masters_and_moments = 2 * 8, 12 * 4 * (2 + 2)
    assert zero.checkpoint_bytes(tiny, settings(2), ranks=4) == working + masters_and_moments
