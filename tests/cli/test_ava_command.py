"""`dsvid ava`: from csv to the json files, and the generated set, as a user calls them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dsvid.cli import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("figures")
    assert main(["ava", "generate", str(root), "--train", "2", "--val", "1", "--seconds", "3"]) == 0
    return root


def test_annotations_of_the_csv_are_those_of_the_set(folder: Path, tmp_path: Path) -> None:
    names = folder / "annotations"
    words = ["ava", "json", "--gt", str(names / "ava_train_v2.2.csv"), "--videos", str(names / "video_names.txt"),
             "--clips", str(folder / "clips" / "trainval"), "-o", str(tmp_path / "a.json")]  # fmt: skip
    assert main([*words, "--seconds", "901-902"]) == 0
    made = json.loads((tmp_path / "a.json").read_text())
    assert made == json.loads((names / "ava_train_v2.2_min.json").read_text()) and len(made["images"]) == 4
    assert main(words) == 0
    assert len(json.loads((tmp_path / "a.json").read_text())["images"]) == 2 * 897 + 2


def test_person_boxes_of_a_csv(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth = folder / "annotations" / "ava_val_v2.2.csv"
    seven = tmp_path / "seven.csv"
    seven.write_text("".join(line.rpartition(",")[0] + "\n" for line in truth.read_text().splitlines()))
    words = ["ava", "boxes", "--annotations", str(folder / "annotations" / "ava_val_v2.2_min.json"), "-o",
             str(tmp_path / "boxes.json"), "--csv"]  # fmt: skip
    assert main([*words, str(seven)]) == 0
    boxes = json.loads((tmp_path / "boxes.json").read_text())
    assert len(boxes) == len({(line.rsplit(",", 1)[1], line.split(",")[1]) for line in truth.read_text().splitlines()})
    assert f"{len(boxes)} boxes in 2 images" in capsys.readouterr().out
    assert main([*words, str(truth)]) == 2
    assert "no person id" in capsys.readouterr().err


def test_mistakes_end_with_2(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = folder / "annotations"
    words = ["ava", "json", "--gt", str(names / "ava_train_v2.2.csv"), "--videos", str(names / "video_names.txt"),
             "-o", str(tmp_path / "a.json"), "--clips"]  # fmt: skip
    assert main([*words, str(tmp_path)]) == 2
    assert "no such video" in capsys.readouterr().err
    assert main([*words, str(folder / "clips" / "trainval"), "--seconds", "9"]) == 2
    assert "902-1798" in capsys.readouterr().err
    assert main(["ava", "generate", str(tmp_path / "x"), "--val", "0"]) == 2
    (tmp_path / "file").write_text("")
    assert main(["ava", "generate", str(tmp_path / "file" / "x"), "--train", "1", "--val", "1"]) == 2
    assert "cannot be written" in capsys.readouterr().err
    assert not (tmp_path / "a.json").exists()
