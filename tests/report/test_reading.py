"""A run folder as data: everything that is there, and each damaged piece named while the rest is read."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from dsvid.errors import CheckpointError
from dsvid.recipe import load_recipe
from dsvid.report import reading
from dsvid.report.reading import read_run
from dsvid.runfolder import RunFolder
from dsvid.schedule import resolve_schedule
from tests.report.made_run import (
    make_checkpoint,
    make_eventful,
    make_picture,
    make_settings,
    make_starts,
    make_trained,
    make_weights,
    train_row,
    write_rows,
)


def test_the_names_are_those_that_a_training_writes(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    names = {path.name for path in (folder.metrics, folder.events)}
    assert names <= set(reading.MARKERS)
    make_trained(tmp_path)
    folder.bad_clips.write_text('{"path": "a.mp4", "error": "cut off"}\n')
    folder.events.write_text('{"kind": "loss jumped", "step": 3}\n')
    make_weights(tmp_path, 7)
    run = read_run(tmp_path)
    assert run.bad_clips.files == {"a.mp4": (1, "cut off")} and run.event_steps("loss jumped") == [3]
    assert folder.weights.is_dir() and run.weights_step == 7 and len(run.training.steps) == 40 and not run.damage


@pytest.mark.parametrize(
    "changes", [{}, {"run.stop_epoch": 3}, {"run.max_steps": 250}, {"run.max_steps": 99_999}, {"run.epochs": 7}]
)
def test_the_last_step_is_the_schedule_s(tmp_path: Path, changes: dict[str, int]) -> None:
    schedule = resolve_schedule(load_recipe("demo_pretrain", dict(changes)), world=1, videos=1600)
    make_settings(tmp_path, "demo_pretrain", **{key.replace(".", "__"): value for key, value in changes.items()})
    run = read_run(tmp_path)
    assert (run.stop_step, run.steps_per_epoch) == (schedule.stop_step, schedule.steps_per_epoch)


def test_without_the_json_the_lines_tell_how_long_an_epoch_is(tmp_path: Path) -> None:
    make_trained(tmp_path)
    (tmp_path / "ds_config.json").unlink()
    assert read_run(tmp_path).stop_step == 3200
    (tmp_path / "metrics.jsonl").unlink()
    assert read_run(tmp_path).stop_step is None, "not known, and not guessed"


def test_lines_that_a_later_start_wrote_again_count_once(tmp_path: Path) -> None:
    make_settings(tmp_path)
    rows = [train_row(step, loss=1.0) for step in (10, 20, 30)] + [train_row(step, loss=2.0) for step in (20, 30, 40)]
    write_rows(tmp_path / "metrics.jsonl", rows)
    run = read_run(tmp_path)
    assert run.training.steps == [10, 20, 30, 40] and run.training["loss"] == [1.0, 2.0, 2.0, 2.0]


def test_starts_of_run_json(tmp_path: Path) -> None:
    make_settings(tmp_path)
    make_starts(tmp_path, ["train.py", "--out", "x"], [0, 71])
    run = read_run(tmp_path)
    assert [start.step for start in run.starts] == [0, 71] and run.argv == ("train.py", "--out", "x")
    about = json.loads((tmp_path / "run.json").read_text())
    del about["starts"]
    (tmp_path / "run.json").write_text(json.dumps(about))
    assert [start.step for start in read_run(tmp_path).starts] == [71], "one of an older version"


def test_checkpoints_and_their_faults(tmp_path: Path) -> None:
    make_settings(tmp_path)
    for step in (5, 10, 15, 20):
        make_checkpoint(tmp_path, step)
    checkpoints = tmp_path / "checkpoints"
    (checkpoints / "step-00000020" / "model.pt").write_bytes(b"shar")
    (checkpoints / "step-00000015" / "manifest.json").write_text("{")
    (checkpoints / "step-00000010" / "model.pt").write_bytes(b"shirt")  # the size is right
    (checkpoints / ".tmp-step-00000025").mkdir()
    run = read_run(tmp_path)
    assert [one.step for one in run.checkpoints] == [20, 15, 10, 5]
    assert "wrong size" in run.checkpoints[0].fault and "manifest" in run.checkpoints[1].fault
    assert run.newest_good is not None and run.newest_good.step == 10
    read = read_run(tmp_path, verify_contents=True)
    assert read.newest_good is not None and read.newest_good.step == 5, "the bytes of 10 are others"


DAMAGE = {
    "recipe.yaml": b"model: [", "ds_config.json": b"{", "run.json": b"\xff", "metrics.jsonl": b"\0\0\0\n",
    "events.jsonl": b"x\n", "bad_clips.jsonl": b"{\n", "weights/config.json": b"[]",
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
def test_each_damaged_piece_is_named_and_the_rest_is_read(tmp_path: Path, name: str) -> None:
    make_trained(tmp_path)
    make_weights(tmp_path, 400)
    make_checkpoint(tmp_path, 400)
    (tmp_path / name).write_bytes(DAMAGE[name])
    run = read_run(tmp_path)
    assert [one.file for one in run.damage] == [Path(name).name]
    assert (run.recipe is None) == (name == "recipe.yaml") and (not run.training.steps) == (name == "metrics.jsonl")
    assert len(run.checkpoints) == 1


def test_odd_values_are_left_out(tmp_path: Path) -> None:
    make_settings(tmp_path)
    text = '{"kind": "train", "step": 5, "loss": 1e400, "lr": "x", "mem_gb": NaN, "step_s": {}}\n'
    text += '{"kind": "train", "step": "6"}\n{"kind": "train"}\n{"kind": 3, "step": 1}\n{"kind": "eval", "step": []}\n'
    (tmp_path / "metrics.jsonl").write_text(text)
    (tmp_path / "run.json").write_text('{"argv": 3, "starts": [1, {"resumed_step": "x", "versions": []}], "time": []}')
    (tmp_path / "ds_config.json").write_text('{"scheduler": {"params": {"total_num_steps": 0}}, "bf16": 1}')
    run = read_run(tmp_path)
    assert run.training.steps == [5] and all(column == [None] for column in run.training.columns.values())
    assert run.argv == () and run.stop_step is None


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "gone"):
        with pytest.raises(CheckpointError, match="no run folder"):
            read_run(folder)
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="a file"):
        read_run(tmp_path / "file")
    make_settings(tmp_path / "a")
    with pytest.raises(CheckpointError, match=f"fix: +{tmp_path / 'a'}"):
        read_run(tmp_path)
    make_weights(tmp_path / "a", 3)
    with pytest.raises(CheckpointError, match=f"fix: +{tmp_path / 'a'}$"):
        read_run(tmp_path / "a" / "weights")


def test_checkpoints_alone_are_a_run_but_no_folder_of_that_name(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(CheckpointError, match="no run folder"):
        read_run(tmp_path)
    make_checkpoint(tmp_path, 7)
    assert read_run(tmp_path).step == 7


def test_pipes_do_not_hold_the_reader_up(tmp_path: Path) -> None:
    make_settings(tmp_path)
    (tmp_path / "logs").mkdir()
    (tmp_path / "weights").mkdir()
    pipes = ("metrics.jsonl", "events.jsonl", "bad_clips.jsonl", ".lock", "logs/rank-00000.log", "weights/config.json")
    for name in pipes:
        os.mkfifo(tmp_path / name)
    run = read_run(tmp_path)
    assert {one.file for one in run.damage} == {"metrics.jsonl", "events.jsonl", "bad_clips.jsonl", "config.json"}
    assert "cannot be read" in run.holder.words


def test_reading_changes_nothing(tmp_path: Path) -> None:
    folder = make_eventful(tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    read_run(folder)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_the_newest_picture_comes_first(tmp_path: Path) -> None:
    make_settings(tmp_path)
    for step in (80, 1200, 160):
        make_picture(tmp_path, step)
    assert [path.stem[-4:] for path in read_run(tmp_path).pictures] == ["1200", "0160", "0080"]
