"""F1, F7: a rank or a loader process is killed; the others end soon, the last line names it, and the run goes on."""

from __future__ import annotations

import platform
import re
import time
from pathlib import Path

import pytest

from tests.distributed.conftest import FP32, losses, words
from tests.faults.conftest import Ended, fault, job, start, wait

pytestmark = pytest.mark.long

STEPS = 8
HOST = platform.node()


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lost")


def command(scratch: Path, name: str, *more: str) -> list[str]:
    return words(scratch / name, FP32, "run.save_every=3", *more, steps=STEPS)


@pytest.fixture(scope="module")
def killed(scratch: Path) -> tuple[Ended, float]:
    """Rank 1 is killed in its fifth backward; how the ranks ended, and how long rank 0 lived on."""
    ranks = start(2, [job("run", command(scratch, "run"), fault(1, "backward", 5, "SIGKILL"))], scratch)
    ranks[1].wait(timeout=200)
    since = time.monotonic()
    ranks[0].wait(timeout=60)
    return wait(ranks), time.monotonic() - since


@pytest.fixture(scope="module")
def again(killed: tuple[Ended, float], scratch: Path) -> Ended:
    """The same command again, the run without a fault, and one that loses a loader process and then rank 0."""
    jobs = [
        job("again", command(scratch, "run")),
        job("whole", command(scratch, "whole")),
        job("worker", command(scratch, "worker", "data.num_workers=1"), fault(0, "backward", 3, "kill-worker")),
    ]
    return wait(start(2, jobs, scratch))


def test_the_others_end_soon_and_name_the_lost_rank(killed: tuple[Ended, float]) -> None:
    ended, seconds = killed
    assert ended.processes == [0, -9] and ended.codes("run") == [1]
    assert seconds < 30
    last = ended.output("run").strip().splitlines()[-1]
    assert last == f"rank 1 on {HOST} did not answer: killed, or the machine is gone", ended.output("run")[-2000:]


def test_the_lost_rank_stands_in_the_log_too(killed: tuple[Ended, float], again: Ended, scratch: Path) -> None:
    log = (scratch / "run" / "logs" / "rank-00000.log").read_text()
    assert f"rank 1 on {HOST} did not answer" in log and "Traceback" in log
    assert "step 4/8" in log and (scratch / "run" / "logs" / "rank-00001.log").is_file()


def test_the_run_goes_on_and_ends_with_the_same_bits(again: Ended, scratch: Path) -> None:
    assert again.codes("again") == [0, 0] == again.codes("whole"), again.outputs[0][-3000:]
    assert "resume    from step 3" in again.output("again")
    assert losses(scratch / "run") == losses(scratch / "whole")
    weights = [(scratch / one / "weights" / "model.safetensors").read_bytes() for one in ("run", "whole")]
    assert weights[0] == weights[1]


def test_a_killed_loader_process_is_replaced_and_the_numbers_are_the_same(again: Ended, scratch: Path) -> None:
    assert again.codes("worker") == [0, 0], again.outputs[0][-3000:]
    died = r"loader worker 0 \(pid \d+\) died: killed by SIGKILL.*another one goes on"
    assert re.search(died, again.output("worker"))
    assert losses(scratch / "worker") == losses(scratch / "whole")


def test_where_rank_0_is_killed_the_others_name_it(scratch: Path) -> None:
    ranks = start(2, [job("first", command(scratch, "first"), fault(0, "backward", 2, "SIGKILL"))], scratch)
    ended = wait(ranks)
    assert ended.processes == [-9, 0] and ended.codes("first") == [1]
    last = ended.output("first", 1).strip().splitlines()[-1]
    assert last.startswith(f"rank 0 on {HOST} did not answer"), ended.output("first", 1)[-2000:]
