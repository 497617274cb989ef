"""Traffic anomaly detection on real ranks: the same numbers for any number of them, exact resume, a run's files."""

from __future__ import annotations

import csv
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dsvid.data import traffic_generated
from dsvid.metrics.anomaly import roc_area
from tests.distributed.conftest import FP32, eval_words, finish, losses, must_succeed, start_ranks, task_words

SETTINGS = [
    "data.train=train_split.txt", "data.val=val_split.txt", "data.num_frames=4", "data.input_size=32",
    "data.num_workers=0", "model.drop_path=0.1", "batch.total=4", "eval.batch=7", "run.epochs=3", "run.log_every=1",
    "run.samples_per_epoch=4", "run.save_every=1", "run.keep=9", "optim.warmup_epochs=0", "anomaly.padding=repeat",
    "anomaly.driving=true", "data.augment.policy=rand-m6-n3-mstd0.5-inc1-tdriving", FP32,
]  # fmt: skip


@pytest.fixture(scope="module")
def drives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four training and four test clips; one zip of the test clips is gone."""
    folder = tmp_path_factory.mktemp("drives")
    traffic_generated.make_set(folder, {"train": 4, "val": 4})
    (folder / "frames" / "generated-val_000002" / "images.zip").unlink()
    return folder


job = partial(task_words, "demo_anomaly", SETTINGS)
judge = partial(eval_words, "demo_anomaly", SETTINGS)


@pytest.fixture(scope="module")
def runs(drives: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same steps on one rank and on two, one run stopped and continued; tests on one rank and on two."""
    scratch = tmp_path_factory.mktemp("anomaly")
    weights = scratch / "one" / "weights"
    one = [job(scratch / "one", drives, "eval.every_epochs=1"), judge(scratch / "test-1", drives, weights)]
    must_succeed(finish(start_ranks(1, one, scratch)))
    two = [
        judge(scratch / "test-2", drives, weights),
        job(scratch / "stopped", drives, "run.max_steps=2"),
        job(scratch / "stopped", drives),
        job(scratch / "three", drives, "ds.zero_optimization.stage=3", "batch.micro=1"),
    ]
    must_succeed(finish(start_ranks(2, two, scratch)))
    return scratch


@pytest.mark.long
def test_losses_do_not_depend_on_ranks_micro_batch_stage_or_a_stop(runs: Path) -> None:
    one = losses(runs / "one")
    assert len(set(one)) == 3
    for other in ("three", "stopped"):
        assert np.allclose(losses(runs / other), one, rtol=2e-6, atol=0), other


@pytest.mark.long
def test_every_frame_is_judged_once_whatever_the_ranks(runs: Path, drives: Path) -> None:
    names = ("predictions.csv", "result.json", "groups.csv", "stats.txt")
    contents = [[(runs / f"test-{ranks}" / name).read_bytes() for name in names] for ranks in (1, 2)]
    assert contents[0] == contents[1]
    rows = list(csv.DictReader((runs / "test-1" / "predictions.csv").open()))
    annotated = {}
    for clip in [f"generated-val_{number:06d}" for number in (0, 1, 3)]:  # one zip is gone
        entries = json.loads((drives / "dataset" / "annotations" / f"{clip}.json").read_text())["labels"]
        annotated |= {(clip, Path(entry["image_path"]).name): int(entry["accident_id"] > 0) for entry in entries}
    assert {(row["clip"], row["filename"]): int(row["label"]) for row in rows} == annotated
    assert len(rows) == len(annotated), "each frame once, from the first one on"


@pytest.mark.long
def test_the_result_is_that_of_its_predictions(runs: Path) -> None:
    rows = list(csv.DictReader((runs / "test-1" / "predictions.csv").open()))
    result = json.loads((runs / "test-1" / "result.json").read_text())
    margin = np.array([float(row["logits_risk"]) - float(row["logits_safe"]) for row in rows])
    labels = np.array([int(row["label"]) for row in rows])
    assert result["auroc"] == pytest.approx(roc_area(margin, labels), abs=1e-4)
    assert result["frames"] == len(rows) and result["anomalies"] == labels.sum() and result["unreadable"] > 0
    assert result["groups"]["total"]["frames"] == len(rows) and len(result["groups"]) > 3


@pytest.mark.long
def test_a_run_leaves_validations_and_a_test(runs: Path) -> None:
    lines = [json.loads(line) for line in (runs / "one" / "metrics.jsonl").read_text().splitlines()]
    *validations, final = [row for row in lines if row["kind"] == "eval"]
    assert [row["step"] for row in validations] == [1, 2, 3]
    assert all(0 <= row["auroc"] <= 1 and -1 <= row["auc_mcc"] <= 1 for row in validations)
    assert final["final"] and final["auroc"] == validations[-1]["auroc"]
    for name in ("predictions.csv", "stats.txt", "result.json", "groups.csv", "roc.png", "pr.png", "mcc.png"):
        assert (runs / "one" / "test" / name).stat().st_size > 0
    bad = [json.loads(line) for line in (runs / "one" / "bad_clips.jsonl").read_text().splitlines()]
    assert {record["path"].split("/")[-2] for record in bad} == {"generated-val_000002"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["data.root=nowhere"], "is no folder"),
        (["data.train=other.txt"], "other.txt"),
        (["data.view_fps=3"], "does not divide the frame rate"),
        (["data.num_frames=400"], "no clip of train_split.txt is as long as a window"),
        (["model.num_classes=3"], "two classes, safe and anomaly"),
        (["anomaly.loss=focal", "anomaly.class_weights=[1, 2]"], "no effect in loss focal"),
        (["data.crop=random"], "data.crop has no effect in task anomaly"),
        (["anomaly.loss=2bcE"], "anomaly.loss"),
    ],
)
def test_a_mistake_ends_a_start_with_code_2(
    change: list[str], message: str, drives: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from dsvid.train import main

    assert main(job(tmp_path / "out", drives, *change)) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("loss", ["focal", "smoothap", "2bce", "exponential1"])
def test_every_loss_reaches_the_model(loss: str, drives: Path) -> None:
    import torch

    from dsvid.data.loader import TrainLoader
    from dsvid.job import model_spec
    from dsvid.models.spec import build_model
    from dsvid.recipe import load_recipe, split_overrides
    from dsvid.tasks import task_of

    words: dict[str, Any] = split_overrides([f"data.root={drives}", *SETTINGS, f"anomaly.loss={loss}"])[0]
    recipe = load_recipe("demo_anomaly", words)
    objective = task_of(recipe).objective(recipe, build_model(model_spec(recipe), seed=0))
    reader = task_of(recipe).reader(recipe, "train")
    batch = next(iter(TrainLoader(recipe.data, seed=0, batch_total=8, batch_micro=8, reader=reader)))
    out = objective({key: value for key, value in batch.items() if isinstance(value, torch.Tensor)})
    out.loss.backward()
    assert out.loss.item() > 0 and objective.model.head.weight.grad.abs().max() > 0
