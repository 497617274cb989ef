"""Whether a run still runs, and what its log says of its end. Looks at the lock and the log of rank 0 alone."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dsvid.lock_owner import STALE_S, last_beat, process_place, read_owner
from dsvid.report.lines import last_text

# The time and the level in front of a line of logs/rank-XXXXX.log; lines without them belong to the one before.
RECORD = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (DEBUG|INFO|WARNING|ERROR|CRITICAL) +", re.M)
STEP = re.compile(r"step \d+/\d+ ")


@dataclass(frozen=True)
class Holder:
    """Who holds the run folder. `alive`: whether a process trains in it; `words` say how that is known."""

    alive: bool
    words: str
    host: str = ""
    pid: int = 0


@dataclass(frozen=True)
class Ending:
    """How the last start ended by its own words; `silent`: it said nothing, as after a kill."""

    kind: Literal["done", "stopped", "failed", "silent"]
    words: str = ""


def holder_of(folder: Path, now: float) -> Holder:
    """Who holds `folder`, by its .lock; `now` in seconds since 1970.

    On the owner's own host the process decides, elsewhere the age of the lock's last heartbeat by this machine's clock.
    """
    path = folder / ".lock"
    if not path.exists():
        return Holder(False, "no process holds the folder")
    owner = read_owner(path) if path.is_file() else None
    if owner is None or not isinstance(owner["pid"], int):
        return Holder(False, "its .lock cannot be read, so it is not known whether a process holds the folder")
    named = f"process {owner['pid']} on {owner['host']}, since {owner['since']}"
    here = process_place(owner["pid"])
    if all(owner[key] == here[key] for key in ("host", "boot", "processes")):
        alive = here["started"] is not None and here["started"] == owner["started"]
        words = named if alive else f"{named}, is gone without giving the folder back: it was killed"
        return Holder(alive, words, str(owner["host"]), owner["pid"])
    beat = last_beat(path)
    age_s = 0.0 if beat is None else now - beat
    alive = age_s <= STALE_S
    words = f"{named}; last heartbeat {max(age_s, 0):.0f} s ago by this machine's clock"
    return Holder(alive, words if alive else f"{words}: it counts as gone", str(owner["host"]), owner["pid"])


def records(folder: Path) -> list[tuple[str, str]]:
    """(level, text) of the last lines of rank 0's log, the oldest first."""
    text = last_text(folder / "logs" / "rank-00000.log")
    heads = list(RECORD.finditer(text))
    if not heads:
        return []
    ends = [head.start() for head in heads[1:]] + [len(text)]
    return [(head[1], text[head.end() : end].rstrip()) for head, end in zip(heads, ends, strict=True)]


def ending_of(folder: Path) -> Ending:
    """What the last start said behind its last step."""
    for level, text in reversed(records(folder)):
        if text.startswith("stopped: "):
            return Ending("stopped", text.removeprefix("stopped: ").partition("; start the same command")[0])
        if level in ("ERROR", "CRITICAL"):
            return Ending("failed", cause(text))
        if text.startswith("weights   "):
            return Ending("done")
        if STEP.match(text) or text.startswith("batch     "):
            break
    stall = _stalled(folder)
    return Ending("failed", stall) if stall else Ending("silent")


def cause(text: str) -> str:
    """The one line that matters of an error text: behind a traceback the last, else the first."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        return ""
    line = lines[-1] if "Traceback (most recent call last)" in text else lines[0]
    found = next((one for one in lines if one.startswith("found:")), "")
    return f"{line} ({' '.join(found.split())})" if found and found != line else line


def _stalled(folder: Path) -> str:
    """What the newest stall file says; empty where there is none that says more than whose it is."""
    for path in sorted((folder / "logs").glob("stall-rank-*.txt"), key=lambda one: one.name[-19:], reverse=True):
        lines = last_text(path).splitlines()
        if len(lines) > 1:
            return f"{lines[1]} ({path.name})"
    return ""
