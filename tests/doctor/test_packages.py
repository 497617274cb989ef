"""Packages: bounds of versions, what is missing, what breaks when it is imported."""

from __future__ import annotations

from pathlib import Path

import pytest

from dsvid.doctor import packages
from dsvid.doctor.packages import Wanted, look, wanted

ROOT = Path(__file__).resolve().parents[2]


def test_every_dependency_of_the_project_is_looked_at() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    names = {each.name for each in wanted()}
    assert {"torch", "deepspeed", "numpy", "pydantic", "pyyaml", "tqdm", "timm"} <= names
    assert len(names & {"decord", "decord2"}) == 1, "the one for this machine"
    (deepspeed,) = [each for each in wanted() if each.name == "deepspeed"]
    assert f'"deepspeed{deepspeed.bounds}"' in text


def test_versions_outside_of_the_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "_version", lambda name: "2.5.1+cu124")
    for bounds, level in ((">=2.5,<3", "ok"), (">=2.6", "less"), ("<2.5", "less"), ("", "ok")):
        found = look(Wanted("pyyaml", bounds))
        assert found.level == level and "2.5.1" in found.value, bounds
    assert f'pip install "pyyaml{">=2.6"}"' in look(Wanted("pyyaml", ">=2.6")).cure


def test_what_is_missing_or_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wrong_build.py").write_text("raise OSError('libfoo.so: undefined symbol\\nmore')")
    (tmp_path / "leaves.py").write_text("import sys; sys.exit(3)")
    monkeypatch.syspath_prepend(str(tmp_path))
    absent = look(Wanted("no_such_package", ">=1"))
    assert (absent.level, absent.value) == ("stops", "not installed") and "no_such_package>=1" in absent.cure
    broken = look(Wanted("wrong_build", ""))
    assert broken.level == "stops" and broken.value.endswith("libfoo.so: undefined symbol")
    assert look(Wanted("leaves", "")).level == "stops"
    monkeypatch.setitem(packages.LOST, "wrong_build", "a feature: pip install x")
    assert look(Wanted("wrong_build", "")).level == "less"
