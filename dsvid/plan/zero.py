"""What DeepSpeed's ZeRO keeps on a rank, by formula: weights, gradients, masters, moments, buffers.

Knows what DeepSpeed 0.19 really allocates (tests/distributed/test_plan.py compares it with the engine's tensors), which
is more than ZeRO's paper (arXiv 1910.02054, section 5) counts: see docs/plan.md. Imports no deepspeed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from dsvid.deepspeed_json import get_dotted, precision
from dsvid.engine import DTYPES
from dsvid.plan.sizes import ParameterSizes

FP32 = 4
# A flattened group is padded to twice the ranks (DeepSpeed: nccl_start_alignment_factor).
ALIGNMENT = 2
# At stage 0 DeepSpeed flattens gradients for the sum over all ranks, as many at a time.
STAGE_0_BUCKET = 500_000_000

# DeepSpeed's own values where the JSON has none; a test compares them with the installed DeepSpeed.
DEFAULTS: dict[str, int] = {
    "reduce_bucket_size": 500_000_000,
    "sub_group_size": 1_000_000_000,
    "stage3_prefetch_bucket_size": 50_000_000,
    "stage3_param_persistence_threshold": 100_000,
    "stage3_max_reuse_distance": 1_000_000_000,
}
# Keys that change what is allocated and that nothing here follows.
NOT_MODELLED = (
    "bf16.bf16_master_weights_and_grads",
    "bf16.bf16_optimizer_states",
    "fp16.fp16_master_weights_and_grads",
    "torch_autocast.enabled",
    "zero_optimization.zero_quantized_weights",
    "zero_optimization.zero_quantized_gradients",
    "zero_optimization.zero_quantized_nontrainable_weights",
    "zero_optimization.stage3_model_persistence_threshold",
    "zero_optimization.offload_optimizer.ratio",
    "zero_optimization.offload_optimizer.super_offload",
    "zero_optimization.parameter_alignment",
    "zero_optimization.leaf_module",
    "communication_data_type",
    "flops_profiler.enabled",
)


@dataclass(frozen=True)
class ZeroSettings:
    """What a resolved JSON says that bears on memory; sizes in bytes of a value, buckets in values."""

    stage: int
    weight: int
    gradient: int
    overlap: bool
    contiguous: bool
    offload_optimizer: bool
    offload_parameters: bool
    buckets: dict[str, int]

    @property
    def half(self) -> bool:
        """Whether fp32 masters stand beside the weights."""
        return self.weight < FP32


def read_settings(config: dict[str, Any]) -> ZeroSettings:
    """The settings of a resolved JSON, DeepSpeed's defaults where it has none."""
    zero: dict[str, Any] = config.get("zero_optimization") or {}
    stage = int(zero.get("stage") or 0)
    weight = DTYPES[precision(config)].itemsize
    wide = get_dotted(config, "data_types.grad_accum_dtype") in ("fp32", "float32")
    overlap = zero.get("overlap_comm")
    return ZeroSettings(
        stage=stage,
        weight=weight,
        gradient=FP32 if wide else weight,
        overlap=stage == 3 if overlap is None else bool(overlap),
        contiguous=bool(zero.get("contiguous_gradients", True)),
        offload_optimizer=stage > 0 and get_dotted(zero, "offload_optimizer.device") == "cpu",
        offload_parameters=stage == 3 and get_dotted(zero, "offload_param.device") == "cpu",
        buckets={key: int(zero.get(key, default)) for key, default in DEFAULTS.items()},
    )


def not_modelled(config: dict[str, Any]) -> list[str]:
    """Keys of the JSON whose effect on memory is not known here."""
    found = [key for key in NOT_MODELLED if get_dotted(config, key)]
    if (get_dotted(config, "zero_optimization.zero_hpz_partition_size") or 1) > 1:
        found.append("zero_optimization.zero_hpz_partition_size")
    return found


@dataclass(frozen=True)
class States:
    """Bytes that one rank holds from step to step: on its device, and on the host where they are offloaded.

    Gradients are those at the end of an accumulation. `average` is the moving average of the weights.
    """

    weights: int
    gradients: int
    masters: int
    moments: int
    average: int
    host: int

    @property
    def device(self) -> int:
        """All that is on the device."""
        return self.weights + self.gradients + self.masters + self.moments + self.average


def model_states(sizes: ParameterSizes, settings: ZeroSettings, ranks: int, *, average: bool = False) -> States:
    """States of the rank that has most."""
    weights, gradients = _weights_and_gradients(sizes, settings, ranks)
    own = _optimizer_values(sizes, settings.stage, ranks)
    masters = FP32 * own if settings.half or settings.stage > 0 else 0
    moments, mean = 2 * FP32 * own, FP32 * own if average else 0
    host = 0
    if settings.offload_optimizer:
        host = masters + moments + mean + FP32 * own + settings.gradient * own
        if settings.stage < 3:  # a copy of the weights on their way back
            host += settings.weight * own
        gradients = masters = moments = mean = 0
    if settings.offload_parameters:
        host, weights = host + weights, 0
    return States(weights, gradients, masters, moments, mean, host)


def _weights_and_gradients(sizes: ParameterSizes, settings: ZeroSettings, ranks: int) -> tuple[int, int]:
    own, resting = _optimizer_values(sizes, settings.stage, ranks), sum(sizes.frozen)
    if settings.stage == 3:
        return settings.weight * (own + _shares(sizes.frozen, ranks)), settings.gradient * own
    if settings.stage == 0:
        return settings.weight * sizes.total, settings.weight * sizes.trained
    weights = settings.weight * (own * ranks + resting)
    if settings.stage == 1 and settings.gradient > settings.weight:  # DeepSpeed takes another class: whole sums in fp32
        return weights, settings.weight * sizes.trained + settings.gradient * own * ranks
    if settings.stage == 1 and not settings.overlap:  # nothing is reduced before the accumulation ends
        return weights, settings.weight * sizes.trained
    return weights, settings.gradient * own


def _optimizer_values(sizes: ParameterSizes, stage: int, ranks: int) -> int:
    """Values whose moments a rank keeps."""
    if stage == 0:
        return sizes.trained
    if stage == 3:
        return sum(_shares(group, ranks) for group in sizes.groups)
    return sum(_padded(sum(group), ranks) // ranks for group in sizes.groups)


def _padded(values: int, ranks: int) -> int:
    unit = ALIGNMENT * ranks
    return -(-values // unit) * unit


def _shares(parameters: Iterable[int], ranks: int) -> int:
    """Stage 3 cuts every parameter by itself, and pads each."""
    return sum(math.ceil(numel / ranks) for numel in parameters)


def backward_buffers(sizes: ParameterSizes, settings: ZeroSettings, ranks: int) -> dict[str, int]:
    """Bytes on the device in the backward besides states and activations, by name."""
    largest = max(sizes.each)
    parts = {"gradient of one parameter": settings.weight * largest}
    special = settings.stage == 1 and settings.gradient > settings.weight
    if settings.stage > 0 and settings.contiguous and not special:
        count = 2 if settings.overlap and settings.stage < 3 else 1
        parts["reduce buckets"] = count * settings.weight * settings.buckets["reduce_bucket_size"]
    if settings.offload_optimizer and settings.stage < 3:
        parts["offload staging"] = settings.weight * largest
    if settings.stage == 3:
        parts["gathered weights"] = settings.weight * gathered_values(sizes, settings)
    return parts


def gathered_values(sizes: ParameterSizes, settings: ZeroSettings) -> int:
    """Most values that stage 3 has whole at once: the small ones always, of the others what is used again soon.

    A parameter is kept where it is used again within `stage3_max_reuse_distance` values; around the turn from forward
    to backward these are the last half of that distance. Beside them are the block at work and what is prefetched.
    """
    buckets = settings.buckets
    small = sum(n for n in sizes.each if n <= buckets["stage3_param_persistence_threshold"])
    near = buckets["stage3_max_reuse_distance"] // 2 + buckets["stage3_prefetch_bucket_size"] + sizes.largest_block
    return small + min(sizes.total - small, near)


def step_buffers(sizes: ParameterSizes, settings: ZeroSettings, ranks: int) -> int:
    """Bytes on the device while the optimizer steps, besides the states: a group's gradients, flat and in fp32."""
    if settings.offload_optimizer:
        return 0
    if settings.stage == 0:
        summed = settings.weight * min(sizes.trained, STAGE_0_BUCKET) if ranks > 1 else 0
        return max(summed, FP32 * sizes.trained if settings.half else 0)
    if settings.stage == 3:
        largest = max(_shares(group, ranks) for group in sizes.groups)
        largest = min(largest, settings.buckets["sub_group_size"])
    else:
        largest = max(_padded(sum(group), ranks) // ranks for group in sizes.groups)
    return largest * (settings.gradient + (FP32 if settings.gradient < FP32 else 0))


def checkpoint_bytes(sizes: ParameterSizes, settings: ZeroSettings, ranks: int, *, average: bool = False) -> int:
    """Bytes of one checkpoint of all ranks together: the working weights (but at stage 3), masters, moments."""
    own = sizes.trained if settings.stage == 0 else ranks * _optimizer_values(sizes, settings.stage, ranks)
    masters = FP32 * own if settings.half or settings.stage > 0 else 0
    weights = settings.weight * (sum(sizes.frozen) if settings.stage == 3 else sizes.total)
    return weights + masters + 2 * FP32 * own + (FP32 * own if average else 0)
