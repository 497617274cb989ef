"""What is written and said: metrics.jsonl, trimming at resume, verdicts."""

from __future__ import annotations

import json
import math
import sys
import types
from pathlib import Path

import pytest
import torch

from dsvid.monitor import WAITING_SHARE, Monitor, duration, trim_metrics, verdict
from dsvid.report.verdict import WAIT_LIMIT

CPU = torch.device("cpu")


def monitor(tmp_path: Path, *, start: int = 0, peak: float | None = None) -> Monitor:
    return Monitor(
        metrics=tmp_path / "metrics.jsonl",
        tensorboard=tmp_path / "tensorboard",
        first=True,
        world=2,
        start_step=start,
        stop_step=100,
        steps_per_epoch=10,
        clips_per_step=16,
        flops_per_clip=1e9,
        peak_flops=peak,
    )


def rows(tmp_path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]


def test_a_training_line(tmp_path: Path) -> None:
    watch = monitor(tmp_path, peak=1e12)
    with watch.waiting_for_data():
        pass
    watch.train(5, loss=0.5, lr=1e-3, grad_norm=math.nan, device=CPU)
    watch.close()
    (row,) = rows(tmp_path)
    assert (row["step"], row["epoch"], row["samples"], row["loss"]) == (5, 0.5, 80, 0.5)
    assert row["grad_norm"] is None, "JSON has no NaN"
    rate = row["clips_per_s"]
    assert isinstance(rate, float) and row["mfu"] == pytest.approx(rate * 1e9 / (1e12 * 2))
    assert row["step_s"] == pytest.approx(16 / rate)
    assert 0 <= float(str(row["data_s"])) <= float(str(row["step_s"]))


def test_a_save_between_two_lines_is_not_counted_as_training_time(tmp_path: Path) -> None:
    import time

    watch = monitor(tmp_path)
    time.sleep(0.3)
    watch.restart_clock(5)  # five steps and a save are behind us; one step follows
    watch.train(6, loss=1.0, lr=0.0, grad_norm=1.0, device=CPU)
    watch.close()
    assert float(str(rows(tmp_path)[0]["step_s"])) < 0.2


def test_mfu_is_null_on_the_cpu(tmp_path: Path) -> None:
    watch = monitor(tmp_path)
    watch.train(1, loss=1.0, lr=0.0, grad_norm=1.0, device=CPU)
    watch.close()
    assert rows(tmp_path)[0]["mfu"] is None


def test_a_resumed_run_drops_the_lines_it_will_write_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"kind": "train", "step": step}) + "\n" for step in (1, 2, 3)) + '{"kind": "tr')
    trim_metrics(path, 2)
    assert [row["step"] for row in rows(tmp_path)] == [1, 2]
    watch = monitor(tmp_path, start=2)
    watch.train(3, loss=1.0, lr=0.0, grad_norm=1.0, device=CPU)
    watch.close()
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 3]


def test_tensorboard_has_the_same_scalars(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    watch = monitor(tmp_path)
    watch.train(5, loss=0.25, lr=1e-3, grad_norm=2.0, device=CPU)
    watch.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert events.Scalars("train/loss")[0].value == 0.25
    assert events.Scalars("train/loss")[0].step == 5


def test_a_run_of_wandb_that_is_open_gets_the_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    got: list[tuple[dict[str, float], int]] = []

    class Run:
        def log(self, numbers: dict[str, float], step: int) -> None:
            got.append((numbers, step))

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(run=None))
    watch = monitor(tmp_path)
    watch.write({"kind": "val", "step": 1, "top1": 50.0})
    assert not got, "imported, and no run of ours"
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(run=Run()))
    watch.write({"kind": "val", "step": 2, "top1": 51.0, "note": "text"})
    watch.close()
    assert got == [({"val/top1": 51.0, "step": 2}, 2 * 16)]


def test_the_verdict_on_waiting() -> None:
    assert WAITING_SHARE == WAIT_LIMIT, "the log and the report"
    assert verdict(0.05) == "" and "num_workers" in verdict(0.051)
    assert "num_workers" in verdict(0.6)


@pytest.mark.parametrize(("seconds", "text"), [(7, "7s"), (306, "5m06s"), (11040, "3h04m"), (93600, "1d02h")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_test_that_is_done_again_replaces_its_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    rows = [{"kind": "eval", "split": "val", "step": 2}, {"kind": "eval", "split": "val", "final": True, "step": 2}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    trim_metrics(path, 2)
    assert len(path.read_text().splitlines()) == 2
    trim_metrics(path, 2, retest=True)
    assert path.read_text().splitlines() == [json.dumps(rows[0])]
