"""A broken or missing optional package costs a feature, never the program."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OPTIONAL = ("torchvision", "timm", "flash_attn", "transformers")


@pytest.fixture()
def broken(tmp_path: Path) -> dict[str, str]:
    """An environment in which every optional package fails as a torchvision of another torch build does."""
    for name in OPTIONAL:
        (tmp_path / f"{name}.py").write_text(f"raise RuntimeError('operator {name}::nms does not exist')\n")
    return {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}


def test_training_imports_none_of_them(broken: dict[str, str]) -> None:
    code = "import dsvid.train, dsvid.cli.eval, dsvid.cli.demo, dsvid.cli.bench_mask"
    done = subprocess.run([sys.executable, "-c", code], env=broken, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_doctor_names_what_is_broken_and_training_can_start(broken: dict[str, str]) -> None:
    command = [sys.executable, "-m", "dsvid", "env"]
    done = subprocess.run(command, env=broken, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "operator torchvision::nms does not exist" in done.stdout
    assert "op           tube op on cpu" in done.stdout
    named = {line.split(" ")[0] for line in done.stdout.splitlines()}
    assert {"ssh", "pdsh", "srun", "sbatch"} <= named, "what several nodes need"
