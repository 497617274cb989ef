"""A package that crashes or hangs Python is one line, and the other checks go on."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from dsvid.doctor import apart

ROOT = Path(__file__).resolve().parents[2]


def test_a_package_that_kills_python_is_a_line_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tqdm.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")
    found = apart.examine(["pyyaml", "tqdm", "einops"], ["tqdm"])
    assert [(each.name, each.level) for each in found] == [("pyyaml", "ok"), ("tqdm", "stops"), ("einops", "ok")]
    assert signal.Signals.SIGSEGV.name in found[1].value
    assert apart.examine(["tqdm"], [])[0].level == "less"


def test_a_package_that_hangs_is_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tqdm.py").write_text("import time; time.sleep(60)")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")
    monkeypatch.setattr(apart, "LIMIT_S", 1.5)
    found = {each.name: each for each in apart.examine(["tqdm", "einops"], ["tqdm"])}
    assert found["tqdm"].level == "stops" and "hangs" in found["tqdm"].value
    assert found["einops"].level == "unknown" and "not checked" in found["einops"].value
