"""What a run's numbers mean, in sentences: each is reached, and each says its number."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from dsvid.lock_owner import process_place
from dsvid.report.reading import read_run
from dsvid.report.verdict import (
    fault_sentence,
    limit_sentences,
    loss_sentence,
    score_sentences,
    seconds_left,
    state_of,
    state_sentence,
    verdict,
)
from tests.report.made_run import (
    make_eventful,
    make_log,
    make_settings,
    make_starts,
    make_trained,
    make_weights,
    train_row,
    write_rows,
)

LAST = "INFO    step 400/3200 epoch 4.00 loss 0.9"


def test_a_running_run(tmp_path: Path) -> None:
    make_trained(tmp_path)
    owner = {**process_place(os.getpid()), "since": "2026-11-27", "token": "t"}
    (tmp_path / ".lock").write_text(json.dumps(owner))
    run = read_run(tmp_path)
    assert state_of(run) == "running" and seconds_left(run) == pytest.approx(2800 * 0.25)
    assert state_sentence(run).text.startswith("Running: step 400 of 3,200, about 11 min 40 s left (process ")


@pytest.mark.parametrize(
    ("log", "state", "words"),
    [
        (
            [LAST, "INFO    stopped: SIGTERM, noticed by rank 0; step 400 is saved"],
            "stopped",
            "SIGTERM, noticed by rank 0",
        ),
        ([LAST, "ERROR   OutOfMemoryError: CUDA"], "failed", "OutOfMemoryError: CUDA"),
        ([LAST], "ended", "Ended without a word"),
        ([], "ended", "without a word"),
    ],
)
def test_how_a_run_ended(tmp_path: Path, log: list[str], state: str, words: str) -> None:
    make_trained(tmp_path)
    make_log(tmp_path, *log)
    run = read_run(tmp_path)
    assert (
        state_of(run) == state and words in state_sentence(run).text and "step 400 of 3,200" in state_sentence(run).text
    )


def test_a_run_is_finished_with_the_weights_of_its_last_step(tmp_path: Path) -> None:
    make_trained(tmp_path, range(100, 3201, 100))
    assert "no weights of the last one" in state_sentence(read_run(tmp_path)).text
    make_weights(tmp_path, 1600)
    assert state_of(read_run(tmp_path)) == "ended", "weights of an earlier end"
    (tmp_path / "weights" / "config.json").write_text('{"trained": {"steps": 3200}}')
    assert state_of(read_run(tmp_path)) == "finished"
    make_log(tmp_path, "INFO    weights   w", "ERROR   DataError: no video of data.test can be read")
    assert state_of(read_run(tmp_path)) == "failed", "its test failed"


def test_settings_alone(tmp_path: Path) -> None:
    run = read_run(make_settings(tmp_path))
    assert state_of(run) == "not started" and [one.tone for one in verdict(run)] == ["attention", "good"]


@pytest.mark.parametrize(
    ("losses", "tone", "words"),
    [
        ([1.2 - 0.01 * at for at in range(60)], "good", "went down from 1.175 to 0.6350"),
        ([0.6 + 0.01 * at for at in range(60)], "bad", "rises over the last third"),
        ([0.993] * 60, "attention", "is flat now. It is no lower than what needs no learning"),
        ([0.5] * 11, "plain", "Too few lines"),
    ],
)
def test_is_the_loss_going_down(tmp_path: Path, losses: list[float], tone: str, words: str) -> None:
    make_settings(tmp_path)
    write_rows(tmp_path / "metrics.jsonl", [train_row(10 + at, loss=loss) for at, loss in enumerate(losses)])
    sentence = loss_sentence(read_run(tmp_path))
    assert sentence.tone == tone and words in sentence.text


@pytest.mark.parametrize(("wait", "words"), [(0.049, "Computing limits"), (0.051, "Reading limits the speed: 5.1 %")])
def test_reading_limits_above_five_percent(tmp_path: Path, wait: float, words: str) -> None:
    make_trained(tmp_path, data_s=wait, step_s=1.0, mfu=0.41)
    (sentence,) = limit_sentences(read_run(tmp_path))
    assert words in sentence.text and ("41 %" in sentence.text) == ("Computing" in words)


def test_the_limit_is_the_one_of_the_documents() -> None:
    text = (Path(__file__).parents[2] / "docs" / "performance.md").read_text()
    assert "`data wait` above 5 %" in text


def test_a_run_that_became_slower(tmp_path: Path) -> None:
    make_settings(tmp_path)
    rows = [train_row(step, clips_per_s=60.0 if step < 300 else 30.0) for step in range(10, 401, 10)]
    write_rows(tmp_path / "metrics.jsonl", rows)
    assert "30 clips/s now, 60 usually" in limit_sentences(read_run(tmp_path))[-1].text


def test_scores(tmp_path: Path) -> None:
    make_settings(tmp_path, "demo_finetune")
    rows = [{"kind": "eval", "split": "val", "step": step, "top1": top1} for step, top1 in ((10, 40.0), (20, 35.0))]
    write_rows(tmp_path / "metrics.jsonl", [*rows, {"kind": "eval", "final": True, "step": 20, "top1": 12.0}])
    best, final = score_sentences(read_run(tmp_path))
    assert best.text == "Validation: top-1 40.0 % at step 10 is the best, 35.0 % at step 20." and best.tone == "plain"
    assert "about what guessing gives (12.50)" in final.text and final.tone == "attention"


def test_faults_are_counted(tmp_path: Path) -> None:
    text = fault_sentence(read_run(make_eventful(tmp_path / "run"))).text
    for words in ("3 steps were skipped", "1 jump of the loss", "1 return to a checkpoint", "1 save failed",
                  "30 videos could not be read", "started again 3 times"):  # fmt: skip
        assert words in text
    clean = make_trained(tmp_path / "clean")
    assert fault_sentence(read_run(clean)).text == "No fault is recorded."
    make_starts(clean, [], [0, 5])
    assert "It was started again once." in fault_sentence(read_run(clean)).text
