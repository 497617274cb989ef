"""A real Slurm: submitted, asked to save, queued again, resumed, done, and not a step lost."""

from __future__ import annotations

import os
import re
import signal
from contextlib import suppress
from pathlib import Path

import pytest

from tests.cluster.conftest import training
from tests.cluster.nodes import ROOT, Nodes, wait_until
from tests.cluster.slurm import Slurm
from tests.cluster.test_launchers import must_be_the_run_of_one_node, saved_step, starts, steps

SCRIPT = str(ROOT / "scripts" / "slurm" / "train.sh")


class Job:
    """A submitted training on both nodes."""

    def __init__(self, slurm: Slurm, folder: Path, clips: str, *options: str, launcher: str = "srun") -> None:
        self.slurm, self.out, self.output = slurm, folder / "out", folder / "job.out"
        environment = {
            "OMP_NUM_THREADS": "1",
            "DSVID_CACHE": clips,
            "DSVID_LAUNCHER": launcher,
            "PYTHONPATH": str(ROOT),
        }
        sbatch = ["sbatch", "--nodes=2", f"--output={self.output}", *options, SCRIPT, "demo_pretrain"]
        self.number = slurm.submit([*sbatch, *training(self.out, 2)], ROOT, environment)

    def at_step(self, step: int) -> None:
        def there() -> bool:
            assert self.state() in ("PENDING", "CONFIGURING", "RUNNING"), self.said()
            return steps(self.out) >= step

        wait_until(there, 150, f"step {step}", every_s=0.3)

    def state(self) -> str:
        return self.slurm.state(self.number)

    def restarted(self) -> bool:
        return self.slurm.job(self.number)["Restarts"] == "1"

    def said(self) -> str:
        text = self.output.read_text() if self.output.exists() else "no output"
        return f"{text[-4000:]}\n{self.slurm.logs()}"

    def done(self) -> None:
        ended = wait_until(
            lambda: self.state() if self.state() not in ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING") else "",
            200, "the job to end", every_s=1,
        )  # fmt: skip
        assert ended == "COMPLETED", self.said()

    def must_have_resumed_once(self, one_node: Path) -> None:
        said = self.output.read_text()
        assert said.count("goes back into the queue") == 1, self.said()
        assert re.findall(r"start (\d):", said) == ["1", "2"], "the second start appends to the first one's output"
        must_be_the_run_of_one_node(self.out, one_node)
        assert starts(self.out) == 2


def signalled(pid: int, number: signal.Signals) -> bool:
    """Whether a stopped process has a signal waiting, or went on with it: Slurm sends SIGCONT as well."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return True
    (mask,) = re.findall(r"^ShdPnd:\s*([0-9a-f]+)$", status, re.M)
    return bool(int(mask, 16) >> (number - 1) & 1) or "State:\tT" not in status


def test_the_time_limit_saves_requeues_and_resumes(
    slurm: Slurm, nodes: Nodes, one_node: dict[int, Path], clips: str, tmp_path: Path
) -> None:
    """`--signal=USR1@1800`, and then the limit is set to 29 minutes: Slurm's own clock sends the signal.

    Slurm looks at its clock twice a minute; both ranks are held so long, or they would be done before.
    """
    job = Job(slurm, tmp_path, clips, "--time=90", "--signal=USR1@1800")
    job.at_step(8)
    ranks = [pid for node in nodes.both for pid in node.ranks()]
    assert len(ranks) == 2
    for pid in ranks:
        os.kill(pid, signal.SIGSTOP)
    slurm.call("scontrol", "update", f"JobId={job.number}", "TimeLimit=29")
    wait_until(lambda: all(signalled(pid, signal.SIGUSR1) for pid in ranks), 90, "Slurm's signal", every_s=0.2)
    for pid in ranks:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
    wait_until(job.restarted, 60, "the requeue")
    slurm.call("scontrol", "update", f"JobId={job.number}", "TimeLimit=90")
    assert 8 <= saved_step(job.out) == steps(job.out), "a step was lost"
    job.done()
    job.must_have_resumed_once(one_node[2])
    assert not nodes.left()


@pytest.mark.slow
def test_a_signal_to_the_batch_shell_reaches_a_deepspeed_on_each_node(
    slurm: Slurm, nodes: Nodes, one_node: dict[int, Path], clips: str, tmp_path: Path
) -> None:
    """DSVID_LAUNCHER=deepspeed; preemption and `scancel --batch` send to the shell, which asks the ranks, once."""
    job = Job(slurm, tmp_path, clips, "--time=90", launcher="deepspeed")
    job.at_step(8)
    for _ in range(2):
        slurm.call("scancel", "--batch", "--signal=USR1", job.number)
    wait_until(job.restarted, 60, "the requeue")
    assert 8 <= saved_step(job.out) == steps(job.out), "a step was lost"
    job.done()
    job.must_have_resumed_once(one_node[2])
    assert job.output.read_text().count("the ranks are asked to save") == 1 and not nodes.left()
