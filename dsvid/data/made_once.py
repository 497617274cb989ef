"""Folders of generated files, made once per machine: whole or absent, whoever asks for them, and however many at once.

Knows no content.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from dsvid.errors import DataError

try:
    import fcntl
except ImportError:  # not a POSIX system: the rename alone keeps the folder whole
    fcntl = None  # type: ignore[assignment]

MANIFEST = "files.json"
Say = Callable[[str], None]


def cache_folder() -> Path:
    """$DSVID_CACHE, or ~/.cache/dsvid."""
    return Path(os.environ.get("DSVID_CACHE") or Path.home() / ".cache" / "dsvid")


def made_once(root: Path, make: Callable[[Path], None], *, what: str, log: Say | None = None) -> Path:
    """`root`, filled by `make(folder)` at the first call on a machine; the name of the folder says which version it is.

    One process makes the files under a lock, the others wait. The folder is made under another name and renamed. A
    damaged one (a file missing, or of another size) is made anew. Raises DataError where it cannot be written.
    """
    if fault(root) is None:
        return root
    say = log or _say_nothing
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        with _Lock(root.parent / f"{root.name}.lock", what, say):
            if fault(root) is None:
                return root
            _make_and_publish(root, make, what, say)
    except OSError as error:
        raise DataError(
            f"the {what} cannot be stored in {root.parent}",
            found=error.strerror or str(error),
            expected="a folder that can be written, with 40 MB free",
            fix="set DSVID_CACHE to such a folder",
        ) from error
    return root


def fault(root: Path) -> str | None:
    """What is wrong with a folder (absent, partial, a file of another size), or None where it is whole."""
    try:
        known = json.loads((root / MANIFEST).read_text(encoding="utf-8"))
        files = known["files"]
        for name, size in files.items():
            if (root / name).stat().st_size != size:
                return f"{name} has another size than {size}"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def _say_nothing(_: str) -> None:
    return None


class _Lock:
    """An exclusive lock on a file, released by the kernel when its holder dies."""

    def __init__(self, path: Path, what: str, say: Say) -> None:
        self.path, self.what, self.say = path, what, say
        self.handle = -1

    def __enter__(self) -> None:
        if fcntl is None:
            return
        self.handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(self.handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.say(f"waiting for another process that makes the {self.what} ({self.path})")
            fcntl.flock(self.handle, fcntl.LOCK_EX)
        except OSError as error:
            # a network file system without locks: two makers waste time, and the rename still keeps the folder whole
            self.say(f"no lock on {self.path} ({error.strerror}): several processes may make the {self.what} at once")

    def __exit__(self, *_: object) -> None:
        if self.handle >= 0:
            os.close(self.handle)


def _make_and_publish(root: Path, make: Callable[[Path], None], what: str, say: Say) -> None:
    if root.exists():
        say(f"the {what} in {root} are damaged ({fault(root)}): making them anew")
        shutil.rmtree(root)
    started = time.monotonic()
    say(f"making {what} in {root} (once per machine, a minute or less)")
    for left_over in root.parent.glob(f"{root.name}.tmp-*"):
        # no older than a day is no proof of a dead maker where locks do not work, so a fresh one stays
        if fcntl is not None or time.time() - left_over.stat().st_mtime > 86400:
            shutil.rmtree(left_over, ignore_errors=True)
    draft = Path(tempfile.mkdtemp(prefix=f"{root.name}.tmp-", dir=root.parent))
    try:
        draft.chmod(0o755)
        make(draft)
        files = {
            str(path.relative_to(draft)): path.stat().st_size for path in sorted(draft.rglob("*")) if path.is_file()
        }
        (draft / MANIFEST).write_text(json.dumps({"files": files}), encoding="utf-8")
        try:
            draft.rename(root)
        except OSError:
            if fault(root) is not None:  # not merely made by somebody else meanwhile
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    say(f"{what} ready after {time.monotonic() - started:.0f} s")
