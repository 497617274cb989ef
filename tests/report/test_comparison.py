"""Runs side by side: from which line they differ, in which settings, how fast."""

from __future__ import annotations

from pathlib import Path

import pytest

from dsvid.errors import DsvidError
from dsvid.report.comparison import Comparison, FirstDifference, compare, first_difference, scores, speed_ratio
from dsvid.report.comparison_page import compared, comparison_lines, comparison_page
from dsvid.report.reading import read_run
from tests.report.made_run import EVIL, make_eventful, make_settings, make_trained, train_row, write_rows
from tests.report.reading_pages import check_page


def runs(*folders: Path) -> Comparison:
    return compare([read_run(folder) for folder in folders])


def test_equal_runs_are_bit_equal(tmp_path: Path) -> None:
    found = runs(make_trained(tmp_path / "a"), make_trained(tmp_path / "b", clips_per_s=96.0))
    assert first_difference(found, 1) == FirstDifference(40, 400)
    assert found.settings == [] and speed_ratio(found, 1) == (1.5, 96.0, 64.0)
    told = [one.text for one in compared(found)]
    assert told == [
        "No setting differs.",
        "B against A: the losses are bit-equal over 40 common lines (to step 400).",
        "B against A: B runs at 1.50 times the speed of A (medians 96 and 64 clips/s).",
    ]


def test_the_first_difference_is_found_to_the_last_bit(tmp_path: Path) -> None:
    make_trained(tmp_path / "a", loss=0.5)
    make_settings(tmp_path / "b")
    rows = [train_row(step, loss=0.5 if step < 115 else 0.5000000000000001) for step in range(5, 401, 5)]
    write_rows(tmp_path / "b" / "metrics.jsonl", rows)
    found = runs(tmp_path / "a", tmp_path / "b")
    assert first_difference(found, 1) == FirstDifference(11, 110, 120, 0.5, 0.5000000000000001)
    assert "differ first at step 120" in compared(found)[1].text


def test_a_loss_that_is_not_finite_differs_from_one_that_is(tmp_path: Path) -> None:
    found = runs(make_trained(tmp_path / "a"), make_trained(tmp_path / "b", loss=float("nan")))
    assert first_difference(found, 1).at == 10 and "–" in compared(found)[1].text
    found = runs(tmp_path / "b", tmp_path / "b")
    assert first_difference(found, 1).at is None


def test_other_batches_are_compared_by_clips(tmp_path: Path) -> None:
    make_trained(tmp_path / "a")
    make_settings(tmp_path / "b")
    rows = [train_row(step, samples=32 * step) for step in range(10, 401, 10)]
    write_rows(tmp_path / "b" / "metrics.jsonl", rows)
    found = runs(tmp_path / "a", tmp_path / "b")
    assert found.axis == "samples" and found.common[:2] == [320, 640]
    assert "places are counted in clips" in compared(found)[-1].text


def test_no_line_in_common(tmp_path: Path) -> None:
    found = runs(make_trained(tmp_path / "a", range(7, 70, 7)), make_trained(tmp_path / "b", range(10, 61, 10)))
    assert found.common == [] and "cannot be compared" in compared(found)[1].text
    check_page(comparison_page(found))
    assert "no numbers side by side" in "\n".join(comparison_lines(found))


def test_settings_with_dotted_keys(tmp_path: Path) -> None:
    make_settings(tmp_path / "a")
    make_settings(tmp_path / "b", run__seed=7, data__num_workers=5, about__note="another")
    make_settings(tmp_path / "c")
    (tmp_path / "c" / "ds_config.json").write_text('{"zero_optimization": {"stage": 3}}')
    found = runs(tmp_path / "a", tmp_path / "b", tmp_path / "c")
    rows = dict(found.settings)
    assert rows["run.seed"] == [0, 7, 0] and rows["data.num_workers"] == [1, 5, 1]
    assert rows["ds.zero_optimization.stage"] == [2, 2, 3] and rows["ds.bf16.enabled"] == [True, True, "–"]
    assert not [key for key in rows if key.startswith("about.")]
    lines = comparison_lines(found)
    assert any(line.split() == ["run.seed", "0", "7", "0"] for line in lines)
    assert compared(found)[0].text == f"{len(rows)} settings differ."


def test_scores_at_equal_steps_and_of_the_final_tests(tmp_path: Path) -> None:
    for name, gain in (("a", 0.0), ("b", 5.0)):
        make_settings(tmp_path / name, "demo_finetune")
        rows = [
            {"kind": "eval", "split": "val", "step": step, "top1": step + gain} for step in (10, 20, 30 + int(gain))
        ]
        write_rows(
            tmp_path / name / "metrics.jsonl", [*rows, {"kind": "eval", "final": True, "step": 40, "top1": 50 + gain}]
        )
    found = scores(runs(tmp_path / "a", tmp_path / "b"))
    assert found == [
        ("top-1, %", "validation, step 10", [10.0, 15.0]),
        ("top-1, %", "validation, step 20", [20.0, 25.0]),
        ("top-1, %", "final test", [50.0, 55.0]),
    ]


def test_the_page_of_two_very_different_runs(tmp_path: Path) -> None:
    evil = tmp_path / EVIL.replace("/", "∕")
    found = runs(make_eventful(evil), make_trained(tmp_path / "b"))
    page = comparison_page(found)
    shown = check_page(page)
    assert (
        "Settings that differ" in shown.text
        and "<script" not in page
        and "\x1b" not in "\n".join(comparison_lines(found))
    )


def test_two_to_six_runs(tmp_path: Path) -> None:
    run = read_run(make_trained(tmp_path))
    for count in (1, 7):
        with pytest.raises(DsvidError, match="2 to 6"):
            compare([run] * count)
    check_page(comparison_page(compare([run] * 6)))
