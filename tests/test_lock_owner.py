"""Who holds a run folder, only looked at."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from dsvid.lock_owner import last_beat, process_place, read_owner


def test_a_process_and_one_that_is_not_there() -> None:
    own = process_place(os.getpid())
    assert own["pid"] == os.getpid() and str(own["started"]).isdigit() and own["host"]
    assert process_place(2**30)["started"] is None


@pytest.mark.parametrize("text", ["", "[]", "3", "{", '{"host": "a"}', "\0"])
def test_what_is_no_lock_has_no_owner(tmp_path: Path, text: str) -> None:
    path = tmp_path / ".lock"
    assert read_owner(path) is None and last_beat(path) is None
    path.write_text(text)
    assert read_owner(path) is None and last_beat(path) is not None


def test_a_lock_names_its_owner(tmp_path: Path) -> None:
    owner = {**process_place(os.getpid()), "since": "now", "token": "t"}
    (tmp_path / ".lock").write_text(json.dumps({**owner, "more": 1}))
    assert read_owner(tmp_path / ".lock") == owner
