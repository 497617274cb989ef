"""Splits of an AVA-format set as a recipe names them: files, samples, ground truth; and what a file at fault says."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dsvid.data import ava_generated
from dsvid.data.ava_split import AvaSplit, check_clips, open_ava, remarks
from dsvid.errors import DataError
from dsvid.recipe import DataConfig, DetectConfig, DetectFiles

FILES = DetectFiles(
    truth="annotations/ava_val_v2.2.csv",
    people="boxes/ava_val_det_person_bbox.json",
    excluded="annotations/ava_val_excluded_timestamps_v2.2.csv",
)
SECONDS = "901-902"


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("figures")
    ava_generated.make_set(folder, {"train": 2, "val": 2}, seconds=3)
    return folder


def opened(root: Path, split: str = "val", columns: int = 80, **changes: object) -> AvaSplit:
    data = DataConfig(
        root=str(root), train="annotations/ava_train_v2.2_min.json", val="annotations/ava_val_v2.2_min.json",
        labels=str(changes.pop("labels", "annotations/action_list.pbtxt")),
        train_limit=int(str(changes.pop("train_limit", 0))),
    )  # fmt: skip
    data = data.model_copy(update={split: changes.pop("value", getattr(data, split))})
    files = {key: changes.pop(key) for key in ("truth", "people", "excluded") if key in changes}
    detect = DetectConfig(val=FILES.model_copy(update=files), seconds=SECONDS, **changes)  # type: ignore[arg-type]
    return open_ava(data, detect, split, columns)


def test_training_has_the_annotated_boxes_and_evaluation_those_of_the_detector(figures: Path) -> None:
    train, val = opened(figures, "train"), opened(figures)
    assert train.truth is None and val.truth is not None
    assert len(train) == len(val) == 4 and train.sha256 != val.sha256
    assert train.samples[0].labels.any() and not val.samples[0].labels.any()
    assert all(score == 1 for score in train.samples.scores) and all(0.8 <= score < 1 for score in val.samples.scores)
    assert val.names == ava_generated.NAMES
    assert val.truth.excluded is not None and len(val.truth.excluded) == 1
    assert len(opened(figures, "train", train_limit=3)) == 3
    left = "".join(remarks("val", val))
    assert "4 key frames" in left and "boxes below the score" in left


def test_the_csv_gives_the_samples_of_the_json(figures: Path) -> None:
    json_split = opened(figures, "train")
    csv_split = opened(
        figures, "train", value="annotations/ava_train_v2.2.csv", video_list="annotations/video_names.txt"
    )
    assert np.array_equal(json_split.samples.ids, csv_split.samples.ids)
    assert np.array_equal(json_split.samples.boxes, csv_split.samples.boxes)
    assert np.array_equal(json_split.samples.packed, csv_split.samples.packed)


def test_without_a_truth_and_people_the_annotations_are_both(figures: Path) -> None:
    split, given = opened(figures, truth="", people=""), opened(figures)
    assert split.truth is not None and given.truth is not None
    assert "the annotated ones are judged" in "".join(remarks("val", split))
    assert sorted(split.truth.rows.label) == sorted(given.truth.rows.label)
    order, other = (np.lexsort(each.truth.rows.box.T) for each in (split, given))  # type: ignore[union-attr]
    # the csv has three decimals, and its far edges count a pixel that the json's width does not
    assert np.abs(split.truth.rows.box[order] - given.truth.rows.box[other]).max() < 0.02


def test_custom_classes_have_columns_of_their_own(figures: Path) -> None:
    split = opened(figures, "train", 3, classes=(64, 1, 2))
    assert split.columns == {64: 0, 1: 1, 2: 2}
    assert split.names == {1: "left", 2: "right", 64: "near another figure"}
    assert split.samples.classes == 3 and "people without one of the classes" in split.samples.left_out


def test_what_decides_on_the_samples_is_in_the_hash(figures: Path, tmp_path: Path) -> None:
    same = opened(figures, "train", person_score=0.5, protocol="official")
    assert same.sha256 == opened(figures, "train").sha256
    assert opened(figures, person_score=0.5).sha256 != opened(figures).sha256
    assert opened(figures, excluded="").sha256 != opened(figures).sha256


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"value": "annotations/nothing.json"}, "nothing.json: cannot be read"),
        ({"value": "annotations"}, "is a folder"),
        ({"value": ""}, "data.val is empty"),
        ({"clips": "nowhere"}, "detect.clips: .*nowhere is no folder"),
        ({"truth": "nothing.csv"}, "nothing.csv"),
        ({"people": "nothing.json"}, "nothing.json"),
        ({"person_score": 1.0}, "no image with a person box"),
        ({"classes": (5, 5)}, "custom classes"),
        ({"classes": (79,), "labels": "annotations/action_list.pbtxt"}, "none of its classes has a column"),
    ],
)
def test_what_does_not_fit_is_named(changes: dict[str, object], message: str, figures: Path) -> None:
    columns = len(changes["classes"]) if "classes" in changes else 80  # type: ignore[arg-type]
    with pytest.raises(DataError, match=message):
        opened(figures, columns=columns, **changes)


def test_exclusions_that_leave_nothing_are_refused(figures: Path, tmp_path: Path) -> None:
    rows = [line.split(",")[:2] for line in (figures / FILES.truth).read_text().splitlines()]
    (tmp_path / "all.csv").write_text("".join(f"{video},{second}\n" for video, second in rows))
    with pytest.raises(DataError, match="leaves nothing to evaluate"):
        opened(figures, excluded=str(tmp_path / "all.csv"))


def test_an_unknown_class_in_training_is_named(figures: Path, tmp_path: Path) -> None:
    content = json.loads((figures / "annotations/ava_train_v2.2_min.json").read_text())
    content["annotations"][0]["action_ids"] = [81]
    (tmp_path / "odd.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"unknown class[\s\S]*81"):
        opened(figures, "train", value=str(tmp_path / "odd.json"))


def test_clips_that_are_not_there_are_found_at_the_start(figures: Path, tmp_path: Path) -> None:
    check_clips("val", opened(figures))
    with pytest.raises(DataError, match="none of the first 2 videos can be read"):
        check_clips("val", opened(figures, clips=str(tmp_path)))
    shutil.copytree(figures / "clips", tmp_path / "clips")
    next((tmp_path / "clips" / "trainval").glob("_v-*0")).rename(tmp_path / "elsewhere")
    check_clips("val", opened(figures, clips=str(tmp_path / "clips" / "trainval")))  # one missing video stops no run


# ---- a ground truth that nothing could match -----------------------------------------------------------------------


def truth_file(figures: Path, folder: Path, change: Callable[[list[str]], list[str]]) -> str:
    rows = [line.split(",") for line in (figures / FILES.truth).read_text().splitlines()]
    path = folder / "truth.csv"
    path.write_text("".join(",".join(change(row)) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: [row[0].replace("_v-", "_t-"), *row[1:]], "no key frame of"),
        (lambda row: [row[0], f"{int(row[1]) + 50}", *row[2:]], "no key frame of"),
        (lambda row: [*row[:2], *(f"{float(value) * 96:.1f}" for value in row[2:6]), *row[6:]], "boxes in pixels"),
        (lambda row: [*row[:6], "70", *row[7:]], "no box of a class that counts"),
    ],
)
def test_a_ground_truth_that_nothing_can_match_is_refused(
    change: Callable[[list[str]], list[str]], message: str, figures: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message):
        opened(figures, truth=truth_file(figures, tmp_path, change))


def test_an_empty_ground_truth_is_refused(figures: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(DataError, match="no box to hold detections against"):
        opened(figures, truth=str(tmp_path / "empty.csv"))


def test_an_inverted_box_is_found_before_training_where_the_protocol_refuses_it(figures: Path, tmp_path: Path) -> None:
    inverted = truth_file(figures, tmp_path, lambda row: [*row[:2], row[4], row[3], row[2], row[5], *row[6:]])
    assert "boxes of the ground truth are inverted or empty" in "".join(remarks("val", opened(figures, truth=inverted)))
    with pytest.raises(DataError, match="inverted boxes, which the mmaction2 protocol refuses"):
        opened(figures, truth=inverted, protocol="mmaction2")


def test_numbered_person_boxes_need_the_order_of_the_videos(figures: Path) -> None:
    with pytest.raises(DataError, match="detect.video_list"):
        opened(figures, value="annotations/ava_val_v2.2.csv")
    ordered = opened(figures, value="annotations/ava_val_v2.2.csv", video_list="annotations/video_names.txt")
    assert np.array_equal(ordered.samples.boxes, opened(figures).samples.boxes)


def test_a_label_map_is_no_part_of_what_training_saw(figures: Path, tmp_path: Path) -> None:
    text = (figures / "annotations/action_list.pbtxt").read_text()
    (tmp_path / "renamed.pbtxt").write_text(text.replace("left", "leftwards"))
    renamed = {"labels": str(tmp_path / "renamed.pbtxt")}
    assert opened(figures, "train", **renamed).sha256 == opened(figures, "train").sha256
    assert opened(figures, **renamed).sha256 != opened(figures).sha256


def test_a_label_map_with_more_classes_than_the_head_is_refused_unless_they_are_chosen(figures: Path) -> None:
    with pytest.raises(DataError, match="a class without a column"):
        opened(figures, "val", 7)
    assert opened(figures, "val", 2, classes=(64, 1)).names == {1: "left", 64: "near another figure"}
