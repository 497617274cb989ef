"""Action detection on real ranks: the same numbers for any number of them, exact resume, bad clips, a run's files."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dsvid.data import ava_generated
from dsvid.data.builtin import write_clip
from dsvid.weights.load import load_model
from tests.distributed.conftest import FP32, eval_words, finish, losses, must_succeed, start_ranks, task_words

SETTINGS = [
    "data.train=annotations/ava_train_v2.2_min.json", "data.val=annotations/ava_val_v2.2_min.json",
    "data.labels=annotations/action_list.pbtxt", "data.num_frames=4", "data.input_size=32", "data.short_side=40",
    "data.num_workers=0", "model.drop_path=0.1", "batch.total=4", "eval.batch=3", "run.epochs=3", "run.log_every=1",
    "run.save_every=1", "run.keep=9", "optim.warmup_epochs=0", FP32,
]  # fmt: skip
GATHERED = "ds.zero_optimization.stage3_param_persistence_threshold=0"  # every parameter, in every pass
BROKEN, GONE = "_t-00000001", "_v-00000001"


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three training and three test videos, one of them wider than the others; one clip is broken, and one is gone."""
    folder = tmp_path_factory.mktemp("figures")
    ava_generated.make_set(folder, {"train": 3, "val": 3}, seconds=3)
    clips = folder / "clips" / "trainval"
    widen(folder, 2, 32)
    (clips / BROKEN / "901.mp4").write_bytes(b"no video")
    (clips / GONE / "902.mp4").unlink()
    return folder


def widen(folder: Path, number: int, by: int) -> None:
    """Give a test video black columns on the right, and its images a new width."""
    video, rate = f"_v-{number:08d}", ava_generated.FPS
    path = folder / "annotations" / "ava_val_v2.2_min.json"
    content = json.loads(path.read_text())
    for image in content["images"]:
        image["width"] += by if image["movie"] == video else 0
    path.write_text(json.dumps(content))
    scenes = ava_generated.draw_figures(0, "val", number, 3)
    pictures = np.pad(ava_generated.render(0, "val", number, scenes), ((0, 0), (0, 0), (0, by), (0, 0)))
    for place in range(3):
        second = folder / "clips" / "trainval" / video / f"{ava_generated.FIRST_SECOND + place}.mp4"
        write_clip(second, pictures[place * rate : (place + 1) * rate])


job = partial(task_words, "demo_ava", SETTINGS)
judge = partial(eval_words, "demo_ava", SETTINGS)


@pytest.fixture(scope="module")
def runs(figures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same steps on one rank and on two, at stage 2 and 3, one stopped and continued; then tests on 1, 2, 3."""
    scratch = tmp_path_factory.mktemp("detect")
    weights = scratch / "one" / "weights"
    one = [job(scratch / "one", figures, "eval.every_epochs=1"), judge(scratch / "test-1", figures, weights)]
    must_succeed(finish(start_ranks(1, one, scratch)))
    two = [
        judge(scratch / "test-2", figures, weights),  # first: stage 3 replaces torch's linear for the whole process
        job(scratch / "two", figures, "eval.every_epochs=1", "batch.micro=1"),
        job(scratch / "three", figures, "ds.zero_optimization.stage=3", GATHERED),
        job(scratch / "stopped", figures, "run.max_steps=2"),
        job(scratch / "stopped", figures),
    ]
    must_succeed(finish(start_ranks(2, two, scratch)))
    must_succeed(finish(start_ranks(3, [judge(scratch / "test-3", figures, weights)], scratch)))
    return scratch


def lines(out: Path, kind: str) -> list[dict[str, Any]]:
    return [row for row in map(json.loads, (out / "metrics.jsonl").read_text().splitlines()) if row["kind"] == kind]


@pytest.mark.long
def test_losses_do_not_depend_on_ranks_micro_batch_or_stage(runs: Path) -> None:
    one = losses(runs / "one")
    assert len(one) == 3 and len(set(one)) == 3
    for other in ("two", "three", "stopped"):
        assert np.allclose(losses(runs / other), one, rtol=2e-6, atol=0), other


@pytest.mark.long
def test_a_test_at_zero_3_with_clips_of_two_sizes_is_that_of_the_other_stages(runs: Path) -> None:
    results = [json.loads((runs / name / "test" / "result.json").read_text()) for name in ("two", "three")]
    assert results[0]["detections"] == results[1]["detections"] > 0
    rows = [(runs / name / "test" / "inference" / "result.csv").read_text().splitlines() for name in ("two", "three")]
    values = [np.array([float(row.rpartition(",")[2]) for row in each]) for each in rows]
    assert np.abs(values[0] - values[1]).max() <= 1.01e-5  # five decimals


@pytest.mark.long
def test_a_run_that_was_stopped_ends_with_the_same_weights(runs: Path) -> None:
    stopped, whole = (load_model(runs / name / "weights")[0].state_dict() for name in ("stopped", "two"))
    for name, value in whole.items():
        assert np.allclose(stopped[name].numpy(), value.numpy(), rtol=0, atol=1e-6), name


@pytest.mark.long
def test_the_files_of_a_test_are_the_same_on_1_2_and_3_ranks(runs: Path) -> None:
    names = ["result.json", "classes.csv", "inference/result.csv", "inference/result.log"]
    contents = [[(runs / f"test-{ranks}" / name).read_bytes() for name in names] for ranks in (1, 2, 3)]
    assert contents[0] == contents[1] == contents[2]
    rows = (runs / "test-1" / "inference" / "result.csv").read_text().splitlines()
    result = json.loads((runs / "test-1" / "result.json").read_text())
    people = {tuple(row.split(",")[:6]) for row in rows}
    assert len(rows) == 80 * len(people) and {row.split(",")[0] for row in rows} == {
        "_v-00000000", "_v-00000001", "_v-00000002"
    }  # fmt: skip
    assert result["unreadable"] == 1 and 0 < result["mAP"] < 1 and result["protocol"] == "seed"


@pytest.mark.long
def test_a_run_leaves_validations_the_best_weights_and_a_test(runs: Path) -> None:
    for name in ("one", "two"):
        *validations, final = lines(runs / name, "eval")
        assert [row["step"] for row in validations] == [1, 2, 3] and final["final"]
        assert all(0 < row["mAP"] < 1 for row in validations) and final["mAP"] == validations[-1]["mAP"]
        best = json.loads((runs / name / "weights_best" / "config.json").read_text())
        assert best["trained"]["validation"]["mAP"] == max(row["mAP"] for row in validations)
        assert best["model"]["task"] == "detect" and best["labels"][63] == "near another figure"
        assert (runs / name / "test" / "inference" / "result.log").is_file()


@pytest.mark.long
def test_a_clip_that_cannot_be_read_is_replaced_in_training_and_missed_in_the_test(runs: Path) -> None:
    records = [json.loads(line) for line in (runs / "two" / "bad_clips.jsonl").read_text().splitlines()]
    paths = {record["path"].rpartition("/")[2] for record in records}
    # a clip needs the seconds beside its own: one that is missing is bridged, one that is damaged is not
    assert paths == {f"{BROKEN} second 901", f"{BROKEN} second 902", f"{GONE} second 902"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["detect.val.truth=nothing.csv"], "nothing.csv: cannot be read"),
        (["data.short_side=20"], "data.short_side is shorter than the crop"),
        (["model.num_classes=3"], "unknown class"),
        (["model.final_norm=family"], "task detect needs the norm over all tokens"),
        (["eval.crops=3"], "eval.crops has no effect in task detect"),
        (["data.augment.mixup=0.8"], "data.augment has no effect in task detect"),
    ],
)
def test_a_mistake_ends_a_start_with_code_2(
    change: list[str], message: str, figures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from dsvid.train import main

    assert main(job(tmp_path / "out", figures, *change)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out" / "recipe.yaml").exists()


@pytest.fixture(scope="module", autouse=True)
def tidy(figures: Path) -> Any:
    yield
    shutil.rmtree(figures, ignore_errors=True)
