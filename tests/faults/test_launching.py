"""F5, F6, F34, F35, F36: signals to scripts and launchers; wrong hostfiles, variables and hosts."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dsvid.cli import main
from dsvid.errors import RecipeError
from dsvid.launching import check_environment_file, check_exported, read_hostfile
from dsvid.supervisor import MARK, end_on_hosts

ROOT = Path(__file__).resolve().parents[2]
TRAIN = ROOT / "tests" / "launched" / "train.py"
BIN = Path(sys.executable).parent


@pytest.fixture()
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Path]:
    """tools(name, text) puts a shell script in front of everything else on PATH; each call is noted in NAME.calls."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{BIN}:{os.environ['PATH']}")

    def put(name: str, text: str) -> Path:
        calls = tmp_path / f"{name}.calls"
        path = folder / name
        path.write_text(f'#!/bin/bash\necho "$@" >>{calls}\n{text}\n')
        path.chmod(0o755)
        return calls

    return put


def wait_for(path: Path, limit_s: float = 30) -> None:
    end = time.monotonic() + limit_s
    while not path.exists():
        assert time.monotonic() < end, f"waited {limit_s} s for {path.name}"
        time.sleep(0.02)


# ---- F5: a signal to the batch script ------------------------------------------------------------------------------


class Batch:
    """scripts/slurm/train.sh as Slurm would run it, with srun, scancel and scontrol that note their calls."""

    def __init__(self, tools: Callable[[str, str], Path], folder: Path, step: str, launcher: str = "srun") -> None:
        # srun runs the step once; scancel signals it, as Slurm does.
        tools("srun", f"echo $$ >{folder}/step.pid; exec bash -c '{step}'")
        self.scancel = tools("scancel", f"kill -USR1 $(cat {folder}/step.pid)")
        self.scontrol = tools("scontrol", '[ "$1" != show ] || echo node1')
        environment = {
            **os.environ, "SLURM_JOB_ID": "4242", "SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_NODELIST": "node[1-2]",
            "SLURM_JOB_NUM_NODES": "2", "DSVID_PYTHON": sys.executable, "DSVID_LAUNCHER": launcher,
        }  # fmt: skip
        script = ROOT / "scripts" / "slurm" / "train.sh"
        self.process = subprocess.Popen(
            ["bash", str(script), "demo_pretrain", "--out", str(folder / "out")],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def requeues(self) -> list[str]:
        lines = self.scontrol.read_text().splitlines()
        return [line for line in lines if line.startswith("requeue")]


@pytest.mark.parametrize("name", ["SIGUSR1", "SIGTERM"])
def test_f5_requeued_once_and_the_second_signal_is_ignored(
    name: str, tools: Callable[[str, str], Path], tmp_path: Path
) -> None:
    step = f'trap "sleep 1; exit 75" USR1; touch {tmp_path}/up; while :; do sleep 0.1; done'
    batch = Batch(tools, tmp_path, step)
    wait_for(tmp_path / "up")
    batch.process.send_signal(signal.Signals[name])
    time.sleep(0.4)
    batch.process.send_signal(signal.Signals[name])
    said, _ = batch.process.communicate(timeout=20)
    assert batch.process.returncode == 0, said
    assert batch.requeues() == ["requeue 4242"]
    assert batch.scancel.read_text().splitlines() == ["--signal=USR1 4242"]
    assert said.count("asked to save") == 1


@pytest.mark.parametrize(
    ("code", "requeued"), [(0, False), (1, False), (2, False), (75, True), (137, False), (138, True)]
)
def test_f5_only_a_saved_run_goes_back_into_the_queue(
    code: int, requeued: bool, tools: Callable[[str, str], Path], tmp_path: Path
) -> None:
    batch = Batch(tools, tmp_path, f"exit {code}")
    batch.process.communicate(timeout=20)
    assert batch.process.returncode == (0 if requeued else code)
    assert batch.requeues() == (["requeue 4242"] if requeued else [])
    assert not batch.scancel.exists()


def test_f5_a_refused_requeue_is_said_and_the_code_stays(tools: Callable[[str, str], Path], tmp_path: Path) -> None:
    batch = Batch(tools, tmp_path, "sleep 0.5; exit 75")
    tools("scontrol", '[ "$1" = show ] && echo node1')
    said, _ = batch.process.communicate(timeout=20)
    assert batch.process.returncode == 75 and "submit the same line again" in said and len(batch.requeues()) == 1


# ---- F6: a signal to the launcher ----------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize(
    "launcher",
    [
        ["deepspeed", "--num_accelerators", "2", "--master_port"],
        ["torchrun", "--nproc-per-node", "2", "--master-port"],
    ],
    ids=["deepspeed", "torchrun"],
)
def test_f6_the_ranks_of_a_real_launcher_get_their_time(launcher: list[str], tmp_path: Path) -> None:
    """A save of 3 s; both launchers by themselves would end with another code, deepspeed without waiting at all."""
    from tests.distributed.conftest import free_port

    out = tmp_path / "out"
    command = [str(BIN / launcher[0]), *launcher[1:], str(free_port()), str(TRAIN), "--out", str(out), "save_s=3"]
    process = subprocess.Popen(
        [sys.executable, "-m", "dsvid", "launch", "--", *command], cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={**os.environ, "DS_ACCELERATOR": "cpu"},
    )  # fmt: skip
    try:
        wait_for(out / "ready", 90)
        ranks = [int(path.read_text()) for path in out.glob("pid-*")]
        process.terminate()
        said, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 75, said
    assert len(ranks) == 2 and not [pid for pid in ranks if Path(f"/proc/{pid}").exists()]
    assert len(list(out.glob("checkpoints/step-*/manifest.json"))) == 1


@pytest.mark.long
def test_f6_ranks_elsewhere_save_when_the_launcher_is_killed(tools: Callable[[str, str], Path], tmp_path: Path) -> None:
    """A rank beside the supervisor stands for another node; the launcher's child waits for it, as pdsh does."""
    out = tmp_path / "out"
    tools("ssh", 'bash -c "${@: -1}"')
    tools("pdsh", f"tail --pid=$(cat {out}/pid-0) -f /dev/null")
    tools("deepspeed", f"echo $$ >{tmp_path}/launcher; pdsh; exit 1")
    (tmp_path / "hosts").write_text("host1 slots=1\nhost2 slots=1\n")
    elsewhere = subprocess.Popen([sys.executable, str(TRAIN), "--out", str(out)])
    wait_for(out / "ready")
    words = ["deepspeed", "--hostfile", str(tmp_path / "hosts"), str(TRAIN), "--out", str(out)]
    process = subprocess.Popen(
        [sys.executable, "-m", "dsvid", "launch", "--", *words], cwd=ROOT, stderr=subprocess.PIPE
    )
    try:
        wait_for(tmp_path / "pdsh.calls")
        os.kill(int((tmp_path / "launcher").read_text()), signal.SIGKILL)
        assert elsewhere.wait(20) == 75, "the rank was not asked"
        _, said = process.communicate(timeout=20)
        assert process.returncode == 75 and b"the launcher is gone" in said, said
    finally:
        elsewhere.kill()
        process.kill()


@pytest.mark.long
def test_f6_only_what_carries_our_mark_is_ended_on_a_node(
    tools: Callable[[str, str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """The launcher's own way is `pkill -f`, which ends other jobs too."""
    tools("ssh", 'bash -c "${@: -1}"')
    ours, other = (
        subprocess.Popen(["sleep", "100"], env={**os.environ, MARK: mark}) for mark in ("a1b2c3d4", "a1b2c3d4e5")
    )
    try:
        end_on_hosts(["host1"], "a1b2c3d4", wait_s=1, port=None)
        assert ours.wait(5) == -signal.SIGKILL and other.poll() is None
        assert f"host1: killed: {ours.pid}" in capsys.readouterr().err
        end_on_hosts(["host1"], "a1b2c3d4", wait_s=5, port=None)  # nothing is there: no wait, no word
        assert not capsys.readouterr().err
    finally:
        ours.kill()
        other.kill()


# ---- F34: hostfiles ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line", "expected"),
    [
        ("a slots=1\nb slots=1\na slots=2\n", 3, "a slots=3"),
        ("a;touch SENTINEL slots=1\n", 1, "host name"),
        (";touch SENTINEL slots=1\n", 1, "host name"),
        ("a slots=1\n$(touch SENTINEL) slots=1\n", 2, "host name"),
        ("$(id) slots=1\n", 1, "host name"),
        ("`id` slots=1\n", 1, "host name"),
        ("-oProxyCommand=touch slots=1\n", 1, "host name"),
        ("root@a slots=1\n", 1, "ssh/config"),
        ("a[1-2] slots=1\n", 1, "host name"),
        ("\ufeffa slots=1\n", 1, "host name"),
        ("a slots=0\n", 1, "leave the line out"),
        ("a slots=-1\n", 1, "a slots=8"),
        ("a slots=x\n", 1, "a slots=8"),
        ("a slots=1e9\n", 1, "a slots=8"),
        ("a slots=1000000000\n", 1, "1 to 1024"),
        (f"a slots={'9' * 5000}\n", 1, "1 to 1024"),
        ("a slots=4 slots=4\n", 1, "a slots=8"),
        ("a\n", 1, "a slots=8"),
        ("a slots=1\r\nb slots=1\r\n", 1, "sed -i"),
        ("", 0, "no host"),
        ("# only this\n\n", 0, "no host"),
    ],
)
def test_f34_bad_hostfiles_are_refused_with_their_line(
    text: str,
    line: int,
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "hosts"
    path.write_bytes(text.replace("SENTINEL", str(tmp_path / "sentinel")).encode())
    with pytest.raises(RecipeError) as caught:
        read_hostfile(path)
    assert expected in str(caught.value)
    assert (f"line {line}" in str(caught.value)) == bool(line)
    started = tmp_path / "started"
    command = [str(BIN / "deepspeed"), "--hostfile", str(path), "train.py", str(started)]
    assert main(["launch", "--", *command]) == 2
    assert expected in capsys.readouterr().err
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["hosts"], "something ran"


# ---- F35: variables ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("BAD=$(touch sentinel)", "BAD"),
        ("BAD=$HOME", "BAD"),
        ("BAD=`touch sentinel`", "BAD"),
        ('BAD="x"', "BAD"),
        ("BAD='x'", "BAD"),
        ("BAD=x;touch sentinel", "BAD"),
        ("BAD=x\\y", "BAD"),
        ("BAD=%h", "BAD"),
        ("BAD=x\r", "BAD"),
        ("export BAD=1", "BAD"),
        ("# BAD=1", "BAD"),
        ("BAD", "BAD"),
        ("BA D=1", "BA D"),
        ("BAD;touch sentinel=1", "BAD"),
    ],
)
def test_f35_variables_that_a_shell_would_read_are_refused_by_name_and_line(
    line: str, name: str, tmp_path: Path
) -> None:
    path = tmp_path / ".deepspeed_env"
    path.write_bytes(f"GOOD=1\n{line}\nLAST=2\n".encode())
    with pytest.raises(RecipeError) as caught:
        check_environment_file(path)
    assert "line 2" in str(caught.value) and name in str(caught.value)
    assert not (tmp_path / "sentinel").exists()


def test_f35_a_blank_line_would_end_the_launcher_and_is_named(tmp_path: Path) -> None:
    path = tmp_path / ".deepspeed_env"
    path.write_text("A=1\n\nB=2\n")
    with pytest.raises(RecipeError, match="line 2"):
        check_environment_file(path)


def test_f35_a_refusal_does_not_show_a_secret(tmp_path: Path) -> None:
    path = tmp_path / ".deepspeed_env"
    path.write_text("MY_TOKEN=hunter2$x\nexport A_PASSWORD=hunter2\n")
    with pytest.raises(RecipeError) as caught:
        check_environment_file(path)
    path.write_text("export A_PASSWORD=hunter2\n")
    with pytest.raises(RecipeError) as second:
        check_environment_file(path)
    assert "hunter2" not in str(caught.value) + str(second.value)


def test_f35_exported_variables_of_this_shell_are_checked_too() -> None:
    check_exported({"PYTHONPATH": "/a b:/c", "HOME": "$(x)"})
    with pytest.raises(RecipeError, match="NCCL_X"):
        check_exported({"NCCL_X": "$(touch sentinel)"})


def test_f35_through_a_shell_the_accepted_values_are_equal_to_the_last_byte(tmp_path: Path) -> None:
    """What the launcher makes of an accepted file, read by a shell as on a node."""
    from deepspeed.launcher.multinode_runner import PDSHRunner

    values = {"A": "plain", "B": "two words", "C": "a=b,c:d/e@f%g+h", "D": "(x) & > * ? [1] {2} # ~ ! |", "E": ""}
    path = tmp_path / ".deepspeed_env"
    path.write_text("".join(f"{name}={value}\n" for name, value in values.items()))
    assert check_environment_file(path) == values
    runner = PDSHRunner.__new__(PDSHRunner)
    runner.exports = {}
    for line in path.read_text().splitlines(keepends=True):
        runner.add_export(*line.split("=", maxsplit=1))
    exports = "".join(f"export {name}={value}; " for name, value in runner.exports.items())
    done = subprocess.run(["bash", "-c", f"{exports}env -0"], capture_output=True, check=True, env={})
    arrived = dict(item.partition("=")[::2] for item in done.stdout.decode().split("\0") if item)
    assert {name: arrived[name] for name in values} == values


# ---- F36: hosts ----------------------------------------------------------------------------------------------------

# Like ssh: the last two words are host and command. host3 is what the test makes of it.
FAKE_SSH = """
host=${{@: -2:1}}
echo "$host" >>{folder}/asked
[ "$host" != host3 ] || {{ {third} ; }}
bash -c "${{@: -1}}"
"""


@pytest.mark.parametrize(
    ("third", "expected"),
    [
        ("echo 'Permission denied (publickey).' >&2; exit 255", "Permission denied"),
        ("sleep 100", "no answer in time"),
        ("(sleep 100 &) ; sleep 100", "no answer in time"),
        ("echo no Python at /there; exit 1", "no Python at /there"),
        ("exit 255", "ssh ended with 255"),
    ],
)
def test_f36_a_host_that_fails_or_hangs_is_named_in_time_and_nothing_starts(
    third: str, expected: str, tools: Callable[[str, str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    tools("ssh", FAKE_SSH.format(folder=tmp_path, third=third))
    pdsh = tools("pdsh", "exit 0")
    deepspeed = tools("deepspeed", "exit 0")
    (tmp_path / "hosts").write_text("".join(f"host{number} slots=8\n" for number in range(1, 5)))
    (tmp_path / "train.py").touch()
    start = time.monotonic()
    words = ["launch", "--ssh-limit", "2", "--", "deepspeed", "--hostfile", "hosts", "train.py"]
    assert main(words) == 2
    assert time.monotonic() - start < 6
    said = capsys.readouterr().err
    assert f"host3: {expected}" in said and "1 of 4 hosts" in said and not re.search("host[124]:", said)
    assert sorted((tmp_path / "asked").read_text().split()) == ["host1", "host2", "host3", "host4"]
    assert not pdsh.exists() and not deepspeed.exists()


def test_f36_other_paths_on_a_node_are_named(
    tools: Callable[[str, str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    tools("ssh", FAKE_SSH.format(folder=tmp_path, third="true"))
    tools("pdsh", "exit 0")
    deepspeed = tools("deepspeed", "exit 7")
    (tmp_path / "hosts").write_text("host1 slots=8\nhost2 slots=8\n")
    assert main(["launch", "--", "deepspeed", "--hostfile", "hosts", "absent/train.py"]) == 2
    said = capsys.readouterr().err
    assert f"host2: no file {tmp_path}/absent/train.py" in said and not deepspeed.exists()
    (tmp_path / "absent").mkdir()
    (tmp_path / "absent" / "train.py").touch()
    assert main(["launch", "--dry-run", "--", "deepspeed", "--hostfile", "hosts", "absent/train.py"]) == 0
    assert "--node_rank 1 --hostfile hosts absent/train.py" in capsys.readouterr().out and not deepspeed.exists()
