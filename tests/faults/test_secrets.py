"""F41: a secret of the environment, the command line or an error appears in nothing that a run prints or keeps."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.distributed.conftest import FP32, ROOT, free_port, rank_environment, words

SECRET, PASSWORD = "wandb-0123456789abcdef", "correct-horse"
ADDRESS = f"https://me:{PASSWORD}@host/{SECRET}"


def train(scratch: Path, *argv: str) -> tuple[int, str]:
    command = [sys.executable, str(ROOT / "dsvid" / "train.py"), *argv]
    environment = rank_environment(0, 1, free_port()) | {"WANDB_API_KEY": SECRET, "DSVID_DEBUG": "1"}
    done = subprocess.run(
        command, env=environment, cwd=scratch, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        timeout=100,
    )  # fmt: skip
    return done.returncode, done.stdout


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("secrets")


def test_an_error_and_its_traceback_do_not_tell_it(scratch: Path) -> None:
    code, text = train(scratch, *words(scratch / "bad", FP32, f"data.train={ADDRESS}"))
    assert code == 2 and "Traceback" in text
    assert "list file https:/me:***@host/***" in text
    assert SECRET not in text and PASSWORD not in text


def test_a_run_does_not_keep_it(scratch: Path) -> None:
    out = scratch / "good"
    code, text = train(scratch, *words(out, FP32, f"data.val={ADDRESS}", "data.val=", "run.max_steps=1"))
    assert code == 0, text
    assert "data.val=https://me:***@host/***" in json.loads((out / "run.json").read_text())["argv"]
    kept = [path for path in out.rglob("*") if path.is_file()]
    assert {"rank-00000.log", "manifest.json", "metrics.jsonl"} <= {path.name for path in kept}
    for blob in [text.encode(), *(path.read_bytes() for path in kept)]:
        assert SECRET.encode() not in blob and PASSWORD.encode() not in blob
