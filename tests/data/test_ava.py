"""AVA's annotations and samples: two sources of the same, custom classes, what is left out, what broken files say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dsvid.data import ava
from dsvid.data.ava_annotations import (
    annotations_from_csv,
    annotations_json,
    person_boxes_from_csv,
    read_annotations,
    read_person_boxes,
    write_json,
)
from dsvid.data.ava_files import ImageNumbers, read_boxes, read_exclusions, write_detections
from dsvid.errors import DataError
from dsvid.metrics.ava import BoxRows

SIZES = {"a": (200, 100), "b": (100, 200)}
GT = "b,0902,0.1,0.1,0.5,0.5,80,3\nb,902,0.1,0.1,0.5,0.5,12,3\nb,902,0.2,0.2,0.9,0.9,1,4\na,1000,0,0,1,1,7,0\n"


def write(folder: Path, text: str, name: str = "gt.csv") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def annotations(folder: Path, text: str = GT, **more: Any):
    return annotations_from_csv(write(folder, text), ["b", "a", "unused"], SIZES, **more)


def test_json_of_a_csv_reads_as_the_same_samples(tmp_path: Path) -> None:
    made = annotations(tmp_path)
    write_json(tmp_path / "a.json", annotations_json(made))
    read = read_annotations(tmp_path / "a.json")
    assert (read.images, read.people) == (made.images, made.people)
    assert len(made.images) == 2 * 897 and made.images[10902].video == "a" and made.images[902].video == "b"
    samples = ava.train_samples(read, ava.class_columns())
    assert samples.ids.tolist() == [902, 11000] and samples.left_out == {"images without boxes": 1792}
    first = samples[0]
    assert first.boxes.tolist() == [[10.0, 20.0, 49.0, 99.0], [20.0, 40.0, 89.0, 179.0]]
    assert [(np.flatnonzero(row) + 1).tolist() for row in first.labels] == [[12, 80], [1]]
    assert samples.packed.shape == (3, 10) and first.scores.tolist() == [1, 1]
    assert (first.frame.width, first.frame.height, str(first.frame)) == (100, 200, "b second 0902")


def test_without_person_ids_equal_boxes_are_one_person(tmp_path: Path) -> None:
    seven = "".join(line.rpartition(",")[0] + "\n" for line in GT.splitlines())
    people = annotations(tmp_path, seven).people
    assert [(each.person, each.actions) for each in people] == [(-1, (80, 12)), (-1, (1,)), (-1, (7,))]


def test_other_seconds_of_a_csv_are_images_too(tmp_path: Path) -> None:
    made = annotations(tmp_path, GT + "a,0004\n", seconds=range(900, 902))
    assert sorted(made.images) == [900, 901, 902, 10004, 10900, 10901, 11000]


def test_custom_classes_have_columns_of_their_own(tmp_path: Path) -> None:
    made = annotations(tmp_path)
    samples = ava.train_samples(made, ava.class_columns([80, 7]), custom=True)
    assert samples.classes == 2 and [row.tolist() for row in (samples[0].labels, samples[1].labels)] == [
        [[1, 0]],
        [[0, 1]],
    ]
    assert samples.left_out["people without one of the classes"] == 1
    for wrong in ([3, 3], [], [0, 1]):
        with pytest.raises(DataError, match="custom classes"):
            ava.class_columns(wrong)


def test_an_unknown_class_is_named(tmp_path: Path) -> None:
    made = annotations(tmp_path, GT + "a,1001,0,0,1,1,81,0\n")
    with pytest.raises(DataError, match=r"person 0 of a second 1001[\s\S]*81[\s\S]*1 to 80"):
        ava.train_samples(made, ava.class_columns())
    assert len(ava.train_samples(made, ava.class_columns(81))) == 3


def test_boxes_outside_of_the_frame_are_clipped_or_left_out(tmp_path: Path) -> None:
    outside = GT + "a,1002,0.5,0.5,2,2,1,0\na,1003,1.2,0,1.4,1,1,0\na,1004,0.5,0.5,0.5,0.9,1,0\n"
    samples = ava.train_samples(annotations(tmp_path, outside), ava.class_columns())
    assert samples.ids.tolist() == [902, 11000, 11002] and samples[2].boxes.tolist() == [[100, 50, 199, 99]]
    assert samples.left_out["boxes that are empty inside the frame"] == 2


def test_validation_takes_detected_people_of_the_score(tmp_path: Path) -> None:
    entries = [
        {"image_id": 902, "bbox": [10, 20, 30, 40], "score": 0.8},
        {"image_id": 902, "bbox": [10, 20, 30, 40], "score": 0.79},
        {"image_id": 11000, "bbox": [300, 20, 30, 40], "score": 0.9},
        {"image_id": 77, "bbox": [10, 20, 30, 40], "score": 0.9},
    ]
    write_json(tmp_path / "people.json", entries)
    people = read_person_boxes(tmp_path / "people.json")
    made = annotations(tmp_path)
    samples = ava.val_samples(made, people, ava.class_columns())
    assert samples.ids.tolist() == [902] and samples[0].boxes.tolist() == [[10, 20, 39, 59]]
    assert samples[0].scores.tolist() == pytest.approx([0.8]) and not samples[0].labels.any()
    assert samples.left_out == {
        "images without a person box of the score": 1793,
        "boxes below the score": 1,
        "boxes that are empty inside the frame": 1,
        "boxes of unknown images": 1,
    }
    assert len(ava.val_samples(made, people, ava.class_columns(), min_score=0.5)[0].boxes) == 2
    with pytest.raises(DataError, match=r"no image with a person box[\s\S]*score threshold"):
        ava.val_samples(made, people, ava.class_columns(), min_score=0.95)
    with pytest.raises(DataError, match="excluded images"):
        ava.val_samples(made, people, ava.class_columns(), excluded=[902])


def test_exclusions_that_remove_everything_are_an_error(tmp_path: Path) -> None:
    made = annotations(tmp_path)
    assert len(ava.train_samples(made, ava.class_columns(), excluded=[902])) == 1
    with pytest.raises(DataError, match=r"no image with a box to train on[\s\S]*'excluded images': 2"):
        ava.train_samples(made, ava.class_columns(), excluded=[902, 11000])


def test_person_boxes_are_made_of_a_csv(tmp_path: Path) -> None:
    text = "b,902,0.1,0.1,0.5,0.5,1,0.9\nb,902,0.1,0.1,0.5,0.5,2,0.95\na,1000,0,0,1,1,7\n"
    made = annotations(tmp_path)
    path = write(tmp_path, text, "d.csv")
    entries = person_boxes_from_csv(path, made)
    assert entries[0] == {"image_id": 902, "category_id": 1, "bbox": [10.0, 20.0, 40.0, 80.0], "score": 0.95}
    assert len(entries) == 2 and entries[1]["score"] == 1.0
    write_json(tmp_path / "p.json", entries)
    assert len(ava.val_samples(made, read_person_boxes(tmp_path / "p.json"), ava.class_columns())) == 2
    with pytest.raises(DataError, match=r"gt.csv:1: a person box's score"):
        person_boxes_from_csv(tmp_path / "gt.csv", made)
    with pytest.raises(DataError, match=r"d.csv:1: b second 0003"):
        person_boxes_from_csv(write(tmp_path, "b,3,0,0,1,1,1,0.5\n", "d.csv"), made)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda c: c.pop("images"), r"the file is not understood[\s\S]*images"),
        (lambda c: c["images"][1].pop("width"), r"image 1 is not understood[\s\S]*width"),
        (lambda c: c["images"][1].update(id=902), "image 1 .*"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, 3]), "annotation 0"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, -3, 4]), "annotation 0"),
        (lambda c: c["annotations"][1].update(image_id=5), r"annotation 1[\s\S]*image_id 5"),
        (lambda c: c["annotations"][2].update(action_ids=["run"]), "annotation 2"),
    ],
)
def test_a_broken_json_is_named(tmp_path: Path, change: Any, told: str) -> None:
    content = annotations_json(annotations(tmp_path))
    content["images"] = [entry for entry in content["images"] if entry["id"] in (902, 11000)]
    change(content)
    with pytest.raises(DataError, match=told):
        read_annotations(write(tmp_path, json.dumps(content), "a.json"))


def test_other_broken_files_are_named(tmp_path: Path) -> None:
    for read in (read_annotations, read_person_boxes):
        with pytest.raises(DataError, match="nowhere"):
            read(tmp_path / "nowhere.json")
        with pytest.raises(DataError, match=r"a\.json: cannot be read"):
            read(write(tmp_path, "{", "a.json"))
        with pytest.raises(DataError, match=r"a\.json: no"):
            read(write(tmp_path, "3", "a.json"))
    with pytest.raises(DataError, match="entry 0"):
        read_person_boxes(write(tmp_path, '[{"image_id": 1, "bbox": [1, 2, 3, 4], "score": NaN}]', "a.json"))
    with pytest.raises(DataError, match=r"video 'c' is missing in the list"):
        annotations(tmp_path, GT + "c,902,0,0,1,1,1,0\n")
    with pytest.raises(DataError, match=r"gt.csv:5: a person id is a whole number"):
        annotations(tmp_path, GT + "a,902,0,0,1,1,1,0.5\n")
    with pytest.raises(DataError, match=r"cannot number[\s\S]*0902\.5"):
        annotations(tmp_path, GT + "a,902.5,0,0,1,1,1,0\n")
    with pytest.raises(DataError, match=r"cannot number[\s\S]*10000"):
        annotations(tmp_path, GT + "a,10000,0,0,1,1,1,0\n")


def test_detections_are_what_is_read_of_the_csv(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    columns = ava.class_columns([80, 7, 12])
    made = annotations(tmp_path, "".join(f"b,{900 + k},{rng.random() / 3:.3f},0.1,0.7,0.9,80,1\n" for k in range(40)))
    samples = ava.train_samples(made, columns)
    numbers = ImageNumbers()
    parts = []
    for sample in (samples[number] for number in range(len(samples))):
        image = numbers.number(sample.frame.video, sample.frame.micros)
        parts.append(ava.detection_rows(sample, rng.random((1, 3), dtype=np.float32), image, columns))
    rows = BoxRows(*(np.concatenate([getattr(part, name) for part in parts]) for name in BoxRows.__dataclass_fields__))
    assert rows.label[:6].tolist() == [80, 7, 12, 80, 7, 12]
    write_detections(tmp_path / "result.csv", numbers.keys, rows)
    again = read_boxes(tmp_path / "result.csv", numbers).rows
    for name in BoxRows.__dataclass_fields__:
        assert np.array_equal(getattr(rows, name), getattr(again, name)), name


def test_exclusions_name_image_ids(tmp_path: Path) -> None:
    numbers = ImageNumbers()
    read_exclusions(write(tmp_path, "a,1000\nb,902.0\nz,902\na,3\n", "e.csv"), numbers)
    assert annotations(tmp_path).ids_of(numbers.keys) == [11000, 902]
