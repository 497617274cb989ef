"""Opens torch files without running anything in them: tensors, numbers and text come in, any other object is refused.

The values stay on the disk until they are used. Knows torch's file format, no layouts.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from dsvid.errors import CheckpointError

_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")
_FIX = "where the file is trusted, save its state dict alone with torch.save and use that"


def load_pickle(path: Path, allowed: Sequence[Any] = (), *, beside: str = "", fix: str | None = None) -> Any:
    """What `torch.save` wrote into `path`, on the CPU and memory-mapped where the format allows it.

    `allowed`: classes let in beside tensors, numbers and text, in the forms that `torch.serialization.safe_globals`
    takes; `beside` names them in the message. Raises CheckpointError that names the file, and the object refused.
    """
    try:
        with path.open("rb") as handle:
            zipped = handle.read(2) == b"PK"
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read", found=error.strerror or str(error), fix=fix) from error
    if zipped and not zipfile.is_zipfile(path):
        raise CheckpointError(
            f"{path}: cannot be read",
            found=f"a truncated file of {path.stat().st_size} bytes (its directory, at the end, is missing)",
            expected="a complete torch file",
            fix=fix or "copy or download the file again",
        )
    try:
        with torch.serialization.safe_globals(list(allowed)):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True if zipped else None)
    except Exception as error:  # a damaged zip, a pickle of code, a text file: torch raises a different class for each
        refused = _GLOBAL.search(str(error))
        if refused:
            raise CheckpointError(
                f"{path}: cannot be read: it holds more than tensors",
                found=f"{refused[1]}, which unpickling would run or build",
                expected=f"tensors, numbers, text{beside}",
                fix=fix or _FIX,
            ) from error
        raise CheckpointError(
            f"{path}: cannot be read",
            found=f"{type(error).__name__}: {_reason(error)}",
            expected="a torch file that holds tensors only",
            fix=fix,
        ) from error


def _reason(error: Exception) -> str:
    """torch's message without the paragraphs that come before its reason."""
    text = str(error).rpartition("WeightsUnpickler error:")[2]
    return text.strip().partition("\n")[0]
