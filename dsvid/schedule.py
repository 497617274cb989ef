"""The arithmetic of a run: micro-batches, accumulation, steps, learning rate. Imports no torch."""

from __future__ import annotations

import math

from dsvid.errors import RecipeError
from dsvid.recipe import Recipe, Section


class Schedule(Section):
    """The arithmetic of a run, in optimizer steps; `resolve_schedule` makes it."""

    world: int
    batch_total: int
    batch_micro: int
    accumulation: int
    steps_per_epoch: int
    total_steps: int
    warmup_steps: int
    stop_step: int
    lr: float
    min_lr: float


def resolve_micro(recipe: Recipe, world: int) -> tuple[int, int]:
    """(micro-batch, accumulation) for `world` ranks: total = micro * world * accumulation. Raises RecipeError.

    Without batch.micro, the largest micro-batch within batch.micro_limit that divides a rank's share: fewer devices
    than the published run's accumulate, and the batch stays what it was.
    """
    total, repeat = recipe.batch.total, recipe.data.num_sample
    if total % (world * repeat):
        usable = [w for w in range(1, total // repeat + 1) if total % (w * repeat) == 0]
        raise RecipeError(
            "batch.total does not divide over the ranks",
            found=f"batch.total={total}, {world} ranks, data.num_sample={repeat}",
            expected=f"a multiple of ranks x num_sample = {world * repeat}",
            fix=f"batch.total={max(1, round(total / (world * repeat))) * world * repeat}, or ranks from {usable}",
        )
    per_rank = total // world
    usable = [m for m in range(repeat, per_rank + 1, repeat) if per_rank % m == 0]
    if not recipe.batch.micro:
        micro = max(m for m in usable if m <= (recipe.batch.micro_limit or per_rank))
        return micro, per_rank // micro
    micro = recipe.batch.micro
    if per_rank % micro:
        raise RecipeError(
            "batch.micro does not divide a rank's share of batch.total",
            found=f"batch.micro={micro}, batch.total={total}, {world} ranks ({per_rank} clips a rank)",
            expected=f"one of {usable}",
            fix=f"batch.micro={max([m for m in usable if m <= micro], default=usable[0])}",
        )
    return micro, per_rank // micro


def resolve_schedule(recipe: Recipe, *, world: int, videos: int) -> Schedule:
    """The run's arithmetic for `world` ranks and a training list of `videos` entries. Raises RecipeError.

    An epoch has videos * num_sample clips (or run.samples_per_epoch) and drops the clips that fill no whole step.
    lr = base_lr * batch.total / lr_scale_batch, min_lr likewise (the rule of the VideoMAE scripts).
    """
    micro, accumulation = resolve_micro(recipe, world)
    clips = recipe.run.samples_per_epoch or videos * recipe.data.num_sample
    steps_per_epoch = clips // recipe.batch.total
    if steps_per_epoch < 1:
        raise RecipeError(
            "an epoch holds less than one step",
            found=f"{clips} clips in an epoch, batch.total={recipe.batch.total}",
            expected="at least batch.total clips",
            fix=f"batch.total={_largest_total(clips, world * recipe.data.num_sample)}, or a longer data.train",
        )
    total_steps = steps_per_epoch * recipe.run.epochs
    stop = steps_per_epoch * (recipe.run.stop_epoch or recipe.run.epochs)
    if recipe.run.max_steps:
        stop = min(stop, recipe.run.max_steps)
    warmup = recipe.optim.warmup_steps or math.floor(recipe.optim.warmup_epochs * steps_per_epoch)
    if warmup >= total_steps:
        raise RecipeError(
            "the warm-up is as long as the run",
            found=f"{warmup} warm-up steps, {total_steps} in all (run.epochs={recipe.run.epochs})",
            expected="warm-up steps < steps",
            fix=f"optim.warmup_steps={total_steps // 20}"
            if recipe.optim.warmup_steps
            else f"optim.warmup_epochs={max(0, recipe.run.epochs // 20)}",
        )
    scale = recipe.batch.total / recipe.optim.lr_scale_batch
    return Schedule(
        world=world,
        batch_total=recipe.batch.total,
        batch_micro=micro,
        accumulation=accumulation,
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps,
        warmup_steps=warmup,
        stop_step=stop,
        lr=recipe.optim.base_lr * scale,
        min_lr=recipe.optim.min_lr * scale,
    )


def _largest_total(clips: int, unit: int) -> int:
    return max(unit, clips // unit * unit)
