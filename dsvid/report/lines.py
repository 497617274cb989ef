"""Files of a run as they are found: half-written, damaged or endless. What could not be read is told, not raised."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsvid.documents import DocumentError, parse_json, read_json

MAX_LINE = 1 << 20  # letters of a line of a .jsonl file
TAIL_BYTES = 1 << 18  # what is read of the end of a file where its beginning is of no interest
Row = dict[str, Any]


@dataclass(frozen=True)
class Damage:
    """A file, or a part of one, that could not be read: its name in the run folder, and what is wrong with it."""

    file: str
    what: str


class Lines:
    """The rows of a .jsonl file, one after the other; damaged lines are counted, and told by `damage` afterwards.

    A last line without an end is one that is being written, or was when the run was killed: no damage. With `tail`,
    only the last TAIL_BYTES are read.
    """

    def __init__(self, path: Path, *, tail: bool = False) -> None:
        self.path, self.tail = path, tail
        self.half_written = self.skipped = False
        self.bad = self.first_bad = 0
        self.error = ""

    def __iter__(self) -> Iterator[Row]:
        if self.path.exists() and not self.path.is_file():  # a pipe would wait for ever, a device never end
            self.error = "no regular file"
            return
        try:
            with self.path.open("rb") as file:
                self.skipped = self.tail and file.seek(0, 2) > TAIL_BYTES
                file.seek(-TAIL_BYTES if self.skipped else 0, 2 if self.skipped else 0)
                if self.skipped:
                    file.readline(MAX_LINE)  # the rest of a line
                yield from self._rows(file)
        except FileNotFoundError:
            return
        except OSError as error:
            self.error = error.strerror or type(error).__name__

    def _rows(self, file: Any) -> Iterator[Row]:
        number, long = 0, False
        while line := file.readline(MAX_LINE):
            ended = line.endswith(b"\n")
            if long or (not ended and len(line) == MAX_LINE):
                number += not long
                self._count(number)
                long = not ended
                continue
            number += 1
            row = _parsed(line)
            if row is not None:
                yield row
            elif ended and line.strip():
                self._count(number)
            else:
                self.half_written = self.half_written or not ended

    def _count(self, number: int) -> None:
        if not self.bad:
            self.first_bad = number
        self.bad += 1

    def damage(self) -> list[Damage]:
        """What was wrong with the file, after its rows were taken; empty where nothing was."""
        if self.error:
            return [Damage(self.path.name, f"cannot be read: {self.error}")]
        if not self.bad:
            return []
        lines = "1 line" if self.bad == 1 else f"{self.bad} lines"
        where = "" if self.skipped else f" (the first is line {self.first_bad})"
        return [Damage(self.path.name, f"{lines} cannot be read and are left out{where}")]


def _parsed(line: bytes) -> Row | None:
    try:
        row = parse_json(line.decode("utf-8"))
    except (DocumentError, UnicodeDecodeError):
        return None
    return row if isinstance(row, dict) else None


def document(path: Path, damage: list[Damage]) -> Row:
    """The object in a JSON file; empty where it is not there, or where it is damaged, which is added to `damage`."""
    try:
        found = read_json(path)
    except FileNotFoundError:
        return {}
    except (OSError, DocumentError) as error:
        damage.append(Damage(path.name, f"cannot be read: {error}"))
        return {}
    if not isinstance(found, dict):
        damage.append(Damage(path.name, "holds no JSON object"))
        return {}
    return found


def number(value: Any) -> float | None:
    """A finite number as float; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if math.isfinite(found) else None


def whole(value: Any) -> int | None:
    """A whole number that a count of steps or clips can be; None for anything else."""
    found = number(value)
    return int(found) if found is not None and 0 <= found < 1e15 and found == int(found) else None


def last_text(path: Path) -> str:
    """The end of a text file, at most TAIL_BYTES, from the start of a line on; empty where it cannot be read."""
    if not path.is_file():  # a pipe would wait for ever
        return ""
    try:
        with path.open("rb") as file:
            skipped = file.seek(0, 2) > TAIL_BYTES
            file.seek(-TAIL_BYTES if skipped else 0, 2 if skipped else 0)
            if skipped:
                file.readline()
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""
