"""Who holds a run folder, as its lock file says, and where that process lives. Only looks: takes and frees nothing."""

from __future__ import annotations

import json
import os
import platform
from contextlib import suppress
from pathlib import Path
from typing import Any

STALE_S = 120.0  # without a heartbeat for so long the owner on another host counts as gone


def read_owner(path: Path) -> dict[str, Any] | None:
    """What a lock file says, or None where there is none that can be read."""
    try:
        owner = json.loads(path.read_text(encoding="utf-8"))
        return {key: owner[key] for key in ("host", "boot", "processes", "pid", "started", "since", "token")}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def process_place(pid: int) -> dict[str, Any]:
    """Where a process lives, and when it started (clock ticks behind the boot; None: there is none)."""
    started = processes = None
    with suppress(OSError, IndexError):
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        started = fields[18] if state != "Z" else None  # a zombie has ended
    with suppress(OSError):
        processes = os.readlink("/proc/self/ns/pid")  # two containers of one host number their processes on their own
    boot = Path("/proc/sys/kernel/random/boot_id")
    return {
        "host": platform.node(),
        "boot": boot.read_text().strip() if boot.is_file() else "",
        "processes": processes,
        "pid": pid,
        "started": started,
    }


def last_beat(path: Path) -> float | None:
    """When `path` was touched last, by the file server's clock; None where it is not there."""
    try:
        return path.stat().st_mtime
    except OSError:
        return None
