"""The training program: `deepspeed [options] dsvid/train.py --ds_config FILE [--recipe …] [--out …] [a.b=v …]`.

Functions only: this file runs as `__main__` and is imported as `dsvid.train`, so a class here would exist twice.
"""

import os
import sys

if not __package__:  # run as a script from a clone: the package is the folder above, wherever we were started from
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))

import argparse
import json
import math
import platform
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dsvid import checkpoint, ops
from dsvid import engine as ds
from dsvid.averaging import MovingAverage
from dsvid.data.decode import choose_decoder
from dsvid.data.loader import BadClips, TrainLoader, eval_batches
from dsvid.data.manifest import open_split
from dsvid.errors import CheckpointError, DsvidError
from dsvid.evaluate import Evaluation, evaluate, unreadable_list, write_result
from dsvid.job import Job, build_engine, class_names, read_start, resolve_job, weights_config
from dsvid.models.flops import peak_flops, training_flops
from dsvid.monitor import Monitor
from dsvid.pictures import frame_table, save_png
from dsvid.recipe import load_recipe
from dsvid.runtime import (
    Ranks,
    agree_error,
    agree_sum,
    barrier,
    log,
    on_first,
    read_ranks,
    say_first,
    say_once,
    seed_everything,
    start_log,
)
from dsvid.weights.consolidate import consolidate
from dsvid.weights.folder import check_finite, read_config, write_folder

DEFAULT_RECIPE = "demo_pretrain"


def main(argv: list[str] | None = None) -> int:
    """Run a training; returns the exit code: 0 done, 2 the user's mistake, 1 anything else."""
    ranks = Ranks(0, 1, 0)
    try:
        args = parse_arguments(argv)
        ranks = read_ranks()
        start_log(ranks)
        return run(args, ranks)
    except DsvidError as error:
        if os.environ.get("DSVID_DEBUG") == "1":
            traceback.print_exc()
        # Before the process group exists all ranks meet the same mistake: one voice for each node is enough.
        if ranks.local == 0 or torch.distributed.is_initialized():
            prefix = f"[rank {ranks.rank}] " if ranks.rank else ""
            print(f"{prefix}{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    except Exception as error:
        traceback.print_exc()
        # The last line names the rank: a launcher mixes the tracebacks of all ranks.
        first_line = str(error).partition("\n")[0]
        print(f"rank {ranks.rank} on {platform.node()} failed: {type(error).__name__}: {first_line}", file=sys.stderr)
        return 1


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line; positional `a.b=v` items may stand anywhere."""
    parser = argparse.ArgumentParser(
        prog="deepspeed dsvid/train.py",
        allow_abbrev=False,
        description="Train a video transformer with DeepSpeed.",
        epilog="example: deepspeed dsvid/train.py --ds_config ds_configs/zero2.json "
        "--recipe pretrain_videomae_base_k400 --out runs/k400 data.train=train.csv run.seed=1",
    )
    parser.add_argument("--ds_config", "--deepspeed_config", required=True, type=Path, help="DeepSpeed JSON")
    parser.add_argument("--recipe", default=None, help=f"shipped name or YAML file (default: {DEFAULT_RECIPE})")
    parser.add_argument("--out", type=Path, default=None, help="run folder (default: runs/RECIPE)")
    parser.add_argument("--resume", choices=("auto", "never", "must"), default="auto", help="default: auto")
    parser.add_argument("--local_rank", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", metavar="a.b=v", help="recipe values; ds.* reaches the DeepSpeed JSON")
    return parser.parse_intermixed_args(argv)


def run(args: argparse.Namespace, ranks: Ranks) -> int:
    """Check everything that needs no device, then build, resume, train, and publish the weights."""
    name = args.recipe or DEFAULT_RECIPE
    if args.recipe is None:
        log.info("no --recipe: %s on generated clips. With your own videos (a line of the list is: path label):", name)
        log.info(
            "  deepspeed dsvid/train.py --ds_config %s --recipe pretrain_videomae_base_k400 data.train=LIST",
            args.ds_config,
        )
    out = args.out or Path("runs") / Path(name).stem
    overrides = args.overrides if args.recipe else [*whole_batch(ranks.world), *args.overrides]
    job = resolve_job(name, args.ds_config, overrides, out=out, resume=args.resume, ranks=ranks)
    ds.start_distributed(job.device, ranks)
    found = checkpoint.find(job.folder, args.resume, ranks, job.device)
    step = found.step if found else 0
    start = read_start(job) if found is None and job.recipe.model.init else None  # before anything is written
    if ranks.first:
        job.folder.write_settings(job.recipe, job.config, ranks, {"resumed_step": step})
    barrier()
    seed_everything(job.recipe.run.seed)
    engine = build_engine(job, fresh=found is None, start=start)
    del start  # a large file that is mapped or held
    if found is not None:
        checkpoint.load(engine, found, facts=job.facts, ranks=ranks)
    average = make_average(job, engine, found)
    announce(job, engine, step)
    step = train(job, engine, average, step)
    publish_weights(job, engine, step, job.folder.weights)
    if average is not None:
        publish_weights(job, engine, step, job.folder.weights_average, average=True)
    if not job.pretrain and job.test_list:
        test(job, engine, average, step)
    barrier()  # a rank that leaves early would make the launcher end the others
    return 0


def whole_batch(world: int) -> list[str]:
    """Overrides that raise the default recipe's batch to a multiple of the ranks, at the same learning rate.

    The command without --recipe has to run on any number of devices; a recipe that somebody chose is never changed.
    """
    batch, scale = load_recipe(DEFAULT_RECIPE).batch.total, load_recipe(DEFAULT_RECIPE).optim.lr_scale_batch
    if batch % world == 0:
        return []
    total = -(-batch // world) * world
    log.info("batch.total is %d instead of %d, for %d ranks", total, batch, world)
    return [f"batch.total={total}", f"optim.lr_scale_batch={scale * total // batch}"]


def make_average(job: Job, engine: Any, found: checkpoint.Found | None) -> MovingAverage | None:
    """The moving average of the weights where the recipe asks for one, as the checkpoint has it. A collective."""
    if job.recipe.optim.ema_decay == 0:
        return None
    average = MovingAverage(engine, job.recipe.optim.ema_decay)
    error: BaseException | None = None
    if found is not None:
        try:
            average.load(found.folder, job.ranks)
        except Exception as failure:
            error = failure
    agree_error(error, job.device, "loading the moving average")
    return average


def train(job: Job, engine: Any, average: MovingAverage | None, step: int) -> int:
    """The loop: from `step` to the schedule's stop; returns the step that it reached, which is saved."""
    schedule, every = job.schedule, job.recipe.run
    batches, monitor, bad = make_batches(job, step), make_monitor(job, step), make_bad_clips(job)
    if step and validation_due(job, step):
        validate(job, engine, average, monitor, step)  # where the run was ended between checkpoint and validation
    while step < schedule.stop_step:
        losses = []
        for _ in range(schedule.accumulation):
            with monitor.waiting_for_data():
                batch = to_device(counted(next(batches), bad), job.device)
            out = engine(batch)
            engine.backward(out.loss)
            losses.append(out.loss.detach())
            lr, norm = ds.before_step(engine)
            engine.step()
        step += 1
        if average is not None:
            average.update()
        monitor.advance(step)
        validated = validation_due(job, step)
        save_due = is_due(step, every.save_every) or validated or step == schedule.stop_step
        if is_due(step, every.log_every) or save_due:
            agree_error(bad.verdict(), job.device, "reading the clips")
            grad_norm = ds.gradient_norm(engine, norm)
            loss = finite_mean(losses, grad_norm, step, job, skipped=engine.skipped_steps)
            monitor.train(step, loss=loss, lr=lr, grad_norm=grad_norm, device=job.device)
        if save_due:
            save(job, engine, average, step)
        if validated:
            validate(job, engine, average, monitor, step)
        if picture_due(job, step):
            draw_reconstruction(job, engine, batch, monitor, step)
        if save_due or picture_due(job, step):
            monitor.restart_clock(step)
    monitor.close()
    return step


def is_due(step: int, every: int) -> bool:
    """Whether something that happens every `every` steps (0 = never) happens at `step`."""
    return every > 0 and step % every == 0


def picture_due(job: Job, step: int) -> bool:
    """Whether a reconstruction is drawn: pre-training only, on run.images_every and at the end."""
    return job.pretrain and (is_due(step, job.recipe.run.images_every) or step == job.schedule.stop_step)


def validation_due(job: Job, step: int) -> bool:
    """Whether data.val is evaluated: classification only, every eval.every_epochs and at the end."""
    every = job.recipe.eval.every_epochs * job.schedule.steps_per_epoch
    if job.pretrain or not job.recipe.data.val or not every:
        return False
    return is_due(step, every) or step == job.schedule.stop_step


def save(job: Job, engine: Any, average: MovingAverage | None, step: int) -> None:
    """Publish the checkpoint of `step`. A collective."""
    beside = average.save if average is not None else None
    keep = job.recipe.run.keep
    checkpoint.save(engine, job.folder, step=step, facts=job.facts, ranks=job.ranks, keep=keep, beside=beside)


def make_batches(job: Job, step: int) -> Iterator[dict[str, Any]]:
    """This rank's micro-batches from optimizer step `step` on; nothing else decides what is in them."""
    loader = TrainLoader(
        job.recipe.data,
        "train",
        seed=job.recipe.run.seed,
        batch_total=job.schedule.batch_total,
        batch_micro=job.schedule.batch_micro,
        rank=job.ranks.rank,
        world=job.ranks.world,
        start_step=step,
        device_type=job.device.type,
        samples_per_epoch=job.recipe.run.samples_per_epoch,
    )
    return iter(loader)


def make_bad_clips(job: Job) -> BadClips:
    """The record of unreadable clips, which ends the run when there are too many."""
    data = job.recipe.data
    return BadClips(job.folder.bad_clips, rank=job.ranks.rank, max_fraction=data.max_bad_fraction, grace=data.bad_grace)


def counted(batch: dict[str, Any], bad: BadClips) -> dict[str, Any]:
    """The batch, its unreadable clips recorded; each file, and each remark of a decoder, is named once in the log."""
    for record in bad.add(batch):
        log.warning("unreadable clip: %s", record["error"])
    for remark in batch["notes"]:
        say_once("%s: %s", remark["path"], remark["note"])
    for _, path in batch["short"][:1]:
        say_first(
            "short",
            "some videos have fewer frames than a clip asks for, so frames are repeated (data.num_frames, "
            "data.sampling_rate, eval.segments); the first is %s",
            path,
        )
    return batch


def make_monitor(job: Job, step: int, *, retest: bool = False) -> Monitor:
    """The monitor, which writes on rank 0; `retest`: the line of the final test is replaced."""
    schedule, pretrain = job.schedule, job.recipe.pretrain
    name = torch.cuda.get_device_name(job.device) if job.device.type == "cuda" else ""
    return Monitor(
        metrics=job.folder.metrics,
        tensorboard=job.folder.tensorboard,
        first=job.ranks.first,
        world=job.ranks.world,
        start_step=step,
        stop_step=schedule.stop_step,
        steps_per_epoch=schedule.steps_per_epoch,
        clips_per_step=schedule.batch_total,
        flops_per_clip=training_flops(
            job.spec, mask_ratio=pretrain.mask_ratio, decoder_mask_ratio=pretrain.decoder_mask_ratio
        ),
        peak_flops=peak_flops(name),
        retest=retest,
    )


def to_device(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """The batch's tensors on `device`; the copy overlaps compute where the memory is pinned."""
    return {k: v.to(device, non_blocking=True) for k, v in batch.items() if isinstance(v, Tensor)}


def finite_mean(losses: list[Tensor], grad_norm: float, step: int, job: Job, *, skipped: int) -> float:
    """Mean loss of the step over micro-batches and ranks. A collective. Raises where any rank's loss is not finite.

    Nor may the gradient be in fp32, where DeepSpeed applies it all the same; in bf16 and fp16 it skips the step, which
    is said here. Called before every save: weights that were spoilt are never published.
    """
    own = float(torch.stack(losses).mean())
    finite = math.isfinite(own) and (math.isfinite(grad_norm) or job.facts["precision"] != "fp32")
    total, bad = agree_sum([own if finite else 0.0, 0.0 if finite else 1.0], job.device)
    if bad:
        text = f"step {step}, rank {job.ranks.rank}: loss {own}, gradient norm {grad_norm}"
        agree_error(None if finite else FloatingPointError(text), job.device, f"step {step}: the loss or the gradient")
    if skipped:
        say_once("%s steps were skipped so far: their gradients were not finite", str(skipped))
    return total / job.ranks.world


def announce(job: Job, engine: Any, step: int) -> None:
    """Say, before step 1, what is about to happen: batch arithmetic, sizes, backends, places."""
    schedule, recipe, grid = job.schedule, job.recipe, job.spec.grid
    lr = job.config["optimizer"]["params"]["lr"]
    decoder, reason = choose_decoder(recipe.data.decoder)
    saving = "activation checkpointing" if "activation_checkpointing" in job.config else "no activation checkpointing"
    lines = [
        f"batch     {schedule.world} ranks x {schedule.batch_micro} clips x {schedule.accumulation} accumulation "
        f"= {schedule.batch_total} clips a step",
        f"schedule  {schedule.steps_per_epoch} steps an epoch, {schedule.total_steps} steps in all, "
        f"{schedule.warmup_steps} of them warm-up; this run ends at step {schedule.stop_step}",
        f"lr        {lr:.3e} (base {recipe.optim.base_lr:g} x {schedule.batch_total} / {recipe.optim.lr_scale_batch})",
        *paper_versus_you(job),
        f"model     {job.spec.arch}: {ds.count_parameters(engine.module) / 1e6:.2f} M parameters, "
        f"{grid.tokens} tokens ({grid.t}x{grid.h}x{grid.w})",
        f"engine    DeepSpeed ZeRO-{job.facts['stage']}, {job.facts['precision']}, {job.device.type}, {saving}",
        *(f"attention {line}" for line in engine.module.attention_choices()),
        *(f"op        {line}" for line in ops.clear_message()),
        f"decoder   {decoder} ({reason})",
        f"run       {job.folder.out}: metrics.jsonl, tensorboard/, checkpoints/, weights/",
    ]
    if step:
        lines.append(f"resume    from step {step} (verified), data position {step * schedule.batch_total} clips")
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


def draw_reconstruction(job: Job, engine: Any, batch: dict[str, Any], monitor: Monitor, step: int) -> None:
    """Draw the first clip of the batch: original, masked, rebuilt, patch mean. All ranks call it (ZeRO-3 gathers)."""
    few = {key: value[:1] for key, value in batch.items()}
    pictures = engine.module.reconstruct(few)
    if job.ranks.first:
        rows = {name.replace("_", " "): frames[0].cpu().numpy() for name, frames in pictures.items()}
        picture = frame_table(rows)
        monitor.picture("reconstruction", picture, step)
        save_png(picture, job.folder.out / "pictures" / f"reconstruction-{step:08d}.png")


def publish_weights(
    job: Job, engine: Any, step: int, folder: Path, *, average: bool = False, validation: dict[str, Any] | None = None
) -> None:
    """Consolidate the checkpoint of `step` into `folder`, on rank 0, from the files alone; all ranks wait."""

    def publish() -> None:
        source = job.folder.checkpoints / f"step-{step:08d}"
        state = consolidate(source, weights="ema" if average else "last")
        check_finite(state, source)
        expected = {name.removeprefix("model.") for name, _ in engine.module.named_parameters()}
        if set(state) != expected:
            raise RuntimeError(f"consolidated names differ from the model's: {sorted(set(state) ^ expected)[:5]}")
        config = weights_config(job.recipe, step)
        if validation is not None:
            config["trained"]["validation"] = validation
        write_folder(folder, state, config)
        log.info("weights   %s", folder / "model.safetensors")

    on_first(job.ranks, job.device, "consolidating the weights", publish)


def evaluate_split(job: Job, engine: Any, split: str, *, segments: int = 1, crops: int = 1) -> Evaluation:
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
        engine.module,
        views,
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


def validate(job: Job, engine: Any, average: MovingAverage | None, monitor: Monitor, step: int) -> None:
    """A line in metrics.jsonl for data.val, of the weights and of their average, and the best of the run kept.

    A collective, behind the checkpoint of `step`. One view a video. A line that is there already is not made again.
    """
    val = on_first(job.ranks, job.device, "reading data.val", lambda: val_list(job))
    rows = on_first(job.ranks, job.device, "reading metrics.jsonl", lambda: validations(job.folder.metrics, val))
    if not any(row["step"] == step for row in rows):
        numbers = evaluate_split(job, engine, "val").numbers()
        row = {"kind": "eval", "split": "val", "step": step, "list": val, **numbers}
        if average is not None:
            with average.in_place():
                theirs = evaluate_split(job, engine, "val").numbers()
            row |= {f"ema_{key}": theirs[key] for key in ("top1", "top5", "mean_class")}
        monitor.write(row)
        rows.append(on_first(job.ranks, job.device, "validating", lambda: row))
        shown = " ".join(f"{key} {row[key]:.2f}" for key in ("top1", "top5", "ema_top1") if key in row)
        monitor.say(f"val at step {step}: {shown}, {numbers['videos']} videos")
    best = best_of(rows)
    if best is None or best["steps"] != step:
        return
    if not on_first(job.ranks, job.device, "reading weights_best", lambda: holds(job.folder.weights_best, best)):
        publish_weights(job, engine, step, job.folder.weights_best, average=best["average"], validation=best)


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


def test(job: Job, engine: Any, average: MovingAverage | None, step: int) -> None:
    """The final multi-view test of the last weights: a line in metrics.jsonl, and the files of test/."""
    settings, split = job.recipe.eval, job.test_list
    result = evaluate_split(job, engine, split, segments=settings.segments, crops=settings.crops)
    extra = {"split": split, "segments": settings.segments, "crops": settings.crops, "step": step}
    if average is not None:
        with average.in_place():
            theirs = evaluate_split(job, engine, split, segments=settings.segments, crops=settings.crops)
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


if __name__ == "__main__":
    exit_code = main()
    if exit_code == 0:
        torch.distributed.destroy_process_group()
    sys.exit(exit_code)
