"""One run to a run folder: a lock file that names its owner's host and process, and goes stale when the owner is gone.

On the owner's own host the process decides; elsewhere the file's heartbeat does, read by the file server's clock alone.
"""

from __future__ import annotations

import json
import os
import threading
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

from dsvid.errors import CheckpointError
from dsvid.lock_owner import STALE_S, last_beat, process_place, read_owner
from dsvid.runtime import flush_log, log

HEARTBEAT_S = 20.0
LOOK_S = 1.0
LAST_S = 10.0  # a process whose folder was taken over has ended after so long, whatever its log does


class RunLock:
    """The lock `path` of a run folder, held from `take` to `release`; rank 0 only."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.token = uuid.uuid4().hex
        self._ended = threading.Event()
        self._heart: threading.Thread | None = None

    def take(self) -> None:
        """Take the lock, also a stale one, aloud. Raises CheckpointError where a living run has it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        for _ in range(5):  # another start may take or free it between two looks
            if self._create():
                break
            owner = read_owner(self.path)
            if owner is None:
                continue
            why = self._why_stale(owner)
            if why is None:
                raise CheckpointError(
                    f"--out {self.path.parent} is used by another run",
                    found=f"process {owner['pid']} on {owner['host']}, since {owner['since']}",
                    expected="one run to a folder",
                    fix=f"another --out, or end that process; if it is gone for certain, delete {self.path}",
                )
            log.warning("lock      of process %s on %s is taken over: %s", owner["pid"], owner["host"], why)
            self._remove(owner)
        else:
            raise CheckpointError(f"{self.path} cannot be taken", found="other starts take it at the same time")
        self._heart = threading.Thread(target=self._beat, name="dsvid-lock", daemon=True)
        self._heart.start()

    def release(self) -> None:
        """Give the lock back, where it is still this one's."""
        if self._heart is None:
            return
        self._ended.set()
        self._heart.join(5)
        self._heart = None
        owner = read_owner(self.path)
        if owner is not None and owner["token"] == self.token:
            self.path.unlink(missing_ok=True)

    def _create(self) -> bool:
        """Whether the lock could be made: a link to a whole file, which is atomic on network file systems too."""
        scratch = self.path.with_name(f"{self.path.name}-{self.token}")
        own = {**process_place(os.getpid()), "since": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "token": self.token}
        scratch.write_text(json.dumps(own) + "\n", encoding="utf-8")
        try:
            os.link(scratch, self.path)
        except FileExistsError:
            return False
        except OSError:  # a file system without links
            with suppress(FileExistsError), self.path.open("x", encoding="utf-8") as file:
                file.write(scratch.read_text(encoding="utf-8"))
                return True
            return False
        finally:
            scratch.unlink(missing_ok=True)
        return True

    def _why_stale(self, owner: dict[str, Any]) -> str | None:
        """Why the owner counts as gone, or None where it may live."""
        here = process_place(int(owner["pid"]))
        if all(owner[key] == here[key] for key in ("host", "boot", "processes")):
            if here["started"] is None:
                return "there is no such process any more"
            return None if here["started"] == owner["started"] else "its number belongs to another process now"
        return self._await_heartbeat(owner)

    def _await_heartbeat(self, owner: dict[str, Any]) -> str | None:
        """Look until the heart of an owner on another host beats, or has not for STALE_S; None where it beats."""
        first = last_beat(self.path)
        age_s = heartbeat_age_s(self.path)
        if age_s is not None and age_s <= STALE_S:
            log.info("lock      of %s: waiting whether its process %s still lives", owner["host"], owner["pid"])
        while age_s is not None and age_s <= STALE_S:
            time.sleep(LOOK_S)
            if last_beat(self.path) != first:
                return None
            age_s = heartbeat_age_s(self.path)
        return None if age_s is None else f"no heartbeat for {age_s:.0f} s"

    def _remove(self, owner: dict[str, Any]) -> None:
        """Remove the stale lock of `owner`, and no other that was made meanwhile."""
        aside = self.path.with_name(f"{self.path.name}-{self.token}-stale")
        with suppress(FileNotFoundError):
            os.rename(self.path, aside)
            now = read_owner(aside)
            if now is not None and now["token"] != owner["token"]:
                with suppress(FileExistsError):
                    os.link(aside, self.path)
            aside.unlink(missing_ok=True)

    def _beat(self) -> None:
        while not self._ended.wait(HEARTBEAT_S):
            owner = read_owner(self.path)
            if owner is not None and owner["token"] != self.token:
                self._give_way(owner)
                return
            with suppress(OSError):
                os.utime(self.path)

    def _give_way(self, owner: dict[str, Any]) -> None:
        """End this process without a save: another run took the folder over, and two must not write into it."""
        last = threading.Timer(LAST_S, os._exit, [1])  # the log lies on the same file server, which may hang
        last.daemon = True
        last.start()
        log.error(
            "lock      %s was taken over by process %s on %s, since %s, because this process gave no heartbeat: "
            "it ends without saving; the other run goes on from the newest checkpoint",
            self.path, owner["pid"], owner["host"], owner["since"],
        )  # fmt: skip
        flush_log()
        os._exit(1)


def heartbeat_age_s(path: Path) -> float | None:
    """Seconds since `path` was touched, by the clock of the file server; None where that cannot be told."""
    probe = path.with_name(f"{path.name}-{uuid.uuid4().hex}-clock")
    try:
        probe.touch()
        return probe.stat().st_mtime - path.stat().st_mtime
    except OSError:
        return None
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)
