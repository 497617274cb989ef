"""Checks in processes of their own: what crashes or hangs one is named, and the others go on. Imports no torch."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Sequence
from pathlib import Path

from dsvid.doctor.finding import Finding, Level

LIMIT_S = 60.0


def examine(names: Sequence[str], needed: Collection[str]) -> list[Finding]:
    """The findings of checks, in order, in one process as long as it lives; training cannot start where one of the
    `needed` ends it."""
    until = time.monotonic() + LIMIT_S
    found: list[Finding] = []
    left = list(names)
    try:
        with tempfile.TemporaryDirectory(prefix="dsvid-env-") as folder:
            while left and time.monotonic() < until:
                findings, left = _run(left, needed, Path(folder) / str(len(left)), until)
                found += findings
    except OSError as error:
        why = f"no process could be started or no file written in {tempfile.gettempdir()}: {error}"
        return [Finding("checks", why, "stops", "free space in TMPDIR, or raise the limit of processes (ulimit -u)")]
    return [*found, *(Finding(each, "not checked: no time was left", "unknown") for each in left)]


def _run(names: list[str], needed: Collection[str], file: Path, until: float) -> tuple[list[Finding], list[str]]:
    """What a process found, and the names that are left after one that ended it."""
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), root)))
    try:
        code: int | None = subprocess.run(
            [sys.executable, "-m", "dsvid.doctor.child", str(file), *names], env={**os.environ, "PYTHONPATH": path},
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            timeout=max(0.0, until - time.monotonic()), check=False,
        ).returncode  # fmt: skip
    except subprocess.TimeoutExpired:
        code = None
    lines = file.read_text().splitlines() if file.exists() else []
    said = [json.loads(line) for line in lines if line.endswith("}")]
    found = [Finding(**entry["finding"]) for entry in said if "finding" in entry]
    done = {entry["done"] for entry in said if "done" in entry}
    left = [name for name in names if name not in done]
    if not left:
        return found, []
    how = f"hangs: no answer in {LIMIT_S:g} s" if code is None else f"crashes Python: {_ending(code)}"
    level: Level = "stops" if left[0] in needed else "less"
    return [*found, Finding(left[0], how, level, "install it again: another build, or pip --no-cache-dir")], left[1:]


def _ending(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
