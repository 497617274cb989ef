"""What the system gives: Python, cores, memory and its limits, files, disk, ports, programs beside ours. No torch."""

from __future__ import annotations

import os
import platform
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from dsvid.doctor.finding import Finding, first_line

OLDEST = (3, 10)
FEW_FILES, LITTLE_MEMORY, LITTLE_DISK = 1024, 4 << 30, 5 << 30
PORT = 29500  # of the deepspeed launcher and of torchrun
CGROUP = Path("/sys/fs/cgroup")


def look_around() -> list[Finding]:
    """Every check of the machine; one that fails is a line."""
    checks: tuple[Callable[[], Iterator[Finding]], ...] = (cores, memory, shared_memory, open_files, disk, ports)
    return [finding for check in checks for finding in _guarded(check)]


def programs() -> list[Finding]:
    """What starts training, and what reaches other nodes."""
    return _guarded(launchers)


def _guarded(check: Callable[[], Iterator[Finding]]) -> list[Finding]:
    try:
        return list(check())
    except Exception as error:  # /proc of another system, a program that hangs, …
        return [Finding(check.__name__, f"not checked: {type(error).__name__}: {first_line(error)}", "unknown")]


def python() -> Finding:
    """The interpreter."""
    value = f"{platform.python_version()} on {platform.system()} {platform.machine()}, {sys.executable}"
    if sys.version_info < OLDEST:
        return Finding("python", value, "stops", "Python 3.10 or newer: uv venv --python 3.11")
    return Finding("python", value)


def cores() -> Iterator[Finding]:
    """Cores that this process may use, its share of a container, and OMP_NUM_THREADS."""
    own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = cpu_share()
    held = f", of which the container may use {share:.1f}" if share is not None and share < own else ""
    yield Finding("cores", f"{own}{held}")
    threads = os.environ.get("OMP_NUM_THREADS")
    if threads is None:
        yield Finding("threads", "OMP_NUM_THREADS not set: each rank takes its share of the cores")
    elif not threads.isdigit() or int(threads) < 1:
        yield Finding("threads", f"OMP_NUM_THREADS={threads!r} is no number", "less", "unset OMP_NUM_THREADS")
    elif int(threads) > own:
        yield Finding("threads", f"OMP_NUM_THREADS={threads}, more than {own} cores", "less",
                      "slow, threads wait for each other: unset OMP_NUM_THREADS")  # fmt: skip
    else:
        yield Finding("threads", f"OMP_NUM_THREADS={threads} for every rank")


def cpu_share(root: Path = CGROUP) -> float | None:
    """Cores that the control group allows, None for no limit that is known."""
    try:
        quota, period = (root / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        return None


def memory() -> Iterator[Finding]:
    """Memory that is free for new programs, and the limit of the container."""
    facts = dict(re.findall(r"^(\w+):\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.M))
    free, total = int(facts["MemAvailable"]) << 10, int(facts["MemTotal"]) << 10
    limit, used = memory_limit()
    value = f"{_gib(free)} free of {_gib(total)}"
    if limit is not None and limit < total:
        value += f"; this container may use {_gib(limit)}, of which {_gib(used)} are in use, caches among them"
        free = min(free, limit)
    else:
        value += "; no limit of a control group" if limit is None else ""
    if free < LITTLE_MEMORY:
        yield Finding("memory", value, "less", "killed without a word when it runs out: a smaller batch.micro")
    else:
        yield Finding("memory", value)


def memory_limit(root: Path = CGROUP) -> tuple[int | None, int]:
    """(bytes that the control group allows, None for no limit that is known; bytes in use there)."""
    for limit, used in (("memory.max", "memory.current"),
                        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")):  # fmt: skip
        try:
            most = (root / limit).read_text().strip()
            if most != "max" and int(most) < 1 << 60:
                return int(most), int((root / used).read_text())
        except (OSError, ValueError):
            continue
    return None, 0


def shared_memory() -> Iterator[Finding]:
    """/dev/shm: for NCCL between the GPUs of a node; our batches lie elsewhere."""
    place = Path("/dev/shm")
    if not place.is_dir():
        yield Finding("/dev/shm", "not there", "less", "NCCL between GPUs of a node: docker run --ipc=host")
        return
    room = shutil.disk_usage(place).total
    value = f"{_gib(room)}; NCCL needs it between GPUs of a node, dsvid's batches do not"
    if room < 1 << 30:
        yield Finding("/dev/shm", value, "less", "several GPUs: docker run --shm-size=8g, or --ipc=host")
    else:
        yield Finding("/dev/shm", value)


def open_files() -> Iterator[Finding]:
    """The limit of open files."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    value = f"{soft} ({hard} can be asked for)" if hard != soft else f"{soft}"
    if soft < FEW_FILES:
        yield Finding("open files", value, "less", f"many workers or ranks fail: ulimit -n {min(hard, 65536)}")
    else:
        yield Finding("open files", value)


def disk() -> Iterator[Finding]:
    """Room and permission of the current folder, where --out would be."""
    here = Path.cwd()
    free = shutil.disk_usage(here).free
    value = f"{free / 1e9:.1f} GB free in {here}"
    if not os.access(here, os.W_OK | os.X_OK):
        yield Finding("disk", f"{value}, which is not writable", "less", "runs need another place: --out FOLDER")
    elif free < LITTLE_DISK:
        yield Finding("disk", value, "less", "saves can fail (ViT-B: 1.3 GB each): --out on a larger disk, run.keep=1")
    else:
        yield Finding("disk", value)


def ports() -> Iterator[Finding]:
    """A port at which the ranks of this machine can meet, and the one that the launchers take."""
    try:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
    except OSError as error:
        yield Finding("port", f"no port can be opened on 127.0.0.1: {first_line(error)}", "stops",
                      "the ranks meet at one: allow the loopback interface (ip link set lo up)")  # fmt: skip
        return
    try:
        with socket.socket() as usual:
            usual.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            usual.bind(("", PORT))
        yield Finding("port", f"{PORT} is free, which the launchers take")
    except OSError as error:
        yield Finding("port", f"{PORT}, which the launchers take: {first_line(error)}", "less",
                      "another run has it: deepspeed --master_port 29501, torchrun --master_port 29501")  # fmt: skip


# ---- programs ------------------------------------------------------------------------------------------------------

PROGRAMS = (
    ("launcher", "deepspeed", "python -m deepspeed.launcher.runner is the same"),
    ("torchrun", "torchrun", "python -m torch.distributed.run is the same"),
    ("ssh", "ssh", "several nodes over ssh: apt install openssh-client"),
    ("pdsh", "pdsh", "several nodes with deepspeed's default launcher: apt install pdsh"),
    ("srun", "srun", "Slurm"),
    ("sbatch", "sbatch", "Slurm"),
)
_ASK = {"ssh": "-V", "pdsh": "-V", "srun": "--version", "sbatch": "--version"}


def launchers() -> Iterator[Finding]:
    """Programs on PATH, or beside this Python where an environment that is not activated has them."""
    beside = str(Path(sys.executable).parent)
    for name, program, use in PROGRAMS:
        path = shutil.which(program) or shutil.which(program, path=beside)
        if path is None:
            yield Finding(name, f"not found (only for: {use})" if name in _ASK else f"not on PATH: {use}")
        else:
            yield Finding(name, f"{path}{_version(path, _ASK.get(name))}")


def _version(path: str, ask: str | None) -> str:
    """`, 9.2` as the program says; the two that are Python's have the version of their packages, above."""
    if ask is None:
        return ""
    try:
        done = subprocess.run([path, ask], capture_output=True, text=True, timeout=5, check=False,
                              stdin=subprocess.DEVNULL)  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        return f", version not known ({first_line(error)})"
    said = (done.stdout + done.stderr).strip().splitlines()
    if done.returncode:
        return f", but it does not run: {said[0][:100] if said else f'exit code {done.returncode}'}"
    return f", {said[0][:60]}" if said else ", version not known"


def _gib(count: int) -> str:
    return f"{count / (1 << 30):.1f} GiB"
