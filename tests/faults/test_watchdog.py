"""F26, F27, F43: a rank that hangs, also in native code, ends the run with its name; a slow rank or save does not."""

from __future__ import annotations

import platform
import re
import time
from pathlib import Path

import pytest

from tests.distributed.conftest import FP32, words
from tests.faults.conftest import Ended, fault, job, start, wait

pytestmark = pytest.mark.long

HOST = platform.node()
LIMIT_S = 4


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("watchdog")


def command(scratch: Path, name: str, steps: int, *more: str) -> list[str]:
    return words(scratch / name, FP32, f"run.watchdog_s={LIMIT_S}", *more, steps=steps)


@pytest.fixture(scope="module")
def ended(scratch: Path) -> Ended:
    """A slow rank, a long save, and at last a rank that never reaches its third forward."""
    jobs = [
        job("slow", command(scratch, "slow", 24), fault(1, "forward", 0, "times 5")),
        job("save", command(scratch, "save", 3), fault(0, "save", 1, f"sleep {2 * LIMIT_S}")),
        job("hang", command(scratch, "hang", 9), fault(1, "forward", 3, "sleep 1000")),
    ]
    return wait(start(2, jobs, scratch))


def test_a_slow_rank_is_named_within_twenty_steps_and_once(ended: Ended) -> None:
    assert ended.codes("slow") == [0, 0], ended.outputs[0][-3000:]
    before, line, after = ended.output("slow").partition(f"rank 1 on {HOST} is slow: ")
    assert line and "is slow" not in after
    last_step = int(re.findall(r"^step (\d+)/24", before, re.M)[-1])
    assert last_step < 20
    assert "in forward: " in after.splitlines()[0]


def test_a_save_longer_than_the_watchdog_is_no_stall(ended: Ended) -> None:
    assert ended.codes("save") == [0, 0], ended.output("save")[-3000:]
    assert "watchdog: " not in ended.output("save")


def stacks(out: Path, rank: int) -> str:
    """What the watchdog of a rank wrote."""
    (path,) = (out / "logs").glob(f"stall-rank-{rank:05d}-*.txt")
    return path.read_text()


def test_a_rank_that_hangs_ends_the_run_with_its_name(ended: Ended, scratch: Path) -> None:
    assert ended.processes == [1, 1]
    lines = [line for line in ended.outputs[0].splitlines() if line.startswith("watchdog: ")]
    assert len(lines) == 1 and lines[0].startswith(f"watchdog: rank 1 on {HOST} holds the run up: phase 'forward'")
    for rank in (0, 1):
        text = stacks(scratch / "hang", rank)
        assert f"rank {rank} on {HOST}, pid " in text and "2 steps finished" in text
        assert re.search(r"last clips: \[\d+, ", text) and "driver.py" in text and "train.py" in text
    stuck = stacks(scratch / "hang", 1)
    assert "phase 'forward' for" in stuck and "in act" in stuck
    assert not list((scratch / "save" / "logs").glob("stall-*")), "a run that ends well leaves none"


def test_native_code_that_holds_the_interpreter_ends_too(scratch: Path) -> None:
    jobs = [job("held", command(scratch, "held", 9), fault(1, "forward", 3, "hold 1000"))]
    ranks = start(2, jobs, scratch)
    out = scratch / "held" / "metrics.jsonl"
    deadline = time.monotonic() + 100
    while not (out.is_file() and out.read_text().count("\n") >= 2):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    since = time.monotonic()
    ended = wait(ranks)
    assert time.monotonic() - since < LIMIT_S + 10 + 5  # and the ends of two processes
    assert ended.processes == [1, 1]
    assert f"watchdog: rank 1 on {HOST} did not answer: dead, or native code holds the process" in ended.outputs[0]
    text = stacks(scratch / "held", 1)
    assert "Timeout" in text and "in act" in text
