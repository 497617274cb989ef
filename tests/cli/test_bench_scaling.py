"""The benchmark of ranks at a tiny size: what DeepSpeed sends is what the formulas and its own choices say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dsvid.cli import main

TINY = ["--arch", "vit_micro", "--size", "32", "--frames", "4", "--batch", "1", "--repeats", "1", "--ranks", "1,2"]


@pytest.mark.long
@pytest.mark.parametrize(("stage", "dtype", "ratio"), [(0, "bf16", 1.0), (2, "bf16", 1.5), (1, "fp32", 1.5)])
def test_what_is_sent(tmp_path: Path, capsys: pytest.CaptureFixture[str], stage: int, dtype: str, ratio: float) -> None:
    words = ["bench", "scaling", *TINY, "--stage", str(stage), "--dtype", dtype]
    assert main([*words, "--json", str(tmp_path / "result.json")]) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    alone, two = result["measured"]
    assert (alone["ranks"], two["ranks"], alone["bytes"]) == (1, 2, 0)
    size = 2 if dtype == "bf16" else 4
    assert two["formula_bytes"] == 2 * result["parameters"] * size
    # stages 1 and 2 of DeepSpeed sum whole buckets on all ranks where the paper scatters them; padding is small
    assert two["ratio"] == pytest.approx(ratio, rel=0.01)
    assert [row["devices"] for row in result["model"]] == [8, 16, 32, 64, 128, 256, 512]
    efficiency = [row["efficiency"] for row in result["model"]]
    assert efficiency == sorted(efficiency, reverse=True) and efficiency[-1] <= 1
    assert "A model, not a measurement" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--ranks", "two"], "--ranks"),
        (["--ranks", "0,1"], "--ranks"),
        (["--ranks", "2,4"], "--device-s"),
        (["--overlap", "3"], "--overlap"),
        (["--device-s", "-1"], "--device-s"),
        (["--device-gbs", "0"], "--device-gbs"),
        (["--devices-a-node", "0"], "--devices-a-node"),
    ],
)
def test_options_without_sense(capsys: pytest.CaptureFixture[str], words: list[str], said: str) -> None:
    assert main(["bench", "scaling", *words]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.long
@pytest.mark.parametrize("ranks", ["1", "1,2"])
def test_a_rank_that_fails_is_named_with_its_last_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ranks: str
) -> None:
    """Rank 1 dies at its start, and rank 0 would wait for it."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\nif int(os.environ.get('RANK', -1)) == int(os.environ['WORLD_SIZE']) - 1 "
        "and os.environ['WORLD_SIZE'] == os.environ['SICK']:\n    print('no such luck', flush=True); os._exit(3)\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(__file__).resolve().parents[2]}")
    monkeypatch.setenv("SICK", ranks[-1])
    assert main(["bench", "scaling", *TINY[:-1], ranks]) != 0
    error = capsys.readouterr().err
    assert f"rank {int(ranks[-1]) - 1} of {ranks[-1]} failed" in error and "no such luck" in error
