"""`dsvid metrics views`: from score files to numbers, without a model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dsvid.cli import main


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(["50.0, 100.0", *lines]) + "\n")
    return path


@pytest.fixture()
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "0.txt", "a [4.0, 0.0, 0.0] 0 0 0", "b [0.0, 3.0, 0.0] 2 0 0")
    write(tmp_path / "1.txt", "a [0.0, 1.0, 0.0] 0 0 1", "b [0.0, 0.0, 2.9] 2 0 1", "a [4.0, 0.0, 0.0] 0 0 0")
    return tmp_path


def test_views_of_all_files_are_merged(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["metrics", "views", str(folder / "0.txt"), str(folder / "1.txt"), "--json", str(folder / "r.json")]
    assert main(words) == 0
    assert "top1 50.00" in capsys.readouterr().out
    result = json.loads((folder / "r.json").read_text())
    assert result["videos"] == 2 and result["repeated_views"] == 1 and result["merge"] == "prob"


def test_a_folder_and_options_before_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["metrics", "views", "--merge", "score", str(folder)]) == 0
    assert "score of the views" in capsys.readouterr().out


def test_wrong_files_are_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["metrics", "views", str(folder / "9.txt")]) == 2
    assert "9.txt" in capsys.readouterr().err
    write(folder / "2.txt", "a 4.0 0")
    assert main(["metrics", "views", str(folder / "2.txt")]) == 2
    assert "2.txt:2" in capsys.readouterr().err


def test_json_goes_into_a_new_folder_or_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["metrics", "views", str(folder / "0.txt"), "--json"]
    assert main([*words, str(folder / "new" / "deep" / "r.json")]) == 0
    assert json.loads((folder / "new" / "deep" / "r.json").read_text())["videos"] == 2
    for wrong in (folder / "0.txt" / "r.json", folder / "new"):
        assert main([*words, str(wrong)]) == 2
        assert str(wrong) in capsys.readouterr().err


@pytest.mark.parametrize("label", [3, -1])
def test_a_label_that_is_no_class_is_named(label: int, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(folder / "2.txt", f"c [4.0, 0.0, 0.0] {label} 0 0")
    assert main(["metrics", "views", str(folder)]) == 2
    told = capsys.readouterr().err
    assert "'c'" in told and f"label {label}" in told and "0 to 2" in told
