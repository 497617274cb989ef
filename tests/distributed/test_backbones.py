"""Driving footage, then anomalies, from checkpoints of other families: two ranks train, test; predict draws."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from dsvid.cli import main
from dsvid.data import traffic_generated
from dsvid.data.footage import list_footage, measure_footage
from dsvid.data.video_writer import open_writer
from tests.distributed.conftest import FP32, eval_words, finish, must_succeed, start_ranks, task_words

CASES = Path(__file__).resolve().parents[1] / "reference" / "cases" / "backbones"
DECODER = ["model.decoder_dim=32", "model.decoder_depth=1", "model.decoder_heads=2", "model.fresh_decoder=true"]
SIZES = {
    "mvd-finetuned": [
        "model.arch=custom", "model.dim=48", "model.depth=3", "model.heads=3", "model.patch=8", "model.mlp_hidden=192",
        "model.tubelet=2", "model.positions=sincos_separable", "data.input_size=32", "data.num_frames=8",
    ],
    "umt-pretrain-pos-interp-both": [
        "model.arch=custom", "model.dim=32", "model.depth=2", "model.heads=2", "model.patch=2", "model.mlp_hidden=128",
        "model.tubelet=1", "model.positions=sincos_umt", "data.input_size=20", "data.num_frames=4",
    ],
    "internvideo2-1b-pretrain": [
        "model.arch=internvideo2_custom", "model.dim=48", "model.depth=2", "model.heads=3", "model.patch=7",
        "model.mlp_hidden=209", "model.pool_heads=4", "model.pool_dim=32", "model.tubelet=1", "data.input_size=28",
        "data.num_frames=8",
    ],
}  # fmt: skip
COMMON = ["data.num_workers=0", "batch.total=4", "run.epochs=1", "run.samples_per_epoch=8", "run.log_every=1", FP32]
FAMILY = {"mvd-finetuned": ["model.init_family=mvd"]}  # its names are VideoMAE's


@pytest.fixture(scope="module")
def drives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drives")
    traffic_generated.make_set(folder, {"train": 4, "val": 2})
    for _ in measure_footage(list_footage("dota", folder), folder / "footage.csv"):
        pass
    return folder


@pytest.mark.long
@pytest.mark.parametrize("case", list(SIZES))
def test_from_a_checkpoint_of_another_family_to_a_picture(case: str, drives: Path, tmp_path: Path) -> None:
    """InternVideo2 has no autoencoder here: it is fine-tuned at once."""
    init, family = str(CASES / case / "checkpoint.pth"), FAMILY.get(case, [])
    lists = ["data.train=train_split.txt", "data.val=val_split.txt", "anomaly.padding=repeat", "optim.warmup_epochs=0"]
    settings = [*SIZES[case], *COMMON, *lists]
    jobs = []
    if not case.startswith("internvideo2"):
        footage = [f"footage.first.index={drives / 'footage.csv'}", f"footage.first.root={drives}"]
        more = [*DECODER, f"model.init={init}", *family, *footage, "optim.warmup_epochs=0"]
        jobs.append(task_words("demo_dapt", [*SIZES[case], *COMMON], tmp_path / "dapt", drives, *more))
        init, family = str(tmp_path / "dapt" / "weights"), []
    jobs.append(task_words("demo_anomaly", settings, tmp_path / "tuned", drives, f"model.init={init}", *family))
    own = [word for word in settings if not word.startswith(("run.", "optim.", "batch."))]
    jobs.append(eval_words("demo_anomaly", own, tmp_path / "test", drives, tmp_path / "tuned" / "weights"))
    must_succeed(finish(start_ranks(2, jobs, tmp_path)))
    rows = list(csv.DictReader((tmp_path / "test" / "predictions.csv").open()))
    frames = sum(len(traffic_generated.draw_drive(0, "val", number).labels) for number in range(2))
    assert len(rows) == frames == json.loads((tmp_path / "test" / "result.json").read_text())["frames"]

    drive = traffic_generated.draw_drive(0, "val", 1)
    pictures = traffic_generated.render(0, "val", 1, drive)
    with open_writer(tmp_path / "drive.mp4", 10, *pictures.shape[2:0:-1]) as writer:
        for number, picture in enumerate(pictures):
            writer.add(picture, number / 10)
    words = ["predict", "--weights", str(tmp_path / "tuned" / "weights"), str(tmp_path / "drive.mp4")]
    assert main([*words, "-o", str(tmp_path / "risk.json"), "-o", str(tmp_path / "risk.png")]) == 0
    risk = json.loads((tmp_path / "risk.json").read_text())
    values = np.array([frame["risk"] for frame in risk["scores"]])
    assert len(values) == len(pictures) and ((values > 0) & (values < 1)).all()
    assert (tmp_path / "risk.png").stat().st_size > 0
