"""`dsvid env`: exit codes, the last lines, the JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dsvid.cli import env, main
from dsvid.doctor.finding import Finding

ROOT = Path(__file__).resolve().parents[2]


def test_exit_codes_and_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = [Finding("python", "3.11"), Finding("av", "wrong", "less", "pip install av"), Finding("x", "?", "unknown")]
    monkeypatch.setattr(env, "examine_all", lambda: found)
    assert main(["env", "--json", str(tmp_path / "e.json")]) == 0
    shown = capsys.readouterr().out
    assert "worth a look: av" in shown and "not checked: x" in shown and "-> pip install av" in shown
    said = json.loads((tmp_path / "e.json").read_text())
    assert said["can_start"] is True and said["findings"][1]["cure"] == "pip install av"
    found.append(Finding("torch", "not installed", "stops", "pip install torch"))
    assert main(["env", "--json", str(tmp_path / "e.json")]) == 1
    assert "training cannot start here: torch (not installed)" in capsys.readouterr().out
    assert json.loads((tmp_path / "e.json").read_text())["can_start"] is False
    assert main(["env", "--json", str(tmp_path)]) == 2
