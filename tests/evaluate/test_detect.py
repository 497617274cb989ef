"""Scores of boxes against a ground truth: what was not read is missed, and what is no number gives none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dsvid.data import ava_generated
from dsvid.data.ava_split import AvaSplit, open_ava
from dsvid.errors import DataError
from dsvid.evaluate.detect import Detections, judge
from dsvid.recipe import load_recipe


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> AvaSplit:
    """Boxes of the generated figures, judged where they are annotated."""
    folder = tmp_path_factory.mktemp("figures")
    ava_generated.make_set(folder, {"val": 3}, seconds=3)
    recipe = load_recipe("demo_ava", {
        "data.root": str(folder), "data.val": "annotations/ava_val_v2.2_min.json",
        "data.labels": "annotations/action_list.pbtxt", "detect.val.truth": "", "detect.val.people": "",
        "detect.val.excluded": "",
    })  # fmt: skip
    return open_ava(recipe.data, recipe.detect, "val", 80)


def known(split: AvaSplit) -> np.ndarray:
    """Scores [K, 80] of a model that knows every box: those of the classes of the box with the same corners."""
    assert split.truth is not None
    rows, table = split.truth.rows, np.full((len(split.samples.boxes), 80), 0.1, dtype=np.float32)
    for index in range(len(split)):
        image = split.truth.numbers.number(*split.key(index))
        for place, box in enumerate(split.samples[index].boxes, int(split.samples.first[index])):
            shares = box / np.tile([split.samples.frames[index].width, split.samples.frames[index].height], 2)
            near = np.abs(rows.box - shares).max(axis=1) < 0.03
            table[place, rows.label[near & (rows.image == image)] - 1] = 0.9
    return table


def everything(split: AvaSplit) -> np.ndarray:
    return np.ones(len(split), dtype=bool)


def test_a_model_that_knows_has_all_of_it(split: AvaSplit) -> None:
    scores, rows = judge(split, known(split), everything(split), "seed")
    assert scores.mean == 1.0 and len(rows) == 80 * len(split.samples.boxes)
    wrong, _ = judge(split, 1 - known(split), everything(split), "seed")
    assert wrong.mean < 0.6


def test_a_key_frame_that_was_not_read_is_missed(split: AvaSplit) -> None:
    read = everything(split)
    read[0] = False
    table = known(split)
    table[: split.samples.first[1]] = 0
    scores, rows = judge(split, table, read, "seed")
    assert 0 < scores.mean < 1 and len(rows) == 80 * int(len(table) - split.samples.first[1])
    assert scores.truths.sum() == judge(split, known(split), everything(split), "seed")[0].truths.sum()


def test_an_excluded_key_frame_counts_neither_as_hit_nor_as_miss(split: AvaSplit) -> None:
    assert split.truth is not None
    image = split.truth.numbers.number(*split.key(0))
    without = replace(split, truth=replace(split.truth, excluded=np.array([image])))
    table = known(split)
    table[: split.samples.first[1]] = 0.5  # of no use there
    assert judge(split, table, everything(split), "seed")[0].mean < 1.0
    scores, _ = judge(without, table, everything(split), "seed")
    assert scores.mean == 1.0 and scores.images == len(split) - 1


def test_scores_that_are_not_finite_give_no_number(split: AvaSplit) -> None:
    table = known(split)
    table[3, 5] = np.nan
    with pytest.raises(DataError, match=rf"1 of {len(table)} boxes are not finite"):
        judge(split, table, everything(split), "seed")


def test_the_files_of_a_result_are_those_of_the_original(split: AvaSplit, tmp_path: Path) -> None:
    scores, rows = judge(split, known(split), everything(split), "official")
    result = Detections(rows, split, scores, len(split), [], [])
    content = result.write(tmp_path, {"step": 7})
    assert content["mAP"] == 1.0 and content["step"] == 7 and content["protocol"] == "official"
    lines = (tmp_path / "inference" / "result.csv").read_text().splitlines()
    assert len(lines) == len(rows) and len(lines[0].split(",")) == 8
    assert "'PascalBoxes_Precision/mAP@0.5IOU': 1.0" in (tmp_path / "inference" / "result.log").read_text()
