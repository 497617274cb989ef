"""Score files of multi-view tests: what is merged, what is dropped, what is an error."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dsvid.errors import DataError
from dsvid.metrics.views import merge_files, read_views, score_files


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(["12.5, 50.0", *lines, ""]))
    return path


def test_views_are_averaged_once_each_and_the_first_file_wins(tmp_path: Path) -> None:
    write(tmp_path / "0.txt", "a [2.0, 0.0, 0.0] 1 0 0", "b [0.0, 0.0, 3.0] 2 0 0")
    write(tmp_path / "1.txt", "a [0.0, 5.0, 0.0] 1 0 1", "a [0.0, 0.0, 9.0] 1 0 0")
    merged = merge_files(score_files(tmp_path), "score")
    assert merged.names == ["a", "b"] and merged.labels.tolist() == [1, 2]
    assert merged.scores.tolist() == [[1.0, 2.5, 0.0], [0.0, 0.0, 3.0]]
    assert merged.repeated == 1 and merged.missing.tolist() == [0, 1]
    assert merged.accuracy() == (100.0, 100.0)


def test_probabilities_are_averaged_after_the_softmax(tmp_path: Path) -> None:
    """One view that is very sure outweighs two others in logits but not in probabilities."""
    lines = ["a [90.0, 0.0] 1 0 0", "a [0.0, 8.0] 1 0 1", "a [0.0, 8.0] 1 0 2"]
    files = [write(tmp_path / "0.txt", *lines)]
    assert merge_files(files, "prob").accuracy()[0] == 100.0
    assert merge_files(files, "score").accuracy()[0] == 0.0
    assert np.allclose(merge_files(files, "prob").scores.sum(axis=1), 1.0)


def test_files_are_taken_by_their_number(tmp_path: Path) -> None:
    for number in range(11):
        write(tmp_path / f"{number}.txt", f"v{number} [1.0, 0.0] 0 0 0")
    (tmp_path / "log.txt").write_text("not a rank")
    assert [path.name for path in score_files(tmp_path)] == [f"{number}.txt" for number in range(11)]
    (tmp_path / "4.txt").unlink()
    with pytest.raises(DataError, match=r"3\.txt, 5\.txt"):
        score_files(tmp_path)


@pytest.mark.parametrize(
    "line",
    [
        "a [1.0, 2.0] 1 0",
        "a [1.0, two] 1 0 0",
        "a 1.0, 2.0 1 0 0",
        "a [1.0, nan] 1 0 0",
        "a [] 1 0 0",
        "a [1.0, 2.0] x 0 0",
        "[1.0, 2.0] 1 0 0",
        "a [1.0, 2.0, 3.0] 1 0 1",
    ],
)
def test_a_line_that_cannot_be_read_is_named(tmp_path: Path, line: str) -> None:
    path = write(tmp_path / "0.txt", "a [1.0, 2.0] 1 0 0", line)
    with pytest.raises(DataError, match=r"0\.txt:3"):
        merge_files([path])


def test_a_name_that_stands_for_two_videos_is_an_error(tmp_path: Path) -> None:
    first = write(tmp_path / "0.txt", "clip [1.0, 2.0] 1 0 0")
    second = write(tmp_path / "1.txt", "clip [1.0, 2.0] 0 0 1")
    with pytest.raises(DataError, match=r"1\.txt:2: 'clip' stands for two videos[\s\S]*0\.txt:2"):
        merge_files([first, second])


def test_names_may_hold_spaces_and_brackets(tmp_path: Path) -> None:
    path = write(tmp_path / "0.txt", "my clip [old] 2 [1.0, -2.5e-3] 1 4 2")
    (view,) = read_views(path)
    assert view.name == "my clip [old] 2" and view.place == (4, 2) and view.scores.tolist() == [1.0, -0.0025]
    with pytest.raises(DataError, match="no view"):
        merge_files([write(tmp_path / "1.txt")])
