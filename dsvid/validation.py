"""Evaluation in a run: validations, the best weights, the final test, and publishing weights from a checkpoint.

Knows the job and its state; knows no loop.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from dsvid.errors import CheckpointError, DsvidError
from dsvid.job import Job, counted, make_bad_clips, make_monitor, weights_config
from dsvid.monitor import Monitor
from dsvid.runtime import log, on_first
from dsvid.state import State
from dsvid.tasks import EvalRun, Result, unreadable_split
from dsvid.tasks.task import Batches
from dsvid.weights.consolidate import consolidate
from dsvid.weights.folder import check_finite, read_config, write_folder


def publish_weights(
    job: Job, state: State, step: int, folder: Path, *, average: bool = False, validation: dict[str, Any] | None = None
) -> None:
    """Consolidate the checkpoint of `step` into `folder`, on rank 0, from the files alone; all ranks wait."""
    job.watch.enter("publish")

    def publish() -> None:
        source = job.folder.checkpoints / f"step-{step:08d}"
        weights = consolidate(source, weights="ema" if average else "last")
        check_finite(weights, source)
        expected = {name.removeprefix("model.") for name, _ in state.engine.module.named_parameters()}
        if set(weights) != expected:
            raise RuntimeError(f"consolidated names differ from the model's: {sorted(set(weights) ^ expected)[:5]}")
        config = weights_config(job.recipe, step)
        if validation is not None:
            config["trained"]["validation"] = validation
        write_folder(folder, weights, config)
        log.info("weights   %s", folder / "model.safetensors")

    on_first(job.ranks, job.device, "consolidating the weights", publish)


def evaluate_split(job: Job, state: State, split: str, *, final: bool = False) -> Result:
    """Evaluate a split on all ranks: as a validation, or `final`, as the recipe's test. A collective."""

    def watched(batches: Batches) -> Batches:
        return job.stop.watched(job.watch.seen(batches), job.watch.enter, f"{split} ")

    run = EvalRun(job.ranks, job.device, watched)
    result = job.task.evaluate(job.recipe, state.engine.module, split, run, final=final)
    if job.ranks.first:
        counted({"index": [], "bad": result.unreadable, "notes": [], "short": result.short}, make_bad_clips(job))
    if not result.any_read:  # the same on all ranks
        raise unreadable_split(split, result)
    return result


def validate(job: Job, state: State, monitor: Monitor, step: int) -> None:
    """A line in metrics.jsonl for data.val, of the weights and of their average, and the best of the run kept.

    A collective, behind the checkpoint of `step`. One view a video. A line that is there already is not made again.
    """
    val = on_first(job.ranks, job.device, "reading data.val", lambda: val_list(job))
    rows = on_first(job.ranks, job.device, "reading metrics.jsonl", lambda: validations(job.folder.metrics, val))
    if not any(row["step"] == step for row in rows):
        result = evaluate_split(job, state, "val")
        row = {"kind": "eval", "split": "val", "step": step, "list": val, **result.numbers()}
        if state.average is not None:
            with state.average.in_place():
                theirs = evaluate_split(job, state, "val").numbers()
            row |= {f"ema_{key}": value for key, value in theirs.items() if isinstance(value, float)}
        monitor.write(row)
        rows.append(on_first(job.ranks, job.device, "validating", lambda: row))
        scored = f"ema_{job.task.scored}"
        average = f", moving average {row[scored]:.4g}" if scored in row else ""
        monitor.say(f"val at step {step}: {result.line()}{average}")
    best = best_of(rows, job.task.scored)
    if best is None or best["steps"] != step:
        return
    if not on_first(job.ranks, job.device, "reading weights_best", lambda: holds(job.folder.weights_best, best)):
        try:
            publish_weights(job, state, step, job.folder.weights_best, average=best["average"], validation=best)
        except DsvidError as error:  # on all ranks alike: the run is worth more than this copy
            state.health.tell("weights_best not written", step, error=str(error))
            monitor.say(f"weights_best is not written: {error}")


def validations(metrics: Path, val: str) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl that belong to the list `val`, without those of final tests."""
    lines = metrics.read_text(encoding="utf-8").splitlines() if metrics.is_file() else []
    return [row for row in map(json.loads, lines) if row.get("list") == val]


def best_of(rows: list[dict[str, Any]], scored: str) -> dict[str, Any] | None:
    """The first step with the highest number `scored`, and whether it is the average's; None where there is none."""
    seen = [
        (row[key], -row["step"], key == scored)
        for row in rows
        for key in (scored, f"ema_{scored}")
        if row.get(key) is not None and math.isfinite(row[key])
    ]
    if not seen:
        return None
    value, step, own = max(seen)
    return {"steps": -step, scored: value, "average": not own, "list": rows[0]["list"]}


def holds(folder: Path, best: dict[str, Any]) -> bool:
    """Whether a weight folder is the one that `best` describes."""
    try:
        return bool(read_config(folder)["trained"]["validation"] == best)
    except (CheckpointError, KeyError, TypeError):
        return False


def val_list(job: Job) -> str:
    """Which list data.val is: numbers on another one cannot be compared."""
    return job.task.open(job.recipe, "val").sha256[:16]


def test(job: Job, state: State, step: int) -> None:
    """The final test of the last weights: a line in metrics.jsonl, and the files of test/."""
    split, scored = job.test_list, job.task.scored
    result = evaluate_split(job, state, split, final=True)
    extra: dict[str, Any] = {"split": split, "step": step}
    if state.average is not None:
        with state.average.in_place():
            theirs = evaluate_split(job, state, split, final=True)
        extra |= {f"ema_{key}": value for key, value in theirs.numbers().items() if key in (scored, "top5")}
    if not job.ranks.first:
        return
    numbers = result.write(job.folder.out / "test", extra)
    monitor = make_monitor(job, step, retest=True)
    flat = {key: value for key, value in numbers.items() if not isinstance(value, (list, dict))}
    monitor.write({"kind": "eval", "final": True, **flat})
    monitor.close()
    log.info("test      %s", result.line())
