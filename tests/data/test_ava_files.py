"""AVA's files: what is read, what is written, and what a broken line says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dsvid.data import ava_files
from dsvid.data.ava_files import (
    ImageNumbers,
    read_boxes,
    read_exclusions,
    read_label_map,
    read_video_list,
    show_timestamp,
    write_detections,
)
from dsvid.errors import DataError

GOOD = "-aB_c,0902,0.1,0.2,0.3,0.4,80,7\n"


def write(folder: Path, text: str, name: str = "file.csv") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_seven_eight_and_two_columns_are_read(tmp_path: Path) -> None:
    text = GOOD + "-aB_c,902,0,0,1,1,3\n\nb,904\nb,0905.50,,,,,\n_c,10000,-1,2,0.5,0.25,3,0.125\n"
    numbers = ImageNumbers()
    read = read_boxes(write(tmp_path, text), numbers)
    assert numbers.keys == [("-aB_c", 902_000_000), ("b", 904_000_000), ("b", 905_500_000), ("_c", 10_000_000_000)]
    assert read.rows.image.tolist() == [0, 0, 3] and read.images.tolist() == [0, 1, 2, 3]
    assert read.rows.label.tolist() == [80, 3, 3] and read.rows.score.tolist() == [7, 1, 0.125]
    assert read.rows.box[2].tolist() == [-1, 2, 0.5, 0.25] and read.line.tolist() == [1, 2, 6]
    excluded = read_exclusions(write(tmp_path, "b,0904\nz,1\n", "e.csv"), numbers)
    assert excluded.tolist() == [1, 4]


def test_empty_files_hold_nothing(tmp_path: Path) -> None:
    numbers = ImageNumbers()
    read = read_boxes(write(tmp_path, ""), numbers)
    assert len(read.rows) == 0 and read.rows.box.shape == (0, 4) and len(read.images) == 0
    assert len(read_exclusions(write(tmp_path, "\n\n"), numbers)) == 0


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("a,902,0.1,0.2,0.3,0.4", r":2: a row of 6 columns[\s\S]*video,second,x1"),
        ("a,902,0.1,0.2,0.3,0.4,1,1,1", ":2: a row of 9 columns"),
        ("a,902,0.1,zero,0.3,0.4,1", r":2: y1 is no number[\s\S]*'zero'"),
        ("a,902,0.1,0.2,nan,0.4,1", ":2: x2 is no number"),
        ("a,902,0.1,0.2,0.3,0.4,1,inf", ":2: score or person is no number"),
        ("a,902,0.1,0.2,0.3,0.4,1.5", r":2: class is no number[\s\S]*whole number"),
        ("a,soon,0.1,0.2,0.3,0.4,1", ":2: second is no number"),
        ("a,-1,0.1,0.2,0.3,0.4,1", ":2: second is no number"),
        ('"a,902,0.1,0.2,0.3,0.4,1', "cannot be read"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, line: str, told: str) -> None:
    with pytest.raises(DataError, match=told):
        read_boxes(write(tmp_path, GOOD + line + "\n"), ImageNumbers())


def test_a_header_is_named_as_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r":1: second is no number[\s\S]*remove the first line"):
        read_boxes(write(tmp_path, "video,timestamp,x1,y1,x2,y2,action,person\n" + GOOD), ImageNumbers())


def test_other_broken_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere"):
        read_boxes(tmp_path / "nowhere.csv", ImageNumbers())
    with pytest.raises(DataError, match=r":2: a row of 1 columns"):
        read_exclusions(write(tmp_path, "a,1\nb\n"), ImageNumbers())
    with pytest.raises(DataError, match=r":1: second"):
        read_exclusions(write(tmp_path, "a,b\n"), ImageNumbers())
    path = tmp_path / "binary.csv"
    path.write_bytes(b"\xff\xfe\x00a,1")
    with pytest.raises(DataError, match="binary.csv"):
        read_boxes(path, ImageNumbers())


def test_label_maps_of_both_kinds(tmp_path: Path) -> None:
    text = 'item {\n  name: "stand, "\n  id: 12\n}\n# a comment\nitem {\n  name: "sit"\n\tlabel_id: 11\n}\n'
    assert read_label_map(write(tmp_path, text)) == {11: "sit", 12: "stand, "}
    for broken, told in (
        ("1: sit\n", "no item"),
        ('item {\n  name: "sit"\n}\n', r":1: an item"),
        ('item {\n  name: "sit"\n  id: x\n}\n', r":1: an item"),
        (text + 'item {\n  name: "run"\n  id: 11\n}\n', r":10: class 11"),
    ):
        with pytest.raises(DataError, match=told):
            read_label_map(write(tmp_path, broken))


def test_video_lists(tmp_path: Path) -> None:
    assert read_video_list(write(tmp_path, "a.b.mp4\n-c.mkv\nplain\n")) == ["a.b", "-c", "plain"]
    with pytest.raises(DataError, match="named twice"):
        read_video_list(write(tmp_path, "a.mp4\na.mkv\n"))


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    numbers = ImageNumbers()
    rows = read_boxes(write(tmp_path, GOOD + "b,905.25,0,0.123456,1,1,3,0.98765432\nb,1,0,0,1,1,3,0\n"), numbers).rows
    out = tmp_path / "inference" / "result.csv"
    write_detections(out, numbers.keys, rows)
    assert out.read_text().splitlines() == [
        "-aB_c,0902,0.10000,0.20000,0.30000,0.40000,80,7.00000",
        "b,0905.25,0.00000,0.12346,1.00000,1.00000,3,0.98765",
        "b,0001,0.00000,0.00000,1.00000,1.00000,3,0.00000",
    ]
    again = read_boxes(out, numbers)
    assert again.rows.image.tolist() == rows.image.tolist() and np.allclose(again.rows.box, rows.box, atol=5e-6)
    assert show_timestamp(12_345_000_000) == "12345"


def test_both_ways_of_reading_are_the_same(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    lines = [
        f"v{row % 7},{900 + row % 11:04d},"
        + ",".join(f"{value:.5f}" for value in rng.random(4))
        + f",{row % 80 + 1},0.5"
        for row in range(300)
    ]
    path = write(tmp_path, "\n".join(lines) + "\n")
    other = write(tmp_path, "\n".join([*lines, "v9,1"]) + "\n", "other.csv")  # one line of another kind
    first, second = ImageNumbers(), ImageNumbers()
    fast, slow = ava_files._read_regular(path, first), read_boxes(other, second)
    assert fast is not None and ava_files._read_regular(other, ImageNumbers()) is None
    assert first.keys == second.keys[:-1] and fast.images.tolist() == slow.images.tolist()[:-1]
    for name in ("image", "box", "label", "score"):
        assert np.array_equal(getattr(fast.rows, name), getattr(slow.rows, name))
    assert fast.line.tolist() == slow.line.tolist() and fast.with_last.all()
