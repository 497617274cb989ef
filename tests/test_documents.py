"""Documents within limits; what is beyond them is tested with its cost in test_security."""

from __future__ import annotations

from pathlib import Path

import pytest

from dsvid.documents import MAX_DEPTH, DocumentError, parse_json, read_json, read_text


def test_what_is_fine_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes('\ufeff{"a": [1, 2.5, "ü"], "b": {"a": null}}'.encode())
    assert read_json(tmp_path / "a.json") == {"a": [1, 2.5, "ü"], "b": {"a": None}}


def test_the_depth_is_counted_outside_of_texts() -> None:
    assert parse_json("[" * MAX_DEPTH + "]" * MAX_DEPTH)
    with pytest.raises(DocumentError, match="deeper"):
        parse_json("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1))
    assert parse_json('["' + "[{" * 1000 + '", "\\"' + "[" * 100 + '"]')
    assert len(parse_json("[" + "[]," * 1000 + "[]]")) == 1001, "many are not deep"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"a": 1, "a": 2}', "given twice"),
        ('[{"b": {"a": 1, "a": 1}}]', "'a' is given twice"),
        ("{a: 1}", "line 1"),
        ("", "line 1"),
        ("1" * 5000, "digits"),
    ],
)
def test_what_is_not_fine_says_why(text: str, said: str) -> None:
    with pytest.raises(DocumentError, match=said):
        parse_json(text)


def test_the_size_is_looked_at_before_the_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("12345")
    assert read_text(path, 5) == "12345"
    with pytest.raises(DocumentError, match="5 bytes, more than 4"):
        read_text(path, 4)
    path.write_bytes(b"\xff\xfe1")
    with pytest.raises(DocumentError, match="no UTF-8"):
        read_text(path)
    with pytest.raises(DocumentError, match="no regular file"):
        read_text(tmp_path)
    with pytest.raises(OSError):
        read_text(tmp_path / "none")
