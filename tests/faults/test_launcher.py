"""F6, F46: SIGTERM to the `deepspeed` program or launch.py loses nothing; a second run in the folder is refused."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.distributed.conftest import FP32, ROOT, free_port, losses, words
from tests.faults.conftest import saved_steps

pytestmark = pytest.mark.long


def deepspeed(out: Path, log: Path) -> subprocess.Popen[bytes]:
    """A run of two ranks as a user starts it: `deepspeed … dsvid/train.py …`."""
    launcher = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_accelerators", "2"]
    script = ["--master_port", str(free_port()), str(ROOT / "dsvid" / "train.py")]
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    command = [*launcher, *script, *words(out, FP32, steps=400)]
    return subprocess.Popen(command, env=environment, cwd=out.parent, stdout=log.open("wb"), stderr=subprocess.STDOUT)


def child(process: psutil.Process, word: str) -> psutil.Process:
    return next(one for one in process.children(recursive=True) if any(word in part for part in one.cmdline()))


def await_steps(out: Path, count: int, log: Path) -> None:
    deadline = time.monotonic() + 150
    metrics = out / "metrics.jsonl"
    while not (metrics.is_file() and metrics.read_text().count("\n") >= count):
        assert time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.1)


@pytest.fixture()
def family() -> Iterator[list[psutil.Process]]:
    """Processes that must be gone when the test is over."""
    processes: list[psutil.Process] = []
    yield processes
    _, alive = psutil.wait_procs(processes, timeout=1)
    for process in alive:
        process.kill()
    assert not alive


@pytest.mark.parametrize("target", ["the program", pytest.param("launch.py", marks=pytest.mark.long)])
def test_sigterm_to_the_launcher_loses_nothing(target: str, tmp_path: Path, family: list[psutil.Process]) -> None:
    out, log = tmp_path / "out", tmp_path / "log.txt"
    runner = deepspeed(out, log)
    await_steps(out, 3, log)
    launch = child(psutil.Process(runner.pid), "deepspeed.launcher.launch")
    ranks = launch.children()
    family += [launch, *ranks]
    assert len(ranks) == 2
    if target == "the program":
        second = subprocess.run(
            [sys.executable, str(ROOT / "dsvid" / "train.py"), *words(out, FP32, steps=400)],
            capture_output=True, text=True, check=False, cwd=tmp_path, timeout=100,
        )  # fmt: skip
        assert second.returncode == 2
        owner = next(rank for rank in ranks if rank.environ()["RANK"] == "0")
        assert f"process {owner.pid} on " in second.stderr and "is used by another run" in second.stderr
        runner.terminate()
        assert runner.wait(timeout=20) == -signal.SIGTERM, "the program passes nothing on: that is why ranks look"
    else:
        launch.terminate()
        assert runner.wait(timeout=60) in (1, 75)
    psutil.wait_procs(family, timeout=60)
    text = log.read_text()
    asked = "the end of the launcher" if target == "the program" else "SIGTERM"
    assert f"stopped: {asked}, noticed by rank" in text, text[-3000:]
    (step,) = saved_steps(out)
    assert f"step {step} is saved" in text and step >= 3
    assert [len(losses(out))] == [step], "every step that was done is saved"
    assert not (out / ".lock").exists()


@pytest.mark.long
def test_torchrun_starts_a_lost_rank_again_and_the_run_goes_on(tmp_path: Path) -> None:
    """torchrun keeps the store of the rendezvous in its own process, through restarts."""
    out, log = tmp_path / "out", tmp_path / "log.txt"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "1"]
    script = ["--master-port", str(free_port()), str(ROOT / "dsvid" / "train.py")]
    command = [*launcher, *script, *words(out, FP32, "run.save_every=5", steps=40)]
    with log.open("wb") as file:
        runner = subprocess.Popen(
            command, env={**os.environ, "OMP_NUM_THREADS": "1"}, cwd=tmp_path, stdout=file, stderr=file
        )
        await_steps(out, 6, log)
        ranks = psutil.Process(runner.pid).children(recursive=True)
        victim = next(one for one in ranks if one.environ().get("RANK") == "1")
        victim.kill()
        assert runner.wait(timeout=200) == 0, log.read_text()[-3000:]
    text = log.read_text()
    assert "rank 1 on " in text and "did not answer: killed" in text
    assert "resume    from step " in text
    assert len(losses(out)) == 40
