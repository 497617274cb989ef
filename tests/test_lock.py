"""One run to a run folder: who holds it, and when a holder counts as gone."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dsvid import lock
from dsvid.errors import CheckpointError
from dsvid.lock import RunLock, read_owner
from dsvid.runtime import log

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def heard(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "propagate", True)
    caplog.set_level(logging.WARNING)


@pytest.fixture()
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock of `tmp_path`."""
    code = (
        "import time\nfrom pathlib import Path\nfrom dsvid.lock import RunLock\n"
        f"RunLock(Path({str(tmp_path)!r}) / '.lock').take()\nprint('held', flush=True)\ntime.sleep(100)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_living_run_keeps_its_folder(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    with pytest.raises(CheckpointError, match=rf"(?s)used by another run.*process {holder.pid} on .*delete"):
        RunLock(tmp_path / ".lock").take()
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_a_killed_run_s_lock_is_taken_over_aloud(
    tmp_path: Path, holder: subprocess.Popen[str], caplog: pytest.LogCaptureFixture
) -> None:
    holder.kill()  # and not waited for: a zombie is no living run
    time.sleep(0.2)
    mine = RunLock(tmp_path / ".lock")
    mine.take()
    assert f"of process {holder.pid} on " in caplog.text and "taken over: there is no such process" in caplog.text
    owner = read_owner(tmp_path / ".lock")
    assert owner is not None and owner["pid"] == os.getpid()
    mine.release()
    assert list(tmp_path.iterdir()) == []


def rewrite(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_number_that_another_process_has_now(
    tmp_path: Path, holder: subprocess.Popen[str], caplog: pytest.LogCaptureFixture
) -> None:
    rewrite(tmp_path / ".lock", started="1")
    mine = RunLock(tmp_path / ".lock")
    mine.take()
    assert "belongs to another process now" in caplog.text
    mine.release()


@pytest.mark.parametrize("elsewhere", [{"host": "node9"}, {"processes": "pid:[1]"}, {"boot": "another"}])
def test_on_another_host_the_heartbeat_decides(
    elsewhere: dict[str, str],
    tmp_path: Path,
    holder: subprocess.Popen[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lock, "STALE_S", 3.0)
    monkeypatch.setattr(lock, "LOOK_S", 0.1)
    path = tmp_path / ".lock"
    rewrite(path, pid=2**22 + 1, **elsewhere)
    beat = threading.Timer(1.0, os.utime, [path])
    beat.start()
    with pytest.raises(CheckpointError, match="used by another run"):
        RunLock(path).take()
    mine, start = RunLock(path), time.monotonic()
    mine.take()
    assert 1 < time.monotonic() - start < 10 and "no heartbeat for" in caplog.text
    mine.release()


def test_a_file_system_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    mine = RunLock(tmp_path / ".lock")
    mine.take()
    with pytest.raises(CheckpointError, match="used by another run"):
        RunLock(tmp_path / ".lock").take()
    mine.release()
    assert list(tmp_path.iterdir()) == []


def test_the_heartbeat_is_judged_by_the_file_server_s_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".lock").touch()
    monkeypatch.setattr(time, "time", lambda: 9e9)  # this machine's clock is years ahead
    age = lock.heartbeat_age_s(tmp_path / ".lock")
    assert age is not None and abs(age) < 5


def test_the_owner_s_heart_beats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "HEARTBEAT_S", 0.05)
    mine = RunLock(tmp_path / ".lock")
    mine.take()
    os.utime(tmp_path / ".lock", (1, 1))
    time.sleep(0.5)
    assert (tmp_path / ".lock").stat().st_mtime > 1
    mine.release()


def test_a_lock_that_was_taken_over_is_not_released(tmp_path: Path) -> None:
    mine = RunLock(tmp_path / ".lock")
    mine.take()
    rewrite(tmp_path / ".lock", token="another's")
    mine.release()
    assert (tmp_path / ".lock").exists()


def test_an_owner_whose_folder_was_taken_over_ends_aloud(tmp_path: Path) -> None:
    """As a process that slept for longer than STALE_S would find it."""
    code = (
        "import time\nfrom pathlib import Path\nfrom dsvid import lock\nfrom dsvid.runtime import Ranks, start_log\n"
        "start_log(Ranks(0, 1, 0))\nlock.HEARTBEAT_S = 0.1\n"
        f"lock.RunLock(Path({str(tmp_path)!r}) / '.lock').take()\nprint('held', flush=True)\ntime.sleep(20)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    scratch = tmp_path / "new"
    scratch.write_text((tmp_path / ".lock").read_text())
    rewrite(scratch, token="another's", host="node9")
    os.replace(scratch, tmp_path / ".lock")
    os.utime(tmp_path / ".lock", (1, 1))
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 1 and "was taken over by process" in said and "on node9" in said
    assert (tmp_path / ".lock").stat().st_mtime == 1, "the other's heart must beat by itself"


def test_only_the_stale_lock_is_removed(tmp_path: Path) -> None:
    """Between the look and the removal another start may have taken the lock over."""
    first, second = RunLock(tmp_path / ".lock"), RunLock(tmp_path / ".lock")
    first.take()
    stale = read_owner(tmp_path / ".lock")
    assert stale is not None
    second._remove({**stale, "token": "an older one"})
    assert read_owner(tmp_path / ".lock") == stale
    first.release()
