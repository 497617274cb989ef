"""When a run is still sane: skipped steps, jumps of the loss, and going back once."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from dsvid.health import Diverged, Health, Own
from dsvid.runtime import Ranks


def health(tmp_path: Path, **more: Any) -> Health:
    return Health(tmp_path / "events.jsonl", Ranks(0, 1, 0), **{"bad_steps": 3, **more})


def events(tmp_path: Path) -> list[dict[str, Any]]:
    path = tmp_path / "events.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def skip(one: Health, step: int, losses: list[float], *, scaled: bool = False) -> str:
    own = Own(losses, [[f"video{i}.mp4"] for i in range(len(losses))])
    return one.step_skipped(step, own, grad_norm=math.inf, scaled=scaled)


def test_so_many_skipped_steps_in_a_row_send_the_run_back(tmp_path: Path) -> None:
    one = health(tmp_path)
    assert [skip(one, 5, [math.nan]), skip(one, 6, [math.nan])] == ["go on", "go on"]
    assert one.step_taken(7, 1.0) == "go on"
    assert [skip(one, step, [math.nan]) for step in (8, 9, 10)] == ["go on", "go on", "go back"]


def test_the_clips_of_a_bad_loss_are_written_down(tmp_path: Path) -> None:
    skip(health(tmp_path), 5, [1.0, math.nan])
    (event,) = events(tmp_path)
    assert (event["kind"], event["step"]) == ("skipped step", 5)
    assert event["ranks"][0]["rank"] == 0 and event["ranks"][0]["losses"] == [1.0, "nan"]
    assert event["ranks"][0]["clips"][1] == ["video1.mp4"]


def test_a_loss_scale_that_was_too_high_is_no_fault_of_the_data(tmp_path: Path) -> None:
    one = health(tmp_path)
    assert {skip(one, step, [1.0], scaled=True) for step in range(9)} == {"go on"}
    assert not events(tmp_path)
    assert [skip(one, step, [math.nan], scaled=True) for step in (9, 10, 11)][-1] == "go back"


def test_a_bad_loss_in_a_step_that_was_applied_goes_back_at_once(tmp_path: Path) -> None:
    assert health(tmp_path).step_taken(5, math.nan) == "go back"


def test_a_jump_of_the_loss_is_said_once_and_sends_back_only_where_asked(tmp_path: Path) -> None:
    one = health(tmp_path, spike_factor=10.0)
    for step in range(20):
        assert one.step_taken(step, 1.0 + 0.01 * step) == "go on"
    assert [one.step_taken(step, 50.0) for step in range(20, 25)] == ["go on"] * 5
    assert [event["kind"] for event in events(tmp_path)] == ["loss jumped"]
    other = health(tmp_path, spike_factor=10.0, spike_back=True)
    for step in range(20):
        other.step_taken(step, 1.0)
    assert other.step_taken(20, 50.0) == "go back"


def test_a_short_history_and_a_slow_rise_are_no_jump(tmp_path: Path) -> None:
    one = health(tmp_path, spike_factor=3.0)
    assert [one.step_taken(step, loss) for step, loss in enumerate((1.0, 50.0, 2.0))] == ["go on"] * 3
    for step in range(300):
        one.step_taken(step, 1.02**step)
    assert not events(tmp_path)


def test_the_run_goes_back_to_a_checkpoint_once(tmp_path: Path) -> None:
    one = health(tmp_path, skipped=2)
    one.went_back(13, to=10)
    assert one.skipped == 5, "the clips of steps 11 to 13 are left out from now on"
    one.went_back(33, to=30)
    assert one.skipped == 8
    with pytest.raises(Diverged, match="events.jsonl"):
        one.went_back(35, to=30)
