"""Where a run stands, as facts and as lines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dsvid.report import lines
from dsvid.report.standing import standing, standing_lines
from tests.report.made_run import make_checkpoint, make_eventful, make_settings, make_trained, write_rows


def test_a_run_in_a_dozen_lines(tmp_path: Path) -> None:
    make_trained(tmp_path)
    make_checkpoint(tmp_path, 400)
    told = dict(line.split(maxsplit=1) for line in standing_lines(standing(tmp_path)))
    assert told["step"].startswith("400 of 3,200, epoch 4, last line ") and told["loss"].startswith("0.9")
    assert told["speed"] == "64 clips/s, 0.250 s a step, MFU not known" and told["memory"].startswith("1.50 GB")
    assert told["checkpoint"].startswith("step-00000400, ") and "manifest and sizes agree" in told["checkpoint"]
    assert told["faults"] == "none recorded" and told["evaluation"] == "none yet"


def test_damaged_checkpoints_are_told(tmp_path: Path) -> None:
    make_trained(tmp_path)
    make_checkpoint(tmp_path, 300)
    (make_checkpoint(tmp_path, 400) / "model.pt").write_bytes(b"shirt")
    assert standing(tmp_path)["checkpoint"]["step"] == 400, "its size is right"
    facts = standing(tmp_path, verify=True)
    assert facts["checkpoint"]["step"] == 300 and "SHA-256" in facts["checkpoint_faults"]["step-00000400"]
    (line,) = [line for line in standing_lines(facts) if line.startswith("checkpoint")]
    assert "step-00000300" in line and "SHA-256 of every file agree" in line and "is damaged" in line


def test_settings_alone(tmp_path: Path) -> None:
    told = standing_lines(standing(make_settings(tmp_path)))
    assert any(line.startswith("state       No step yet") for line in told) and "checkpoint  none yet" in told


def test_facts_are_json_without_secrets_and_control_characters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_TOKEN", "cut off")
    facts = standing(make_eventful(tmp_path / "run"))
    text = json.dumps(facts, ensure_ascii=False, allow_nan=False) + "\n".join(standing_lines(facts))
    assert "\x1b" not in text and "cut off" not in text
    assert facts["events"]["skipped step"] == 3 and facts["bad_clips"] == {"files": 30, "lines": 60}
    assert facts["evaluation"]["top1"] == 91.25 and facts["data_wait"] == pytest.approx(0.48)


def test_long_files_are_read_from_their_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_trained(tmp_path, range(1, 501))
    rows = (tmp_path / "metrics.jsonl").read_text().splitlines()
    first = {"kind": "eval", "split": "val", "step": 1, "top1": 3.0}
    write_rows(tmp_path / "metrics.jsonl", [first, *map(json.loads, rows)])
    assert standing(tmp_path)["evaluation"] == {"split": "val", "step": 1, "top1": 3.0}
    monkeypatch.setattr(lines, "TAIL_BYTES", 5000)
    facts = standing(tmp_path)
    assert facts["step"] == 500 and facts["loss"] is not None and facts["evaluation"] is None
    (line,) = [line for line in standing_lines(facts) if line.startswith("evaluation")]
    assert line.endswith("none in the last lines of metrics.jsonl")
