"""F1, F2, F30: SIGKILL at any instant, inside saves too; the run ends as if nothing had been."""

from __future__ import annotations

import json
import random
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from dsvid import checkpoint
from tests.distributed.conftest import FP32, finish, free_port, launch, losses, words

pytestmark = pytest.mark.long

DRIVER = Path(__file__).with_name("killed_driver.py")
IN_SAVE = ["write", "written", "manifest", "renamed", "pointed"]


def live(out: Path, ids: Path, kill: list[Any], *more: str, steps: int) -> list[int]:
    """One life of two ranks; both are killed at the same instant, or by rank 0's death. The exit codes."""
    plan = out.parent / f"plan-{free_port()}.json"
    argv = words(out, FP32, "run.save_every=2", "run.keep=2", *more, steps=steps)
    plan.write_text(json.dumps({"argv": argv, "ids": str(ids), "kill": kill}))
    ended = finish(launch(2, [sys.executable, str(DRIVER), str(plan)], out.parent), timeout=200)
    codes, (said, _) = [code for code, _ in ended], [output for _, output in ended]
    if kill == ["never"]:
        assert codes == [0, 0], said[-3000:]
    else:
        assert -9 in codes and all(code in (-9, 1) for code in codes), (kill, codes, said[-3000:])
    return codes


def seen(ids: Path) -> list[dict[int, list[int]]]:
    """For each rank, which videos each step saw; of a step that was made again, the last time."""
    return [
        dict(json.loads(line) for line in Path(f"{ids}-{rank}.jsonl").read_text().splitlines()) for rank in range(2)
    ]


def damage_newest(out: Path) -> str:
    """Turn over one bit of rank 1's shard in the newest checkpoint, where there is an older one to walk back to."""
    folders = checkpoint.steps(out / "checkpoints")
    if len(folders) < 2:
        return ""
    shard = next(folders[0].glob("*pp_rank_1_*optim_states.pt"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    return folders[0].name


def must_survive(kills: list[list[Any]], tmp_path: Path, *more: str, steps: int) -> None:
    whole, out = tmp_path / "whole", tmp_path / "killed"
    live(whole, tmp_path / "ids-whole", ["never"], *more, steps=steps)
    for kill in kills:
        live(out, tmp_path / "ids-killed", kill, *more, steps=steps)
        for folder in checkpoint.steps(out / "checkpoints"):
            checkpoint.verify(folder)  # whatever is published is whole
    damaged = damage_newest(out)
    assert damaged, "no two checkpoints to choose from"
    live(out, tmp_path / "ids-killed", ["never"], *more, steps=steps)
    assert losses(out) == losses(whole)
    assert seen(tmp_path / "ids-killed") == seen(tmp_path / "ids-whole"), "the same clips, none twice, none left out"
    pair = [(folder / "weights" / "model.safetensors").read_bytes() for folder in (out, whole)]
    assert pair[0] == pair[1]
    assert not list((out / "checkpoints").glob(".tmp*"))
    log = (out / "logs" / "rank-00000.log").read_text()
    assert re.search(rf"{damaged} is not used: .*pp_rank_1.*damaged", log), "rank 0 says which file, whoever read it"


def test_a_run_survives_kills_inside_saves_and_between_them(tmp_path: Path) -> None:
    kills = [["in save", "manifest", 3], ["in save", "write", 40]]
    must_survive(kills, tmp_path, "ds.zero_optimization.stage=3", steps=8)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_run_survives_twenty_kills(tmp_path: Path) -> None:
    rng = random.Random(0)
    kills = [["in save", what, n] for what in IN_SAVE for n in ((7, 31) if what == "write" else (1, 2))]
    kills += [["after", rng.uniform(0, 0.5)] for _ in range(10)]
    rng.shuffle(kills)
    must_survive(kills, tmp_path, "data.num_workers=1", steps=120)
