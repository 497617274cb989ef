"""Whether a run still runs, and what its log says of its end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dsvid.lock_owner import process_place
from dsvid.report.ending import ending_of, holder_of
from tests.report.made_run import make_log


def lock(folder: Path, **changes: object) -> Path:
    owner = {**process_place(os.getpid()), "since": "2026-11-27", "token": "t", **changes}
    (folder / ".lock").write_text(json.dumps(owner))
    return folder / ".lock"


def test_nobody_holds_a_folder_without_a_lock(tmp_path: Path) -> None:
    holder = holder_of(tmp_path, time.time())
    assert not holder.alive and "no process" in holder.words


def test_a_process_of_this_host_is_looked_at_itself(tmp_path: Path) -> None:
    path = lock(tmp_path)
    os.utime(path, (1, 1))  # an old heartbeat says nothing where the process can be seen
    assert holder_of(tmp_path, time.time()).alive
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    lock(tmp_path, pid=child.pid)
    gone = holder_of(tmp_path, time.time())
    assert not gone.alive and "was killed" in gone.words


def test_a_number_that_another_process_has_now(tmp_path: Path) -> None:
    lock(tmp_path, started="1")
    assert not holder_of(tmp_path, time.time()).alive


@pytest.mark.parametrize(("age_s", "alive"), [(5, True), (119, True), (121, False), (-1000, True)])
def test_elsewhere_the_heartbeat_decides(tmp_path: Path, age_s: float, alive: bool) -> None:
    path = lock(tmp_path, host="elsewhere")
    os.utime(path, (1e9, 1e9))
    holder = holder_of(tmp_path, 1e9 + age_s)
    assert holder.alive is alive and "elsewhere" in holder.words and f"{max(age_s, 0)} s ago" in holder.words


def test_looking_leaves_nothing_behind(tmp_path: Path) -> None:
    lock(tmp_path, host="elsewhere")
    before = sorted(tmp_path.iterdir())
    holder_of(tmp_path, time.time())
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("text", ["", "{}", "[]", "\0"])
def test_a_damaged_lock_is_no_running_run(tmp_path: Path, text: str) -> None:
    (tmp_path / ".lock").write_text(text)
    holder = holder_of(tmp_path, time.time())
    assert not holder.alive and "cannot be read" in holder.words


STEP = "INFO    step 70/240 epoch 0.70 loss 1.0198"


@pytest.mark.parametrize(
    ("records", "kind", "words"),
    [
        ([STEP], "silent", ""),
        ([STEP, "INFO    stopped: SIGTERM, step 71 is saved; start the same command again to go on"], "stopped",
         "SIGTERM, step 71 is saved"),
        (["ERROR   DataError: an older start", "INFO    batch     1 ranks", STEP], "silent", ""),
        (["ERROR   a save failed, the run goes on", STEP], "silent", ""),
        ([STEP, "ERROR   DataError: too many: 5 of 9\n  found:    the first\n  fix:      a list"], "failed",
         "DataError: too many: 5 of 9 (found: the first)"),
        ([STEP, "ERROR   Traceback (most recent call last):\n  File\nValueError: no", "WARNING bye"], "failed",
         "ValueError: no"),
        ([STEP, "INFO    weights   /runs/a/weights/model.safetensors", "INFO    test      top-1 3 %"], "done", ""),
    ],
)  # fmt: skip
def test_what_the_log_says(tmp_path: Path, records: list[str], kind: str, words: str) -> None:
    make_log(tmp_path, *records)
    ending = ending_of(tmp_path)
    assert (ending.kind, ending.words) == (kind, words)


def test_a_stall_is_found_by_the_file_that_the_watchdog_left(tmp_path: Path) -> None:
    make_log(tmp_path, STEP)
    stall = tmp_path / "logs" / "stall-rank-00000-20261127-051706.txt"
    stall.write_text("rank 0 on vm, pid 1\n")
    assert ending_of(tmp_path).kind == "silent", "the file of a run that did not stall has one line"
    stall.write_text("rank 0 on vm, pid 1\nnothing moved for 1200 s\nphase 'data'\n")
    ending = ending_of(tmp_path)
    assert ending.kind == "failed" and "nothing moved for 1200 s" in ending.words
