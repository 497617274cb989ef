"""Loader processes that hang, crash, leak and are killed; for us every fault is a real one in a real process."""

from __future__ import annotations

import ctypes
import itertools
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from dsvid.data import workers as module
from dsvid.data.in_thread import InThread
from dsvid.data.workers import Limits, WorkerDied, Workers, working_on

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the processes are Linux's")


@contextmanager
def running(make: Any, tasks: Any, count: int = 2, ahead: int = 2, **limits: Any) -> Iterator[Workers]:
    workers = Workers(make, tasks, count=count, ahead=ahead, limits=Limits(**limits), name="rank 3: ")
    try:
        yield workers
    finally:
        workers.close()


def plain(task: int, given_up: Mapping[int, str]) -> dict[str, Any]:
    """An item that tells whether its key was given up."""
    if task in given_up:
        return {"value": torch.tensor([-task]), "why": given_up[task]}
    with working_on(task):
        return {"value": torch.tensor([task]), "pid": os.getpid()}


def values(items: Any) -> list[int]:
    return [int(item["value"]) for item in items]


@pytest.mark.parametrize(("count", "ahead"), [(1, 1), (2, 2), (3, 5)])
def test_items_come_in_order_whoever_is_ready_first(count, ahead):
    def uneven(task: int, given_up: Mapping[int, str]) -> dict[str, Any]:
        time.sleep(0.01 * (task % 3))
        return plain(task, given_up)

    with running(uneven, range(20), count, ahead) as workers:
        items = list(workers)
    assert values(items) == list(range(20))
    assert len({item["pid"] for item in items}) == count
    assert workers.replaced == 0


def crash_once(task: int, given_up: Mapping[int, str]) -> dict[str, Any]:
    """In task 1 the process dies as in a decoder, until its key is given up."""
    if task not in given_up:
        with working_on(task):
            if task == 1:
                os.kill(os.getpid(), signal.SIGSEGV)
    return {**plain(task, given_up), "command": Path("/proc/self/cmdline").read_bytes()}


def test_processes_that_begin_with_nothing_of_this_one_are_watched_as_well():
    workers = Workers(crash_once, range(3), count=1, ahead=1, limits=Limits(), start="spawn")
    items = list(workers)
    processes = list(workers._processes.values())
    workers.close()
    assert values(items) == [0, -1, 2] and "SIGSEGV" in items[1]["why"] and workers.replaced == 1
    assert all(b"spawn_main" in item["command"] for item in items), "a fork could not use CUDA"
    assert processes and not any(process.is_alive() for process in processes)


def test_no_more_is_made_than_was_ordered():
    taken = []

    def tasks() -> Iterator[int]:
        for task in itertools.count():
            taken.append(task)
            yield task

    with running(plain, tasks(), count=2, ahead=3) as workers:
        for number in range(10):
            next(workers)
            # and no less: the processes go on while the caller works with what it got
            assert len(taken) == number + 1 + 6


def hang_with_the_interpreter(task: int) -> None:
    ctypes.PyDLL(None).sleep(1000)  # native code that does not give the GIL back


@pytest.mark.parametrize("how", [hang_with_the_interpreter, lambda task: time.sleep(1000)])
def test_a_process_that_hangs_is_killed_and_its_key_given_up(how):
    def make(task: int, given_up: Mapping[int, str]) -> dict[str, Any]:
        if task % 10 == 4 and task not in given_up:
            with working_on(task):
                how(task)
        return plain(task, given_up)

    with running(make, range(20), key_s=0.5) as workers:
        started = time.monotonic()
        items = list(workers)
        took = time.monotonic() - started
        pids = [worker.process.pid for worker in workers.workers]
    assert values(items) == [-task if task % 10 == 4 else task for task in range(20)]
    assert items[4]["why"] == "reading it took longer than 0.5 s, and its process was killed"
    assert workers.replaced == 2 and 0.9 < took < 10
    assert not any(os.path.exists(f"/proc/{pid}") for pid in pids)


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGABRT", "SIGBUS"])
def test_a_decoder_that_crashes_costs_its_key_only(name):
    def make(task: int, given_up: Mapping[int, str]) -> dict[str, Any]:
        if task == 3 and task not in given_up:
            with working_on(task):
                os.kill(os.getpid(), getattr(signal, name))
        return plain(task, given_up)

    with running(make, range(8)) as workers:
        items = list(workers)
    assert values(items) == [0, 1, 2, -3, 4, 5, 6, 7]
    assert items[3]["why"] == f"the process that read it crashed ({name})"


def test_processes_that_somebody_kills_are_replaced_a_few_times():
    with running(plain, itertools.count()) as workers:
        expected = iter(range(1000))
        for _ in range(module.MOST_LOSSES):
            victim = workers.workers[1].process
            os.kill(victim.pid, signal.SIGKILL)
            victim.join()
            assert values(next(workers) for _ in range(8)) == [next(expected) for _ in range(8)]
        assert workers.replaced == module.MOST_LOSSES
        victim = workers.workers[0].process
        os.kill(victim.pid, signal.SIGKILL)
        died = rf"rank 3: loader worker 0 \(pid {victim.pid}\) died: killed by SIGKILL"
        message = rf"{died}.*lower data.num_workers.*after 3 others"
        with pytest.raises(WorkerDied, match=message):
            for _ in range(20):
                next(workers)


def test_a_key_that_gets_its_processes_killed_is_given_up_after_the_second():
    def make(task: int, given_up: Mapping[int, str]) -> dict[str, Any]:
        if task == 3 and task not in given_up:
            with working_on(task):
                os.kill(os.getpid(), signal.SIGKILL)
        return plain(task, given_up)

    with running(make, range(8)) as workers:
        items = list(workers)
    assert values(items) == [0, 1, 2, -3, 4, 5, 6, 7]
    assert items[3]["why"] == "two processes were killed while they read it" and len(workers.told) == 2


def test_losses_are_forgotten_after_many_items(monkeypatch):
    monkeypatch.setattr(module, "LOSSES_WITHIN", 20)
    with running(plain, itertools.count()) as workers:
        expected = itertools.count()
        for _ in range(2 * module.MOST_LOSSES):
            os.kill(workers.workers[0].process.pid, signal.SIGKILL)
            assert values(next(workers) for _ in range(12)) == [next(expected) for _ in range(12)]
        assert workers.replaced == len(workers.told) == 2 * module.MOST_LOSSES


def test_a_job_that_was_suspended_gives_up_nothing():
    """As Ctrl-Z and a scheduler's suspension do it: everything stands still for longer than the limit."""

    def slow(task: int, given_up: Mapping[int, str]) -> dict[str, Any]:
        with working_on(task):
            time.sleep(0.4)
        return plain(task, given_up)

    with running(slow, range(6), key_s=0.8) as workers:
        assert values([next(workers)]) == [0]
        while not all(worker.at()[0] > 0 for worker in workers.workers):
            time.sleep(0.01)
        workers._look()  # it has seen what they are at
        pids = [worker.process.pid for worker in workers.workers]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        time.sleep(1.6)
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
        assert values(workers) == [1, 2, 3, 4, 5] and workers.replaced == 0


def test_a_key_that_came_after_the_slow_one_is_not_blamed(monkeypatch):
    """The process is killed for a key that it is through with at that moment; it works on the next one already."""
    killed = []

    def too_long(self: Workers, worker: Any, passed: float) -> bool:
        if killed or worker.at()[0] != 2:
            return False
        worker.seen = (1, 0.0)  # what it was at, when it was looked at
        killed.append(worker.number)
        return True

    def slow(task: int, given_up: Mapping[int, str]) -> dict[str, Any]:
        with working_on(task):
            time.sleep(0.3)
        return plain(task, given_up)

    monkeypatch.setattr(Workers, "_too_long", too_long)
    with running(slow, range(4), count=1, key_s=0.8) as workers:
        items = list(workers)
    assert values(items) == [0, 1, 2, 3] and killed and workers.replaced == 1 and workers.told == []


def test_what_cannot_be_handed_over_is_an_error_and_no_silence():
    def large(task: int, given_up: Mapping[int, str]) -> dict[str, Any]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
        return {"value": torch.zeros(4 << 20, dtype=torch.uint8)}

    with running(large, range(4)) as workers, pytest.raises(RuntimeError, match=r"(?s)OSError.*File too large"):
        next(workers)


def test_a_signal_that_comes_right_after_the_fork_ends_no_process(monkeypatch):
    def late(parent: int, place: Any, settle: Callable[[int, Any], None] = module._settle) -> None:
        time.sleep(0.5)
        settle(parent, place)

    monkeypatch.setattr(module, "_settle", late)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    with running(plain, range(4)) as workers:
        pids = [worker.process.pid for worker in workers.workers]
        for pid, name in itertools.product(pids, ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP")):
            os.kill(pid, getattr(signal, name))
        assert values(workers) == [0, 1, 2, 3] and workers.replaced == 0
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before, "the parent's own are as they were"


def test_a_process_ends_by_itself_when_its_parent_closes_the_pipe():
    with running(plain, range(100)) as workers:
        next(workers)
        processes = [worker.process for worker in workers.workers]
        for worker in workers.workers:
            worker.connection.close()
        for process in processes:
            process.join(timeout=5)
            assert process.exitcode == 0
        workers.workers = []


def test_replaced_processes_keep_no_memory_of_others():
    def batches() -> int:
        found = 0
        for name in os.listdir("/proc/self/fd"):
            with suppress(OSError):  # that of the listing itself
                found += "dsvid-batch" in os.readlink(f"/proc/self/fd/{name}")
        return found

    made: list[int] = []  # of each process its own, after the fork

    def make(task: int, given_up: Mapping[int, str]) -> dict[str, Any]:
        made.append(task)
        clip = torch.zeros(1 << 20, dtype=torch.uint8)
        return {**plain(task, given_up), "clip": clip, "nth": len(made), "batches": batches()}

    held: list[dict[str, Any]] = []
    at_first: list[int] = []
    with running(make, itertools.count(), count=3, keys=5) as workers:
        for _ in range(90):
            held = [*held[-5:], next(workers)]
            # not the first that comes: a process may be given a lost task, of an earlier place, after its own first one
            if held[-1]["nth"] == 1:
                at_first.append(held[-1]["batches"])
        assert batches() >= 6, "the parent has those that are held"
    assert len(at_first) > 12 and set(at_first) == {0}, "a process starts with none, whatever its parent has"
    assert values(held) == [84, 85, 86, 87, 88, 89] and all(not item["clip"].any() for item in held)


@pytest.mark.parametrize("after", [0.0, 0.03, 0.07, 0.12])
def test_closing_while_another_thread_waits_and_replaces_leaves_nothing(after):
    others = set(multiprocessing.active_children())  # of tests before this one
    for _ in range(4):
        workers = Workers(plain, itertools.count(), count=3, ahead=2, limits=Limits(keys=2))
        thread = InThread(workers, lambda item: item)
        next(iter(thread))
        time.sleep(after)
        started = time.monotonic()
        workers.close()
        thread.close()
        assert time.monotonic() - started < 3 and set(multiprocessing.active_children()) <= others


LEAKING = """
import os
import torch
from dsvid.data.workers import Limits, Workers, private_mb

kept = []

def leaks(task, given_up):
    kept.append(bytearray(os.urandom(1 << 20) * 20))  # 20 MB that are never given back
    return {"value": torch.tensor([task]), "mb": private_mb(os.getpid())}

own = private_mb(os.getpid())
workers = Workers(leaks, range(60), count=2, ahead=2, limits=Limits(grown_mb=100))
items = list(workers)
assert [int(item["value"]) for item in items] == list(range(60))
print(workers.replaced, max(item["mb"] for item in items) - min(item["mb"] for item in items),
      private_mb(os.getpid()) - own)
"""


def test_a_process_that_leaks_is_replaced_and_nothing_is_lost():
    """In a program of its own: the heap of this one may have been made larger by other tests, and forks inherit it."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    done = subprocess.run([sys.executable, "-c", LEAKING], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    replaced, grown, parent = (float(word) for word in done.stdout.split())
    assert 60 // 8 <= replaced <= 60 // 4, "each process leaks 20 MB an item and may grow by 100 MB"
    assert grown < 100 + 3 * 21 and parent < 20


def test_a_process_is_replaced_after_so_many_keys():
    with running(plain, range(40), count=1, keys=10) as workers:
        pids = [item["pid"] for item in workers]
    assert [len(list(group)) for _, group in itertools.groupby(pids)] == [10] * 4


def test_an_error_of_the_code_is_raised_here_with_its_traceback():
    def make(task: int, given_up: Mapping[int, str]) -> dict[str, Any]:
        if task == 2:
            raise KeyError("no such thing")
        return plain(task, given_up)

    with running(make, range(5)) as workers:
        assert values([next(workers), next(workers)]) == [0, 1]
        with pytest.raises(RuntimeError, match=r"(?s)Traceback.*in make.*KeyError: 'no such thing'"):
            next(workers)


def test_a_file_system_that_answers_late_is_waited_for(monkeypatch):
    """The state of a process that waits in the kernel cannot be made here: the answer of /proc is planted."""
    monkeypatch.setattr(module, "_kernel_state", lambda pid: "D")

    def slow(task: int, given_up: Mapping[int, str]) -> dict[str, Any]:
        with working_on(task):
            time.sleep(0.6 if task == 1 else 0)
        return plain(task, given_up)

    with running(slow, range(4), key_s=0.2) as workers:
        assert values(workers) == [0, 1, 2, 3] and workers.replaced == 0


def test_the_state_of_a_process():
    assert module._kernel_state(os.getpid()) in ("R", "S") and module._kernel_state(2**22 + 1) == ""


def test_working_on_is_nothing_outside_of_a_process():
    with working_on(5):
        assert module._own_place is None


def test_a_pass_that_is_not_finished_is_ended_by_close():
    with running(lambda task, given_up: time.sleep(1000), range(4)) as workers:
        pids = [worker.process.pid for worker in workers.workers]
        started = time.monotonic()
    assert time.monotonic() - started < 2 and not any(os.path.exists(f"/proc/{pid}") for pid in pids)
    assert list(workers) == []


def test_a_pass_that_is_dropped_ends_its_processes_and_nobody_else_s():
    other = Workers(plain, range(100), count=1, ahead=1, limits=Limits())
    workers = Workers(plain, range(100), count=2, ahead=2, limits=Limits())  # whose processes have `other`, too
    next(workers)
    pids = [worker.process.pid for worker in workers.workers]
    del workers
    assert not any(os.path.exists(f"/proc/{pid}") for pid in pids)
    assert values([next(other), next(other)]) == [0, 1] and other.replaced == 0
    other.close()


def test_a_program_ends_that_closes_nothing():
    program = """
        from dsvid.data.workers import Limits, Workers
        workers = Workers(lambda task, given_up: {}, range(100), count=2, ahead=2, limits=Limits())
        next(workers)
        print("end", flush=True)
    """
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    command = [sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=60)
    assert (done.returncode, done.stdout.strip()) == (0, "end"), done.stderr
