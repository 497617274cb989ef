"""F13, F15 to F17: numbers that are not finite, losses that jump, a disk that is full in the middle of a run."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dsvid import checkpoint
from tests.distributed.conftest import FP32, losses, words
from tests.faults.conftest import Ended, saved_steps, start, wait

pytestmark = pytest.mark.long

SICK = Path(__file__).with_name("sick_driver.py")
MEGA = 1 << 20


def sick(name: str, argv: list[str], *what: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"name": name, "argv": argv, "sick": list(what), **more}


def ill(rank: int | str, forwards: list[int], do: str = "nan") -> dict[str, Any]:
    return {"rank": rank, "forwards": forwards, "do": do}


def events(out: Path) -> list[dict[str, Any]]:
    path = out / "events.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def kinds(out: Path) -> list[str]:
    return [event["kind"] for event in events(out)]


# stages 1 and 2 are one class in DeepSpeed; what is infinite goes the way of NaN
SKIPS = [("nan", stage, dtype) for stage in (0, 2, 3) for dtype in ("fp32", "bf16")] + [
    ("inf", 0, "fp32"),
    ("inf", 3, "fp32"),
]


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("numbers")


@pytest.fixture(scope="module")
def small_disk(scratch: Path) -> Iterator[Path | None]:
    """A file system of 150 MB; None where mounting is not allowed."""
    place = scratch / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=150m", "tmpfs", str(place)], capture_output=True)
    yield place if mounted.returncode == 0 else None
    if mounted.returncode == 0:
        subprocess.run(["umount", str(place)], check=True)


@pytest.fixture(scope="module")
def ended(scratch: Path, small_disk: Path | None) -> Ended:
    def run(name: str, *more: str, steps: int = 12) -> list[str]:
        return words(scratch / name, "run.keep=9", "run.save_every=4", *more, steps=steps)

    jobs = []
    for what, stage, dtype in SKIPS:
        precision = [FP32] if dtype == "fp32" else []
        name = f"{what}-{stage}-{dtype}"
        argv = run(name, f"ds.zero_optimization.stage={stage}", *precision, "run.save_every=0", steps=3)
        jobs.append(sick(name, argv, ill(1, [2], {"nan": "nan", "inf": "inf gradient"}[what])))
    for stage in (2, 3):
        zero = [FP32, f"ds.zero_optimization.stage={stage}", "optim.ema_decay=0.9"]
        jobs.append(sick(f"back-{stage}", run(f"back-{stage}", *zero), ill(1, [6, 7, 8])))
        jobs.append(sick(f"begun-{stage}", run(f"fresh-{stage}", *zero, steps=4)))
    jobs += [
        sick("twice", run("twice", FP32), ill(1, list(range(6, 40)))),
        sick("early", run("early", FP32), ill(0, [1, 2, 3])),
        sick("jump", run("jump", FP32, "run.save_every=0", steps=26), ill("all", list(range(20, 25)), "jump")),
        sick(
            "jump-back",
            run("jump-back", FP32, "run.save_every=18", "run.spike_back=true", steps=26),
            ill("all", list(range(20, 25)), "jump"),
        ),
    ]
    if small_disk is not None:
        argv = words(small_disk / "run", FP32, "run.save_every=2", "run.keep=9", steps=8)
        jobs.append(sick("full", argv, disk=[[3, 20 * MEGA], [5, 0]]))
        argv = words(small_disk / "brim", FP32, "run.save_every=2", "run.keep=1", steps=8)
        jobs.append(sick("brim", argv, disk=[[3, 1], [5, 0]]))
    return wait(start(2, jobs, scratch, driver=SICK), timeout=400)


@pytest.mark.parametrize(("what", "stage", "dtype"), SKIPS)
def test_a_step_without_finite_numbers_changes_no_weight(
    what: str, stage: int, dtype: str, ended: Ended, scratch: Path
) -> None:
    name = f"{what}-{stage}-{dtype}"
    assert ended.codes(name) == [0, 0], ended.output(name)[-3000:]
    for rank in range(2):
        skipped = [line for line in ended.output(name, rank).splitlines() if line.startswith("SKIPPED")]
        assert skipped == [f"SKIPPED {name} same False"], "that one step, and no other, left the weights as they were"
    (event,) = events(scratch / name)
    assert (event["kind"], event["step"], event["in_a_row"]) == ("skipped step", 2, 1)
    if what == "nan":
        (told,) = event["ranks"]
        assert told["rank"] == 1 and told["losses"] == ["nan"] and len(told["clips"][0]) == 8
        assert told["clips"][0][0].endswith(".mp4")
        assert "on rank 1" in ended.output(name)
    rows = [json.loads(line) for line in (scratch / name / "metrics.jsonl").read_text().splitlines()]
    assert [row["loss"] is None for row in rows] == [False, what == "nan", False]


@pytest.mark.parametrize("stage", [2, 3])
def test_so_many_in_a_row_send_the_run_back_and_leave_the_clips_out(stage: int, ended: Ended, scratch: Path) -> None:
    out = scratch / f"back-{stage}"
    assert ended.codes(f"back-{stage}") == [0, 0], ended.output(f"back-{stage}")[-3000:]
    assert kinds(out) == ["skipped step"] * 3 + ["went back"]
    assert events(out)[-1] | {"step": 8, "to": 4, "steps_of_clips_left_out": 4} == events(out)[-1]
    assert saved_steps(out) == [4, 8, 12]
    manifest = checkpoint.verify(out / "checkpoints" / "step-00000012")
    assert manifest["samples"] == (12 + 4) * 16, "the place in the stream is remembered, so that a resume keeps to it"


def test_going_back_gives_the_very_state_of_the_checkpoint(ended: Ended, scratch: Path) -> None:
    """The same losses as engines that start anew from that checkpoint, at the same place of the stream."""
    jobs = []
    for stage in (2, 3):
        fresh = scratch / f"fresh-{stage}"
        assert ended.codes(f"begun-{stage}") == [0, 0]
        path = fresh / "checkpoints" / "step-00000004" / checkpoint.MANIFEST
        manifest = json.loads(path.read_text())
        manifest["samples"] += 4 * 16
        manifest["self_sha256"] = checkpoint.own_hash(manifest)
        path.write_text(json.dumps(manifest))
        zero = [FP32, f"ds.zero_optimization.stage={stage}", "optim.ema_decay=0.9", "run.keep=9", "run.save_every=4"]
        jobs.append(sick(f"again-{stage}", words(fresh, *zero, steps=12)))
    jobs.append(sick("fails", words(scratch / "nan-2-bf16", steps=5), fails=1))
    again = wait(start(2, jobs, scratch, driver=SICK), timeout=150)
    assert again.codes("fails") == [1, 1], "a rank that cannot load leaves no other in a collective"
    assert "OutOfMemoryError" in again.output("fails", 1)
    for stage in (2, 3):
        assert again.codes(f"again-{stage}") == [0, 0]
        assert "MAPPED" not in again.outputs[0] + again.outputs[1], "a removed checkpoint would keep its place"
        for rank in range(2):
            (line,) = [line for line in ended.output(f"back-{stage}", rank).splitlines() if line.startswith("LOADED")]
            assert line.endswith(" True") and int(line.split()[2]) > 100, line
        # not bit by bit: one process has run other jobs before, and kernels round by where memory lies
        assert losses(scratch / f"fresh-{stage}") == pytest.approx(losses(scratch / f"back-{stage}"), abs=2e-6)


def test_going_back_twice_to_the_same_place_ends_the_run(ended: Ended, scratch: Path) -> None:
    assert ended.codes("twice") == [1, 1]
    assert "went bad again" in ended.output("twice") and "lower the learning rate" in ended.output("twice")
    assert saved_steps(scratch / "twice") == [4], "nothing spoilt was saved"


def test_bad_numbers_before_the_first_checkpoint_end_the_run(ended: Ended, scratch: Path) -> None:
    assert ended.codes("early") == [1, 1]
    assert "before the first checkpoint" in ended.output("early")
    assert saved_steps(scratch / "early") == []


def test_a_jump_of_the_loss_is_an_alarm_within_three_steps(ended: Ended, scratch: Path) -> None:
    assert ended.codes("jump") == [0, 0], ended.output("jump")[-3000:]
    (event,) = events(scratch / "jump")
    assert event["kind"] == "loss jumped" and event["step"] == 20 and event["loss"] > 10 * event["usual"]
    assert "the loss jumped" in ended.output("jump")


def test_a_jump_sends_the_run_back_where_that_was_asked(ended: Ended, scratch: Path) -> None:
    assert ended.codes("jump-back") == [1, 1], "it jumps again behind the same checkpoint: forwards 20 to 24 all do"
    assert kinds(scratch / "jump-back")[:2] == ["loss jumped", "went back"]
    assert events(scratch / "jump-back")[1]["to"] == 18


def test_a_full_disk_stops_no_training(small_disk: Path | None, ended: Ended) -> None:
    if small_disk is None:
        pytest.skip("mounting needs root")
    out = small_disk / "run"
    assert ended.codes("full") == [0, 0], ended.output("full")[-3000:]
    (event,) = events(out)
    assert (event["kind"], event["step"]) == ("save failed", 4)
    assert "bytes free" in event["error"] and "more" in event["error"]
    assert saved_steps(out) == [2, 6, 8]
    for step in (2, 6, 8):
        checkpoint.verify(out / "checkpoints" / f"step-{step:08d}")
    assert not list((out / "checkpoints").glob(".tmp*"))
    assert len(losses(out)) == 8


def test_not_one_byte_left_stops_no_training(small_disk: Path | None, ended: Ended) -> None:
    """Neither the checkpoint nor a line of metrics.jsonl, events.jsonl or a log can be written for two steps."""
    if small_disk is None:
        pytest.skip("mounting needs root")
    assert ended.codes("brim") == [0, 0], ended.output("brim")[-3000:]
    assert "cannot be written, and lines of it are lost" in ended.output("brim")
    assert saved_steps(small_disk / "brim") == [8]
    checkpoint.verify(small_disk / "brim" / "checkpoints" / "step-00000008")
