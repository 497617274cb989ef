"""`dsvid metrics ava`: from csv files to the seed's result.log and our own tables."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from dsvid.cli import main

CASE = Path(__file__).parents[1] / "reference" / "cases" / "ava" / "eval_basic"
WORDS = ["metrics", "ava", "--gt", f"{CASE}/gt.csv", "--detections", f"{CASE}/detections.csv",
         "--labels", f"{CASE}/labelmap.pbtxt"]  # fmt: skip
EXPECTED = json.loads((CASE / "expected.json").read_text())


@pytest.mark.parametrize(
    ("more", "wanted"),
    [
        ((), None),
        (("--exclusions", f"{CASE}/excluded.csv"), EXPECTED["seed"]["mAP"]),
        (("--protocol", "official"), EXPECTED["official"]["mAP"]),
        (("--protocol", "official", "--exclusions", f"{CASE}/excluded.csv", "--cap", "0"),
         EXPECTED["official_excl_nocap"]["mAP"]),
        (("--protocol", "mmaction2", "--exclusions", f"{CASE}/excluded.csv"), EXPECTED["mmaction2"]["overall"]),
    ],
)  # fmt: skip
def test_the_numbers_of_each_protocol(
    more: tuple[str, ...], wanted: float | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*WORDS, *more, "--json", str(tmp_path / "r.json")]) == 0
    result = json.loads((tmp_path / "r.json").read_text())
    assert f"mAP {100 * result['mAP']:.2f} at IoU 0.5, {result['protocol']} protocol" in capsys.readouterr().out
    if wanted is not None:
        assert result["mAP"] == pytest.approx(wanted, abs=1e-9)


def test_the_folder_of_a_result(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main([*WORDS, "--exclusions", f"{CASE}/excluded.csv", "--out", str(out)]) == 0
    ours, theirs = ((path / "result.log").read_text() for path in (out / "inference", CASE))
    assert ours.splitlines()[:-1] == theirs.splitlines()[:-1]
    assert json.loads((out / "result.json").read_text())["classes"][0]["name"] == "bend/bow (at the waist)"
    assert len((out / "classes.csv").read_text().splitlines()) == 61
    with Image.open(out / "classes.png") as picture:
        blue = sum(count for count, colour in picture.getcolors(1 << 20) if colour == (32, 81, 150))
        assert picture.height > 60 * 14 and blue > 1000


def test_mistakes_end_with_2_and_write_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = tmp_path / "d.csv"
    broken.write_text("a,902,0,0,1\n")
    words = [*WORDS[:5], str(broken), *WORDS[6:], "--out", str(tmp_path / "out")]
    assert main(words) == 2
    assert "d.csv:1: a row of 5 columns" in capsys.readouterr().err and not (tmp_path / "out").exists()
    assert main([*WORDS, "--out", str(broken / "below")]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_no_detections_and_no_truth_are_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = tmp_path / "empty.csv"
    empty.write_text("")
    assert main([*WORDS[:5], str(empty), *WORDS[6:]]) == 0
    assert "mAP 0.00" in capsys.readouterr().out
    assert main([*WORDS[:3], str(empty), *WORDS[4:], "--out", str(tmp_path / "out")]) == 0
    told = capsys.readouterr()
    assert "mAP nan" in told.out and "no class counts" in told.err
    assert json.loads((tmp_path / "out" / "result.json").read_text())["mAP"] is None


def test_the_bench_prints_the_ratio(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "ava", "--images", "5", "--people", "3", "--classes", "4", "--repeats", "1"]) == 0
    assert "times faster than the plain loop" in capsys.readouterr().out
