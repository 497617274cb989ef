"""AVA's text files: boxes (ground truth, detections), excluded key frames, label maps; detections are written too.

A key frame is (video, timestamp in microseconds): 902, 0902 and 902.0 are the same second. Nothing is dropped here save
empty lines; what a line cannot be is an error with its number.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from dsvid.errors import DataError
from dsvid.metrics.ava import BoxRows
from dsvid.publish import publish_file

Ints = NDArray[np.int64]
Key = tuple[str, int]
MICRO = 1_000_000
ROWS_AT_ONCE = 1 << 16  # of a csv that is written: AVA's validation has millions
_ITEM = re.compile(r"item\s*\{(.*?)\}", re.S)
_FIELD = re.compile(r'^\s*(\w+)\s*:\s*(?:"((?:[^"\\]|\\.)*)"|(\S+))\s*$', re.M)


class ImageNumbers:
    """Numbers key frames in the order in which they are first named; the files of one evaluation share one of these."""

    def __init__(self) -> None:
        self.keys: list[Key] = []
        self._number: dict[Key, int] = {}
        self._by_text: dict[tuple[str, str], int] = {}

    def number(self, video: str, micros: int) -> int:
        """The number of a key frame, a new one if need be."""
        key = (video, micros)
        if key not in self._number:
            self._number[key] = len(self.keys)
            self.keys.append(key)
        return self._number[key]

    def number_texts(self, pairs: Iterable[tuple[str, str]]) -> list[int]:
        """Numbers of (video, timestamp) as they stand in a file. Raises ValueError for a timestamp that is none."""
        known = self._by_text
        numbers = []
        for pair in pairs:
            if pair not in known:
                known[pair] = self.number(pair[0].strip(), parse_timestamp(pair[1]))
            numbers.append(known[pair])
        return numbers


def parse_timestamp(text: str) -> int:
    """Microseconds of `0902`, `902` or `902.5`. Raises ValueError."""
    seconds = float(text)
    if not (math.isfinite(seconds) and 0 <= seconds < 1e9):
        raise ValueError(f"timestamp {text!r}")
    return round(seconds * MICRO)


def show_timestamp(micros: int) -> str:
    """Whole seconds with four digits at least, as AVA writes them; others with as many decimals as they need."""
    whole, rest = divmod(micros, MICRO)
    return f"{whole:04d}" if rest == 0 else f"{whole:04d}.{rest:06d}".rstrip("0")


@dataclass(frozen=True)
class BoxFile:
    """A box file: its rows (`score` is the eighth column, 1 without one), of each row the line and whether it has an
    eighth column [n], and the images of all lines, also those without a box."""

    path: Path
    rows: BoxRows
    line: Ints
    with_last: NDArray[np.bool_]
    images: Ints


def read_boxes(path: Path, numbers: ImageNumbers) -> BoxFile:
    """Rows `video, second, x1, y1, x2, y2, class[, score or person]`; `video, second` alone names an image without a
    box, as do the longer rows of AVA-Kinetics whose other columns are empty. Raises DataError.
    """
    return _read_regular(path, numbers) or _read_any(path, numbers)


def _read_regular(path: Path, numbers: ImageNumbers) -> BoxFile | None:
    """A file all of whose lines have seven, or eight, columns and no fault: numpy reads it four times as fast as csv.

    None for any other file, which is then read line by line, and its fault named.
    """
    text = _text(path)
    lines = text.splitlines()
    width = text.count(",") // max(len(lines), 1) + 1
    if width not in (7, 8) or '"' in text or text.count(",") != (width - 1) * len(lines):
        return None
    try:
        # a line with fewer columns is refused, and the number of commas leaves none with more
        values = np.loadtxt(lines, delimiter=",", usecols=range(2, width), dtype=np.float64, comments=None, ndmin=2)
        if len(values) != len(lines) or not np.isfinite(values).all() or (values[:, 4] % 1 != 0).any():
            return None
        images = np.asarray(numbers.number_texts(_first_two(line) for line in lines), dtype=np.int64)
    except ValueError:
        return None
    score = values[:, 5] if width == 8 else np.ones(len(values))
    rows = BoxRows(images, np.ascontiguousarray(values[:, :4]), values[:, 4].astype(np.int64), score)
    line = np.arange(1, len(lines) + 1)
    return BoxFile(path, rows, line, np.full(len(lines), width == 8), np.unique(images))


def _first_two(line: str) -> tuple[str, str]:
    video, second, _ = line.split(",", 2)
    return video, second


def _read_any(path: Path, numbers: ImageNumbers) -> BoxFile:
    lines, rows = _csv_rows(path)
    width = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
    wrong = np.flatnonzero(~np.isin(width, (2, 7, 8)))
    if len(wrong):
        row = rows[wrong[0]]
        raise DataError(
            f"{path}:{lines[wrong[0]]}: a row of {len(row)} columns",
            found=",".join(row)[:200],
            expected="video,second,x1,y1,x2,y2,class and a score or person id, or video,second alone",
        )
    try:
        images = np.asarray(numbers.number_texts((row[0], row[1]) for row in rows), dtype=np.int64)
        kept = np.fromiter((len(row) > 2 and any(row[2:]) for row in rows), dtype=bool, count=len(rows))
        full = [row for row, keep in zip(rows, kept, strict=True) if keep]
        box = np.array([row[2:6] for row in full], dtype=np.float64).reshape(-1, 4)
        label = np.array([_whole(row[6]) for row in full], dtype=np.int64)
        score = np.array([row[7] if len(row) > 7 else "1" for row in full], dtype=np.float64)
    except (ValueError, OverflowError):
        raise _first_fault(path, lines, rows) from None
    if not (np.isfinite(box).all() and np.isfinite(score).all()):
        raise _first_fault(path, lines, rows)
    return BoxFile(path, BoxRows(images[kept], box, label, score), lines[kept], width[kept] == 8, np.unique(images))


def read_exclusions(path: Path, numbers: ImageNumbers) -> Ints:
    """Images of rows `video, second`. Raises DataError."""
    lines, rows = _csv_rows(path)
    for line, row in zip(lines.tolist(), rows, strict=True):
        if len(row) != 2:
            raise DataError(
                f"{path}:{line}: a row of {len(row)} columns", found=",".join(row)[:200], expected="video,second"
            )
    try:
        return np.unique(np.asarray(numbers.number_texts((row[0], row[1]) for row in rows), dtype=np.int64))
    except ValueError:
        raise _first_fault(path, lines, rows) from None


def read_label_map(path: Path) -> dict[int, str]:
    """Class id -> name of a pbtxt of `item { name: "…" id: N }` (or label_id), by id. Raises DataError."""
    text = _without_comments(_text(path))
    found: dict[int, str] = {}
    for item in _ITEM.finditer(text):
        fields = {name: quoted or plain for name, quoted, plain in _FIELD.findall(item[1])}
        line = text.count("\n", 0, item.start()) + 1
        identity, name = fields.get("id") or fields.get("label_id", ""), fields.get("name", "")
        if not identity.isdigit() or int(identity) < 1 or not name:
            raise DataError(
                f"{path}:{line}: an item of the label map",
                found=" ".join(item[0].split())[:200],
                expected='item { name: "sit" id: 11 }, each field on a line',
            )
        if int(identity) in found or name in found.values():
            raise DataError(f"{path}:{line}: class {identity} or name {name!r} is given twice")
        found[int(identity)] = name
    if not found:
        raise DataError(
            f"{path}: no item of a label map", expected='item {, name: "sit", id: 11, } on lines of their own'
        )
    return dict(sorted(found.items()))


def read_video_list(path: Path) -> list[str]:
    """Names of the videos in `ava_file_names_trainval_v2.1.txt`, without their endings: their places number images."""
    names = [line.strip() for line in _text(path).splitlines() if line.strip()]
    stems = [name.rpartition(".")[0] or name for name in names]
    if len(set(stems)) < len(stems):
        raise DataError(f"{path}: a video is named twice", found=next(n for n in stems if stems.count(n) > 1))
    return stems


def write_detections(path: Path, keys: Sequence[Key], rows: BoxRows) -> None:
    """`inference/result.csv`: video, second, x1, y1, x2, y2, class, score, numbers with five decimals as the seed's."""

    def write(out: BinaryIO) -> None:
        shown = [f"{video},{show_timestamp(micros)}" for video, micros in keys]
        for start in range(0, len(rows), ROWS_AT_ONCE):
            part = slice(start, start + ROWS_AT_ONCE)
            columns = (array[part].tolist() for array in (rows.image, rows.box, rows.label, rows.score))
            for image, (x1, y1, x2, y2), label, score in zip(*columns, strict=True):
                out.write(f"{shown[image]},{x1:.5f},{y1:.5f},{x2:.5f},{y2:.5f},{label},{score:.5f}\n".encode())

    publish_file(path, write)


def _csv_rows(path: Path) -> tuple[Ints, list[list[str]]]:
    """The rows that are not empty, and the number of the line on which each ends."""
    lines, rows = [], []
    try:
        with path.open(newline="", encoding="utf-8-sig") as handle:
            reader = csv.reader(handle, strict=True)
            for row in reader:
                if row:
                    lines.append(reader.line_num)
                    rows.append(row)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read", found=error, expected="a CSV file of AVA") from error
    return np.asarray(lines, dtype=np.int64), rows


def _first_fault(path: Path, lines: Ints, rows: list[list[str]]) -> DataError:
    """The error that names the first cell that is no number."""
    names = ("video", "second", "x1", "y1", "x2", "y2", "class", "score or person")
    parsers: dict[str, Callable[[str], object]] = {"second": parse_timestamp, "class": _whole}
    for line, row in zip(lines.tolist(), rows, strict=True):
        if len(row) > 2 and not any(row[2:]):
            row = row[:2]
        for name, cell in list(zip(names, row, strict=False))[1:]:
            try:
                parsers.get(name, _finite)(cell)
            except (ValueError, OverflowError):
                header = line == 1 and name == "second"
                return DataError(
                    f"{path}:{line}: {name} is no number",
                    found=repr(cell),
                    expected="a finite number" if name != "class" else "a whole number",
                    fix="AVA's files have no header: remove the first line" if header else None,
                )
    raise AssertionError(f"{path}: no fault found")


def _finite(cell: str) -> float:
    value = float(cell)
    if not math.isfinite(value):
        raise ValueError(cell)
    return value


def _whole(cell: str) -> int:
    value = _finite(cell)
    if value % 1 != 0 or abs(value) >= 1 << 53:
        raise ValueError(cell)
    return int(value)


def _without_comments(text: str) -> str:
    return re.sub(r"^[ \t]*#.*$", "", text, flags=re.M)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read", found=error, expected="a text file of AVA") from error
