"""Evaluation in a run: validations, the best weights, the final test, and publishing weights from a checkpoint.

Knows the job and its state; knows no loop.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from dsvid.data.loader import eval_batches
from dsvid.data.manifest import open_split
from dsvid.errors import CheckpointError, DsvidError
from dsvid.evaluate import Evaluation, evaluate, unreadable_list, write_result
from dsvid.job import Job, class_names, counted, make_bad_clips, make_monitor, weights_config
from dsvid.monitor import Monitor
from dsvid.runtime import log, on_first
from dsvid.state import State
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


def evaluate_split(job: Job, state: State, split: str, *, segments: int = 1, crops: int = 1) -> Evaluation:
    """Evaluate a split on all ranks, one view a video unless told otherwise. A collective."""
    recipe = job.recipe
    views = eval_batches(
        recipe.data,
        split,
        segments=segments,
        crops=crops,
        rank=job.ranks.rank,
        world=job.ranks.world,
        batch=recipe.eval.batch,
        device_type=job.device.type,
    )
    manifest = open_split(getattr(recipe.data, split), split, recipe.data.root)
    result = evaluate(
        state.engine.module,
        job.stop.watched(job.watch.seen(views), job.watch.enter, f"{split} "),
        labels=np.asarray(manifest.labels, dtype=np.int64),
        views=segments * crops,
        device=job.device,
        merge=recipe.eval.merge,
    )
    if job.ranks.first:
        counted({"index": [], "bad": result.unreadable, "notes": [], "short": result.short}, make_bad_clips(job))
    if not result.views.any():  # the same on all ranks
        raise unreadable_list(split, result)
    return result


def validate(job: Job, state: State, monitor: Monitor, step: int) -> None:
    """A line in metrics.jsonl for data.val, of the weights and of their average, and the best of the run kept.

    A collective, behind the checkpoint of `step`. One view a video. A line that is there already is not made again.
    """
    val = on_first(job.ranks, job.device, "reading data.val", lambda: val_list(job))
    rows = on_first(job.ranks, job.device, "reading metrics.jsonl", lambda: validations(job.folder.metrics, val))
    if not any(row["step"] == step for row in rows):
        numbers = evaluate_split(job, state, "val").numbers()
        row = {"kind": "eval", "split": "val", "step": step, "list": val, **numbers}
        if state.average is not None:
            with state.average.in_place():
                theirs = evaluate_split(job, state, "val").numbers()
            row |= {f"ema_{key}": theirs[key] for key in ("top1", "top5", "mean_class")}
        monitor.write(row)
        rows.append(on_first(job.ranks, job.device, "validating", lambda: row))
        shown = " ".join(f"{key} {row[key]:.2f}" for key in ("top1", "top5", "ema_top1") if key in row)
        monitor.say(f"val at step {step}: {shown}, {numbers['videos']} videos")
    best = best_of(rows)
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


def best_of(rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The first step with the highest top-1, and whether it is the average's; None where there is none."""
    seen = [
        (row[key], -row["step"], key == "top1")
        for row in rows
        for key in ("top1", "ema_top1")
        if row.get(key) is not None
    ]
    if not seen:
        return None
    top1, step, own = max(seen)
    return {"steps": -step, "top1": top1, "average": not own, "list": rows[0]["list"]}


def holds(folder: Path, best: dict[str, Any]) -> bool:
    """Whether a weight folder is the one that `best` describes."""
    try:
        return bool(read_config(folder)["trained"]["validation"] == best)
    except (CheckpointError, KeyError, TypeError):
        return False


def val_list(job: Job) -> str:
    """Which list data.val is: numbers on another one cannot be compared."""
    return open_split(job.recipe.data.val, "val", job.recipe.data.root).sha256[:16]


def test(job: Job, state: State, step: int) -> None:
    """The final multi-view test of the last weights: a line in metrics.jsonl, and the files of test/."""
    settings, split = job.recipe.eval, job.test_list
    result = evaluate_split(job, state, split, segments=settings.segments, crops=settings.crops)
    extra = {"split": split, "segments": settings.segments, "crops": settings.crops, "step": step}
    if state.average is not None:
        with state.average.in_place():
            theirs = evaluate_split(job, state, split, segments=settings.segments, crops=settings.crops)
        extra |= {f"ema_{key}": value for key, value in theirs.numbers().items() if key in ("top1", "top5")}
    if not job.ranks.first:
        return
    manifest = open_split(getattr(job.recipe.data, split), split, job.recipe.data.root)
    paths = [manifest[index].path for index in range(len(manifest))]
    numbers = write_result(job.folder.out / "test", result, class_names(job.recipe), paths, extra=extra)
    monitor = make_monitor(job, step, retest=True)
    monitor.write({"kind": "eval", "final": True, **{key: value for key, value in numbers.items() if key != "classes"}})
    monitor.close()
    log.info(
        "test      top-1 %.2f %% top-5 %.2f %% on %d videos, %d unreadable, %d x %d views",
        numbers["top1"], numbers["top5"], numbers["videos"], numbers["unreadable"], settings.segments, settings.crops,
    )  # fmt: skip
