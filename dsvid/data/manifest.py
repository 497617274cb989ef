"""List files: which video or frame folder is sample i, with which label. Opens no video.

Forms of a line (fields apart by blanks, tabs or commas; a path with blanks in "quotes"; `#` starts a comment line):
  path label                a video file, or a folder of frames that is counted by its files
  path start total          a video file; total < 0 is the whole file, else the frames [start, start + total)
  folder total label        a folder of `total` frame files
How the two kinds with three fields are told apart: a path that ends like a video, or a total < 0, is
`path start total`; anything else is `folder total label`. Of a whole file `start` is ignored. A header line overrides
that: its words (path or folder, start, total, label) name the columns, so `folder start total` or
`path start total label` are possible too.
"""

from __future__ import annotations

import hashlib
import os
import re
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dsvid.errors import DataError

_COMMON = frozenset((".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg"))
VIDEO_SUFFIXES = _COMMON | {".ts", ".mts", ".m2ts", ".flv", ".wmv", ".3gp", ".ogv", ".y4m"}
EXAMPLE = '`videos/a.mp4 3`, `"my videos/a.mp4",3`, `videos/a.mp4 0 -1` or `frames/a 120 3`'
WORDS = {
    "path": ("path", "video", "file", "filename", "video_path", "folder", "frames_folder", "frame_folder"),
    "label": ("label", "class", "class_id", "label_id"),
    "start": ("start", "start_frame", "start_idx", "start_index"),
    "total": ("total", "total_frames", "num_frames", "frames", "n_frames"),
}
_COLUMN = {word: name for name, words in WORDS.items() for word in words}
MAX_DIGITS = 18  # Python refuses to read a number of thousands of them
_FIELD = re.compile(r'"((?:[^"]|"")*)"|\'([^\']*)\'|([^\s,"]+)')
_GAP = re.compile(r"\s*,\s*|\s+")

Kind = Literal["video", "frames", "packed"]


@dataclass(frozen=True)
class Entry:
    """One sample: `label` -1 = unknown; `start` first frame (of a folder: file number, -1 = the recipe's);
    `total` frames, -1 = as many as there are. Of a packed one `start` is its number in the folder `shards`."""

    path: str
    label: int
    start: int
    total: int
    kind: Kind
    shards: str = ""


class Manifest:
    """The entries of one list, held in flat buffers: a list of millions of lines costs its text and 25 bytes a line.

    `sha256` is that of the file, so that ranks and restarts can compare lists.
    """

    def __init__(self, source: str, sha256: str, base: Path) -> None:
        self.source = source
        self.sha256 = sha256
        self.base = base
        self.packed = ""  # the folder of packed shards that the entries lie in
        self._text = bytearray()
        self._ends = array("q", [0])
        self._labels = array("i")
        self._starts = array("i")
        self._totals = array("i")
        self._lines = array("i")
        self._folders = bytearray()

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> Entry:
        if not 0 <= index < len(self):
            raise IndexError(index)
        path = self.listed_path(index)
        if self.packed:
            return Entry(path, self._labels[index], index, -1, "packed", self.packed)
        kind: Kind = "frames" if self._folders[index] else "video"
        return Entry(str(self.base / path), self._labels[index], self._starts[index], self._totals[index], kind)

    @property
    def labels(self) -> array[int]:
        return self._labels

    def path(self, index: int) -> str:
        """The path of entry `index`."""
        return self[index].path

    def listed_path(self, index: int) -> str:
        """The path of entry `index` as the list has it."""
        return self._text[self._ends[index] : self._ends[index + 1]].decode()

    def line_number(self, index: int) -> int:
        """1-based line of the list that entry `index` comes from."""
        return self._lines[index]

    def append(self, entry: Entry, line: int) -> None:
        self._text += entry.path.encode()
        self._ends.append(len(self._text))
        self._labels.append(entry.label)
        self._starts.append(entry.start)
        self._totals.append(entry.total)
        self._lines.append(line)
        self._folders.append(entry.kind == "frames")

    def check_labels(self, num_classes: int, *, limit: int = 0) -> None:
        """Raise DataError at the first of the entries (of the first `limit`; 0 = all) without a label < num_classes."""
        for index in range(min(limit, len(self)) if limit else len(self)):
            if not 0 <= self._labels[index] < num_classes:
                raise DataError(
                    f"{self.source}, line {self._lines[index]}: the label does not fit model.num_classes",
                    found="no label" if self._labels[index] < 0 else f"label {self._labels[index]}",
                    expected=f"0 .. {num_classes - 1}",
                    fix=f"correct the line, or model.num_classes={max(self._labels) + 1}",
                )


def open_split(value: str, split: str, root: str = "") -> Manifest:
    """The manifest of a data.train / data.val / data.test value: a list file, a root with <split>.csv, a folder of
    packed shards, or `builtin`.

    Raises DataError where it is empty, missing, no text or has a line that is not understood.
    """
    if not value:
        raise DataError(
            f"data.{split} is empty",
            expected="a list file, a data-set root, packed shards or `builtin`",
            fix=f"data.{split}=/path/to/{split}.csv",
        )
    if value == "builtin":
        from dsvid.data import builtin  # torch and encoder: only where they are needed

        return read_list(builtin.list_for(split))
    path = Path(value).expanduser()
    if path.is_dir():
        from dsvid.data import shards  # which imports this module

        if shards.is_packed(path):
            return shards.open_shards(path).manifest()
        if not (path / f"{split}.csv").is_file():
            raise DataError(
                f"data.{split}: {path} is a folder without {split}.csv",
                found=", ".join(sorted(item.name for item in path.iterdir())[:5]) or "an empty folder",
                expected="a list file, packed shards, or a data-set root with train.csv, val.csv and test.csv",
                fix=f"data.{split}={path}/<list file>",
            )
        path = path / f"{split}.csv"
    return read_list(path, root)


OnBadLine = Callable[[int, str, DataError], object]  # line number, its text, what is wrong


def read_list(path: str | Path, root: str = "", on_bad_line: OnBadLine | None = None) -> Manifest:
    """Read a list file. Relative paths start from `root`, without it from the list's folder.

    Where the first relative path is not in the list's folder but is in the working folder, that one is taken for the
    whole list (`Manifest.base` says which), as the original systems' lists expect. Raises DataError with line numbers;
    with `on_bad_line` that hears of every line that is not understood, and the list goes on without it.
    """
    path = Path(path)
    bad = 0
    blob = _read_text_bytes(path)
    base = Path(root).expanduser() if root else path.parent
    if root and not base.is_dir():
        raise DataError("data.root", found=f"{base} is not a folder", expected="the folder the list's paths start from")
    manifest = Manifest(str(path), hashlib.sha256(blob).hexdigest(), base.absolute())
    columns: tuple[str, ...] | None = None
    header_allowed = True
    for number, line in enumerate(_decode(path, blob).split("\n"), start=1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        try:
            fields = _split(text, path, number)
            first, header_allowed = header_allowed, False
            header = _header(fields, path, number) if first else None
            if header is None:
                manifest.append(_entry(fields, columns, path, number), number)
            else:
                columns = header
        except DataError as error:
            if on_bad_line is None:
                raise
            bad += 1
            on_bad_line(number, text, error)
    if not len(manifest) and not bad:
        raise DataError(f"{path} has no entries", found="blank lines, comments or a header only", expected=EXAMPLE)
    if not root and len(manifest):
        _settle_base(manifest)
    return manifest


def format_list(entries: Sequence[Entry]) -> str:
    """The text of a list that `read_list` reads as these entries: `path,label`, with a header where ranges need it."""
    ranges = any(entry.total > 0 for entry in entries)
    lines = ["path,start,total,label"] if ranges else []
    for entry in entries:
        path = entry.path
        if not path or re.search(r"""[\s,"'#]""", path):
            path = '"' + path.replace('"', '""') + '"'
        numbers = (entry.start, entry.total, entry.label) if ranges else (entry.label,)
        lines.append(",".join([path, *map(str, numbers)]))
    return "\n".join(lines) + "\n"


def _read_text_bytes(path: Path) -> bytes:
    if path.is_dir():
        raise DataError(
            f"{path} is a folder, not a list file", expected="a text file of lines like " + EXAMPLE, fix="name the file"
        )
    try:
        blob = path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"list file {path}", found="nothing there", expected="lines like " + EXAMPLE) from error
    except OSError as error:
        raise DataError(f"list file {path} cannot be read", found=error.strerror or str(error)) from error
    if not blob.strip():
        raise DataError(f"list file {path} is empty", expected="lines like " + EXAMPLE)
    if b"\0" in blob:  # in a path it would fail much later
        what = "a video file" if path.suffix.lower() in VIDEO_SUFFIXES else "a binary file"
        raise DataError(f"list file {path} is not text", found=what, expected="lines like " + EXAMPLE)
    return blob


def _decode(path: Path, blob: bytes) -> str:
    try:
        return blob.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = blob[: error.start].count(b"\n") + 1
        raise DataError(
            f"{path}, line {line}: not UTF-8 text",
            found=repr(blob[error.start : error.start + 8]),
            fix="save it as UTF-8",
        ) from error


def _split(text: str, path: Path, number: int) -> list[str]:
    """The fields of a line; commas separate only where what follows the last one is a number or a column's name."""
    if '"' not in text and not text.startswith("'"):
        by_comma = [field.strip() for field in text.split(",")]
        if len(by_comma) == 1 or not (_is_integer(by_comma[-1]) or by_comma[-1].lower() in _COLUMN):
            return text.split()
        if _is_integer(by_comma[0].split()[-1] if " " in by_comma[0] else ""):
            raise _misread(path, number, text, "blanks and commas both seem to separate fields")
        return by_comma
    fields: list[str] = []
    at = 0
    while at < len(text):
        match = _FIELD.match(text, at)
        if match is None:
            raise _misread(path, number, text, "a quote that is not closed, or stands inside a field")
        fields.append(
            match[1].replace('""', '"') if match[1] is not None else match[2] if match[2] is not None else match[3]
        )
        at = match.end()
        if at < len(text):
            gap = _GAP.match(text, at)
            if gap is None:
                raise _misread(path, number, text, "a quote that is not closed, or stands inside a field")
            at = gap.end()
    return fields


def _header(fields: list[str], path: Path, number: int) -> tuple[str, ...] | None:
    names = [_COLUMN.get(field.lower()) for field in fields]
    if len(fields) < 2 or any(name is None for name in names):
        return None
    columns = tuple(name for name in names if name is not None)
    if len(set(columns)) != len(columns) or columns[0] != "path":
        raise DataError(
            f"{path}, line {number}: the header is not understood",
            found=" ".join(fields),
            expected="`path label`, `path start total`, `folder total label` or `path start total label`",
        )
    return columns


def _entry(fields: list[str], columns: tuple[str, ...] | None, path: Path, number: int) -> Entry:
    text = " ".join(fields)
    if columns is not None and len(fields) != len(columns):
        raise _misread(path, number, text, f"{len(fields)} fields under a header of {len(columns)}")
    if columns is None and len(fields) not in (2, 3):
        hint = " (a path with blanks needs quotes)" if len(fields) > 3 else " (the label is missing)"
        raise _misread(path, number, text, f"{len(fields)} fields{hint}")
    if not fields[0]:
        raise _misread(path, number, text, "an empty path")
    for field in fields[1:]:
        if not _is_integer(field):
            raise _misread(path, number, text, f"{field!r} where a whole number belongs")
    numbers = [int(field) for field in fields[1:]]
    ending = os.path.splitext(fields[0])[1].lower()
    is_video = ending in VIDEO_SUFFIXES
    if columns is None:
        if len(numbers) == 1:
            columns = ("path", "label")
        else:
            columns = ("path", "start", "total") if is_video or numbers[1] < 0 else ("path", "total", "label")
    value = dict(zip(columns[1:], numbers, strict=True))
    label, start, total = value.get("label", -1), value.get("start", -1), value.get("total", -1)
    if label < -1 or total == 0 or start < -1 or max(numbers) > 2**31 - 1:
        raise _misread(path, number, text, f"label {label}, start {start}, total {total}: out of range")
    if is_video or (total < 0 and ("total" in columns or ending)):
        return Entry(fields[0], label, 0 if total < 0 else max(start, 0), max(total, -1), "video")
    return Entry(fields[0], label, start, max(total, -1), "frames")


def _is_integer(text: str) -> bool:
    digits = text.removeprefix("-")
    return digits.isascii() and digits.isdigit() and len(digits) <= MAX_DIGITS


def _misread(path: Path, number: int, text: str, why: str) -> DataError:
    shown = text if len(text) <= 120 else text[:117] + "..."
    return DataError(f"{path}, line {number}: {why}", found=shown, expected=EXAMPLE, fix="correct or delete the line")


def _settle_base(manifest: Manifest) -> None:
    first = bytes(manifest._text[: manifest._ends[1]]).decode()
    # os.path's, because pathlib's raises where a name is too long for the file system
    if not os.path.isabs(first) and not os.path.exists(manifest.base / first) and os.path.exists(first):
        manifest.base = Path.cwd()
