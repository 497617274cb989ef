"""Reads small JSON documents within limits: their size, their depth, a key given once. Knows no meaning of any key.

What such a file says comes from outside; whoever reads one says which error its faults are.
"""

from __future__ import annotations

import json
import re
import stat
from pathlib import Path
from typing import Any

MAX_BYTES = 4 << 20
MAX_DEPTH = 64
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}]')


class DocumentError(ValueError):
    """A document that is too large, nested too deep, or not what it should be; the text says which."""


def read_text(path: Path, limit: int = MAX_BYTES) -> str:
    """The UTF-8 text of a file of at most `limit` bytes. Raises DocumentError; OSError where it cannot be opened."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):  # a pipe would wait for ever, a device never end
        raise DocumentError("no regular file")
    if found.st_size > limit:
        raise DocumentError(f"{found.st_size} bytes, more than {limit}")
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DocumentError(f"no UTF-8 text: {error.reason} at byte {error.start}") from error


def parse_json(text: str) -> Any:
    """The value of a JSON text. Raises DocumentError for bad syntax, a key given twice, or too deep a nesting."""
    _check_depth(text)
    try:
        return json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:  # also a whole number of thousands of digits
        raise DocumentError(str(error)) from error


def read_json(path: Path, limit: int = MAX_BYTES) -> Any:
    """The value in a JSON file. Raises DocumentError; OSError where it cannot be opened."""
    return parse_json(read_text(path, limit))


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise DocumentError(f"the key {key!r} is given twice")
        found[key] = value
    return found


def _check_depth(text: str) -> None:
    """Python's parser recurses: a file of brackets alone would end in RecursionError."""
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return
    depth = 0
    for found in _TOKEN.finditer(text):
        token = found[0]
        if token in "[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise DocumentError(f"nested deeper than {MAX_DEPTH} levels")
        elif token in "]}":
            depth -= 1


def dotted(tree: Any, prefix: str = "") -> dict[str, Any]:
    """{dotted key: value} of nested objects; lists and empty objects are values."""
    if not isinstance(tree, dict) or not tree:
        return {prefix: tree} if prefix else {}
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= dotted(value, f"{prefix}.{key}" if prefix else str(key))
    return found
