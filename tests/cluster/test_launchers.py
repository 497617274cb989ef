"""Real launchers over two real nodes: the losses of one node, also when a kill or a signal comes between."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.cluster.conftest import STEPS, training
from tests.cluster.nodes import BIN, ROOT, Node, Nodes, wait_until
from tests.distributed.conftest import losses

TRAIN = str(ROOT / "dsvid" / "train.py")
LAUNCH = [str(BIN / "python"), "-m", "dsvid", "launch", "--"]
Both = tuple[Node, Node]


def steps(out: Path) -> int:
    """Steps that a run has logged."""
    try:
        return len(losses(out))
    except (FileNotFoundError, json.JSONDecodeError):  # not begun; a line is being written
        return 0


def deepspeed(nodes: Nodes, out: Path, stage: int) -> list[str]:
    return ["deepspeed", "--hostfile", str(nodes.hostfile), TRAIN, *training(out, stage)]


def end(process: subprocess.Popen[str], log: Path, code: int, limit_s: float = 200) -> None:
    try:
        process.wait(limit_s)
    except subprocess.TimeoutExpired:
        raise AssertionError(f"not at an end after {limit_s} s:\n{log.read_text()[-3000:]}") from None
    assert process.returncode == code, f"ended with {process.returncode}, not {code}:\n{log.read_text()[-4000:]}"


def must_be_the_run_of_one_node(out: Path, one_node: Path) -> None:
    """Every step once, and the losses to the last bit."""
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["kind"] == "train"] == list(range(1, STEPS + 1))
    assert losses(out) == losses(one_node)


def saved_step(out: Path) -> int:
    return max(int(path.parent.name[5:]) for path in out.glob("checkpoints/step-*/manifest.json"))


def starts(out: Path) -> int:
    """How often a run was started: run.json keeps a line for each."""
    return len(json.loads((out / "run.json").read_text())["starts"])


@pytest.mark.slow
def test_deepspeed_over_ssh_gives_the_losses_of_one_node(
    nodes: Nodes, both: Both, one_node: dict[int, Path], tmp_path: Path
) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    process = both[0].start(deepspeed(nodes, out, 2), cwd=tmp_path, log=log)
    for node in both:  # `.deepspeed_env` reaches both
        (rank,) = wait_until(node.ranks, 90, f"a rank on {node.name}")
        environment = Path(f"/proc/{rank}/environ").read_bytes().decode().split("\0")
        assert "DSVID_MARK_OF_THE_TEST=1 two,three" in environment and "OMP_NUM_THREADS=1" in environment
    end(process, log, 0)
    must_be_the_run_of_one_node(out, one_node[2])
    assert not nodes.left()


def test_a_killed_rank_ends_both_nodes_and_the_next_start_resumes(
    nodes: Nodes, both: Both, one_node: dict[int, Path], tmp_path: Path
) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    process = both[0].start(deepspeed(nodes, out, 3), cwd=tmp_path, log=log)
    wait_until(lambda: steps(out) >= 8 or process.poll() is not None, 150, "step 8")
    (victim,) = both[1].ranks()
    os.kill(victim, signal.SIGKILL)
    killed = time.monotonic()
    wait_until(lambda: process.poll() is not None and not nodes.left(), 30, "both nodes to end")
    print(f"everything was gone {time.monotonic() - killed:.1f} s after the kill")
    said = log.read_text()
    assert process.returncode not in (0, 2, 75) and "node2" in said and "return code = -9" in said, said[-3000:]
    assert steps(out) < STEPS
    end(both[0].start(deepspeed(nodes, out, 3), cwd=tmp_path, log=log), log, 0)
    must_be_the_run_of_one_node(out, one_node[3])


def test_dsvid_launch_keeps_the_save_that_deepspeed_would_lose(
    nodes: Nodes, both: Both, one_node: dict[int, Path], tmp_path: Path
) -> None:
    """SIGTERM to the first node's supervisor: no rank is below it, so the stop file in the run folder asks them."""
    out, log = tmp_path / "out", tmp_path / "log"
    command = [*LAUNCH, *deepspeed(nodes, out, 2)]
    there = {"PYTHONPATH": str(ROOT)}
    process = both[0].start(command, cwd=tmp_path, log=log, environment=there)
    wait_until(lambda: steps(out) >= 8 or process.poll() is not None, 150, "step 8")
    os.kill(both[0].supervisor(), signal.SIGTERM)
    end(process, log, 75)
    wait_until(lambda: not nodes.left(), 10, "nothing to be left")
    assert 8 <= saved_step(out) == steps(out) < STEPS and not (out / "stop").exists()
    end(both[0].start(command, cwd=tmp_path, log=log, environment=there), log, 0)
    must_be_the_run_of_one_node(out, one_node[2])


def test_a_node_without_cable_or_power_ends_the_run_with_its_name(
    own_nodes: Nodes, one_node: dict[int, Path], tmp_path: Path
) -> None:
    """The cable is cut, then put back for the second start; the power goes; the other node ends the run alone."""
    nodes, (first, second) = own_nodes, own_nodes.both
    out, there = tmp_path / "out", {"PYTHONPATH": str(ROOT)}

    def start(name: str, hostfile: Path) -> tuple[subprocess.Popen[str], Path]:
        log = tmp_path / name
        # without an address deepspeed asks for that of an interface, and eth0 goes with the other node
        ours = ["--hostfile", str(hostfile), "--master_addr", first.address]
        command = [*LAUNCH, "deepspeed", *ours, TRAIN, *training(out, 2), "run.watchdog_s=8"]
        return first.start(command, cwd=tmp_path, log=log, environment=there), log

    process, log = start("cut", nodes.hostfile)
    wait_until(lambda: steps(out) >= 8 or process.poll() is not None, 150, "step 8")
    second.cable("down")
    # nothing tells of it but that nothing moves; then ssh gives up, and the other node is asked once more, in vain
    wait_until(lambda: process.poll() is not None and not nodes.left(), 8 + 10 + 40 + 40, "both nodes to end")
    said = log.read_text()
    assert process.returncode not in (0, 2, 75) and "rank 1 on node2 did not answer" in said, said[-3000:]
    second.cable("up")

    process, log = start("off", nodes.hostfile)
    wait_until(lambda: steps(out) >= 14 or process.poll() is not None, 150, "step 14")
    second.power_off()
    wait_until(lambda: process.poll() is not None and not first.of_the_launch(), 30 + 40, "the first node to end")
    said = log.read_text()
    assert "resume    from step" in said and process.returncode not in (0, 2, 75), said[-3000:]
    assert "rank 1 on node2 did not answer" in said, said[-3000:]

    alone = tmp_path / "hostfile"
    alone.write_text("node1 slots=1\n")
    process, log = start("alone", alone)
    end(process, log, 0)
    assert losses(out) == pytest.approx(losses(one_node[2]), abs=2e-6)


@pytest.mark.slow
def test_without_ssh_and_with_torchrun(
    nodes: Nodes, both: Both, one_node: dict[int, Path], clips: str, tmp_path: Path
) -> None:
    """`deepspeed --no_ssh` on each node, stopped on one of them; torchrun on each node goes on with the same run."""
    out = tmp_path / "out"
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "DSVID_CACHE": clips}

    def start(launcher: list[str]) -> list[tuple[subprocess.Popen[str], Path]]:
        started = []
        for number, node in enumerate(both):
            log = tmp_path / f"{launcher[0]}-{node.name}.log"
            words = [word.replace("NUMBER", str(number)) for word in launcher]
            command = [*LAUNCH, *words, TRAIN, *training(out, 2)]
            started.append((node.start(command, cwd=tmp_path, log=log, environment=environment), log))
        return started

    first = both[0].address
    by_hand = [
        "deepspeed",
        "--hostfile",
        str(nodes.hostfile),
        "--no_ssh",
        "--node_rank",
        "NUMBER",
        "--master_addr",
        first,
    ]
    running = start(by_hand)
    wait_until(lambda: steps(out) >= 8 or running[0][0].poll() is not None, 150, "step 8")
    os.kill(both[1].supervisor(), signal.SIGTERM)  # the node without rank 0
    for process, log in running:
        end(process, log, 75)
    assert 8 <= saved_step(out) == steps(out) < STEPS
    torchrun = ["torchrun", "--nnodes", "2", "--nproc-per-node", "1", "--node-rank", "NUMBER"]
    for process, log in start([*torchrun, "--master-addr", first, "--master-port", "29600"]):
        end(process, log, 0)
    must_be_the_run_of_one_node(out, one_node[2])
    assert starts(out) == 2 and not nodes.left()


def test_a_host_that_does_not_answer_is_named_before_anything_starts(nodes: Nodes, both: Both, tmp_path: Path) -> None:
    hostfile, log = tmp_path / "hostfile", tmp_path / "log"
    hostfile.write_text("node1 slots=1\nnode3 slots=1\nnode2 slots=1\n")
    command = [*LAUNCH, "deepspeed", "--hostfile", str(hostfile), TRAIN, *training(tmp_path / "out", 2)]
    process = both[0].start(command, cwd=tmp_path, log=log, environment={"PYTHONPATH": str(ROOT)})
    end(process, log, 2, limit_s=40)
    said = log.read_text()
    assert "node3: " in said and "nothing was started" in said and "node2: " not in said
    assert not nodes.left() and not (tmp_path / "out").exists()
