"""People's boxes of one video: a csv of shares of the frame, or the json of AVA's person boxes.

csv: `second,x1,y1,x2,y2[,score]`, shares of the upright frame from 0 to 1, seconds from the start of the video; a
header, empty lines and lines that begin with # are skipped. json: see `ava_annotations.read_person_boxes`; the last
four digits of `image_id` are the second, boxes are pixels of the upright frame.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dsvid.data.ava_annotations import SECONDS_A_VIDEO, read_person_boxes
from dsvid.errors import DataError

COLUMNS = ("second", "x1", "y1", "x2", "y2", "score")
EXPECTED = "second,x1,y1,x2,y2 or second,x1,y1,x2,y2,score; coordinates are shares of the frame, 0 to 1"
BEYOND = 0.25  # a box may reach so far out of the frame before it is taken for a mistake


@dataclass(frozen=True)
class BoxRow:
    """A box in shares of the frame, cut to it; `place` says where it stands in the file."""

    place: str
    second: float
    box: tuple[float, float, float, float]
    score: float


def read_box_file(path: Path, width: int, height: int) -> tuple[list[BoxRow], int]:
    """(boxes by second, how many were cut to the frame); `width` and `height` are the frame's, for the json.

    Raises DataError that names the line.
    """
    raw = list(_json_rows(path, width, height) if path.suffix.lower() == ".json" else _csv_rows(path))
    if not raw:
        raise DataError(f"{path} holds no boxes", expected=EXPECTED, fix="without --boxes the whole frame is one box")
    rows = [_cut(row) for row in raw]
    return sorted(rows, key=lambda row: row.second), sum(a.box != b.box for a, b in zip(raw, rows, strict=True))


def _csv_rows(path: Path) -> Iterator[BoxRow]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as handle:
            reader = csv.reader(handle, strict=True)
            lines = [(reader.line_num, [cell.strip() for cell in row]) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"--boxes {path} cannot be read", found=str(error), expected=f"a csv: {EXPECTED}") from error
    for line, row in lines:
        if not any(row) or row[0].startswith("#") or (row[0].lower() in COLUMNS and line == 1):
            continue
        place = f"{path}:{line}"
        if len(row) not in (5, 6):
            raise DataError(f"{place}: a row of {len(row)} columns", found=",".join(row)[:200], expected=EXPECTED)
        values = [_number(place, name, cell) for name, cell in zip(COLUMNS, row, strict=False)]
        score = values[5] if len(values) == 6 else 1.0
        yield BoxRow(place, values[0], (values[1], values[2], values[3], values[4]), score)


def _number(place: str, name: str, cell: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{place}: {name} is no number", found=repr(cell), expected=EXPECTED)
    return value


def _json_rows(path: Path, width: int, height: int) -> Iterator[BoxRow]:
    found = read_person_boxes(path)
    videos = {image // SECONDS_A_VIDEO for image in found}
    if len(videos) > 1:
        raise DataError(
            f"{path} has boxes of several videos", found=f"image_id {min(found)} to {max(found)}",
            expected=f"one video: image_id = any number x {SECONDS_A_VIDEO} + second",
        )  # fmt: skip
    size = np.array([width, height] * 2)
    for image, boxes in found.items():
        for x, y, w, h, score in boxes.tolist():
            x1, y1, x2, y2 = (np.array([x, y, x + w, y + h]) / size).tolist()
            place = f"{path}: the box {[x, y, w, h]} of image_id {image}"
            yield BoxRow(place, float(image % SECONDS_A_VIDEO), (x1, y1, x2, y2), score)


def _cut(row: BoxRow) -> BoxRow:
    """The part of the box that lies in the frame. Raises DataError where it is inverted, outside, or no share."""
    x1, y1, x2, y2 = row.box
    if row.second < 0:
        raise DataError(f"{row.place}: a second before the video", found=row.second, expected="0 or more")
    if not 0 <= row.score <= 1:
        raise DataError(f"{row.place}: score", found=row.score, expected="0 to 1")
    if x2 <= x1 or y2 <= y1:
        raise DataError(
            f"{row.place}: an inverted or empty box", found=f"x1 {x1:g}, y1 {y1:g}, x2 {x2:g}, y2 {y2:g}",
            expected="x1 < x2 and y1 < y2",
        )  # fmt: skip
    if min(row.box) < -BEYOND or max(row.box) > 1 + BEYOND or x2 <= 0 or y2 <= 0 or x1 >= 1 or y1 >= 1:
        pixels = max(row.box) > 2
        raise DataError(
            f"{row.place}: a box outside of the frame", found=f"x1 {x1:g}, y1 {y1:g}, x2 {x2:g}, y2 {y2:g}",
            expected="shares of the frame, 0 to 1",
            fix="these look like pixels: divide x by the width and y by the height" if pixels else None,
        )  # fmt: skip
    return BoxRow(row.place, row.second, (max(x1, 0.0), max(y1, 0.0), min(x2, 1.0), min(y2, 1.0)), row.score)
