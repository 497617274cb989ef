"""Processes that make items in order and may hang, crash, leak or be killed: the items come all the same.

Each process says which key (for us a video) it works on and since when. One that works on a key for too long is killed,
one that crashed in it is replaced, and the key is given up: whoever makes an item is told, and takes something else in
its place. Processes that have grown are replaced as well. Knows no clips, no order and no ranks.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import mmap
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
import weakref
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import islice
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import DupFd
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from dsvid.data.handover import Receiver, drop_inherited, send_through

Make = Callable[[Any, Mapping[int, str]], Any]  # (task, keys that were given up and why) -> item
# signals by which a process ends itself in native code: the key that it worked on is to blame
CRASHES = frozenset(
    getattr(signal, name) for name in ("SIGSEGV", "SIGBUS", "SIGABRT", "SIGFPE", "SIGILL", "SIGTRAP", "SIGSYS")
    if hasattr(signal, name)
)  # fmt: skip
# processes killed by somebody else within so many items; more of them say that something is wrong with the machine
MOST_LOSSES, LOSSES_WITHIN = 3, 1000
TICK_S = 1.0  # the longest wait until the processes are looked at again
_BOARD = np.dtype([("key", "<i8"), ("since", "<f8")])
_NOTHING = -1


class WorkerDied(RuntimeError):
    """Loader processes are killed again and again; not the user's mistake."""


class _Board:
    """The key that each process works on, and since when: memory that all of them map, whether forked or spawned."""

    def __init__(self, count: int, handle: int | None = None) -> None:
        self._handle = os.memfd_create("dsvid-board") if handle is None else handle
        weakref.finalize(self, os.close, self._handle).atexit = False
        size = count * _BOARD.itemsize
        if handle is None:
            os.ftruncate(self._handle, size)
        self._rows: NDArray[Any] = np.frombuffer(mmap.mmap(self._handle, size), dtype=_BOARD)

    def place(self, number: int) -> NDArray[Any]:
        """The row of one process, as an array of one."""
        return self._rows[number : number + 1]

    def __reduce__(self) -> tuple[Any, ...]:
        return _mapped_board, (len(self._rows), DupFd(self._handle))


def _mapped_board(count: int, handle: Any) -> _Board:
    return _Board(count, handle.detach())


@dataclass(frozen=True)
class Limits:
    """When a process is ended. 0 = never."""

    key_s: float = 60.0  # seconds on one key
    grown_mb: float = 1024.0  # private memory above that after its first item
    keys: int = 0  # keys worked on


class _Task(NamedTuple):
    number: int
    task: Any
    given_up: dict[int, str]  # that the process does not know of yet
    freed: list[int]


# ---- in the process ------------------------------------------------------------------------------------------------

_own_place: NDArray[Any] | None = None
_own_keys = 0


@contextmanager
def working_on(key: int) -> Iterator[None]:
    """Say that this process works on `key` from now on, for as long as the block lasts. Elsewhere: nothing."""
    global _own_keys
    if _own_place is None:
        yield
        return
    _own_keys += 1
    _own_place["since"] = time.monotonic()
    _own_place["key"] = key
    try:
        yield
    finally:
        _own_place["key"] = _NOTHING


@dataclass(frozen=True)
class _Work:
    """What a process does, whichever way it starts."""

    make: Make
    ready: Callable[[], None]
    connection: Connection
    board: _Board
    number: int
    parent: int
    given_up: dict[int, str]
    limits: Limits

    def run(self) -> None:
        _settle(self.parent, self.board.place(self.number))
        self.ready()
        _serve(self.make, self.connection, self.given_up, self.limits)
        os._exit(0)


def _settle(parent: int, place: NDArray[Any]) -> None:
    """Make a new process one that works for its parent alone."""
    global _own_place
    gc.freeze()  # what the parent has is not ours to clean up: its destructors would talk to its devices and processes
    for number in _NOT_OURS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _NOT_OURS)
    # a process that outlives a killed rank would hold its sockets open, and the other ranks would wait for ever
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(1)
    drop_inherited()
    torch.set_num_threads(1)
    _own_place = place


def _serve(make: Make, connection: Connection, given_up: dict[int, str], limits: Limits) -> None:
    """Until the parent closes, or until a limit is reached."""
    sender = send_through(connection)
    first_mb: float | None = None
    while True:
        try:
            number, task, more, freed = connection.recv()
        except (EOFError, OSError):
            return
        given_up.update(more)
        sender.free(freed)
        try:
            kind, item = "item", make(task, given_up)
        except BaseException:
            kind, item = "error", traceback.format_exc()
        try:
            sender.send((number, kind), item)
        except (BrokenPipeError, ConnectionResetError):
            return
        except OSError:  # no memory for the item, no more open files
            sender.send((number, "error"), traceback.format_exc())
        del item
        now_mb = private_mb(os.getpid())
        first_mb = now_mb if first_mb is None else first_mb
        if (limits.keys and _own_keys >= limits.keys) or (limits.grown_mb and now_mb - first_mb > limits.grown_mb):
            return


def private_mb(pid: int) -> float:
    """Memory of a process that is in no file and in no shared memory, in MB; 0 where the system does not tell.

    What a fork has inherited counts from its start, also what its parent had freed: a leak shows when that is used up.
    """
    try:
        with open(f"/proc/{pid}/statm", encoding="ascii") as handle:
            _, resident, shared, *_ = handle.read().split()
    except OSError:
        return 0.0
    return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE") / 1e6


# ---- in the parent -------------------------------------------------------------------------------------------------


# the scheduler signals the whole group: the parent decides when to stop, and its processes go with it
_NOT_OURS = frozenset(
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2", "SIGHUP") if hasattr(signal, name)
)
_FORKING = threading.Lock()  # a fork in between would keep the child's end of a pipe open: no end of file, no news


@dataclass
class _Worker:
    number: int
    process: Any
    connection: Connection
    receiver: Receiver
    place: NDArray[Any]
    knows: int  # so many of the keys that were given up
    tasks: dict[int, Any] = field(default_factory=dict)  # given and not answered yet, in order
    seen: tuple[int, float] = (_NOTHING, 0.0)  # the key that it was at when it was looked at last, and since when
    waited_s: float = 0.0  # for that key
    killed_in: tuple[int, float] | None = None

    def at(self) -> tuple[int, float]:
        """Key and since when, as the process says now."""
        return int(self.place["key"][0]), float(self.place["since"][0])


def _nothing() -> None:
    pass


class Workers:
    """An iterator over `make(task, given_up)` for each of `tasks`, in their order; Linux only.

    `count` processes, each with up to `ahead` tasks. Items that are dicts keep their tensors in shared memory, which is
    used again when nothing refers to them any more. What `make` raises is a RuntimeError with its traceback;
    WorkerDied where others kill more than three processes within a thousand items. `name` is for messages, `ready`
    runs in each process. Those of `start` spawn begin with nothing of this one, so that they may use CUDA: `make`
    and `ready` are pickled, and the start takes seconds. A key's time counts while an item is waited for, so that a
    suspended job gives up nothing. The processes end with the thread that made them (a parent-death signal is a
    thread's). `close` may come from any thread.
    """

    def __init__(
        self,
        make: Make,
        tasks: Iterable[Any],
        *,
        count: int,
        ahead: int,
        limits: Limits,
        name: str = "",
        ready: Callable[[], None] = _nothing,
        start: Literal["fork", "spawn"] = "fork",
    ) -> None:
        assert sys.platform == "linux", "fork with threads, parent-death signals and memfd are Linux's"
        self.limits, self.name, self.ahead = limits, name, ahead
        self.replaced = 0
        self.told: list[str] = []  # what happened to processes, for whoever writes the log
        self._make, self._ready, self._way, self._parent = make, ready, start, os.getpid()
        self._tasks = iter(tasks)
        self._again: deque[tuple[int, Any]] = deque()  # tasks of processes that went, before all others
        self._given = self._next = 0
        self._done: dict[int, tuple[str, Any]] = {}
        self._given_up: dict[int, str] = {}
        self._losses: deque[int] = deque()  # the items at which processes were killed by others
        self._killed_at: Counter[int] = Counter()
        self._tick_s = min(TICK_S, limits.key_s / 8) if limits.key_s else TICK_S
        self._looked = time.monotonic()
        self._closed = False
        self._lock = threading.RLock()
        self._board = _Board(max(1, count))
        self.workers: list[_Worker] = []
        # who drops an iterator does not close it, and at its end Python waits for processes, which ignore SIGTERM
        self._processes: dict[int, Any] = {}
        weakref.finalize(self, _end, self._processes, self._parent).atexit = False
        atexit.register(_close_of, weakref.ref(self))
        with self._lock:
            for number in range(count):
                self.workers.append(self._start(number))
            self._give()

    def __iter__(self) -> Workers:
        return self

    def __next__(self) -> Any:
        while True:
            with self._lock:
                self._give()
                if self._next in self._done:
                    kind, item = self._done.pop(self._next)
                    self._next += 1
                    self._give()  # whoever made it goes on while the caller works with it
                    break
                if not any(worker.tasks for worker in self.workers):
                    raise StopIteration
                sources = [source for worker in self.workers for source in (worker.connection, worker.process.sentinel)]
            with suppress(OSError, ValueError):  # closed in the meantime, by another thread
                wait(sources, timeout=self._tick_s)
            with self._lock:
                self._look()
        if kind == "error":
            raise RuntimeError(f"a loader process failed:\n{item}")
        return item

    def close(self) -> None:
        """End the processes now, also one that hangs."""
        with self._lock:
            self._closed = True
            workers, self.workers = self.workers, []
            _end(self._processes, self._parent)
            for worker in workers:
                worker.connection.close()

    def _start(self, number: int) -> _Worker:
        place = self._board.place(number)
        place["key"] = _NOTHING
        if self._way == "spawn":
            resource_tracker.ensure_running()  # its own start would let signals through
        with _FORKING:
            ours, theirs = multiprocessing.Pipe()
            work = _Work(self._make, self._ready, theirs, self._board, number, self._parent, dict(self._given_up),
                         self.limits)  # fmt: skip
            # fork: starts in no time and shares the list. The processes use one thread, no CUDA and no process group,
            # so nothing of the parent's other threads is missed in them.
            process: Any = multiprocessing.get_context(self._way).Process(  # type: ignore[attr-defined]
                target=work.run if self._way == "spawn" else self._begin,
                args=() if self._way == "spawn" else (work, ours),
                name=f"loader-{number}",
                daemon=True,
            )
            # until it ignores them: what comes in between would end it
            before = signal.pthread_sigmask(signal.SIG_BLOCK, _NOT_OURS)
            try:
                process.start()
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
            theirs.close()
        self._processes[number] = process
        return _Worker(number, process, ours, Receiver(ours), place, knows=len(self._given_up))

    def _begin(self, work: _Work, parents: Connection) -> None:
        """A fork's own beginning."""
        parents.close()  # else what the parent has closed would not be closed
        for worker in self.workers:
            worker.connection.close()
        work.run()

    def _give(self) -> None:
        """Hand out tasks until every process has `ahead` of them."""
        while self.workers:
            worker = min(self.workers, key=lambda worker: len(worker.tasks))
            # items that wait to be fetched count as well: memory is bounded by what was ordered
            ordered = self._given - self._next
            if len(worker.tasks) >= self.ahead or ordered - len(self._again) >= self.ahead * len(self.workers):
                return
            if self._again:
                number, task = self._again.popleft()
            else:
                try:
                    number, task = self._given, next(self._tasks)
                except StopIteration:
                    return
                self._given += 1
            worker.tasks[number] = task
            more = dict(islice(self._given_up.items(), worker.knows, None))  # in the order in which they came
            worker.knows = len(self._given_up)
            try:
                worker.connection.send(_Task(number, task, more, worker.receiver.freed()))
            except OSError:
                self._bury(worker)

    def _look(self) -> None:
        """Take what is there; replace who has gone or takes too long."""
        now = time.monotonic()
        passed, self._looked = min(now - self._looked, 2 * self._tick_s), now
        for worker in list(self.workers):
            gone = worker.process.exitcode is not None  # asked before: what it sent until then is there
            if not self._take(worker) or gone:
                self._bury(worker)
            elif self._too_long(worker, passed):
                worker.killed_in = worker.seen
                worker.process.kill()
                self._bury(worker)

    def _too_long(self, worker: _Worker, passed: float) -> bool:
        at = worker.at()
        if at[0] == _NOTHING or at != worker.seen:
            worker.seen, worker.waited_s = at, 0.0
        elif _kernel_state(worker.process.pid) != "D":
            # "D": in the kernel's hands. A file system that answers late is not the video's fault; a kill is no help
            worker.waited_s += passed
        return 0 < self.limits.key_s < worker.waited_s

    def _take(self, worker: _Worker) -> bool:
        """Take all items that a process has sent; False where it has gone."""
        try:
            while worker.connection.poll():
                (number, kind), item = worker.receiver.receive()
                worker.tasks.pop(number)
                self._done[number] = (kind, item)
        except (EOFError, OSError):
            return False
        return True

    def _bury(self, worker: _Worker) -> None:
        """Replace a process that has gone; its tasks go to the others, its key is given up where it is to blame."""
        worker.process.join(timeout=5)
        self._take(worker)
        worker.connection.close()
        if self._closed:
            return
        (key, since), code = worker.at(), worker.process.exitcode
        if worker.killed_in is not None:
            if worker.killed_in == (key, since):  # else it was through at the last moment
                self._given_up[key] = f"reading it took longer than {self.limits.key_s:g} s, and its process was killed"
        elif code is not None and code < 0 and -code in CRASHES and key != _NOTHING:
            self._given_up[key] = f"the process that read it crashed ({signal.Signals(-code).name})"
        elif code != 0:
            self._count_loss(worker, key, code)
        self.replaced += 1
        self._again = deque(sorted([*self._again, *worker.tasks.items()], key=lambda task: task[0]))
        self.workers[worker.number] = self._start(worker.number)

    def _count_loss(self, worker: _Worker, key: int, code: int | None) -> None:
        self._losses.append(self._next)
        while self._next - self._losses[0] > LOSSES_WITHIN:
            self._losses.popleft()
        if len(self._losses) > MOST_LOSSES:
            raise WorkerDied(f"{self.name}{_obituary(worker, code)}, after {MOST_LOSSES} others that were replaced")
        self.told.append(f"{_obituary(worker, code)}; another one goes on in its place")
        self._killed_at[key] += 1
        if key != _NOTHING and self._killed_at[key] > 1:
            self._given_up[key] = "two processes were killed while they read it"


def _obituary(worker: _Worker, code: int | None) -> str:
    how = f"exit code {code}" if code is None or code >= 0 else f"killed by {signal.Signals(-code).name}"
    cure = " (mostly the kernel's answer to memory running out: lower data.num_workers or data.prefetch)"
    return (
        f"loader worker {worker.number} (pid {worker.process.pid}) died: {how}{cure if code == -signal.SIGKILL else ''}"
    )


def _kernel_state(pid: int) -> str:
    """The state letter of a process ("D": waits in the kernel and cannot be killed); "" where there is none."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as handle:
            return handle.read().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return ""


def _end(processes: dict[int, Any], parent: int) -> None:
    if os.getpid() != parent:  # a fork has the objects too, and none of the processes
        return
    for process in processes.values():
        process.kill()
    for process in processes.values():
        process.join(timeout=5)  # longer only where the kernel waits for a file system
    processes.clear()


def _close_of(reference: weakref.ref[Workers]) -> None:
    workers = reference()
    if workers is not None:
        workers.close()
