"""The training program: `deepspeed [options] dsvid/train.py --ds_config FILE [--recipe …] [--out …] [a.b=v …]`.

Functions only: this file runs as `__main__` and is imported as `dsvid.train`, so a class here would exist twice.
"""

import os
import signal
import sys

if not __package__:  # run as a script from a clone: the package is the folder above, wherever we were started from
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
if __name__ == "__main__":  # the imports take seconds, and a signal in them must not look like a crash
    for _name in ("SIGTERM", "SIGINT", "SIGUSR1"):
        signal.signal(getattr(signal, _name), lambda *_: os._exit(75))

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dsvid import checkpoint, startup
from dsvid import engine as ds
from dsvid.announcement import announce
from dsvid.health import Own, Verdict
from dsvid.job import Job, build_engine, counted, make_bad_clips, make_loader, make_monitor, read_start, resolve_job
from dsvid.monitor import Monitor
from dsvid.outcome import report
from dsvid.pictures import frame_table, save_png
from dsvid.recipe import DEFAULT_RECIPE, load_recipe
from dsvid.runtime import (
    Ranks,
    agree_error,
    barrier,
    close_log,
    log,
    on_first,
    read_ranks,
    seed_everything,
    start_log,
    tolerated,
)
from dsvid.state import State, go_back, make_state, save, save_unsaved
from dsvid.stopping import EXIT_STOPPED, Stopped, Stopping, ignore_signals
from dsvid.validation import publish_weights, test, validate


def main(argv: list[str] | None = None) -> int:
    """Run a training; returns the exit code.

    0 done, 2 the user's mistake, 75 stopped on request with everything saved, 1 anything else.
    """
    args = parse_arguments(argv)
    ranks = Ranks(0, 1, 0)
    with Stopping() as stop:
        try:
            stop.ranks = ranks = read_ranks()
            start_log(ranks)
            return run(args, ranks, stop)
        except Exception as error:
            return report(error, ranks)
        finally:
            close_log()


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


def run(args: argparse.Namespace, ranks: Ranks, stop: Stopping) -> int:
    """Check everything that needs no device, on all ranks, then train while the run folder is held."""
    name = args.recipe or DEFAULT_RECIPE
    if args.recipe is None:
        log.info("no --recipe: %s on generated clips. With your own videos (a line of the list is: path label):", name)
        log.info(
            "  deepspeed dsvid/train.py --ds_config %s --recipe pretrain_videomae_base_k400 data.train=LIST",
            args.ds_config,
        )
    out = args.out or Path("runs") / Path(name).stem
    overrides = args.overrides if args.recipe else [*whole_batch(ranks.world), *args.overrides]

    def resolve() -> Job:
        return resolve_job(name, args.ds_config, overrides, out=out, resume=args.resume, ranks=ranks, stop=stop)

    job, hosts = startup.start(resolve, ranks, stop, args.resume)
    with startup.holding(job, hosts):
        work(job, args.resume)
    return 0


def work(job: Job, resume: str) -> None:
    """Build, resume, train and publish; where the run was asked to stop, save and raise Stopped. A collective."""
    ranks, stop = job.ranks, job.stop
    found = checkpoint.find(job.folder, resume, ranks)
    if found is not None:
        checkpoint.check_continues(found, job.facts)
    step = found.step if found else 0
    start = read_start(job) if found is None and job.recipe.model.init else None  # before anything is written

    def begin() -> None:
        checkpoint.remove_scratch(job.folder.checkpoints)
        job.folder.write_settings(job.recipe, job.config, ranks, {"resumed_step": step})

    on_first(ranks, job.device, "writing the settings", begin)
    stop.check()
    job.watch.enter("start: model")
    seed_everything(job.recipe.run.seed)
    engine = build_engine(job, fresh=found is None, start=start)
    del start  # a large file that is mapped or held
    stop.check()
    job.watch.enter("start: checkpoint")
    state = make_state(job, engine, found)
    del found  # its files are mapped: what is mapped keeps its place on the disk when it is removed
    announce(job, state, step)
    try:
        finish(job, state, train(job, state, step))
    except Stopped as stopped:
        save_unsaved(job, state)
        job.watch.enter("end")
        barrier()
        kept = f"step {job.watch.step} is saved" if job.watch.step else "no step was finished yet"
        raise Stopped(f"{stopped}; {kept}") from stopped
    job.watch.enter("end")
    barrier()  # a rank that leaves early would make the launcher end the others


def finish(job: Job, state: State, step: int) -> None:
    """Publish the weights of the last step, and test them."""
    publish_weights(job, state, step, job.folder.weights)
    if state.average is not None:
        publish_weights(job, state, step, job.folder.weights_average, average=True)
    if job.task.scored and job.test_list:
        test(job, state, step)


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


def train(job: Job, state: State, step: int) -> int:
    """The loop: from `step` to the schedule's stop; returns the step that it reached, which is saved."""
    schedule, every, engine = job.schedule, job.recipe.run, state.engine
    loader, monitor, bad = make_loader(job, step + state.health.skipped), make_monitor(job, step), make_bad_clips(job)
    batches = job.stop.watched(job.watch.seen(loader), job.watch.enter)
    if step and validation_due(job, step):
        validate(job, state, monitor, step)  # where the run was ended between checkpoint and validation
    while step < schedule.stop_step:
        seen = []
        for _ in range(schedule.accumulation):
            with monitor.waiting_for_data():
                batch = to_device(counted(next(batches), bad), job.device)
            out = engine(batch)
            job.watch.enter("backward")
            engine.backward(out.loss)
            # a copy: under CUDA graphs the next micro-batch's loss lies in the same memory
            seen.append((out.loss.detach().clone(), batch["index"]))
            job.watch.enter("step")
            taken = ds.step(engine)
        step += 1
        loss = mean_loss([loss for loss, _ in seen], job)
        if judge(job, state, step, taken, loss, seen) == "go back":
            loader.close()
            monitor.close()
            return train(job, state, go_back(job, state, step))
        job.watch.finish_step(step)
        if state.average is not None and taken.applied:
            state.average.update()
        report_step(job, monitor, step)
        validated = validation_due(job, step)
        save_due = is_due(step, every.save_every) or validated or step == schedule.stop_step
        if is_due(step, every.log_every) or save_due:
            agree_error(bad.verdict(), job.device, "reading the clips")
            monitor.train(step, loss=loss, lr=taken.lr, grad_norm=taken.grad_norm, device=job.device)
        saved = save_due and save(job, state, step)
        if validated and saved:
            validate(job, state, monitor, step)
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
    """Whether data.val is evaluated: every eval.every_epochs and at the end, where the task has an evaluation."""
    every = job.recipe.eval.every_epochs * job.schedule.steps_per_epoch
    if not job.task.scored or not job.recipe.data.val or not every:
        return False
    return is_due(step, every) or step == job.schedule.stop_step


def judge(job: Job, state: State, step: int, taken: ds.Step, loss: float, seen: list[tuple[Tensor, Tensor]]) -> Verdict:
    """Whether the step that was just made leaves the run sane. A collective where it was skipped.

    `seen`: the loss of each micro-batch of this rank, and which videos its clips came from.
    """
    if taken.applied:
        return state.health.step_taken(step, loss)
    videos = job.task.open(job.recipe, "train")
    own = Own([float(loss) for loss, _ in seen], [[videos.path(i) for i in index.tolist()] for _, index in seen])
    return state.health.step_skipped(step, own, grad_norm=taken.grad_norm, scaled=job.facts["precision"] == "fp16")


def report_step(job: Job, monitor: Monitor, step: int) -> None:
    """Move the bar, and name ranks that are slow. A collective."""
    monitor.advance(step)
    for line in job.watch.slow_ranks(job.stop.gather):
        monitor.say(line)


def to_device(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """The batch's tensors on `device`; on a GPU the loader has sent them there already."""
    return {k: v.to(device, non_blocking=True) for k, v in batch.items() if isinstance(v, Tensor)}


def mean_loss(losses: list[Tensor], job: Job) -> float:
    """Mean loss of the step over micro-batches and ranks; not finite where it is not on any rank. A collective.

    DeepSpeed's step has looked at the gradient norm already, so that reading the loss does not wait for the device.
    """
    own = float(torch.stack(losses).mean())
    return sum(row[0] for row in job.stop.gather([own])) / job.ranks.world


def draw_reconstruction(job: Job, engine: Any, batch: dict[str, Any], monitor: Monitor, step: int) -> None:
    """Draw the first clip of the batch: original, masked, rebuilt, patch mean. All ranks call it (ZeRO-3 gathers)."""
    few = {key: value[:1] for key, value in batch.items()}
    pictures = engine.module.reconstruct(few)
    if job.ranks.first:
        rows = {name.replace("_", " "): frames[0].cpu().numpy() for name, frames in pictures.items()}
        picture = frame_table(rows)
        monitor.picture("reconstruction", picture, step)
        with tolerated("pictures/"):
            save_png(picture, job.folder.out / "pictures" / f"reconstruction-{step:08d}.png")


if __name__ == "__main__":
    exit_code = main()
    ignore_signals()  # the code is settled: a launcher that ends the others must not change it
    if exit_code in (0, EXIT_STOPPED) and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    sys.exit(exit_code)
