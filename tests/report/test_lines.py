"""Files as they are found: half-written, damaged, endless."""

from __future__ import annotations

from pathlib import Path

import pytest

from dsvid.report import lines
from dsvid.report.lines import Damage, Lines, document, last_text, number, whole


def test_a_half_written_last_line_is_no_damage(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"a": 1}\n{"a": 2}\n{"a": ')
    found = Lines(path)
    assert [row["a"] for row in found] == [1, 2]
    assert found.half_written and found.damage() == []


def test_damaged_lines_are_counted_and_the_rest_is_read(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"a": 1}\n\0\0\0\0\n[1]\n\xff\xfe\n{"a": 1, "a": 2}\n\n{"a": 5}\n')
    found = Lines(path)
    assert [row["a"] for row in found] == [1, 5]
    assert found.damage() == [Damage("metrics.jsonl", "4 lines cannot be read and are left out (the first is line 2)")]


def test_an_endless_line_is_one_damaged_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "MAX_LINE", 16)
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"a": 1}\n{"b": "' + "x" * 100 + '"}\n{"a": 3}\n')
    found = Lines(path)
    assert [row["a"] for row in found] == [1, 3]
    assert "line 2" in found.damage()[0].what


def test_the_tail_of_a_long_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "TAIL_BYTES", 35)
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(f'{{"a": {at}}}\n' for at in range(10, 100)))
    found = Lines(path, tail=True)
    assert [row["a"] for row in found] == [97, 98, 99]
    assert found.skipped and found.damage() == []
    assert last_text(path).splitlines()[0].startswith('{"a": 9')


def test_a_file_that_is_not_there_has_no_lines(tmp_path: Path) -> None:
    found = Lines(tmp_path / "gone")
    assert list(found) == [] and found.damage() == []
    found = Lines(tmp_path)
    assert list(found) == [] and "cannot be read" in found.damage()[0].what


@pytest.mark.parametrize("text", ["{", "[1]", "\udcff"])
def test_a_damaged_document_is_told(tmp_path: Path, text: str) -> None:
    damage: list[Damage] = []
    (tmp_path / "run.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert document(tmp_path / "run.json", damage) == {}
    assert [one.file for one in damage] == ["run.json"]
    assert document(tmp_path / "gone.json", damage) == {} and len(damage) == 1


def test_numbers_that_are_none() -> None:
    assert [number(value) for value in (1, 0.5, True, "1", None, float("nan"), 10**400)] == [1, 0.5, *[None] * 5]
    assert [whole(value) for value in (3, 3.0, 3.5, -1, 1e30, True)] == [3, 3, None, None, None, None]
