"""`dsvid launch` in front of real processes: the save is kept, the exit code too, and nothing is left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from dsvid.cli import launch, main
from dsvid.errors import RecipeError
from dsvid.supervisor import descendants

pytestmark = pytest.mark.long

ROOT = Path(__file__).resolve().parents[2]
TRAIN = ROOT / "tests" / "launched" / "train.py"

# What launchers do to the code and to signals, in a few lines each; real ones: tests/faults, tests/cluster.
KEEPS = """
import os, subprocess, sys, time

world = int(sys.argv[1])
ranks = [subprocess.Popen(sys.argv[2:], env={**os.environ, "RANK": r, "LOCAL_RANK": r, "WORLD_SIZE": str(world)})
         for r in map(str, range(world))]
while not any(rank.poll() for rank in ranks) and any(rank.poll() is None for rank in ranks):
    time.sleep(0.05)
code = next((rank.poll() for rank in ranks if rank.poll()), 0)
if code != 75:
    [rank.kill() for rank in ranks]
[rank.wait() for rank in ranks]
sys.exit(code if code >= 0 else 128 - code)
"""
LOSES = KEEPS.replace("sys.exit(code if code >= 0 else 128 - code)", "sys.exit(bool(code))")


class Launched:
    """A `dsvid launch` that runs, and its run folder."""

    def __init__(self, process: subprocess.Popen[str], out: Path) -> None:
        self.process, self.out = process, out

    def wait_for(self, name: str = "ready", limit_s: float = 20) -> None:
        end = time.monotonic() + limit_s
        while not (self.out / name).exists():
            assert self.process.poll() is None, self.process.communicate()[1]
            assert time.monotonic() < end, f"waited {limit_s} s for {name}"
            time.sleep(0.02)

    def end(self, limit_s: float = 20) -> tuple[int, str]:
        _, errors = self.process.communicate(timeout=limit_s)
        return self.process.returncode, errors

    def left(self) -> list[int]:
        pids = [int(path.read_text()) for path in self.out.glob("pid-*")]
        return [pid for pid in pids if Path(f"/proc/{pid}").exists()]

    def steps(self) -> list[int]:
        return sorted(int(path.name[5:]) for path in self.out.glob("checkpoints/step-*"))


def take_hangups() -> None:
    """As in a terminal, also where the tests run below nohup."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture()
def start(tmp_path: Path) -> Iterator[Callable[..., Launched]]:
    """start([launcher words], [train.py's words], [options of dsvid launch]) in a session of its own."""
    running: list[Launched] = []

    def begin(
        launcher: list[str], *words: str, options: tuple[str, ...] = (), environment: dict[str, str] | None = None,
        out: Path | None = None,
    ) -> Launched:  # fmt: skip
        out = out or tmp_path / "out"
        command = [*launcher, str(TRAIN), "--out", str(out), *words]
        process = subprocess.Popen(
            [sys.executable, "-m", "dsvid", "launch", *options, "--", *command],
            cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
            env={**os.environ, **(environment or {})}, preexec_fn=take_hangups,
        )  # fmt: skip
        running.append(Launched(process, out))
        return running[-1]

    yield begin
    for launched in running:
        # SIGKILL to a supervisor would leave what is below it: that is what it is there for.
        for pid in [*launched.left(), *([launched.process.pid] if launched.process.poll() is None else [])]:
            below = [child for child, _ in descendants(pid)]
            for each in [pid, *below]:
                with suppress(ProcessLookupError):
                    os.kill(each, signal.SIGKILL)
        launched.process.communicate(timeout=10)


def launcher(code: str, world: int = 2) -> list[str]:
    """A small launcher; not named python, so that it is taken for a launcher and not for the training itself."""
    return ["env", sys.executable, "-c", code, str(world), sys.executable]


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP"])
def test_a_signal_becomes_a_save_of_all_ranks(name: str, start: Callable[..., Launched]) -> None:
    launched = start(launcher(KEEPS))
    launched.wait_for()
    launched.process.send_signal(signal.Signals[name])
    code, errors = launched.end()
    assert code == 75, errors
    assert len(launched.steps()) == 1 and not launched.left()
    assert f"{name} received" in errors
    for rank in range(2):  # asked with SIGUSR1 and once, whatever came
        assert (launched.out / f"signals-{rank}").read_text().split() == ["SIGUSR1"]
    assert not (launched.out / "stop").exists()


def test_a_save_may_take_longer_than_the_launchers_allow_and_a_second_signal_does_not_matter(
    start: Callable[..., Launched],
) -> None:
    launched = start(launcher(KEEPS), "save_s=3")
    launched.wait_for()
    for _ in range(3):
        launched.process.terminate()
        time.sleep(0.3)
    code, errors = launched.end()
    assert code == 75 and len(launched.steps()) == 1, errors


def test_the_code_is_found_again_where_the_launcher_loses_it(start: Callable[..., Launched]) -> None:
    launched = start(launcher(LOSES))
    launched.wait_for()
    launched.process.terminate()
    assert launched.end()[0] == 75
    launched = start(launcher(LOSES), "die=1:2", out=launched.out.parent / "died")  # no signal: a failure stays one
    assert launched.end()[0] == 1


def test_ranks_that_do_not_answer_are_ended_after_the_grace(start: Callable[..., Launched]) -> None:
    launched = start(launcher(KEEPS), "deaf=1", options=("--grace", "1"))
    launched.wait_for()
    launched.process.terminate()
    code, errors = launched.end()
    assert code == 137 and "--grace 1 s is over" in errors and not launched.left()
    assert not launched.steps() and not (launched.out / "stop").exists(), "the next start would obey it"


def test_ctrl_c_twice_ends_at_once(start: Callable[..., Launched]) -> None:
    launched = start(launcher(KEEPS), "deaf=1")
    launched.wait_for()
    launched.process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    launched.process.send_signal(signal.SIGINT)
    code, errors = launched.end(10)
    assert code == 137 and "asked twice" in errors and not launched.left()


def test_a_launcher_that_is_killed_leaves_ranks_that_save(start: Callable[..., Launched]) -> None:
    launched = start(launcher(KEEPS))
    launched.wait_for()
    (above,) = {int(Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[1]) for pid in launched.left()}
    assert above != launched.process.pid
    os.kill(above, signal.SIGKILL)
    code, errors = launched.end()
    assert code == 75, errors
    assert "the launcher is gone" in errors and len(launched.steps()) == 1 and not launched.left()


def test_a_rank_that_is_killed_leaves_nothing(start: Callable[..., Launched]) -> None:
    stuck = KEEPS.replace("if code != 75:", "os.kill(os.getpid(), 9)\nif code != 75:")
    launched = start(launcher(stuck), "die=1:3", "deaf=1", options=("--grace", "1"))
    code, errors = launched.end()
    assert code == 137 and not launched.left(), errors


def test_what_a_killed_rank_started_is_not_waited_for(start: Callable[..., Launched]) -> None:
    launched = start(launcher(KEEPS), "die=1:3", "child=1")
    code, errors = launched.end(20)
    assert code == 137 and not launched.left(), errors
    assert "launcher is gone" not in errors, "a worker was taken for a rank that saves"


def test_a_signal_before_the_ranks_are_there_waits_for_their_handlers(start: Callable[..., Launched]) -> None:
    slow = (
        "import pathlib, sys, time; out = pathlib.Path(sys.argv[5]); out.mkdir(); (out / 'up').touch(); time.sleep(1)"
    )
    launched = start(launcher(f"{slow}\n{KEEPS}"))
    launched.wait_for("up")  # the launcher runs, and no rank exists
    launched.process.terminate()
    code, errors = launched.end()
    assert code == 75 and len(launched.steps()) == 1, errors


def test_ranks_of_other_nodes_are_asked_by_the_stop_file(start: Callable[..., Launched], tmp_path: Path) -> None:
    """Half of the world runs below the supervisor, the other half beside it, as it does on another node."""
    out = tmp_path / "out"
    elsewhere = subprocess.Popen(
        [sys.executable, str(TRAIN), "--out", str(out)],
        env={**os.environ, "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"},
    )
    one = ["env", "RANK=1", "LOCAL_RANK=0", "WORLD_SIZE=2", sys.executable]
    launched = start(one, "deaf=1", out=out)
    launched.wait_for()
    launched.wait_for("pid-1")
    launched.process.terminate()
    assert launched.end()[0] == 75
    assert elsewhere.wait(10) == 75 and not (out / "signals-0").exists() and not (out / "stop").exists()


def test_a_single_python_process_is_a_rank(start: Callable[..., Launched]) -> None:
    launched = start([sys.executable])
    launched.wait_for()
    launched.process.terminate()
    assert launched.end()[0] == 75 and len(launched.steps()) == 1


def test_as_process_one_it_reaps_and_passes_on(tmp_path: Path) -> None:
    probe = subprocess.run(["unshare", "--pid", "--fork", "--mount-proc", "true"], capture_output=True, check=False)
    if probe.returncode:
        pytest.skip("needs a process namespace of its own, as a container has: run as root")
    out = tmp_path / "out"
    orphan = ["bash", "-c", f'(sleep 0.3 &) ; exec "$@"', "bash"]  # noqa: F541
    command = [*orphan, *launcher(KEEPS), str(TRAIN), "--out", str(out)]
    process = subprocess.Popen(
        [*"unshare --pid --fork --kill-child --mount-proc".split(), sys.executable, "-m", "dsvid", "launch", *command],
        cwd=ROOT, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        end = time.monotonic() + 20
        while not (out / "ready").exists():
            assert time.monotonic() < end and process.poll() is None
            time.sleep(0.05)
        time.sleep(0.5)
        (one,) = [int(word) for word in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
        below = Path(f"/proc/{one}/task/{one}/children").read_text().split()
        assert len(below) == 1, "the orphan was not reaped"
        os.kill(one, signal.SIGTERM)
        assert process.wait(15) == 75
    finally:
        process.kill()
        process.communicate()


# ---- starting again ------------------------------------------------------------------------------------------------


def test_it_starts_again_only_where_a_checkpoint_was_made(start: Callable[..., Launched], tmp_path: Path) -> None:
    again = start(launcher(KEEPS), "die=1:4", "saves=1", "steps=6", options=("--restarts", "3"))
    end = time.monotonic() + 20
    while not again.steps() and time.monotonic() < end:
        time.sleep(0.05)
    code, errors = again.end()
    assert code == 0 and "start 2 of at most 4" in errors and (again.out / "done").exists(), errors
    never = start(launcher(KEEPS), "die=1:4", options=("--restarts", "3"), out=tmp_path / "never")
    code, errors = never.end()
    assert code != 0 and "no checkpoint since the start" in errors and "start 2" not in errors


def test_a_stop_that_was_asked_for_is_not_started_again(start: Callable[..., Launched]) -> None:
    launched = start(launcher(KEEPS), options=("--restarts", "3"))
    launched.wait_for()
    launched.process.terminate()
    code, errors = launched.end()
    assert code == 75 and "start 2" not in errors


# ---- the command line ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "kind", "behind"),
    [
        (["--", "deepspeed", "--num_gpus", "2", "dsvid/train.py"], "deepspeed", ["--num_gpus", "2", "dsvid/train.py"]),
        (["python", "-m", "deepspeed.launcher.runner", "t/train.py"], "deepspeed", ["t/train.py"]),
        (["python", "-u", "-m", "torch.distributed.run", "t/train.py"], "torchrun", ["t/train.py"]),
        (["torchrun", "t/train.py", "--", "x"], "torchrun", ["t/train.py", "--", "x"]),
        (["python", "dsvid/train.py"], "python", ["dsvid/train.py"]),
        (["python", "-m", "dsvid.train"], "python", []),
        (["bash", "run.sh"], "other", ["run.sh"]),
    ],
)
def test_commands_are_recognised(
    words: list[str], kind: str, behind: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch.shutil, "which", lambda name: name)
    command = launch.read_command(words)
    assert (command.kind, list(command.launcher_words)) == (kind, behind)
    assert command.training == (kind != "other")


def test_the_run_folder_is_the_training_s(monkeypatch: pytest.MonkeyPatch) -> None:
    from dsvid import train

    assert launch.DEFAULT_RECIPE == train.DEFAULT_RECIPE
    monkeypatch.setattr(launch.shutil, "which", lambda name: name)
    for words, expected in [
        (["--out", "a"], "a"), (["--out=b"], "b"), (["--recipe", "x/y.yaml"], "runs/y"), ([], "runs/demo_pretrain"),
    ]:  # fmt: skip
        command = launch.read_command(["deepspeed", "dsvid/train.py", "--ds_config", "c", *words])
        args = train.parse_arguments(["--ds_config", "c", *words])
        theirs = args.out or Path("runs") / Path(args.recipe or train.DEFAULT_RECIPE).stem
        assert command.out() == theirs == Path(expected)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "no command"),
        (["--", "srun", "python", "train.py"], "scripts/slurm"),
        (["--", "no-such-command-here", "train.py"], "not on PATH"),
        (["--grace", "-1", "--", "python", "train.py"], "--grace"),
        (["--hostfile", "f", "--", "python", "train.py"], "--hostfile"),
        (["--hostfile", "f", "--", "env", "train.py"], "--hostfile"),
    ],
)
def test_wrong_calls(words: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["launch", *words]) == 2
    assert expected in capsys.readouterr().err


def test_a_hostfile_is_handed_to_the_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch.shutil, "which", lambda name: name)
    words = launch.read_command(["deepspeed", "dsvid/train.py"], Path("h")).words
    assert list(words) == ["deepspeed", "--hostfile", "h", "dsvid/train.py"]
    with pytest.raises(RecipeError):
        launch.read_command(["deepspeed", "-H", "x", "dsvid/train.py"], Path("h"))


def test_a_command_that_is_no_training_is_ended_at_once(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "dsvid", "launch", "--", "bash", "-c", f"trap '' TERM; touch {tmp_path}/up; sleep 100"],
        cwd=ROOT, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    while not (tmp_path / "up").exists():
        time.sleep(0.02)
    process.terminate()
    assert process.wait(10) == 137


def test_the_child_gets_the_arguments_as_they_are(start: Callable[..., Launched]) -> None:
    launched = start([sys.executable], "steps=1", "a.b=x y", "c=$HOME", 'd="q"', "e=;rm")
    assert launched.end()[0] == 0
    assert json.loads((launched.out / "arguments-0.json").read_text())[3:] == ["a.b=x y", "c=$HOME", 'd="q"', "e=;rm"]


def test_a_launcher_that_inherits_a_rank_s_place_is_not_taken_for_a_rank(
    start: Callable[..., Launched], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("LOCAL_RANK", "0")
    launched = start(launcher(KEEPS))
    launched.wait_for()
    launched.process.send_signal(signal.SIGTERM)
    code, errors = launched.end()
    assert code == 75, errors
    assert (launched.out / "signals-0").read_text().split() == ["SIGUSR1"]
