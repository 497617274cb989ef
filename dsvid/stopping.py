"""What asks a run to stop, and how all ranks agree on it: signals, run.max_time, a stop file, a launcher that is gone.

Knows no engine and no checkpoint: it says when to stop, at the same place on every rank; the caller saves.
"""

from __future__ import annotations

import datetime
import os
import platform
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from dsvid.runtime import Ranks, log

Thing = TypeVar("Thing")
EXIT_STOPPED = 75  # EX_TEMPFAIL: everything is saved, start me again; launchers and schedulers pass it on unchanged
SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name))
MAX_TIME, STOP_FILE, LAUNCHER_GONE = "run.max_time", "the stop file", "the end of the launcher"
ASKED_BY = (*(number.name for number in SIGNALS), MAX_TIME, STOP_FILE, LAUNCHER_GONE)
STOPPED = "stopped"  # in the run folder: it was stopped by a person, through the stop file; gone at the next start
LAUNCH = "dsvid launch:"  # how the stop file of `dsvid launch` begins
POLL_S = 1.0
PATIENCE_S = 2.0  # how long a wait for data may go on behind a request: mostly it ends by itself
LAUNCHER = b"deepspeed.launcher.launch"


class Stopped(Exception):
    """The run was asked to stop; raised at the same place on every rank, or by one rank before they have met."""

    exit_code = EXIT_STOPPED


class _WaitEnded(BaseException):
    """Ends a wait from inside a signal handler. No Exception: decoders turn those into unreadable clips."""


class Stopping:
    """The requests of this process, and the agreement of all ranks. A context: inside it, signals only set a flag.

    A thread looks for what sends no signal, once a second, and passes it on as one. Only the first request counts.
    """

    def __init__(self) -> None:
        self.ranks = Ranks(0, 1, 0)
        self.asked = ""  # what asked this process, one of ASKED_BY
        self._sources: dict[str, Callable[[], bool]] = {}
        launcher = launcher_of(os.getpid())
        if launcher is not None:
            self._sources[LAUNCHER_GONE] = lambda: launcher_of(os.getpid()) != launcher
        self._waiting = False
        self._patience_s = PATIENCE_S
        self._said = False
        self._unseen: set[str] = set()
        self._group: Any = None
        self._before: dict[signal.Signals, Any] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, name="dsvid-stopping", daemon=True)

    def __enter__(self) -> Stopping:
        if threading.current_thread() is threading.main_thread():  # else Python allows no handlers
            for number in SIGNALS:
                self._before[number] = signal.signal(number, self._on_signal)
        self._thread.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._ended.set()
        self._thread.join(2 * POLL_S)
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def listen(self, *, max_time_s: float = 0.0, stop_file: Path | None = None) -> None:
        """Add the sources that the recipe and the run folder name. `stop_file` counts on rank 0, which removes it."""
        if max_time_s > 0:
            self._sources[MAX_TIME] = lambda: process_age_s() >= max_time_s
        if stop_file is not None and self.ranks.first:
            with suppress(OSError):
                stop_file.with_name(STOPPED).unlink(missing_ok=True)
            self._sources[STOP_FILE] = lambda: taken(stop_file)

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        if not self.asked:
            self.asked = signal.Signals(number).name
        if self._waiting and self._patience_s <= 0:
            self._waiting = False
            raise _WaitEnded

    def _look(self) -> None:
        main = threading.main_thread().ident
        while not self._ended.wait(POLL_S):
            if not self.asked:
                self.asked = next(filter(self._happened, tuple(self._sources)), "")  # `listen` adds to them
            if not self.asked:
                continue
            if not self._said:
                self._said = True  # said here, not in the handler: a handler may have interrupted the log itself
                log.info("%s: this run saves and stops at the next step (rank %d)", self.asked, self.ranks.rank)
            self._patience_s -= POLL_S
            if self._waiting and self._patience_s <= 0 and main is not None and self._before:
                signal.pthread_kill(main, signal.SIGUSR1)  # the handler runs in the main thread and leaves the wait

    def _happened(self, name: str) -> bool:
        """Whether a source asks. One that cannot be looked at (a file server's ESTALE) asks nothing now, said once."""
        try:
            return self._sources[name]()
        except OSError as error:
            if name not in self._unseen:
                self._unseen.add(name)
                log.warning("stopping  %s cannot be looked at (%s); this is tried again every second", name, error)
            return False

    # ---- agreement ------------------------------------------------------------------------------------------------

    def join(self, timeout_s: float) -> None:
        """Make the group in which the ranks agree: gloo, so that no GPU is waited for. A collective; once."""
        if dist.is_initialized() and dist.get_world_size() > 1:
            self._group = dist.new_group(backend="gloo", timeout=datetime.timedelta(seconds=timeout_s))

    def check(self) -> None:
        """Raise Stopped on every rank if any rank was asked to stop. A collective of the host, behind `join`."""
        word = self._word()
        if self._group is not None:
            box = torch.tensor([word], dtype=torch.int64)
            dist.all_reduce(box, op=dist.ReduceOp.MAX, group=self._group)
            word = int(box)
        if word:
            place, kind = divmod(word, len(ASKED_BY) + 1)
            who = self.ranks.world - place
            where = f" on {platform.node()}" if who == self.ranks.rank else ""
            raise Stopped(f"{ASKED_BY[kind - 1]}, noticed by rank {who}{where}")

    def _word(self) -> int:
        """This rank's request as one number: of all that asked, the lowest rank's is the largest."""
        if not self.asked:
            return 0
        return (self.ranks.world - self.ranks.rank) * (len(ASKED_BY) + 1) + ASKED_BY.index(self.asked) + 1

    def gather(self, values: list[float]) -> list[list[float]]:
        """`values` of every rank, in the order of ranks. A collective of the host, behind `join`."""
        if self._group is None:
            return [values]
        own = torch.tensor(values, dtype=torch.float64)
        boxes = [torch.empty_like(own) for _ in range(self.ranks.world)]
        dist.all_gather(boxes, own, group=self._group)
        return [box.tolist() for box in boxes]

    def watched(self, items: Iterable[Thing], enter: Callable[[str], None], prefix: str = "") -> Iterator[Thing]:
        """The same items; before each, and behind the last, all ranks agree, and Stopped ends them all at the same one.

        Every rank must have as many. `enter` is told what begins: the wait for data, the agreement, the forward.
        """
        source = iter(items)
        while True:
            enter(f"{prefix}data")
            got = self._wait(source)
            enter(f"{prefix}agreement")
            self.check()
            if not got:
                return
            enter(f"{prefix}forward")
            yield got[0]

    def _wait(self, source: Iterator[Thing]) -> list[Thing]:
        """The next item, or nothing behind the last one and where this rank is asked to stop, even in the middle."""
        got: list[Thing] = []
        try:
            try:
                self._waiting = True
                if not self.asked:
                    got.append(next(source))
            except StopIteration:
                pass
            finally:
                self._waiting = False
        except _WaitEnded:  # the source was left in the middle: nobody asks it again
            pass
        return got


# ---- sources -------------------------------------------------------------------------------------------------------


def taken(path: Path) -> bool:
    """Whether the stop file was there; it is removed, so that the next start is not stopped by it.

    `stopped` beside it then says who asked, and keeps a scheduler's script from starting the run again.
    """
    if not path.exists():
        return False
    with suppress(OSError):
        text = path.read_text(encoding="utf-8", errors="replace").strip()
        if not text.startswith(LAUNCH):  # that one passes a signal on: the run is meant to be started again
            path.with_name(STOPPED).write_text(
                f"the stop file of {_owner(path)}{text and ': '}{text}\n", encoding="utf-8"
            )
    with suppress(OSError):
        path.unlink()
    return True


def _owner(path: Path) -> str:
    try:
        return path.owner()
    except KeyError:  # a number without a name, as in containers
        return f"user {path.stat().st_uid}"


def process_age_s() -> float:
    """Wall seconds since this process was started, imports included."""
    try:
        ticks = float(_stat(os.getpid())[19])  # field 22 of proc(5), start time in clock ticks behind the boot
        uptime = float(Path("/proc/uptime").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return time.monotonic() - _IMPORTED
    return uptime - ticks / os.sysconf("SC_CLK_TCK")


_IMPORTED = time.monotonic()


def launcher_of(pid: int) -> tuple[int, int] | None:
    """Parent and grandparent of a rank that DeepSpeed's launcher started, else None.

    The `deepspeed` program passes no signal on when it is ended: `launch.py` and the ranks stay behind as orphans, and
    all they can notice is that the parent of their parent is another one.
    """
    try:
        parent = int(_stat(pid)[1])
        if LAUNCHER in Path(f"/proc/{parent}/cmdline").read_bytes().replace(b"/", b"."):
            return parent, int(_stat(parent)[1])
    except (OSError, ValueError, IndexError):
        pass
    return None


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat behind the name, which may itself hold blanks and brackets."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def ignore_signals() -> None:
    """From here on signals change nothing: the outcome is settled, and so is the exit code."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
