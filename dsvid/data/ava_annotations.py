"""AVA's annotations and person boxes: COCO-style json, or the csv by AlphAction's rule; json made from csv.

Boxes are x, y, w, h in pixels of the key frame, as in the files.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsvid.data.ava_files import MICRO, BoxFile, ImageNumbers, Key, read_boxes, show_timestamp
from dsvid.errors import DataError
from dsvid.publish import publish_text

SECONDS = range(902, 1799)  # the key frames that every video of AVA has
SECONDS_A_VIDEO = 10_000  # image id = place of the video in the list * this + second
PEOPLE_AN_IMAGE = 1_000  # annotation id = image id * this + person


@dataclass(frozen=True, slots=True)
class KeyFrame:
    """An image of the annotations; `width` and `height` of the key frame in pixels."""

    video: str
    micros: int
    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.video} second {show_timestamp(self.micros)}"


@dataclass(frozen=True, slots=True)
class Annotation:
    """One person in one image: xywh in pixels, class numbers in the order of the file."""

    image: int
    person: int
    xywh: tuple[float, float, float, float]
    actions: tuple[int, ...]


@dataclass(frozen=True)
class Annotations:
    """Images by id, and the people in them."""

    source: str
    images: dict[int, KeyFrame]
    people: list[Annotation]

    def ids_of(self, keys: Iterable[Key]) -> list[int]:
        """Image ids of key frames, such as a file of exclusions names; those that are not among the images are left
        out."""
        ids = {(frame.video, frame.micros): identity for identity, frame in self.images.items()}
        return [ids[key] for key in keys if key in ids]


def read_annotations(path: Path) -> Annotations:
    """A COCO-style json: images (id, movie, timestamp, width, height), annotations (image_id, bbox, action_ids,
    person_id). Raises DataError with the entry at fault.
    """
    content = _json(path)
    if not isinstance(content, dict):
        raise DataError(
            f"{path}: no annotations", found=type(content).__name__, expected="an object of images, annotations"
        )
    images: dict[int, KeyFrame] = {}
    people: list[Annotation] = []
    place = "the file"
    try:
        for number, entry in enumerate(content["images"]):
            place = f"image {number}"
            frame = KeyFrame(
                str(entry["movie"]), round(float(entry["timestamp"]) * MICRO), int(entry["width"]), int(entry["height"])
            )
            if frame.width < 1 or frame.height < 1 or int(entry["id"]) in images:
                raise ValueError(f"{entry}: a size below 1, or an id given twice")
            images[int(entry["id"])] = frame
        for number, entry in enumerate(content["annotations"]):
            place = f"annotation {number}"
            person = Annotation(
                int(entry["image_id"]),
                int(entry.get("person_id", -1)),
                _box(entry["bbox"]),
                tuple(int(action) for action in entry["action_ids"]),
            )
            if person.image not in images:
                raise ValueError(f"image_id {person.image} is not among the images")
            people.append(person)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise DataError(
            f"{path}: {place} is not understood",
            found=f"{type(error).__name__}: {error}"[:300],
            expected="images: id, movie, timestamp, width, height; annotations: image_id, bbox [x,y,w,h], action_ids",
        ) from error
    return Annotations(str(path), images, people)


def annotations_from_csv(
    path: Path,
    videos: Sequence[str],
    sizes: Mapping[str, tuple[int, int]],
    *,
    seconds: Sequence[int] = SECONDS,
) -> Annotations:
    """What AlphAction's csv2COCO makes of a ground-truth csv; `sizes` are (width, height) of each video's key frames.

    `videos` is the order that numbers images (`read_video_list`); each video of the csv gets an image for every one of
    `seconds`, and for other seconds that the csv names. Boxes are rounded to 2 decimals. Rows of the same image and
    person are one annotation: its box is the first row's. Without person ids, equal boxes are one person.
    """
    numbers = ImageNumbers()
    read = read_boxes(path, numbers)
    places = {video: place for place, video in enumerate(videos)}
    used = sorted({video for video, _ in numbers.keys}, key=lambda video: places.get(video, -1))
    for video in used:
        for name, known in (("list of videos", places), ("sizes of videos", sizes)):
            if video not in known:
                raise DataError(
                    f"{path}: video {video!r} is missing in the {name}", fix="complete it, or drop its rows"
                )
    keys = {(video, second * MICRO) for video in used for second in seconds} | set(numbers.keys)
    frames = {_image_id(path, places[video], micros): KeyFrame(video, micros, *sizes[video]) for video, micros in keys}
    images = dict(sorted(frames.items()))
    people: dict[tuple[int, object], tuple[tuple[float, float, float, float], list[int]]] = {}
    _check_people(read)
    rows = read.rows
    columns = (
        rows.image.tolist(),
        rows.box.tolist(),
        rows.label.tolist(),
        rows.score.tolist(),
        read.with_last.tolist(),
    )
    for image, (x1, y1, x2, y2), label, last, has_person in zip(*columns, strict=True):
        video, micros = numbers.keys[image]
        width, height = sizes[video]
        box = (
            round(x1 * width, 2), round(y1 * height, 2), round((x2 - x1) * width, 2), round((y2 - y1) * height, 2)
        )  # fmt: skip
        person = int(last) if has_person else box
        people.setdefault((_image_id(path, places[video], micros), person), (box, []))[1].append(label)
    found = [
        Annotation(image, person if isinstance(person, int) else -1, box, tuple(dict.fromkeys(actions)))
        for (image, person), (box, actions) in people.items()
    ]
    return Annotations(str(path), images, found)


def _check_people(read: BoxFile) -> None:
    odd = np.flatnonzero(read.with_last & (read.rows.score != np.floor(read.rows.score)))
    if len(odd):
        raise DataError(
            f"{read.path}:{read.line[odd[0]]}: a person id is a whole number",
            found=read.rows.score[odd[0]],
            expected="ground truth, not detections with scores",
        )


def _image_id(path: Path, place: int, micros: int) -> int:
    second, rest = divmod(micros, MICRO)
    if rest or second >= SECONDS_A_VIDEO:
        raise DataError(
            f"{path}: a key frame that AlphAction's image ids cannot number",
            found=f"second {show_timestamp(micros)}",
            expected=f"a whole second below {SECONDS_A_VIDEO}",
            fix="a json of annotations with ids of its own",
        )
    return place * SECONDS_A_VIDEO + second


def read_person_boxes(path: Path) -> dict[int, NDArray[np.float64]]:
    """Image id -> [k, 5] x, y, w, h, score, of a flat list of {image_id, bbox, score}. Raises DataError."""
    content = _json(path)
    if not isinstance(content, list):
        raise DataError(f"{path}: no person boxes", found=type(content).__name__, expected="a list of objects")
    found: dict[int, list[tuple[float, ...]]] = {}
    for number, entry in enumerate(content):
        try:
            score = float(entry["score"])
            if not np.isfinite(score):
                raise ValueError(f"score {score}")
            found.setdefault(int(entry["image_id"]), []).append((*_box(entry["bbox"]), score))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise DataError(
                f"{path}: entry {number} is not understood",
                found=f"{type(error).__name__}: {error}"[:300],
                expected="image_id, bbox [x, y, w, h] in pixels, score",
            ) from error
    return {image: np.array(boxes, dtype=np.float64) for image, boxes in found.items()}


def person_boxes_from_csv(path: Path, annotations: Annotations) -> list[dict[str, Any]]:
    """Person boxes (the content of the json) of a csv in shares of the frame: a detector's, or a ground truth's.

    Rows `video, second, x1, y1, x2, y2, class, score` of any class; equal boxes of an image are one, with its highest
    score. The last column of a ground truth is a person id and not a score: give it in seven columns.
    """
    numbers = ImageNumbers()
    read = read_boxes(path, numbers)
    ids = {(frame.video, frame.micros): identity for identity, frame in annotations.images.items()}
    best: dict[tuple[int, tuple[float, ...]], float] = {}
    columns = (read.rows.image.tolist(), read.rows.box.tolist(), read.rows.score.tolist(), read.line.tolist())
    for image, box, score, line in zip(*columns, strict=True):
        if not 0 <= score <= 1:
            raise DataError(f"{path}:{line}: a person box's score", found=score, expected="0 to 1 (no person id)")
        video, micros = numbers.keys[image]
        if (video, micros) not in ids:
            raise DataError(f"{path}:{line}: {video} second {show_timestamp(micros)} is not among the annotations")
        key = (ids[video, micros], tuple(box))
        best[key] = max(score, best.get(key, 0.0))
    entries = []
    for (identity, (x1, y1, x2, y2)), score in best.items():
        width, height = annotations.images[identity].width, annotations.images[identity].height
        box = [round(value, 3) for value in (x1 * width, y1 * height, (x2 - x1) * width, (y2 - y1) * height)]
        entries.append({"image_id": identity, "category_id": 1, "bbox": box, "score": score})
    return entries


def write_json(path: Path, content: object) -> None:
    """Write annotations or person boxes, whole or not at all."""
    publish_text(path, json.dumps(content) + "\n")


def annotations_json(annotations: Annotations) -> dict[str, Any]:
    """The content of the COCO-style json that `read_annotations` reads."""
    return {
        "categories": [{"id": 1, "name": "person"}],
        "images": [
            {
                "id": identity,
                "movie": frame.video,
                "timestamp": frame.micros / MICRO if frame.micros % MICRO else frame.micros // MICRO,
                "width": frame.width,
                "height": frame.height,
            }
            for identity, frame in annotations.images.items()
        ],
        "annotations": [
            {
                "id": person.image * PEOPLE_AN_IMAGE + person.person,
                "image_id": person.image,
                "person_id": person.person,
                "bbox": list(person.xywh),
                "action_ids": list(person.actions),
            }
            for person in annotations.people
        ],
    }


def _box(values: Any) -> tuple[float, float, float, float]:
    x, y, w, h = (float(value) for value in values)
    if not all(np.isfinite((x, y, w, h))) or w < 0 or h < 0:
        raise ValueError(f"bbox {values}: no finite x, y, w, h with w, h >= 0")
    return x, y, w, h


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read", found=f"{error}"[:300], expected="a json file of AVA") from error
