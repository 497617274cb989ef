"""A list -> which of its lines are good: every entry opened, what is wrong with which line, what the videos are like.

Opening is `video_facts`'s; here are the rules between lines (labels, duplicates, lengths), the state that lets a
stopped check go on, and the cleaned list. Prints nothing.
"""

from __future__ import annotations

import json
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import IO, Any

from pydantic import TypeAdapter

from dsvid.data.guarded_work import GivenUp, run_guarded
from dsvid.data.manifest import Entry, Manifest, open_split, read_list
from dsvid.data.shards import is_packed
from dsvid.data.video_facts import Facts, Look, look_at
from dsvid.errors import DataError
from dsvid.publish import publish_file, publish_text

LINE, LABEL, DUPLICATE, SHORT = "line not understood", "label", "duplicate", "short"
LABELS = "two labels"
STATE_VERSION = 1


@dataclass(frozen=True)
class Rules:
    """What makes a line bad besides that its video cannot be read; `num_classes` 0: labels need only be there."""

    look: Look = field(default_factory=Look)
    num_frames: int = 16
    sampling_rate: int = 4
    num_classes: int = 0
    drop_short: bool = False
    allow_duplicates: bool = False
    limit_s: float = 60.0


@dataclass(frozen=True)
class Fault:
    """One thing wrong with a line; `bad` False: a remark, the line stays in the cleaned list."""

    line: int
    path: str
    cause: str
    text: str
    bad: bool = True

    def __str__(self) -> str:
        remark = "" if self.bad else " (kept)"
        return f"line {self.line}: {self.path}: {self.cause}{remark}: {self.text}"


@dataclass
class Survey:
    """What the entries that can be read are like: how many have which rate, size, codec, length of groups, ..."""

    entries: int = 0
    frames: Counter[int] = field(default_factory=Counter)
    fps: Counter[float] = field(default_factory=Counter)
    sizes: Counter[str] = field(default_factory=Counter)
    codecs: Counter[str] = field(default_factory=Counter)
    groups: Counter[int] = field(default_factory=Counter)  # lengths of groups of pictures
    reordered: int = 0
    coded: int = 0  # frames of all video files
    not_decord: Counter[str] = field(default_factory=Counter)

    def add(self, facts: Facts) -> None:
        """Count one entry."""
        self.entries += 1
        self.frames[facts.frames] += 1
        self.sizes[f"{facts.width}x{facts.height}"] += 1
        if facts.codec:
            self.fps[round(facts.fps, 3)] += 1
            self.codecs[f"{facts.codec} {facts.pixels}".strip()] += 1
            self.groups.update(facts.groups)
            self.coded += sum(facts.groups)
            self.reordered += facts.reordered
        if facts.not_decord:
            self.not_decord[facts.not_decord] += 1


Part = tuple[str, int, int]  # of a video: path, first frame, number of frames


class ListCheck:
    """The check of one list; `output` is the cleaned list that `publish` writes, None = none."""

    def __init__(self, source: str, root: str, rules: Rules, output: Path | None = None) -> None:
        """Read the list. Raises DataError where it cannot be read as text or has no lines."""
        self.rules, self.output, self.survey = rules, output, Survey()
        self.faults: list[Fault] = []
        self.good: list[int] = []  # numbers of entries
        self._lines: deque[Fault] = deque()
        path = Path(source).expanduser()
        if output is not None and (path.is_dir() or output.is_dir() or _would_replace(output, path)):
            raise DataError("-o", found=output, expected="a file, another than the list")
        if path.is_dir():
            if not is_packed(path):
                raise DataError(f"{path} is a folder", expected="a list file, or a folder of packed shards")
            self.manifest: Manifest = open_split(str(path), "train")
        else:
            self.manifest = read_list(path, root, self._on_bad_line)
        self.entries = len(self.manifest) + len(self._lines)
        self._labelled = any(label >= 0 for label in self.manifest.labels)

    def _on_bad_line(self, number: int, text: str, error: DataError) -> None:
        why = error.what.split(": ", 1)[-1]
        self._lines.append(Fault(number, text if len(text) <= 120 else text[:117] + "...", LINE, why))

    @property
    def bad(self) -> int:
        """Lines that are not good, of those looked at so far."""
        return len({fault.line for fault in self.faults if fault.bad})

    @property
    def all_absolute(self) -> bool:
        """Whether no path of the list depends on where the list lies."""
        return all(os.path.isabs(self.manifest.listed_path(number)) for number in range(len(self.manifest)))

    def run(self, workers: int, tell: Callable[[list[Fault]], object] = lambda _: None) -> int:
        """Look at every entry, `workers` at a time; `tell` hears what is wrong with each, in the order of the list.

        Returns how many had been looked at by a call that was stopped. Raises DataError, OSError.
        """
        state = _State(self.output, self.rules.look) if self.output is not None else None
        known = {} if state is None else {
            number: facts for number in range(len(self.manifest)) if (facts := state.get(self.manifest[number]))
        }  # fmt: skip
        numbers = [number for number in range(len(self.manifest)) if number not in known]
        results = run_guarded(self._look, numbers, workers, self.rules.limit_s)
        seen: dict[Part, tuple[int, int]] = {}
        with state or nullcontext():
            for number in range(len(self.manifest)):
                result = known.pop(number, None) or next(results)
                if state is not None and not isinstance(result, GivenUp):
                    state.put(self.manifest[number], result)
                while self._lines and self._lines[0].line < self.manifest.line_number(number):
                    self._add([self._lines.popleft()], tell)
                self._add(list(self._judge(number, result, seen)), tell)
        while self._lines:
            self._add([self._lines.popleft()], tell)
        return len(self.manifest) - len(numbers)

    def _look(self, number: int) -> Facts:
        return look_at(self.manifest[number], self.rules.look)

    def _add(self, faults: list[Fault], tell: Callable[[list[Fault]], object]) -> None:
        self.faults += faults
        tell(faults)

    def _judge(self, number: int, facts: Facts | GivenUp, seen: dict[Part, tuple[int, int]]) -> Iterator[Fault]:
        entry, line, bad = self.manifest[number], self.manifest.line_number(number), False
        for cause, text, counts in self._causes(entry, line, facts, seen):
            bad = bad or counts
            yield Fault(line, entry.path, cause, text, counts)
        if not isinstance(facts, GivenUp) and not facts.cause:
            self.survey.add(facts)
        if not bad:
            self.good.append(number)
            seen.setdefault(_part(entry), (line, entry.label))

    def _causes(
        self, entry: Entry, line: int, facts: Facts | GivenUp, seen: dict[Part, tuple[int, int]]
    ) -> Iterator[tuple[str, str, bool]]:
        """(cause, text, whether it makes the line bad)."""
        rules = self.rules
        if isinstance(facts, GivenUp):
            yield facts.cause, str(facts), True
        elif facts.cause:
            yield facts.cause, facts.text, True
        elif facts.frames < rules.num_frames * rules.sampling_rate:
            wanted = f"{rules.num_frames} x {rules.sampling_rate}"
            yield SHORT, f"{facts.frames} frames, fewer than {wanted}: clips repeat frames", rules.drop_short
        if entry.label < 0 and (self._labelled or rules.num_classes):
            yield LABEL, "it is missing", True
        elif rules.num_classes and entry.label >= rules.num_classes:
            yield LABEL, f"{entry.label}, not in 0 .. {rules.num_classes - 1}", True
        if _part(entry) in seen and entry.kind != "packed":
            first, label = seen[_part(entry)]
            if label == entry.label:
                yield DUPLICATE, f"the same as line {first}", not rules.allow_duplicates
            else:
                text = f"{entry.label}, but line {first}, which is kept, says {label} of the same video"
                yield LABELS, text, not rules.allow_duplicates

    def publish(self) -> Path | None:
        """Write the cleaned list and, beside it, what was wrong; None where there is no good line or no output.

        Comments, the header and blank lines stay; of all lines the bytes do.
        """
        if self.output is None:
            return None
        bad = {fault.line for fault in self.faults if fault.bad}
        rows = [json.dumps(asdict(fault), ensure_ascii=False) + "\n" for fault in self.faults]
        publish_text(bad_path(self.output), "".join(rows))
        if self.good:
            kept = _without(Path(self.manifest.source).read_bytes(), bad)
            publish_file(self.output, lambda out: out.write(kept))
        state_path(self.output).unlink(missing_ok=True)
        return self.output if self.good else None


def _part(entry: Entry) -> Part:
    return os.path.normpath(entry.path), max(entry.start, 0), entry.total


def _would_replace(output: Path, listed: Path) -> bool:
    """Whether one of the files that are written is the list, however the two are spelled."""
    for path in (output, bad_path(output), state_path(output)):
        if os.path.realpath(path) == os.path.realpath(listed):
            return True
        with suppress(OSError, ValueError):
            if os.path.samefile(path, listed):
                return True
    return False


def bad_path(output: Path) -> Path:
    """Where the faults of a cleaned list are written, a JSON object a line."""
    return output.with_name(output.name + ".bad.jsonl")


def state_path(output: Path) -> Path:
    """What a check that was stopped has seen; gone when it is through."""
    return output.with_name(output.name + ".state.jsonl")


def _without(blob: bytes, bad: set[int]) -> bytes:
    lines = blob.split(b"\n")  # as read_list counts them
    kept = [line for number, line in enumerate(lines, start=1) if number not in bad]
    mark = b"\xef\xbb\xbf"
    lost = blob.startswith(mark) and 1 in bad
    return (mark if lost else b"") + b"\n".join(kept)


FACTS = TypeAdapter(Facts)
FACT_NAMES = {one.name for one in fields(Facts)}


class _State:
    """Facts of entries by path and range, good for as long as size and time of the file are the same."""

    def __init__(self, output: Path, look: Look) -> None:
        self._path = state_path(output)
        self._head = {"version": STATE_VERSION, **asdict(look)}
        self._rows: dict[str, tuple[list[int], dict[str, Any]]] = {}
        self._out: IO[str] | None = None
        with suppress(OSError, ValueError), self._path.open("rb") as handle:
            if json.loads(handle.readline()) == self._head:
                for line in handle:
                    self._take(line)

    def _take(self, line: bytes) -> None:
        """Keep a row; one that is half written or odd is skipped: its entry is looked at again."""
        with suppress(ValueError, KeyError, TypeError, AttributeError):  # pydantic's errors are ValueErrors
            row = json.loads(line)
            key, file, facts = row["key"], row["file"], row["facts"]
            if isinstance(key, str) and isinstance(file, list) and facts.keys() == FACT_NAMES:
                FACTS.validate_python(facts)
                self._rows[key] = (file, facts)

    def __enter__(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        text = [json.dumps(self._head)]
        text += [json.dumps({"key": key, "file": file, "facts": facts}) for key, (file, facts) in self._rows.items()]
        publish_text(self._path, "\n".join(text) + "\n")
        self._out = self._path.open("a", encoding="utf-8")

    def __exit__(self, *_: object) -> None:
        if self._out is not None:
            self._out.close()

    def get(self, entry: Entry) -> Facts | None:
        """What is known of an entry whose file is still the same."""
        file, facts = self._rows.get(_key(entry), (None, {}))
        return Facts(**facts) if file is not None and file == _identity(entry.path) else None

    def put(self, entry: Entry, facts: Facts) -> None:
        """Note down what was found; once."""
        key, file = _key(entry), _identity(entry.path)
        if file is None or self._rows.get(key, (None,))[0] == file or self._out is None:
            return
        self._rows[key] = (file, asdict(facts))
        self._out.write(json.dumps({"key": key, "file": file, "facts": asdict(facts)}) + "\n")
        self._out.flush()


def _key(entry: Entry) -> str:
    return json.dumps([entry.path, entry.start, entry.total])


def _identity(path: str) -> list[int] | None:
    try:
        facts = os.stat(path)
    except (OSError, ValueError):
        return None
    return [facts.st_size, facts.st_mtime_ns]
