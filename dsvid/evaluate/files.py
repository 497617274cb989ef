"""What the files of all evaluations share. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dsvid.errors import DataError


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Errors of the file system become a DataError that names the folder."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{folder} cannot be written", found=str(error), fix="another folder") from error
