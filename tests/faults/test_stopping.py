"""F3, F4: a run that is asked to stop saves once, on all ranks, exits 75, and goes on as if nothing had been."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.distributed.conftest import FP32, losses, words
from tests.faults.conftest import Ended, fault, job, saved_steps, start, wait

STEPS = 6
TUNE = [
    "--recipe", "demo_finetune", "data.train_limit=32", "model.num_classes=8", "run.epochs=2", "eval.every_epochs=1",
    "eval.batch=8", "eval.segments=1", "eval.crops=1", "data.test=", "run.max_steps=0", "run.save_every=0",
]  # fmt: skip


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stopping")


@pytest.fixture(scope="module")
def ended(scratch: Path) -> Ended:
    """Every stop, and behind each the same command again, in one pair of ranks."""

    def run(name: str, *more: str) -> list[str]:
        return words(scratch / name, FP32, "run.keep=9", *more, steps=STEPS)

    tune = [word for word in run("validation", *TUNE) if not word.startswith("pretrain.")]
    micro = ["batch.micro=4"]
    jobs = [
        job("whole", run("whole")),
        job("train", run("train"), fault(1, "backward", 3, "SIGTERM")),
        job("train-again", run("train")),
        job("int", run("int"), fault(0, "forward", 3, "SIGINT"), fault(0, "backward", 3, "SIGINT")),
        job("first", run("first"), fault(0, "forward", 1, "SIGUSR1")),
        job("wait", run("wait"), fault(1, "loader", 4, "hang"), fault(0, "data", 4, "SIGTERM")),
        job("wait-again", run("wait")),
        job("micro", run("micro", *micro), fault(1, "data", 6, "SIGTERM")),
        job("micro-again", run("micro", *micro)),
        job("save", run("save", "run.save_every=2"), fault(0, "save", 1, "SIGTERM"), fault(0, "save", 2, "SIGKILL")),
        job("last", run("last"), fault(0, "step", STEPS, "SIGTERM")),
        job("start", run("start"), fault(1, "start: model", 1, "SIGTERM")),
        job("file", run("file"), fault(0, "forward", 2, "sleep 2.5")),
        job("file-again", run("file")),
        job("time", run("time", "run.max_time=1s"), fault(1, "forward", 2, "sleep 1.2")),
        job("validation", tune, fault(1, "val forward", 2, "SIGTERM")),
        job("validation-again", tune),
    ]
    (scratch / "file").mkdir()
    (scratch / "file" / "stop").touch()
    return wait(start(2, jobs, scratch))


def check_stop(ended: Ended, out: Path, name: str, steps: list[int], asked: str) -> None:
    assert ended.codes(name) == [75, 75], ended.output(name)[-2000:]
    assert saved_steps(out) == steps
    (line,) = [line for line in ended.output(name).splitlines() if line.startswith("stopped: ")]
    assert asked in line and "start the same command again" in line
    assert f"step {steps[-1] if steps else 0} is saved" in line or not steps


def check_same_end(ended: Ended, scratch: Path, name: str) -> None:
    assert ended.codes(f"{name}-again") == [0, 0], ended.output(f"{name}-again")[-2000:]
    assert losses(scratch / name) == losses(scratch / "whole")
    weights = [(scratch / one / "weights" / "model.safetensors").read_bytes() for one in (name, "whole")]
    assert weights[0] == weights[1]


def test_a_step_in_progress_is_finished_and_saved(ended: Ended, scratch: Path) -> None:
    assert ended.codes("whole") == [0, 0], ended.outputs
    assert "SIGTERM, noticed by rank 1" in ended.output("train")
    check_same_end(ended, scratch, "train")
    assert saved_steps(scratch / "train") == [3, STEPS]


def test_a_second_signal_changes_nothing(ended: Ended, scratch: Path) -> None:
    check_stop(ended, scratch / "int", "int", [3], "SIGINT, noticed by rank 0")
    assert ended.output("int").count("SIGINT: this run saves and stops") <= 1


def test_the_first_step_is_finished_and_saved(ended: Ended, scratch: Path) -> None:
    check_stop(ended, scratch / "first", "first", [1], "SIGUSR1")


def test_a_loader_that_hangs_for_ever_does_not_keep_the_last_step_from_being_saved(ended: Ended, scratch: Path) -> None:
    assert ended.codes("wait") == [75, 75], ended.output("wait")[-2000:]
    check_same_end(ended, scratch, "wait")
    assert saved_steps(scratch / "wait") == [3, STEPS]


def test_a_stop_between_micro_batches_loses_none(ended: Ended, scratch: Path) -> None:
    assert ended.codes("micro") == [75, 75]
    assert saved_steps(scratch / "micro") == [2, STEPS]
    assert ended.codes("micro-again") == [0, 0]
    assert losses(scratch / "micro") == pytest.approx(losses(scratch / "whole"), rel=1e-5)


def test_a_save_in_progress_is_finished_and_not_repeated(ended: Ended, scratch: Path) -> None:
    check_stop(ended, scratch / "save", "save", [2], "SIGTERM")


def test_behind_the_last_step_a_run_just_finishes(ended: Ended, scratch: Path) -> None:
    assert ended.codes("last") == [0, 0]
    assert (scratch / "last" / "weights" / "model.safetensors").is_file()


def test_before_the_first_step_nothing_is_saved(ended: Ended, scratch: Path) -> None:
    assert ended.codes("start") == [75, 75]
    assert saved_steps(scratch / "start") == []


def test_a_stop_file_stops_once(ended: Ended, scratch: Path) -> None:
    assert ended.codes("file") == [75, 75] and "the stop file" in ended.output("file")
    assert not (scratch / "file" / "stop").exists()
    check_same_end(ended, scratch, "file")


def test_the_time_is_up(ended: Ended, scratch: Path) -> None:
    assert ended.codes("time") == [75, 75] and "run.max_time" in ended.output("time")


def test_a_validation_is_left_and_made_up_for(ended: Ended, scratch: Path) -> None:
    assert ended.codes("validation") == [75, 75], ended.output("validation")[-3000:]
    assert "step 2 is saved" in ended.output("validation")
    assert ended.codes("validation-again") == [0, 0], ended.output("validation-again")[-3000:]
    rows = [json.loads(line) for line in (scratch / "validation" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["kind"] == "eval" and not row.get("final")] == [2, 4]
