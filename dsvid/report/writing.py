"""A page into a file, whole or not at all."""

from __future__ import annotations

from pathlib import Path

from dsvid.errors import DsvidError
from dsvid.publish import publish_text


def publish_page(path: Path, page: str) -> Path:
    """Write a page to `path`. Raises DsvidError where that cannot be done; then nothing is left behind."""
    if path.is_dir():
        raise DsvidError(f"-o {path}", found="a folder", expected="a file", fix=f"-o {path / 'report.html'}")
    try:
        publish_text(path, page)
    except OSError as error:
        raise DsvidError(f"{path} cannot be written", found=error.strerror or str(error), fix="-o FILE.html") from error
    return path
