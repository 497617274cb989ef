"""The start of a job on all ranks, and what is held while it runs: the folder's lock, the rank's log, the watchdog."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from dsvid import __version__
from dsvid import engine as ds
from dsvid.errors import CheckpointError
from dsvid.job import Job
from dsvid.lock import RunLock
from dsvid.publish import publish_text
from dsvid.rendezvous import Met, meet, time_all_reduce
from dsvid.rollcall import RollCall
from dsvid.runtime import Ranks, agree_error, gather, on_first, open_log
from dsvid.stopping import Stopping
from dsvid.watchdog import FIRST_STEP

PACKAGES = ("torch", "deepspeed", "numpy", "decord", "decord2", "av")
MARGIN_S = 300.0  # by how much a collective waits longer than the watchdog, which can say more


def start(resolve: Callable[[], Job], ranks: Ranks, stop: Stopping, resume: str) -> tuple[Job, list[str]]:
    """Settle the job on every rank, compare, and join the process group; returns the job and the host of each rank.

    Raises what `resolve` raises, on every rank where it fails on one (see rendezvous.meet), and Stopped.
    """
    job: Job | None = None
    error: Exception | None = None
    try:
        job = resolve()
    except Exception as failure:  # whatever it is, the other ranks wait for the word
        error = failure
    met = meet(ranks, {"--resume": resume, **start_facts(job, ranks)} if job else {}, error, asked=lambda: stop.asked)
    assert job is not None
    return join(job, met, stop)


def join(job: Job, met: Met, stop: Stopping) -> tuple[Job, list[str]]:
    """Start the process group, the group of agreements, and say how fast they are."""
    run = job.recipe.run
    stop.listen(max_time_s=run.max_time_s, stop_file=job.folder.out / "stop")
    longest_s = max(ds.COLLECTIVE_TIMEOUT_S, run.save_timeout_s, FIRST_STEP * run.watchdog_s) + MARGIN_S
    ds.start_distributed(job.device, job.ranks, store=met.store, timeout_s=longest_s)
    stop.join(longest_s)
    time_all_reduce(job.device, met.hosts)
    stop.check()
    return job, met.hosts


def start_facts(job: Job, ranks: Ranks) -> dict[str, Any]:
    """What must be the same on every rank."""
    versions = {"python": ".".join(platform.python_version_tuple()[:2])}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "WORLD_SIZE": ranks.world,
        "dsvid": {"version": __version__, "source files": source_hash()},
        "version of": versions,
        "recipe": job.recipe.model_dump(mode="json"),
        "ds": job.config,
        "SHA-256 of data": job.lists,
    }


def source_hash(package: Path | None = None) -> str:
    """One hash of all Python and recipe files of the package."""
    folder = package or Path(__file__).resolve().parent
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.suffix in (".py", ".yaml")):
        digest.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def check_shared(out: Path, ranks: Ranks, device: torch.device, hosts: list[str]) -> None:
    """Raise CheckpointError on all ranks where one does not see the folder that rank 0 writes into. A collective.

    Else the run would find out at its first checkpoint, or, where that fails quietly, at its last.
    """
    probe = out / f".shared-{ranks.world}"

    def write() -> str:
        token = secrets.token_hex(8)
        publish_text(probe, token)
        return token

    token = on_first(ranks, device, f"writing into {out}", write)
    seen = False
    for wait_s in (0.0, 0.5, 1.0, 2.0, 4.0):  # file servers show new files late
        time.sleep(wait_s)
        with suppress(OSError):
            seen = probe.read_text() == token
        if seen:
            break
    blind = [rank for rank, sees in enumerate(gather(seen)) if not sees]
    if ranks.first:
        probe.unlink(missing_ok=True)
    if blind:
        raise CheckpointError(
            f"--out {out} is not the same folder on all nodes",
            found=f"not seen by {', '.join(f'rank {rank} ({hosts[rank]})' for rank in blind[:8])}: what rank 0 writes",
            expected="one folder: every rank writes its part of a checkpoint into it",
            fix="--out on a file system that all nodes share",
        )


@contextmanager
def holding(job: Job, hosts: list[str]) -> Iterator[None]:
    """Hold the run folder's lock, this rank's log and the watchdog. A collective at its begin."""
    lock = RunLock(job.folder.out / ".lock")
    logs = job.folder.out / "logs"
    try:
        on_first(job.ranks, job.device, "taking the lock of the run folder", lock.take)
        check_shared(job.folder.out, job.ranks, job.device, hosts)
        error: Exception | None = None
        try:
            open_log(logs / f"rank-{job.ranks.rank:05d}.log")
            run, roll = job.recipe.run, RollCall(job.ranks, hosts)
            job.watch.begin(roll, logs, limit_s=run.watchdog_s, long_s=run.save_timeout_s)
        except OSError as failure:
            error = failure
        agree_error(error, job.device, f"opening the logs in {os.fspath(logs)}")
        yield
    finally:
        job.watch.end()
        lock.release()
