"""What a run says of itself before its first step: batch, schedule, model, backends, and the published run."""

from __future__ import annotations

from dsvid import engine as ds
from dsvid import ops
from dsvid.deepspeed_json import checkpointed_blocks
from dsvid.job import Job
from dsvid.runtime import fast_bf16, log
from dsvid.state import State


def announce(job: Job, state: State, step: int) -> None:
    """Say, before step 1, what is about to happen: batch arithmetic, sizes, backends, places."""
    schedule, recipe, grid = job.schedule, job.recipe, job.spec.grid
    lr = job.config["optimizer"]["params"]["lr"]
    saving = "activation checkpointing" if "activation_checkpointing" in job.config else "no activation checkpointing"
    if count := checkpointed_blocks(job.config):
        saving += f" of {count} blocks"
    lines = [
        f"batch     {schedule.world} ranks x {schedule.batch_micro} clips x {schedule.accumulation} accumulation "
        f"= {schedule.batch_total} clips a step",
        f"schedule  {schedule.steps_per_epoch} steps an epoch, {schedule.total_steps} steps in all, "
        f"{schedule.warmup_steps} of them warm-up; this run ends at step {schedule.stop_step}",
        f"lr        {lr:.3e} (base {recipe.optim.base_lr:g} x {schedule.batch_total} / {recipe.optim.lr_scale_batch})",
        *paper_versus_you(job),
        f"model     {job.spec.arch}: {ds.count_parameters(state.engine.module) / 1e6:.2f} M parameters, "
        f"{grid.tokens} tokens ({grid.t}x{grid.h}x{grid.w})",
        f"engine    DeepSpeed ZeRO-{job.facts['stage']}, {job.facts['precision']}, {job.device.type}, {saving}",
        *(f"attention {line}" for line in state.engine.module.attention_choices()),
        *(f"op        {line}" for line in ops.clear_message()),
        f"decoder   {job.task.reader(recipe, 'train').decoding}",
        f"run       {job.folder.out}: metrics.jsonl, tensorboard/, checkpoints/, weights/",
    ]
    if job.device.type == "cpu" and job.facts["precision"] == "bf16" and not fast_bf16():
        lines.append("          this CPU has no bf16 arithmetic: ds.bf16.enabled=false is several times faster")
    if step:
        position = (step + state.health.skipped) * schedule.batch_total
        lines.append(f"resume    from step {step} (verified), data position {position} clips")
    log.info("%s", "\n".join(lines))


def paper_versus_you(job: Job) -> list[str]:
    """Two lines that set the published run beside this one, and what differs; nothing where no run was published."""
    if not job.paper.about.gpus:
        return []
    paper, yours, schedule = job.paper, job.recipe, job.schedule
    rows = []
    for recipe in (paper, yours):
        lr = recipe.optim.base_lr * recipe.batch.total / recipe.optim.lr_scale_batch
        views = f"{recipe.eval.segments}x{recipe.eval.crops} views" if recipe.task == "classify" else ""
        rows.append([f"batch {recipe.batch.total}", f"lr {lr:.2e}", f"{recipe.run.epochs} epochs", views])
    differs = [f"{theirs} -> {own}" for theirs, own in zip(*rows, strict=True) if theirs != own]
    devices = [
        f"{paper.about.gpus} devices x {paper.batch.total // paper.about.gpus}",
        f"{schedule.world} devices x {schedule.batch_micro} x {schedule.accumulation} accumulation",
    ]
    lines = [
        f"{name:<9} {', '.join([row[0] + ' (' + how + ')', *[text for text in row[1:] if text]])}"
        for name, row, how in zip(("paper", "you"), rows, devices, strict=True)
    ]
    verdict = "the same batch, lr, epochs and views" if not differs else f"differs: {'; '.join(differs)}"
    return [*lines, f"          {verdict}" + (f"; published: {paper.about.published}" if paper.about.published else "")]
