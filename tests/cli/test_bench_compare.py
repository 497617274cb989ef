"""Two results of one benchmark: ratios are compared everywhere, seconds where asked for, in the right direction."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dsvid.cli import bench, main

OLD = {
    "ratios": {"packed loader / loader": 10.0, "save / write": 1.5},
    "clips_per_s": {"loader": 40.0},
    "arms": {"dsvid": {"cpu_s": 1.0, "share_of_matmul": 0.8, "loss": 1.0}},
    "repeats": {"loader": [1.0, 2.0]},
}


def compare(folder: Path, new: dict, *words: str) -> int:
    for name, result in (("old", OLD), ("new", new)):
        (folder / f"{name}.json").write_text(json.dumps(result))
    return main(["bench", "compare", str(folder / "old.json"), str(folder / "new.json"), *words])


def changed(*path: str, to: float) -> dict:
    new = copy.deepcopy(OLD)
    inner = new
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = to
    return new


def test_equal_results_are_fine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare(tmp_path, OLD) == 0
    assert "3 numbers compared, 0 worse" in capsys.readouterr().out
    assert compare(tmp_path, OLD, "--all") == 0
    assert "5 numbers compared" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("path", "better", "worse"),
    [
        (("ratios", "packed loader / loader"), 12.0, 8.5),
        (("ratios", "save / write"), 1.2, 1.8),
        (("arms", "dsvid", "share_of_matmul"), 0.95, 0.6),
    ],
)
def test_a_ratio_that_became_worse_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], path: tuple[str, ...], better: float, worse: float
) -> None:
    assert compare(tmp_path, changed(*path, to=better)) == 0
    assert "better" in capsys.readouterr().out
    assert compare(tmp_path, changed(*path, to=worse)) != 0
    assert path[-1] in capsys.readouterr().err
    assert compare(tmp_path, changed(*path, to=worse), "--by", "0.5") == 0


@pytest.mark.parametrize(("path", "worse"), [(("clips_per_s", "loader"), 30.0), (("arms", "dsvid", "cpu_s"), 1.3)])
def test_seconds_are_compared_where_asked_for(tmp_path: Path, path: tuple[str, ...], worse: float) -> None:
    assert compare(tmp_path, changed(*path, to=worse)) == 0
    assert compare(tmp_path, changed(*path, to=worse), "--all") != 0


def test_files_that_are_no_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare(tmp_path, {"something": 1}) == 2
    assert "nothing to compare" in capsys.readouterr().err
    assert main(["bench", "compare", str(tmp_path / "old.json"), str(tmp_path / "gone.json")]) == 2
    assert "gone.json" in capsys.readouterr().err


def test_the_picture_of_a_result(tmp_path: Path) -> None:
    bench._draw("loader", {"clips_per_s": {"slow": 1.0, "fast": 4.0}}, tmp_path / "bars.png")
    rows = (np.asarray(Image.open(tmp_path / "bars.png")) == (32, 81, 150)).all(axis=2).sum(axis=1)
    lengths = sorted(set(rows.tolist()) - {0})
    assert len(lengths) == 2 and lengths[1] == pytest.approx(4 * lengths[0], rel=0.05)
    model = [{"devices": 8, "efficiency": 1.0}, {"devices": 16, "efficiency": 0.5}]
    bench._draw("scaling", {"model": model}, tmp_path / "model.png")
    assert (tmp_path / "model.png").is_file()
