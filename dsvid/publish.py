"""Files and folders that appear whole or not at all: written beside their place, synced, then renamed into it.

Knows the file system only; errors are the system's, and the caller says what they mean.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO


def publish_file(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """`write` a file beside `path`, then rename it over `path`."""

    def fill(scratch: Path) -> None:
        with scratch.open("wb") as out:
            write(out)

    publish_path(path, fill)


def publish_path(path: Path, write: Callable[[Path], object]) -> None:
    """The same for writers that open the file themselves, by the name that they are given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    os.close(handle)
    scratch = Path(name)
    try:
        write(scratch)
        with scratch.open("rb") as written:
            os.fsync(written.fileno())
        scratch.chmod(0o644)
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)
    sync_folder(path.parent)


def publish_text(path: Path, text: str) -> None:
    """A small text file: a reader sees the old or the new one, never half of it."""
    publish_file(path, lambda out: out.write(text.encode()))


def publish_json(path: Path, content: Any) -> None:
    """An indented JSON file; numbers that are not finite, which JSON does not have, are null."""
    publish_text(path, json.dumps(_without_nan(content), indent=1, allow_nan=False) + "\n")


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nan(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def publish_folder(folder: Path, fill: Callable[[Path], None]) -> None:
    """`fill` an empty folder beside `folder`, then swap it in."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        fill(scratch)
        for path in scratch.iterdir():
            path.chmod(0o644)
            with path.open("rb") as handle:
                os.fsync(handle.fileno())
        scratch.chmod(0o755)
        old = scratch.with_name(f"{scratch.name}-old")
        if folder.exists():
            os.replace(folder, old)
        os.replace(scratch, folder)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Bring what was renamed or removed in `folder` to the disk."""
    with suppress(OSError):  # some file systems cannot open a folder
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
