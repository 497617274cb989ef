"""Box files of one video: what is read, and mistakes by their line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dsvid.data.box_file import read_box_file
from dsvid.errors import DataError


def read(path: Path, text: str) -> tuple[list[tuple[float, tuple[float, ...], float]], int]:
    path.write_text(text)
    rows, cut = read_box_file(path, 200, 100)
    return [(row.second, row.box, row.score) for row in rows], cut


def test_csv_rows_by_second(tmp_path: Path) -> None:
    text = "\ufeffsecond,x1,y1,x2,y2,score\n# a remark\n2.5, 0.1,0.2,0.3,0.4\n\n1,0.5,0.5,1.02,1,0.75\n"
    rows, cut = read(tmp_path / "b.csv", text)
    assert rows == [(1.0, (0.5, 0.5, 1.0, 1.0), 0.75), (2.5, (0.1, 0.2, 0.3, 0.4), 1.0)] and cut == 1


def test_json_of_ava_s_person_boxes(tmp_path: Path) -> None:
    entries = [
        {"image_id": 70002, "bbox": [20, 10, 100, 50], "score": 0.5},
        {"image_id": 70001, "bbox": [0, 0, 200, 100], "score": 1},
    ]
    rows, _ = read(tmp_path / "b.json", json.dumps(entries))
    assert rows == [(1.0, (0, 0, 1, 1), 1.0), (2.0, (0.1, 0.1, 0.6, 0.6), 0.5)]
    with pytest.raises(DataError, match="several videos"):
        read(tmp_path / "b.json", json.dumps([*entries, {**entries[0], "image_id": 2}]))
    with pytest.raises(DataError, match="image_id 70002"):
        read(tmp_path / "b.json", json.dumps([{**entries[0], "bbox": [300, 0, 20, 20]}]))


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("1,0.1,0.2,0.3", "b.csv:3: a row of 4 columns"),
        ("1,0.1,0.2,0.3,0.4,0.5,7", "b.csv:3: a row of 7 columns"),
        ("1,0.1,x,0.3,0.4", "b.csv:3: y1 is no number"),
        ("1,0.1,nan,0.3,0.4", "b.csv:3: y1 is no number"),
        ("1,0.5,0.2,0.3,0.4", "b.csv:3: an inverted or empty box"),
        ("1,0.3,0.4,0.3,0.6", "b.csv:3: an inverted or empty box"),
        ("1,20,10,120,90", "b.csv:3: a box outside of the frame(.|\n)*pixels"),
        ("1,1.05,0.2,1.2,0.4", "b.csv:3: a box outside of the frame"),
        ("-1,0.1,0.2,0.3,0.4", "b.csv:3: a second before the video"),
        ("1,0.1,0.2,0.3,0.4,7", "b.csv:3: score"),
    ],
)
def test_mistakes_name_their_line(tmp_path: Path, row: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        read(tmp_path / "b.csv", f"second,x1,y1,x2,y2\n0,0,0,1,1\n{row}\n")


def test_empty_and_unreadable_files(tmp_path: Path) -> None:
    for text in ("", "second,x1,y1,x2,y2\n", "# nothing\n"):
        with pytest.raises(DataError, match="holds no boxes"):
            read(tmp_path / "b.csv", text)
    with pytest.raises(DataError, match="cannot be read"):
        read_box_file(tmp_path / "none.csv", 10, 10)
    (tmp_path / "b.csv").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(DataError, match="cannot be read"):
        read_box_file(tmp_path / "b.csv", 10, 10)
