"""The checkpoint benchmark at a tiny size, on one rank and on two: every arm is timed, and nothing is left behind."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.distributed.conftest import finish, launch, must_succeed

pytestmark = pytest.mark.long


@pytest.mark.parametrize(("world", "stage"), [(1, 0), (2, 3)])
def test_every_arm_is_timed(world: int, stage: int, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    words = ["bench", "checkpoint", "--arch", "vit_micro", "--stage", str(stage), "--repeats", "2"]
    words += ["--scratch", str(tmp_path / "disk"), "--json", str(tmp_path / "result.json")]
    ended = finish(launch(world, [sys.executable, "-m", "dsvid", *words], tmp_path), timeout=200)
    must_succeed(ended)
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["ranks"], result["stage"], result["arch"]) == (world, stage, "vit_micro")
    arms = {"write", "save", "read", "hash", "verify", "load"}
    assert set(result["seconds"]) == set(result["bytes_per_s"]) == arms
    assert all(len(result["repeats"][arm]) == 2 and result["seconds"][arm] > 0 for arm in arms)
    # 0.8 M parameters: fp32 masters and two moments, and the bf16 weights
    assert result["bytes"] > 800_000 * 12
    assert result["ratios"]["save / write"] == pytest.approx(result["seconds"]["save"] / result["seconds"]["write"])
    assert "x write" in ended[0][1] and list((tmp_path / "disk").iterdir()) == []
