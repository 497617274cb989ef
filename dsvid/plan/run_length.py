"""What a whole run takes: steps, FLOPs, days, room on the disk, cores that feed a GPU."""

from __future__ import annotations

from dataclasses import dataclass

from dsvid.plan import compute
from dsvid.plan.estimate import Plan
from dsvid.plan.zero import FP32


@dataclass(frozen=True)
class RunLength:
    """Numbers of the whole run; None where the list's length, or the rate of a GPU, is not known. `cores` are (fewest,
    most) of one GPU, from H.264 and from packed shards.
    """

    steps: int | None
    warmup_steps: int | None
    flops: float | None
    clips_a_second: float | None
    days: float | None
    gpu_hours: float | None
    cores: tuple[float, float] | None
    cores_shards: tuple[float, float] | None
    disk_bytes: int
    disk_remark: str


def run_length(plan: Plan) -> RunLength:
    """The run up to its last step (run.stop_epoch and run.max_steps included)."""
    schedule, time, gpus = plan.schedule, plan.time, plan.question.gpus
    known = plan.videos.count is not None or bool(plan.recipe.run.max_steps)
    steps = schedule.stop_step if known else None
    clips = None if time is None else schedule.batch_total / time.total_s
    seconds = None if time is None or steps is None else steps * time.total_s
    cores = shards = None
    if clips is not None:
        augmented = bool(plan.recipe.data.augment.policy)
        low, high = compute.loader_cores(clips / gpus, plan.recipe.data.num_sample, randaugment=augmented)
        cores, shards = (low, high), (low / compute.SHARDS_FASTER, high / compute.SHARDS_FASTER)
    disk, remark = _disk(plan, steps)
    return RunLength(
        steps=steps,
        warmup_steps=schedule.warmup_steps if plan.videos.count is not None else None,
        flops=None if steps is None else steps * schedule.batch_total * plan.flops_executed,
        clips_a_second=clips,
        days=None if seconds is None else seconds / compute.DAY_S,
        gpu_hours=None if seconds is None else seconds / 3600 * gpus,
        cores=cores,
        cores_shards=shards,
        disk_bytes=disk,
        disk_remark=remark,
    )


def _disk(plan: Plan, steps: int | None) -> tuple[int, str]:
    """The checkpoints that stay, the one that is being written, and the fp32 weights at the end."""
    run, recipe = plan.recipe.run, plan.recipe
    kept = run.keep + 1
    remark = f"run.keep={run.keep} and the one being written"
    if run.keep_every and steps is not None:
        kept += steps // run.keep_every
        remark += f", {steps // run.keep_every} of run.keep_every"
    copies = 1 + (recipe.optim.ema_decay > 0) + (recipe.eval.every_epochs > 0)
    return kept * plan.checkpoint + copies * FP32 * plan.sizes.total, f"{remark}; fp32 weights {copies} times"
