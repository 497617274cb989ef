"""One command of a document, run in the reader's folder; what it was to write has to be there afterwards."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import time
import timeit
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from dsvid.cli import main
from tests.distributed.conftest import DRIVER, free_port
from tests.documents.commands import ROOT, Command, every_command
from tests.documents.tables import reduced

LIMIT_S = 240
CLOCK_NS = 20_000_000  # the times of files are those of the last tick of the kernel's clock
TIMEIT = ["python", "-m", "timeit"]
TARGET_OPTIONS = ("-o", "--out", "--json", "--list", "--curves")
# Commands whose target stands at a place of its own: how they begin, and that place.
TARGET_PLACES = {
    ("dsvid", "convert"): 3, ("dsvid", "consolidate"): 3, ("dsvid", "data", "resize"): 4, ("dsvid", "data", "pack"): 4,
    ("dsvid", "ava", "generate"): 3, ("dsvid", "traffic", "generate"): 3, ("touch",): 1,
}  # fmt: skip
# Of a run that a command of the documents does not make: the run it is like, and the setting in which it differs.
SIBLINGS = {"k400_b": ("k400", "run.seed=1"), "k400_lr2": ("k400", "optim.base_lr=3e-4")}
RUNS = ("runs/k400", "runs/ft", "runs/ava", "runs/dota", "runs/demo_pretrain")


@dataclass(frozen=True)
class Ended:
    """How a command ended: what it printed on both streams, what it was to write, what of that it did not write."""

    code: int
    text: str
    targets: tuple[Path, ...]
    missing: tuple[Path, ...]

    @property
    def fine(self) -> bool:
        """A command that names no target has to say something."""
        return not self.code and not self.missing and bool(self.targets or self.text.strip())


def targets(words: Sequence[str], folder: Path) -> list[Path]:
    """The files and folders that a command is to write."""
    found = [words[place + 1] for place, word in enumerate(words[:-1]) if word in TARGET_OPTIONS]
    plain = [word for word in words if word != "--unverified"]
    found += [plain[place] for start, place in TARGET_PLACES.items() if tuple(plain[: len(start)]) == start]
    if is_training(words):
        found = [f"{run_of(words)}/weights/model.safetensors"]
    return [folder / name for name in found]


def is_training(words: Sequence[str]) -> bool:
    return "dsvid/train.py" in words


def run_of(words: Sequence[str]) -> str:
    """The run folder of a training."""
    if "--out" in words:
        return words[words.index("--out") + 1]
    return f"runs/{words[words.index('--recipe') + 1] if '--recipe' in words else 'demo_pretrain'}"


def run(command: Command, folder: Path, *, apart: bool) -> Ended:
    """Run a command in `folder`: in this process, or `apart` as a user's shell would, with the launcher it names."""
    words = reduced(command, folder)
    if is_training(words):
        shutil.rmtree(folder / run_of(words), ignore_errors=True)  # else it would go on
    start = time.time_ns() - CLOCK_NS
    alone = apart or (words[0] != "dsvid" and words[:3] != TIMEIT)
    code, text = (_apart if alone else _here)(words, folder, dict(command.variables))
    named = targets(words, folder)
    return Ended(code, text, tuple(named), tuple(path for path in named if _newest(path) < start))


def _newest(path: Path) -> int:
    """When the newest of a file or of what is in a folder was written, in ns; 0 where there is nothing."""
    inside = [each for each in path.rglob("*") if each.is_file()] if path.is_dir() else [path]
    return max((each.stat().st_mtime_ns for each in inside if each.is_file()), default=0)


def _here(words: list[str], folder: Path, variables: dict[str, str]) -> tuple[int, str]:
    """`dsvid …` and `python -m timeit …` in this process: importing torch costs more than most commands."""
    said = io.StringIO()
    before, threads, environment = Path.cwd(), torch.get_num_threads(), dict(os.environ)
    os.chdir(folder)
    os.environ.update(variables)
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            try:
                code = (timeit.main(words[3:]) or 0) if words[:3] == TIMEIT else main(words[1:])
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else 1
    finally:
        os.chdir(before)
        os.environ.clear()
        os.environ.update(environment)
        torch.set_num_threads(threads)
    return code, said.getvalue()


def _apart(words: list[str], folder: Path, variables: dict[str, str]) -> tuple[int, str]:
    words = [sys.executable, "-m", *words] if words[0] == "dsvid" else list(words)
    for launcher, option in (("deepspeed", "--master_port"), ("torchrun", "--master-port")):
        if launcher in words:  # not the port of another test
            place = words.index(launcher) + 1
            words[place:place] = [option, str(free_port())]
    done = subprocess.run(
        words, cwd=folder, env=_environment() | variables, text=True, errors="replace", check=False, timeout=LIMIT_S,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    return done.returncode, done.stdout


def _environment() -> dict[str, str]:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}


def make_runs(folder: Path) -> None:
    """The runs that later commands read: trainings of the documents, one rank each, in one process of their own."""
    jobs = []
    trainings = {run_of(command.words): command for command in reversed(every_command()) if is_training(command.words)}
    made = {name: reduced(trainings[name], folder) for name in RUNS}
    for name, words in made.items():
        arguments = words[words.index("dsvid/train.py") + 1 :]
        jobs.append(arguments)
        for other, (like, setting) in SIBLINGS.items():
            if name == f"runs/{like}":
                place = arguments.index("--out") + 1
                jobs.append([*arguments[:place], f"runs/{other}", *arguments[place + 1 :], setting])
    plan = folder / "jobs.json"
    plan.write_text(json.dumps(jobs))
    environment = _environment() | {
        "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, str(DRIVER), str(plan)], cwd=folder, env=environment, text=True, check=False,
        capture_output=True, timeout=LIMIT_S,
    )  # fmt: skip
    assert not done.returncode, f"{done.stdout[-3000:]}{done.stderr[-3000:]}"
    plan.unlink()
