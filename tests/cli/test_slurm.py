"""`dsvid slurm`: the scripts are the shipped ones, values reach the shell byte for byte, and wrong ones are refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dsvid.cli import main
from dsvid.errors import RecipeError
from dsvid.slurm import KINDS, script, slurm_time, time_s

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "scripts" / "slurm"


@pytest.mark.parametrize("kind", KINDS)
def test_the_shipped_scripts_are_what_the_command_writes(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = SCRIPTS / f"{kind}.sh"
    assert main(["slurm", kind, "--generic"]) == 0
    assert capsys.readouterr().out == path.read_text(), f"python -m dsvid slurm {kind} --generic >{path}"
    assert os.access(path, os.X_OK)
    assert sorted(path.name for path in SCRIPTS.iterdir()) == sorted(f"{kind}.sh" for kind in KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_shellcheck_has_nothing_to_say(kind: str) -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    done = subprocess.run(["shellcheck", str(SCRIPTS / f"{kind}.sh")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def run_script(
    text: str, folder: Path, *words: str, environment: dict[str, str] | None = None
) -> tuple[int, list[str], str]:
    """Run a script as Slurm would, with an srun that writes down its words; (code, words of srun, what was said)."""
    tools = folder / "bin"
    tools.mkdir(exist_ok=True)
    heard = folder / "srun.json"
    note = f"import json, sys; json.dump(sys.argv[1:], open({str(heard)!r}, 'w'))"
    for name, body in {
        "srun": f'{sys.executable} -c "{note}" "$@" && eval "${{STEP_DOES:-}}"',
        "scontrol": 'if [ "$1" = show ]; then printf "node%s\\n" 7 8; else echo "scontrol $*"; fi',
    }.items():
        (tools / name).write_text(f"#!/bin/bash\n{body}\n")
        (tools / name).chmod(0o755)
    (folder / "job.sh").write_text(text)
    settings = {
        "PATH": f"{tools}:/usr/bin:/bin", "SLURM_JOB_ID": "12", "SLURM_SUBMIT_DIR": str(folder),
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_JOB_NODELIST": "node[7-8]", "DSVID_PYTHON": "PY", **(environment or {}),
    }  # fmt: skip
    done = subprocess.run(
        ["bash", str(folder / "job.sh"), *words], env=settings, capture_output=True, text=True, check=False, timeout=20
    )
    return done.returncode, json.loads(heard.read_text()) if heard.exists() else [], done.stdout + done.stderr


def test_a_task_for_each_rank(tmp_path: Path) -> None:
    environment = {"SLURM_NTASKS_PER_NODE": "8", "SLURM_GPUS_ON_NODE": "8"}
    words = ["pretrain_videomae_base_k400", "--out", "a b", "data.train=my list.csv", "--ds_config=c.json", "x=$HOME;*"]
    code, heard, said = run_script(script("train"), tmp_path, *words, environment=environment)
    assert code == 0, said
    assert heard[:5] == ["--nodes=2", "--ntasks=16", "--ntasks-per-node=8", "--kill-on-bad-exit=0", "--wait=30"]
    assert heard[5:] == [
        "PY", "-u", "-m", "dsvid.train", "--ds_config", "c.json", "--recipe", "pretrain_videomae_base_k400", "--out",
        "a b", "data.train=my list.csv", "x=$HOME;*",
    ]  # fmt: skip


def test_fewer_tasks_than_gpus_are_a_mistake_and_said_so(tmp_path: Path) -> None:
    code, heard, said = run_script(script("train"), tmp_path, "r", environment={"SLURM_GPUS_ON_NODE": "8"})
    assert code == 2 and not heard and "--ntasks-per-node=8" in said


def test_one_deepspeed_a_node(tmp_path: Path) -> None:
    environment = {"SLURM_GPUS_ON_NODE": "8", "DSVID_LAUNCHER": "deepspeed", "SLURM_CPUS_ON_NODE": "96"}
    code, heard, said = run_script(script("train"), tmp_path, "r", "a.b=1 2", environment=environment)
    assert code == 0, said
    assert heard[:4] == ["--nodes=2", "--ntasks=2", "--ntasks-per-node=1", "--cpus-per-task=96"]
    assert heard[-8:] == [
        "dsvid.train",
        "--ds_config",
        "ds_configs/zero2.json",
        "--recipe",
        "r",
        "--out",
        "runs/r",
        "a.b=1 2",
    ]
    # What a node runs, as Slurm would: with the shell's text, and a python that writes down its words.
    start = heard.index("bash")
    show = tmp_path / "PY"
    show.write_text(f'#!/bin/bash\nprintf "%s\\0" "$@" >{tmp_path}/node\ncat "$9" >{tmp_path}/hosts\nexit 75\n')
    show.chmod(0o755)
    node = [word.replace("PY", str(show)) if word == "PY" else word for word in heard[start:]]
    settings = {"PATH": f"{tmp_path}/bin:/usr/bin:/bin", "SLURM_NODEID": "1", "SLURM_JOB_NODELIST": "node[7-8]",
                "MASTER_ADDR": "node7", "MASTER_PORT": "10012", "TMPDIR": str(tmp_path)}  # fmt: skip
    assert subprocess.run(node, env=settings, check=False).returncode == 75
    words = (tmp_path / "node").read_text().split("\0")[:-1]
    assert words[:3] == ["-m", "dsvid", "launch"] and words[words.index("--node_rank") + 1] == "1"
    assert words[words.index("--module") + 1] == "dsvid.train"
    assert (tmp_path / "hosts").read_text() == "node7 slots=8\nnode8 slots=8\n"
    assert not list(tmp_path.glob("tmp.*")), "the hostfile was left behind"


def test_a_clone_s_own_program_is_used(tmp_path: Path) -> None:
    (tmp_path / "dsvid").mkdir()
    (tmp_path / "dsvid" / "train.py").touch()
    _, heard, said = run_script(script("train"), tmp_path, "r")
    assert heard[5:8] == ["PY", "-u", "dsvid/train.py"], said


def test_a_task_of_an_array_gets_its_line_and_its_folder(tmp_path: Path) -> None:
    (tmp_path / "sweep").write_text("run.seed=1\nrun.seed=2 optim.base_lr=1e-3\n")
    environment = {"SLURM_ARRAY_TASK_ID": "2"}
    code, heard, said = run_script(
        script("array"), tmp_path, "sweep", "r", "--out", "o", "k=v", environment=environment
    )
    assert code == 0, said
    assert heard[-5:] == ["--out", "o/0002", "k=v", "run.seed=2", "optim.base_lr=1e-3"]
    code, _, said = run_script(script("array"), tmp_path, "sweep", "r", environment={"SLURM_ARRAY_TASK_ID": "3"})
    assert code == 2 and "no line 3" in said


def test_domain_adaptation_needs_weights(tmp_path: Path) -> None:
    code, _, said = run_script(script("dapt"), tmp_path, "demo_pretrain", "data.train=x")
    assert code == 2 and "model.init" in said
    code, heard, said = run_script(script("dapt"), tmp_path, "demo_pretrain", "model.init=w")
    assert code == 0 and heard[-1] == "model.init=w", said


def test_a_test_is_not_queued_again(tmp_path: Path) -> None:
    code, heard, said = run_script(script("eval"), tmp_path, "w", "r", "--out", "o")
    assert code == 0, said
    assert heard[5:] == ["PY", "-u", "-m", "dsvid", "eval", "--weights", "w", "--recipe", "r", "--out", "o"]
    assert "requeue" not in script("eval") and "--signal" not in script("eval")


SAVE = "mkdir -p runs/r/checkpoints/step-{0:08d}; touch runs/r/checkpoints/step-{0:08d}/manifest.json; exit {1}"


@pytest.mark.parametrize(
    ("restarts", "does", "code", "again"),
    [
        (0, "exit 75", 0, True),
        (2, "exit 138", 0, True),
        (3, "exit 75", 75, False),
        (3, "exit 138", 138, False),
        (9, SAVE.format(16, 75), 0, True),
        (9, SAVE.format(9, 75), 75, False),  # one that was there, of a name that octal numbers do not have
        (9, "mkdir runs/r/checkpoints/step-00000012; exit 75", 75, False),  # not published
        (0, "echo the stop file of ann >runs/r/stopped; exit 75", 75, False),
        (0, "exit 1", 1, False),
    ],
)
def test_what_is_queued_again(restarts: int, does: str, code: int, again: bool, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "r"
    (folder / "checkpoints" / "step-00000009").mkdir(parents=True)
    (folder / "checkpoints" / "step-00000009" / "manifest.json").touch()
    (folder / "stopped").write_text("of a start before\n")
    environment = {"STEP_DOES": does, "SLURM_RESTART_COUNT": str(restarts)}
    got, _, said = run_script(script("train"), tmp_path, "r", environment=environment)
    assert (got, "scontrol requeue 12" in said) == (code, again), said
    assert again or code == 1 or "not queued again: " in said
    assert "of ann" in said or "ann" not in does


# ---- the command ---------------------------------------------------------------------------------------------------

JOB = ["slurm", "demo_pretrain", "--nodes", "4", "--gpus", "8", "--time", "24h", "--partition", "gpu,gpu2",
       "--cpus-per-task", "12", "--mem", "240G", "--account", "vision", "--qos", "high",
       "--name", "my-run", "--lead", "600"]  # fmt: skip


def test_the_script_of_a_job(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main([*JOB, "--out", "o'f $x", "run.seed=3", "data.train=a b.csv;x", "--dry-run"]) == 0
    text = capsys.readouterr().out
    options = [line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH")]
    assert options == [
        "--job-name=my-run", "--output=%x-%j.out", "--nodes=4", "--gpus-per-node=8", "--ntasks-per-node=8",
        "--cpus-per-task=12", "--mem=240G", "--partition=gpu,gpu2", "--account=vision", "--qos=high",
        "--time=1-00:00:00",
        "--signal=USR1@600", "--requeue", "--open-mode=append",
    ]  # fmt: skip
    code, heard, said = run_script(text, tmp_path, environment={"SLURM_NTASKS_PER_NODE": "8"})
    assert code == 0, said
    assert heard[-4:] == ["--out", "o'f $x", "run.seed=3", "data.train=a b.csv;x"]


def test_it_is_submitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    sbatch = tmp_path / "sbatch"
    sbatch.write_text(f"#!/bin/bash\ncat >{tmp_path}/script\necho Submitted batch job 7\nexit $(cat {tmp_path}/code)\n")
    sbatch.chmod(0o755)
    (tmp_path / "code").write_text("0")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert main(["slurm", "train", "demo_pretrain", "run.seed=1"]) == 0
    assert "batch job 7" in capfd.readouterr().out
    assert "set -- demo_pretrain run.seed=1" in (tmp_path / "script").read_text()
    (tmp_path / "code").write_text("3")
    assert main(["slurm", "train", "demo_pretrain"]) == 1
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert main(["slurm", "demo_pretrain"]) == 2
    assert "sbatch is not on PATH" in capfd.readouterr().err


def test_an_array_has_a_task_for_each_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = tmp_path / "sweep"
    sweep.write_text("run.seed=1\nrun.seed=2\nrun.seed=3\n")
    assert main(["slurm", "array", str(sweep), "demo_pretrain", "--concurrent", "2", "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "#SBATCH --array=1-3%2" in text and "--output=%x-%A_%a.out" in text
    sweep.write_text("run.seed=1\nrun.sede=2\n")
    assert main(["slurm", "array", str(sweep), "demo_pretrain", "--dry-run"]) == 2
    assert "run.seed" in capsys.readouterr().err
    sweep.write_text("run.seed=1\n\nrun.seed=3\n")
    assert main(["slurm", "array", str(sweep), "demo_pretrain", "--dry-run"]) == 2
    assert "line 2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "RECIPE"),
        (["demo_pretrane"], "demo_pretrain"),
        (["demo_pretrain", "run.sede=1"], "run.seed"),
        (["demo_pretrain", "nonsense"], "section.key=value"),
        (["demo_pretrain", "--ds_config", "no/such.json"], "no/such.json"),
        (["demo_pretrain", "--nodes", "0"], "--nodes"),
        (["demo_pretrain", "--gpus", "-1"], "--gpus"),
        (["demo_pretrain", "--time", "soon"], "--time"),
        (["demo_pretrain", "--time", "1:00\n#SBATCH --uid=0"], "--time"),
        (["demo_pretrain", "--partition", "a b"], "--partition"),
        (["demo_pretrain", "--partition=-x"], "--partition"),
        (["demo_pretrain", "--account", "$(id)"], "--account"),
        (["demo_pretrain", "--name", "a\nb"], "--name"),
        (["demo_pretrain", "--mem", "lots"], "--mem"),
        (["demo_pretrain", "--lead", "1"], "--lead"),
        (["demo_pretrain", "data.train=a\nrm"], "line end"),
        (["dapt", "demo_pretrain"], "model.init"),
        (["dapt", "demo_finetune", "model.init=w"], "pre-training"),
        (["eval", "no/such/weights", "demo_finetune"], "no such weights"),
        (["array", "no/such/sweep", "demo_pretrain"], "cannot be read"),
        (["array", "demo_pretrain"], "SWEEP RECIPE"),
    ],
)
def test_what_would_fail_in_the_queue_is_found_here(
    words: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["slurm", *words, "--dry-run"]) == 2
    shown = capsys.readouterr()
    assert expected in shown.err and not shown.out


def test_without_a_clone_the_json_has_to_be_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["slurm", "demo_pretrain", "--dry-run"]) == 2
    assert "ds_configs/zero2.json" in capsys.readouterr().err
    config = tmp_path / "own.json"
    config.write_text('{"zero_optimization": {"stage": 2}}')
    assert main(["slurm", "demo_pretrain", "--ds_config", str(config), "--dry-run"]) == 0
    assert f"--ds_config {config}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "slurm"),
    [("24h", "1-00:00:00"), ("90m", "01:30:00"), ("2d", "2-00:00:00"), ("36h", "1-12:00:00"), ("30", "30"),
     ("12:30:00", "12:30:00"), ("1-12", "1-12"), ("1-12:00:00", "1-12:00:00")],
)  # fmt: skip
def test_times(text: str, slurm: str) -> None:
    assert slurm_time(text) == slurm


@pytest.mark.parametrize("text", ["0", "0h", "00:00", "1:2:3", "-1", "1w", "", "1 h"])
def test_no_times(text: str) -> None:
    with pytest.raises(RecipeError):
        slurm_time(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("5", 300), ("5:30", 330), ("01:00:00", 3600), ("1-2", 93600), ("1-02:30", 95400), ("1-00:00:05", 86405)],
)
def test_seconds_of_a_time(text: str, seconds: int) -> None:
    assert time_s(text) == seconds


def test_a_lead_that_leaves_no_time_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """`--signal=USR1@300` in a job of five minutes: signalled at once, saved, and queued again for ever."""
    for words in (["--time", "5m"], ["--time", "10m"], ["--time", "2h", "--lead", "3600"]):
        assert main(["slurm", "demo_pretrain", *words, "--dry-run"]) == 2
        assert "less than half" in capsys.readouterr().err
    assert main(["slurm", "demo_pretrain", "--time", "5m", "--lead", "75", "--dry-run"]) == 0
    assert main(["slurm", "demo_pretrain", "--time", "11m", "--dry-run"]) == 0
