"""What a checkpoint's folder has to hold: sizes alone, or every byte; which one is the newest."""

from __future__ import annotations

from pathlib import Path

import pytest

from dsvid.checkpoint_files import step_of, steps, verify
from dsvid.errors import CheckpointError
from tests.report.made_run import make_checkpoint


def test_sizes_alone_read_nothing_large(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, 3)
    assert verify(folder)["step"] == 3
    (folder / "model.pt").write_bytes(b"shirt")
    assert verify(folder, contents=False)["step"] == 3
    with pytest.raises(CheckpointError, match="SHA-256"):
        verify(folder)
    (folder / "model.pt").write_bytes(b"shirts")
    with pytest.raises(CheckpointError, match="wrong size"):
        verify(folder, contents=False)
    (folder / "manifest.json").write_text((folder / "manifest.json").read_text().replace('"step": 3', '"step": 4'))
    with pytest.raises(CheckpointError, match="does not say what was written"):
        verify(folder, contents=False)


def test_the_newest_comes_first_by_its_step(tmp_path: Path) -> None:
    for step in (5, 100_000_000, 20):
        make_checkpoint(tmp_path, step)
    (tmp_path / "checkpoints" / "step-x").mkdir()
    assert [step_of(folder) for folder in steps(tmp_path / "checkpoints")] == [100_000_000, 20, 5]
    assert step_of(Path("step-²")) == step_of(Path("step-")) == -1
