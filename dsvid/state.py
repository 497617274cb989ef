"""What survives a restart: the engine, the moving average, and the run's health; how it is saved, loaded, taken back.

Knows the job and its checkpoints; knows no loop.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from dsvid import checkpoint, partition
from dsvid.averaging import MovingAverage
from dsvid.health import Diverged, Health
from dsvid.job import Job
from dsvid.runtime import agree_error, log


@dataclass
class State:
    """The training state of this rank. `average` is None where the recipe asks for none."""

    engine: Any
    average: MovingAverage | None
    health: Health


def make_state(job: Job, engine: Any, found: checkpoint.Found | None) -> State:
    """The state around a new engine: fresh, or as the checkpoint `found` has it. A collective."""
    run = job.recipe.run
    average = MovingAverage(engine, job.recipe.optim.ema_decay) if job.recipe.optim.ema_decay else None
    health = Health(
        job.folder.events,
        job.ranks,
        bad_steps=run.bad_steps,
        spike_factor=run.spike_factor,
        spike_back=run.spike_back,
    )
    state = State(engine, average, health)
    if found is not None:
        load(job, state, found)
        # An earlier start may have gone back and left clips out: the place in the stream is not the step's own.
        health.skipped = found.manifest["samples"] // job.schedule.batch_total - found.step
    job.watch.step = job.watch.saved = found.step if found else 0
    return state


def load(job: Job, state: State, found: checkpoint.Found) -> None:
    """Bring engine and average to a checkpoint of any topology. A collective."""
    more = state.average.fill if state.average is not None else None
    checkpoint.load(state.engine, found, ranks=job.ranks, accumulation=job.schedule.accumulation, more=more)


def save(job: Job, state: State, step: int, *, must: bool = False) -> bool:
    """Publish the checkpoint of `step`; whether that was done. A collective.

    A save that fails leaves the run training, and the checkpoints before as they were; with `must` it raises.
    """
    job.watch.enter("save")
    check_weights(job, state, step)
    contents = state.average.contents(job.ranks) if state.average is not None else None
    samples = (step + state.health.skipped) * job.schedule.batch_total
    try:
        checkpoint.save(
            state.engine,
            job.folder,
            step=step,
            facts={**job.facts, "samples": samples, "groups": state.engine.group_names},
            ranks=job.ranks,
            keep=job.recipe.run.keep,
            keep_every=job.recipe.run.keep_every,
            extras=[checkpoint.Extra(*contents)] if contents is not None else [],
        )
    except checkpoint.SaveFailed as failure:
        if must or step == job.schedule.stop_step:
            raise
        state.health.tell("save failed", step, error=str(failure))
        if job.ranks.first:
            log.error("%s\n  the run goes on; a validation that is due now is left out", failure)
        return False
    job.watch.saved = step
    return True


def save_unsaved(job: Job, state: State) -> None:
    """Save the last finished step where no checkpoint holds it yet. A collective."""
    if job.watch.step != job.watch.saved:
        save(job, state, job.watch.step, must=True)


def check_weights(job: Job, state: State, step: int) -> None:
    """Raise on all ranks where a master is not finite: weights that are spoilt are never saved. A collective."""
    parts = [part for group in partition.masters(state.engine) for part in group]
    finite = all(bool(torch.isfinite(part.master).all()) for part in parts)
    error = None if finite else FloatingPointError(f"step {step}: the weights are not finite")
    agree_error(error, job.device, f"step {step}: the weights")


def go_back(job: Job, state: State, step: int) -> int:
    """Bring everything back to the newest verified checkpoint; returns its step. A collective. Raises Diverged."""
    job.watch.enter("start: checkpoint")
    found = checkpoint.find(job.folder, "auto", job.ranks)
    if found is None:
        raise Diverged(f"step {step}: the numbers went bad before the first checkpoint; lower the learning rate")
    state.health.went_back(step, found.step)
    load(job, state, found)
    job.watch.step = job.watch.saved = found.step
    return found.step
