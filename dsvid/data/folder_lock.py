"""One program at a time that fills a folder: the system's lock on it, which ends with its holder."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dsvid.errors import DataError


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder that is there. Raises DataError where another call holds it."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system that locks no folders
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise DataError(f"{folder}: another call writes into it", fix="wait for it, or stop it") from error
        yield
    finally:
        os.close(handle)
