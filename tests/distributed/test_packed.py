"""Training on packed shards: a recipe runs on them as on the loose list."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from dsvid.data.manifest import read_list
from dsvid.data.shard_packing import Packing
from dsvid.data.shard_samples import PackOptions
from dsvid.data.video_writer import open_writer
from tests.distributed.conftest import FP32, TINY, ZERO2, losses, must_succeed, words

Ranks = Callable[..., list[tuple[int, str]]]


def make_lists(folder: Path) -> tuple[Path, Path]:
    """(list, packed shards) of eight videos of two classes, one of them broken."""
    rng = np.random.default_rng(3)
    for number in range(8):
        noise = rng.integers(0, 255, (8, 8, 3), dtype=np.uint8).repeat(6, 0).repeat(6, 1)
        with open_writer(folder / f"{number}.mp4", 25.0, 48, 48) as writer:
            for at in range(24):
                writer.add(np.roll(noise, at, axis=1), at / 25)
    (folder / "2.mp4").write_bytes(b"no video" * 50)
    path = folder / "list.csv"
    path.write_text("".join(f"{number}.mp4 {number % 2}\n" for number in range(8)))
    Packing(read_list(path), folder / "packed", PackOptions(quality=95)).run()
    return path, folder / "packed"


def test_pre_training_and_fine_tuning_run_on_packed_shards(run_ranks: Ranks, tmp_path: Path) -> None:
    listed, packed = make_lists(tmp_path)
    small = ["batch.total=4", "batch.micro=4", "data.max_bad_fraction=1", FP32]
    jobs = [words(tmp_path / name, *small, f"data.train={data}", steps=2)
            for name, data in (("loose", listed), ("shards", packed))]  # fmt: skip
    tune = [word for word in TINY if not word.startswith(("pretrain.", "model.positions"))]
    settings = ["model.num_classes=2", "data.short_side=40", "data.sampling=dense", "run.max_steps=2", "eval.batch=4",
                "eval.segments=1", "eval.crops=1", f"data.val={packed}", "data.test="]  # fmt: skip
    for name, data in (("loose", listed), ("shards", packed)):
        own = ["--ds_config", ZERO2, "--recipe", "demo_finetune", "--out", str(tmp_path / f"tune-{name}")]
        jobs.append([*own, *tune, *settings, *small, f"data.train={data}"])
    must_succeed(run_ranks(1, jobs))
    for kind in ("", "tune-"):
        one, other = losses(tmp_path / f"{kind}loose"), losses(tmp_path / f"{kind}shards")
        assert len(one) == len(other) == 2
        assert np.allclose(one, other, atol=0.02) and one != other, (one, other)
    bad = (tmp_path / "shards" / "bad_clips.jsonl").read_text().splitlines()
    (named,) = {json.loads(line)["path"] for line in bad}
    assert named == "2.mp4"
