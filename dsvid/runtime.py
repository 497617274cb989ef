"""Ranks, the rank-0 logger, the device, and agreement of all ranks on a few numbers. Knows no model and no data."""

from __future__ import annotations

import functools
import logging
import logging.handlers
import os
import random
import socket
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO, TypeVar, cast

import numpy as np
import torch
import torch.distributed as dist

from dsvid.errors import DsvidError, RecipeError
from dsvid.heap import keep_freed_memory
from dsvid.redact import redact

log = logging.getLogger("dsvid")
Thing = TypeVar("Thing")
_SAID: set[str] = set()
_UNDO: list[Callable[[], None]] = []


@dataclass(frozen=True)
class Ranks:
    """Who this process is: global rank, number of ranks, rank on this node."""

    rank: int
    world: int
    local: int

    @property
    def first(self) -> bool:
        return self.rank == 0


def read_ranks() -> Ranks:
    """Ranks from the launcher's variables (deepspeed, torchrun), else Slurm's task variables, else one rank alone.

    Exports RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT, so that what starts later sees the same.
    Raises RecipeError where they contradict each other or are not numbers.
    """
    env = os.environ
    # The step's variables, not the job's: a batch script has SLURM_PROCID too, and is no rank.
    if "RANK" not in env and int(env.get("SLURM_STEP_NUM_TASKS", "1")) > 1 and "SLURM_PROCID" in env:
        env["RANK"], env["WORLD_SIZE"] = env["SLURM_PROCID"], env["SLURM_STEP_NUM_TASKS"]
        env["LOCAL_RANK"] = env.get("SLURM_LOCALID", "0")
        if "MASTER_ADDR" not in env or "MASTER_PORT" not in env:
            raise RecipeError(
                "srun started several tasks, but MASTER_ADDR or MASTER_PORT is not set",
                expected="both exported in the batch script",
                fix='export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n1) MASTER_PORT=29500',
            )
    env.setdefault("RANK", "0")
    env.setdefault("WORLD_SIZE", "1")
    env.setdefault("LOCAL_RANK", "0")
    env.setdefault("MASTER_ADDR", "127.0.0.1")
    env.setdefault("MASTER_PORT", str(_free_port()))
    try:
        ranks = Ranks(int(env["RANK"]), int(env["WORLD_SIZE"]), int(env["LOCAL_RANK"]))
    except ValueError as error:
        raise RecipeError("RANK, WORLD_SIZE or LOCAL_RANK is not a number", found=str(error)) from error
    if not 0 <= ranks.rank < ranks.world:
        raise RecipeError("RANK does not fit WORLD_SIZE", found=f"RANK={ranks.rank}, WORLD_SIZE={ranks.world}")
    return ranks


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class _Redacted(logging.Formatter):
    """Formats as told, without secrets."""

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


def start_log(ranks: Ranks) -> None:
    """Rank 0 logs to standard output; other ranks only warnings and errors, with their number in front.

    Every rank keeps its lines until `open_log` gives them a file.
    """
    console = logging.StreamHandler(sys.stdout if ranks.first else sys.stderr)
    prefix = "" if ranks.first else f"[rank {ranks.rank}] "
    console.setFormatter(_Redacted(prefix + "%(message)s"))
    console.setLevel(logging.INFO if ranks.first else logging.WARNING)
    close_log()
    log.handlers[:] = [console, logging.handlers.MemoryHandler(capacity=10_000, flushLevel=logging.CRITICAL + 1)]
    log.propagate = False
    log.setLevel(logging.INFO)
    for noisy in ("DeepSpeed", "deepspeed"):
        logging.getLogger(noisy).setLevel(logging.WARNING if ranks.first else logging.ERROR)


def open_log(path: Path) -> None:
    """Write this rank's lines, those before included, into `path` as well, with the time; Python's warnings too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = logging.FileHandler(path, encoding="utf-8")
    file.setFormatter(_Redacted("%(asctime)s %(levelname)-7s %(message)s"))
    for kept in [handler for handler in log.handlers if isinstance(handler, logging.handlers.MemoryHandler)]:
        kept.setTarget(file)
        kept.flush()
        log.removeHandler(kept)
    log.addHandler(file)
    shown = warnings.showwarning

    def show(
        message: Warning | str, category: type[Warning], filename: str, lineno: int,
        file: TextIO | None = None, line: str | None = None,
    ) -> None:  # fmt: skip
        shown(message, category, filename, lineno, file, line)
        note("%s", warnings.formatwarning(message, category, filename, lineno, line).rstrip(), level=logging.WARNING)

    warnings.showwarning = show
    _UNDO.append(lambda: setattr(warnings, "showwarning", shown))


def close_log() -> None:
    """End the file of this rank's lines, where there is one."""
    while _UNDO:
        _UNDO.pop()()
    for file in [handler for handler in log.handlers if isinstance(handler, logging.FileHandler)]:
        log.removeHandler(file)
        file.close()


def note(text: str, *values: Any, level: int = logging.INFO) -> None:
    """A line for this rank's file alone, where something else has shown it already."""
    record = log.makeRecord(log.name, level, __file__, 0, text, values, None)
    for handler in log.handlers:
        if isinstance(handler, logging.FileHandler | logging.handlers.MemoryHandler):
            handler.handle(record)


def say_error(text: str) -> None:
    """Print what ended the run to standard error, and into this rank's file, without secrets."""
    text = redact(text.rstrip())
    with suppress(OSError):  # a launcher that is gone reads no more
        print(text, file=sys.stderr, flush=True)
    note("%s", text, level=logging.ERROR)


def flush_log() -> None:
    """Bring every line to its place, for a process that ends without saying goodbye."""
    for handler in log.handlers:
        if not isinstance(handler, logging.handlers.MemoryHandler):
            with suppress(OSError, ValueError):
                handler.flush()


@functools.lru_cache(maxsize=4096)
def say_once(text: str, *values: str) -> None:
    """Log a line that may come again and again, the first time only."""
    log.warning(text, *values)


def say_first(kind: str, text: str, *values: Any) -> None:
    """Log the first line of its `kind`, and no other."""
    if kind not in _SAID:
        _SAID.add(kind)
        log.warning(text, *values)


@contextmanager
def tolerated(what: str) -> Iterator[None]:
    """Inside, an error of the system (a full disk, a lost file server) is said once, and the run goes on without."""
    try:
        yield
    except OSError as error:
        say_first(f"lost {what}", "%s cannot be written, and lines of it are lost: %s", what, error)


def pick_device(ranks: Ranks) -> torch.device:
    """The CUDA device of this local rank, or the CPU. Raises RecipeError where a rank has no device."""
    if not torch.cuda.is_available():
        _tune_cpu()
        return torch.device("cpu")
    count = torch.cuda.device_count()
    if ranks.local >= count:
        raise RecipeError(
            f"rank {ranks.rank} has no device",
            found=f"local rank {ranks.local}, {count} CUDA device(s) visible",
            expected="no more ranks than devices on a node",
            fix="lower `slots` in the hostfile, or CUDA_VISIBLE_DEVICES",
        )
    device = torch.device("cuda", ranks.local)
    torch.cuda.set_device(device)  # bound before any collective: a barrier before it can hang
    return device


def _tune_cpu() -> None:
    """Share the cores out among the ranks of this node, and keep large freed blocks. OMP_NUM_THREADS wins."""
    if "OMP_NUM_THREADS" not in os.environ and hasattr(os, "sched_getaffinity"):
        local = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or 1)
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // max(1, local)))
    keep_freed_memory()


def seed_everything(seed: int) -> None:
    """Seed the global generators. Training draws from none of them; this covers third-party code."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def agree_max(values: list[float], device: torch.device) -> list[float]:
    """Element-wise maximum over all ranks; the same list on every rank. A collective: call it on all ranks."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return values
    tensor = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return [float(v) for v in tensor.tolist()]


def agree_sum(values: list[float], device: torch.device) -> list[float]:
    """Element-wise sum over all ranks; the same list on every rank. A collective: call it on all ranks."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return values
    tensor = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(tensor, op=dist.ReduceOp.SUM)
    return [float(v) for v in tensor.tolist()]


def share(thing: Thing, device: torch.device) -> Thing:
    """Rank 0's `thing` on every rank; what the others pass is ignored. A collective."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return thing
    box = [thing]
    dist.broadcast_object_list(box, src=0, device=device if device.type == "cuda" else None)
    return box[0]


def gather(thing: Thing) -> list[Thing]:
    """Every rank's `thing`, in rank order, on every rank. A collective."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return [thing]
    boxes: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(boxes, thing)
    return boxes


def on_first(ranks: Ranks, device: torch.device, what: str, work: Callable[[], Thing]) -> Thing:
    """What `work` gives on rank 0, on every rank; all ranks fail if it fails. A collective."""
    result: Thing | None = None
    error: BaseException | None = None
    if ranks.first:
        try:
            result = work()
        except Exception as failure:  # whatever it is, the other ranks wait for the word
            error = failure
    agree_error(error, device, what)
    return cast("Thing", share(result, device))


def barrier() -> None:
    """Wait for all ranks."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.barrier()


def agree_error(error: BaseException | None, device: torch.device, what: str) -> None:
    """Raise on every rank if any rank failed, so that none walks into the next collective alone. A collective.

    `error` is this rank's failure or None. The rank that failed raises its own error, the others name its number, with
    the same exit code: the launcher reports whichever rank it sees first.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        if error is not None:
            raise error
        return
    mine = [0.0, 0.0] if error is None else [dist.get_rank() + 1.0, float(isinstance(error, DsvidError))]
    failed, mendable = agree_max(mine, device)
    if error is not None:
        raise error
    if failed:
        kind = DsvidError if mendable else RuntimeError
        raise kind(f"{what} failed on rank {int(failed) - 1}; see its message")


def fast_bf16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this CPU multiplies bf16 matrices in hardware; else fp32 is several times faster."""
    try:
        flags = cpuinfo.read_text(encoding="utf-8")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


@contextmanager
def one_thread(device: torch.device) -> Iterator[None]:
    """One thread on the CPU: matrix products differ in their last bits with the number of threads, and ranks of a node
    share its cores, so that an evaluation's numbers would depend on the ranks.
    """
    threads = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
