"""Where a rank is, who is behind, and who is slow."""

from __future__ import annotations

import faulthandler
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from dsvid.rollcall import RollCall
from dsvid.runtime import Ranks
from dsvid.watchdog import Stragglers, Watch, last_clips, verdict, waits_for_others

ROOT = Path(__file__).resolve().parents[1]
THREE = RollCall(Ranks(0, 3, 0), ["a", "a", "b"])


def at(entered: int, phase: str = "forward", **more: Any) -> dict[str, Any]:
    return {"entered": entered, "phase": phase, "step": 4, "for_s": 9.0, "clips": [7, 8], "waits": False, **more}


def test_phases_are_counted_and_timed() -> None:
    watch = Watch()
    watch.enter("data")
    time.sleep(0.05)
    watch.enter("forward")
    assert (watch.phase, watch.entered) == ("forward", 2) and 0.04 < watch.spent["data"] < 1


def test_the_limit_of_a_phase() -> None:
    watch = Watch()
    assert watch.limit_of(10, 99) == 99  # the start
    watch.enter("data")
    assert watch.limit_of(10, 99) == 30  # until the first step is over
    watch.finish_step(8)
    assert watch.limit_of(10, 99) == 10 and watch.step == 8
    for phase in ("save", "publish", "end", "start: model"):
        watch.enter(phase)
        assert watch.limit_of(10, 99) == 99
    watch.enter("val forward")
    assert watch.limit_of(10, 99) == 10


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ({0: at(9, "backward"), 1: at(8), 2: at(9)}, "rank 1 on a holds the run up: phase 'forward' for 9 s, 4 steps"),
        ({0: at(9), 2: at(9)}, "rank 1 on a did not answer: dead, or native code holds the process"),
        ({0: at(9, waits=True), 1: at(9, waits=True), 2: at(9)}, "rank 2 on b holds the run up"),
        ({0: at(9), 1: at(9), 2: at(9)}, "no rank moves: phase 'forward'"),
        ({0: at(8), 1: {"error": "RuntimeError", "lost": True}, 2: at(9)}, "rank 0 on a holds the run up"),
        ({0: at(9), 1: at(8), 2: at(8)}, "ranks 1, 2 on a, b holds the run up"),
    ],
)
def test_who_is_behind(answers: dict[int, dict[str, Any]], expected: str) -> None:
    assert verdict(THREE, answers).startswith(expected)


def test_the_main_thread_of_this_test_waits_for_nobody() -> None:
    seen: list[bool] = []
    thread = threading.Thread(target=lambda: seen.append(waits_for_others()))
    thread.start()
    thread.join()
    assert seen == [False]


def test_the_last_clips_are_remembered() -> None:
    watch = Watch()
    batches = [{"index": torch.arange(40)}, {"index": torch.tensor([3, 1])}]
    seen = watch.seen(batches)
    next(seen)
    assert last_clips(watch.clips) == list(range(32))
    assert next(seen)["index"] is batches[1]["index"] and last_clips(watch.clips) == [3, 1]
    assert last_clips({}) == []


def test_a_run_that_ends_well_leaves_nothing(tmp_path: Path) -> None:
    watch = Watch()
    watch.begin(RollCall(Ranks(0, 1, 0), ["a"]), tmp_path, limit_s=60, long_s=60)
    assert len(list(tmp_path.glob("stall-rank-00000-*-*.txt"))) == 1
    watch.end()
    assert list(tmp_path.iterdir()) == []
    watch.begin(RollCall(Ranks(0, 1, 0), ["a"]), tmp_path, limit_s=0, long_s=60)
    watch.end()
    assert list(tmp_path.iterdir()) == []
    faulthandler.cancel_dump_traceback_later()


def test_a_new_start_keeps_what_a_stall_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for moment in ("20260101-000000", "20260102-000000", "20260103-000000"):
        monkeypatch.setattr(time, "strftime", lambda _, now=moment: now)
        watch = Watch()
        watch.begin(RollCall(Ranks(0, 1, 0), ["a"]), tmp_path, limit_s=60, long_s=60)
        thread = watch._thread
        assert thread is not None
        if moment.startswith("20260101"):
            thread.write("nothing moved", thread.state())
        if moment.startswith("20260103"):
            watch.end()
        else:  # as a process that is killed leaves it
            thread.ended.set()
            thread.join()
            faulthandler.cancel_dump_traceback_later()
    (left,) = tmp_path.iterdir()
    assert left.name == "stall-rank-00000-20260101-000000.txt" and "nothing moved" in left.read_text()


def hang(folder: Path, before: str = "") -> subprocess.CompletedProcess[str]:
    """A rank alone that stops moving behind its first step; `before` runs in it once the watchdog is on."""
    code = f"""
import logging, os, resource, time
from pathlib import Path
from dsvid import watchdog
from dsvid.rollcall import RollCall
from dsvid.runtime import Ranks, start_log
start_log(Ranks(0, 1, 0))
watch = watchdog.Watch()
watch.begin(RollCall(Ranks(0, 1, 0), ["here"]), Path({str(folder)!r}), limit_s=0.5, long_s=9)
{before}
watch.finish_step(1)
watch.enter("data")
def stuck_in_here():
    time.sleep(60)
stuck_in_here()
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False, timeout=50
    )


def test_a_rank_alone_that_hangs_ends_itself(tmp_path: Path) -> None:
    done = hang(tmp_path)
    assert done.returncode == 1
    assert "watchdog: rank 0 on here holds the run up: phase 'data'" in done.stdout
    (path,) = tmp_path.glob("stall-rank-00000-*-*.txt")
    text = path.read_text()
    assert "stuck_in_here" in text and "nothing moved for" in text and "1 steps finished" in text


def test_it_ends_where_the_stacks_cannot_be_written(tmp_path: Path) -> None:
    done = hang(tmp_path, "resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))")
    assert done.returncode == 1
    assert "rank 0 on here holds the run up" in done.stdout and "cannot be written (File too large)" in done.stdout
    assert "stuck_in_here" in done.stderr


def test_it_ends_where_writing_hangs(tmp_path: Path) -> None:
    full = """
watchdog.LAST_S = 2.0
read, write = os.pipe()
os.set_blocking(write, False)
try:
    while os.write(write, b"x" * 4096):
        pass
except BlockingIOError:
    os.set_blocking(write, True)
watch._thread.file = os.fdopen(write, "w")
"""
    assert hang(tmp_path, full).returncode == 1


# ---- stragglers ----------------------------------------------------------------------------------------------------


def judge(windows: list[list[list[float]]], ranks: int = 3) -> list[str]:
    slow = Stragglers(RollCall(Ranks(0, ranks, 0), ["a", "b", "c"][:ranks]))
    return [line for rows in windows for line in slow.judge(rows)]


def test_a_slow_rank_is_named_once_with_its_host_and_what_it_is_slow_at() -> None:
    windows = [[[4.0, 0.1, 1.0], [4.0, 0.1, 1.0], [4.0, 0.2, 3.0]]] * 9
    assert judge(windows) == [
        "rank 2 on c is slow: 2.9 times the usual work of its own for 15 steps, in forward: 600 ms a step, others 200"
    ]
    assert judge(windows[: Stragglers.WINDOWS - 1]) == []


def test_of_two_ranks_the_slower_is_named() -> None:
    (line,) = judge([[[4.0, 0.9, 0.3], [4.0, 0.1, 0.2]]] * 3, ranks=2)
    assert line.startswith("rank 0 on a is slow") and "in data: 180 ms a step, others 20" in line


def test_what_matters_little_or_passes_is_not_told() -> None:
    small = [[9.0, 0.001, 0.01], [9.0, 0.001, 0.01], [9.0, 0.001, 0.2]]
    slow, even = [[4.0, 0, 1.0], [4.0, 0, 1.0], [4.0, 0, 3.0]], [[4.0, 0, 1.0]] * 3
    assert judge([small] * 9) == []
    assert judge([slow, slow, even] * 5) == []


def test_a_window_is_what_was_spent_since_the_last() -> None:
    slow = Stragglers(THREE)
    slow.own({"data": 1.0, "forward": 2.0})
    assert slow.own({"data": 1.5, "forward": 2.25, "save": 9.0})[1:] == [0.5, 0.25]
