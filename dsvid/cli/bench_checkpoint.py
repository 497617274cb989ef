"""`dsvid bench checkpoint`: seconds and bytes/s of saving, hashing, verifying and loading, against the raw disk.

One rank, or as many as a launcher starts (`deepspeed --num_gpus 2 --module dsvid bench checkpoint`): each moves its
share, all wait for the slowest. The arms and the disk's own two take turns.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

BLOCK = 4 << 20
ARMS = {  # in the order of a repeat; the baseline that each is compared with
    "write": None,  # as many bytes as a checkpoint has, written and synced
    "save": "write",
    "read": None,  # the same files, read from the system's cache
    "hash": "write",  # what hashing adds to a save
    "verify": "read",
    "load": "read",
}


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure, print and return the medians; the first rank's result, empty on the others. A collective.

    Raises CheckpointError where the disk has no room.
    """
    import torch

    from dsvid import engine as ds
    from dsvid.runtime import on_first, pick_device, read_ranks, start_log

    ranks = read_ranks()
    start_log(ranks)
    device = pick_device(ranks)
    ds.start_distributed(device, ranks)
    engine = make_engine(args, device)
    made = on_first(ranks, device, "making a folder", lambda: tempfile.mkdtemp(prefix="dsvid-bench-", dir=args.scratch))
    try:
        seconds, size, files = measure(args, engine, Path(made), ranks)
    finally:
        if ranks.first:
            shutil.rmtree(made, ignore_errors=True)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    return report(args, seconds, size, files, ranks.world) if ranks.first else {}


def make_engine(args: argparse.Namespace, device: Any) -> Any:
    """An engine of `--arch` behind one optimizer step, so that there are moments to save. Its input is one patch."""
    import torch

    from dsvid import engine as ds
    from dsvid.cli.bench_engine import engine_config
    from dsvid.models.sizes import encoder_size
    from dsvid.models.spec import ModelSpec, build_model

    size = encoder_size(args.arch)
    spec = ModelSpec("classify", args.arch, 4, size.patch, num_classes=400)
    config = engine_config(args.stage, args.dtype, 1)
    model = ds.build_module(lambda: build_model(spec, seed=None), config)
    generator = torch.Generator().manual_seed(0)
    ds.fill_parameters(model, lambda _, shape: torch.randn(shape, generator=generator) * 0.02)
    engine = ds.build_engine(model, config, layer_decay=0.75, depth=size.depth)
    clip = torch.randn(1, 3, 4, size.patch, size.patch, device=device)
    engine.backward(engine(clip.to(next(model.parameters()).dtype)).float().square().mean())
    engine.step()
    return engine


def measure(args: argparse.Namespace, engine: Any, folder: Path, ranks: Any) -> tuple[dict[str, list[float]], int, int]:
    """Seconds of every repeat of every arm, the bytes of a checkpoint and the number of its files."""
    from dsvid import checkpoint
    from dsvid.checkpoint_files import verify
    from dsvid.runfolder import RunFolder
    from dsvid.runtime import barrier

    run = RunFolder(folder)
    facts = {"stage": args.stage, "precision": args.dtype, "train_list": "", "groups": engine.group_names}
    step = 0

    def save() -> None:
        checkpoint.save(engine, run, step=step, facts=facts, ranks=ranks, keep=1)

    def load() -> None:
        found = checkpoint.Found(target, step, manifest)
        checkpoint.load(engine, found, ranks=ranks, accumulation=1)

    if ranks.first:
        run.checkpoints.mkdir()
    barrier()
    save()  # the first one also warms everything up, and says how many bytes there are
    target = run.checkpoints / f"step-{step:08d}"
    manifest = verify(target)
    sizes = {name: int(entry["bytes"]) for name, entry in manifest["files"].items()}
    own = [target / name for number, name in enumerate(sorted(sizes)) if number % ranks.world == ranks.rank]
    share = sum(sizes.values()) // ranks.world
    work: dict[str, Callable[[], object]] = {
        "write": lambda: write(folder / f"raw-{ranks.rank}", share),
        "save": save,
        "read": lambda: read(own),
        "hash": lambda: hash_memory(sum(path.stat().st_size for path in own)),
        "verify": lambda: verify(target, ranks.rank, ranks.world),
        "load": load,
    }
    seconds: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for repeat in range(args.repeats + 1):
        for arm, do in work.items():
            barrier()
            start = time.perf_counter()
            do()
            barrier()
            if repeat:  # the first round fills the caches
                seconds[arm].append(time.perf_counter() - start)
    return seconds, sum(sizes.values()), len(sizes)


def write(path: Path, size: int) -> None:
    """Write `size` bytes and sync them; the file is removed first, as a save makes new ones."""
    path.unlink(missing_ok=True)
    block = os.urandom(BLOCK)
    with path.open("wb") as out:
        for start in range(0, size, BLOCK):
            out.write(block[: min(BLOCK, size - start)])
        out.flush()
        os.fsync(out.fileno())


def read(paths: list[Path]) -> None:
    """Read files from the system's cache into one block of memory."""
    block = bytearray(BLOCK)
    for path in paths:
        with path.open("rb", buffering=0) as handle:
            while handle.readinto(block):
                pass


def hash_memory(size: int) -> None:
    """SHA-256 of as many bytes, none of them read from a disk."""
    digest, block = hashlib.sha256(), bytes(BLOCK)
    for start in range(0, size, BLOCK):
        digest.update(block[: min(BLOCK, size - start)])


def report(
    args: argparse.Namespace, seconds: dict[str, list[float]], size: int, files: int, world: int
) -> dict[str, Any]:
    """Print a table and return its numbers."""
    medians = {arm: statistics.median(times) for arm, times in seconds.items()}
    print(f"{args.arch}, ZeRO-{args.stage} {args.dtype}, {world} rank(s): {size / 1e6:.1f} MB in {files} files, "
          f"medians of {args.repeats}")  # fmt: skip
    print(f"{'':<8}{'seconds':>9}{'MB/s':>9}   against the disk")
    ratios = {}
    for arm, baseline in ARMS.items():
        line = f"{arm:<8}{medians[arm]:>9.3f}{size / medians[arm] / 1e6:>9.0f}"
        if baseline:
            ratios[f"{arm} / {baseline}"] = medians[arm] / medians[baseline]
            line += f"   {ratios[f'{arm} / {baseline}']:.2f} x {baseline}"
        print(line)
    return {
        "arch": args.arch,
        "stage": args.stage,
        "dtype": args.dtype,
        "ranks": world,
        "bytes": size,
        "files": files,
        "seconds": medians,
        "bytes_per_s": {arm: size / median for arm, median in medians.items()},
        "ratios": ratios,
        "repeats": seconds,
    }
