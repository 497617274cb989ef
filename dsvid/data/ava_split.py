"""A split of an AVA-format data set as a recipe names it: its files opened, its samples, what its scores are held
against.

Knows files and boxes; knows no pixels and no model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dsvid.data import ava_generated
from dsvid.data.ava import CLASSES, AvaSamples, class_columns, train_samples, val_samples
from dsvid.data.ava_annotations import (
    Annotations,
    annotations_from_csv,
    person_boxes_from_csv,
    read_annotations,
    read_person_boxes,
)
from dsvid.data.ava_clips import video_size
from dsvid.data.ava_files import MICRO, ImageNumbers, Key, read_boxes, read_exclusions, read_label_map, read_video_list
from dsvid.data.ava_names import AVA_NAMES
from dsvid.errors import DataError, DsvidError
from dsvid.metrics.ava import BoxRows

if TYPE_CHECKING:
    from dsvid.recipe import DataConfig, DetectConfig, DetectFiles

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class AvaFiles:
    """Where the parts of a split lie; None where the recipe names none. `start_s`: of the first frame of a video."""

    annotations: Path
    clips: Path
    start_s: float
    video_list: Path | None = None
    labels: Path | None = None
    truth: Path | None = None
    people: Path | None = None
    excluded: Path | None = None


@dataclass(frozen=True)
class Truth:
    """What detections are held against: rows, the images that the file lists, the images that do not count; `numbers`
    numbers the key frames.
    """

    rows: BoxRows
    listed: Ints
    excluded: Ints | None
    numbers: ImageNumbers


@dataclass(frozen=True)
class AvaSplit:
    """`columns`: class number -> column of the head; `names` of the classes that count, by number.

    `sha256` is that of everything that decides which samples there are. `truth` is None in training.
    """

    source: str
    sha256: str
    files: AvaFiles
    samples: AvaSamples
    columns: dict[int, int]
    names: dict[int, str]
    truth: Truth | None

    def __len__(self) -> int:
        return len(self.samples)

    def path(self, index: int) -> str:
        """The clip of sample `index`, for messages."""
        frame = self.samples.frames[index]
        return f"{self.files.clips / frame.video} second {frame.micros / 1e6:g}"

    def key(self, index: int) -> Key:
        """(video, microseconds) of sample `index`."""
        frame = self.samples.frames[index]
        return frame.video, frame.micros


def open_ava(data: DataConfig, detect: DetectConfig, split: str, classes: int) -> AvaSplit:
    """Open "train", "val" or "test" of a recipe with `classes` columns. Raises DataError for what does not fit.

    Training takes the annotated boxes, evaluation those of a person detector, or the annotated ones where none is
    named.
    """
    files = files_of(data, detect, split)
    return _opened(files, detect, split, classes, data.train_limit if split == "train" else 0)


@lru_cache(maxsize=8)  # real annotations take half a minute
def _opened(files: AvaFiles, detect: DetectConfig, split: str, classes: int, limit: int) -> AvaSplit:
    annotations = _annotations(files, detect)
    columns = class_columns(detect.classes or classes)
    if split == "train":
        excluded = _excluded_ids(files, annotations)
        samples = train_samples(annotations, columns, custom=bool(detect.classes), excluded=excluded)
        if limit:
            samples = samples.first_of(limit)
        truth = None
    else:
        people = _people(files, annotations)
        samples = val_samples(annotations, people, columns, min_score=detect.person_score)
        truth = _truth(files, annotations)
    names = class_names(files.labels, columns, custom=bool(detect.classes))
    if truth is not None:
        check_truth(files, samples, truth, names, detect.protocol)
    settings: list[object] = [detect.classes, detect.seconds]
    if truth is not None:
        settings += [detect.person_score, detect.protocol]
        settings.append(_hash_of(files.labels))  # names and classes that count are no matter of training
    return AvaSplit(str(files.annotations), _fingerprint(files, settings), files, samples, columns, names, truth)


def files_of(data: DataConfig, detect: DetectConfig, split: str) -> AvaFiles:
    """The paths of a split; relative ones start at data.root. `builtin` is the generated set, made if needed."""
    value = getattr(data, split)
    if value == "builtin":
        paths = ava_generated.prepare()
        part = "train" if split == "train" else "val"
        scored = part == "val"
        return AvaFiles(
            annotations=paths[f"{part}_annotations"], clips=paths["clips"], start_s=ava_generated.FIRST_SECOND,
            labels=label_map(data), truth=paths["val_gt"] if scored else None,
            people=paths["people"] if scored else None, excluded=paths["val_excluded"] if scored else None,
        )  # fmt: skip

    def at(name: str) -> Path | None:
        return Path(data.root).expanduser() / Path(name).expanduser() if name else None

    given = at(value)
    if given is None:
        raise DataError(
            f"data.{split} is empty", expected="annotations, json or csv, or `builtin`",
            fix=f"data.{split}=annotations/ava_val_v2.2_min.json" + (", or --split val" if split == "test" else ""),
        )  # fmt: skip
    if given.is_dir():
        raise DataError(
            f"data.{split}: {given} is a folder", expected="annotations, json or csv",
            fix=f"data.root={given} data.{split}=annotations/ava_{split}_v2.2_min.json",
        )  # fmt: skip
    own: DetectFiles | None = {"val": detect.val, "test": detect.test}.get(split)
    clips = at(detect.clips)
    assert clips is not None, "the recipe checks it"
    if not clips.is_dir():
        raise DataError(f"detect.clips: {clips} is no folder", expected="<video>/<second>.mp4, or whole videos, in it")
    return AvaFiles(
        annotations=given, clips=clips, start_s=detect.start_s,
        video_list=at(detect.video_list), labels=label_map(data),
        truth=at(own.truth) if own else None, people=at(own.people) if own else None,
        excluded=at(own.excluded if own else detect.exclude_training),
    )  # fmt: skip


def label_map(data: DataConfig) -> Path | None:
    """The label map of a recipe: data.labels, that of the built-in figures, or none."""
    if data.labels:
        return Path(data.root).expanduser() / Path(data.labels).expanduser()
    return ava_generated.prepare()["labels"] if "builtin" in (data.train, data.val, data.test) else None


def class_names(path: Path | None, columns: dict[int, int], *, custom: bool) -> dict[int, str]:
    """Names of the classes that count: those of a label map, AVA's own 60 of 80, else every class by its number.

    Raises DataError where the label map has a class that the head has no column for, save with `custom` classes, which
    choose among those of the map, or none that it has.
    """
    if path is None:
        if len(columns) == CLASSES and not custom:
            return dict(AVA_NAMES)
        return {number: AVA_NAMES.get(number, str(number)) if custom else str(number) for number in columns}
    found = read_label_map(path)
    known = {number: name for number, name in found.items() if number in columns}
    if known and not custom and len(known) < len(found):
        raise DataError(
            f"{path}: a class without a column in the head", found=f"class {max(found)}, {len(columns)} columns",
            fix=f"model.num_classes={max(found)}, or detect.classes=[…] to choose among them",
        )  # fmt: skip
    if not known:
        raise DataError(
            f"{path}: none of its classes has a column", found=f"classes {list(found)[:8]}",
            expected=f"some of {sorted(columns)[:8]}", fix="model.num_classes, detect.classes or data.labels",
        )  # fmt: skip
    return known


def _annotations(files: AvaFiles, detect: DetectConfig) -> Annotations:
    if files.annotations.suffix != ".csv":
        return read_annotations(files.annotations)
    numbers = ImageNumbers()
    read_boxes(files.annotations, numbers)
    videos = list(dict.fromkeys(video for video, _ in numbers.keys))
    if files.people is not None and files.people.suffix != ".csv" and files.video_list is None:
        # image ids count videos: by another order, people would be looked for in other videos
        raise DataError(
            f"{files.people} names images by number, and {files.annotations} does not say in which order videos count",
            fix="detect.video_list=ava_file_names_trainval_v2.1.txt, or annotations as json",
        )  # fmt: skip
    sizes = {video: video_size(files.clips, video) for video in videos}
    order = read_video_list(files.video_list) if files.video_list else videos
    return annotations_from_csv(files.annotations, order, sizes, seconds=seconds_of(detect.seconds))


def seconds_of(text: str) -> range:
    """`902-1798` -> range(902, 1799); an empty text is no second besides those of the file. Raises DataError."""
    if not text:
        return range(0)
    first, dash, last = text.partition("-")
    if not (dash and first.isdigit() and last.isdigit() and int(first) <= int(last)):
        raise DataError("seconds of the key frames", found=text, expected="the first and the last, as 902-1798")
    return range(int(first), int(last) + 1)


def _people(files: AvaFiles, annotations: Annotations) -> dict[int, NDArray[np.float64]]:
    if files.people is None:
        own: dict[int, list[tuple[float, ...]]] = {}
        for person in annotations.people:
            own.setdefault(person.image, []).append((*person.xywh, 1.0))
        return {image: np.array(boxes) for image, boxes in own.items()}
    if files.people.suffix != ".csv":
        return read_person_boxes(files.people)
    found: dict[int, list[tuple[float, ...]]] = {}
    for entry in person_boxes_from_csv(files.people, annotations):
        found.setdefault(entry["image_id"], []).append((*entry["bbox"], entry["score"]))
    return {image: np.array(boxes) for image, boxes in found.items()}


def _excluded_ids(files: AvaFiles, annotations: Annotations) -> list[int]:
    if files.excluded is None:
        return []
    numbers = ImageNumbers()
    return annotations.ids_of(numbers.keys[image] for image in read_exclusions(files.excluded, numbers))


def _truth(files: AvaFiles, annotations: Annotations) -> Truth:
    numbers = ImageNumbers()
    if files.truth is not None:
        read = read_boxes(files.truth, numbers)
        rows, listed = read.rows, read.images
    else:
        rows = annotated_rows(annotations, numbers)
        listed = np.unique(rows.image)
    excluded = read_exclusions(files.excluded, numbers) if files.excluded is not None else None
    if excluded is not None and len(listed) and not len(np.setdiff1d(listed, excluded)):
        raise DataError(
            f"{files.excluded} leaves nothing to evaluate", found=f"all {len(listed)} key frames are excluded",
            fix="the list of the same split, or none",
        )  # fmt: skip
    return Truth(rows, listed, excluded, numbers)


def check_truth(files: AvaFiles, samples: AvaSamples, truth: Truth, names: dict[int, str], protocol: str) -> None:
    """Raise DataError for a ground truth that no detection could ever match: mAP 0 would look like a poor model."""
    name, rows = files.truth or files.annotations, truth.rows
    if not len(rows):
        raise DataError(f"{name}: no box to hold detections against", expected="rows of boxes")
    if (rows.box > 2).mean() > 0.5:
        raise DataError(
            f"{name}: boxes in pixels", found=f"x1, y1, x2, y2 = {rows.box[0].tolist()}",
            expected="shares of the frame, from 0 to 1",
        )  # fmt: skip
    listed = {truth.numbers.keys[image] for image in truth.listed.tolist()}
    own = {(frame.video, frame.micros) for frame in samples.frames}
    if not listed & own:
        raise DataError(
            f"{name}: no key frame of {files.annotations}", found=f"{_shown(min(listed))} and others",
            expected=f"{_shown(min(own))} and others", fix="the files of one split",
        )  # fmt: skip
    if not np.isin(rows.label, list(names)).any():
        raise DataError(
            f"{name}: no box of a class that counts", found=f"classes {np.unique(rows.label)[:8].tolist()}",
            expected=f"some of {list(names)[:8]}", fix="detect.classes, model.num_classes or data.labels",
        )  # fmt: skip
    inverted = np.flatnonzero((rows.box[:, 2] < rows.box[:, 0]) | (rows.box[:, 3] < rows.box[:, 1]))
    if protocol == "mmaction2" and len(inverted):
        raise DataError(
            f"{name}: {len(inverted)} inverted boxes, which the mmaction2 protocol refuses",
            found=f"x1, y1, x2, y2 = {rows.box[inverted[0]].tolist()}",
            fix="mend the file, or detect.protocol=seed, which drops them",
        )  # fmt: skip


def _shown(key: Key) -> str:
    return f"{key[0]} second {key[1] / MICRO:g}"


def annotated_rows(annotations: Annotations, numbers: ImageNumbers) -> BoxRows:
    """The annotated boxes as rows of a ground truth, in shares of the frame."""
    images, boxes, labels = [], [], []
    for person in annotations.people:
        frame = annotations.images[person.image]
        x, y, w, h = person.xywh
        for action in person.actions:
            images.append(numbers.number(frame.video, frame.micros))
            boxes.append((x / frame.width, y / frame.height, (x + w) / frame.width, (y + h) / frame.height))
            labels.append(action)
    return BoxRows(
        image=np.array(images, dtype=np.int64),
        box=np.array(boxes, dtype=np.float64).reshape(-1, 4),
        label=np.array(labels, dtype=np.int64),
        score=np.ones(len(labels)),
    )


def _fingerprint(files: AvaFiles, settings: list[object]) -> str:
    """SHA-256 of the files' contents and of the settings that choose samples or score them."""
    digest = hashlib.sha256()
    parts: Sequence[Path | None] = (
        files.annotations, files.video_list, files.truth, files.people, files.excluded,
    )  # fmt: skip
    for path in parts:
        digest.update(_hash_of(path))
    digest.update(repr(settings).encode())
    return digest.hexdigest()


def _hash_of(path: Path | None) -> bytes:
    if path is None:
        return b"\0"
    try:
        return hashlib.sha256(path.read_bytes()).digest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read", found=error.strerror or str(error)) from error


def remarks(split: str, opened: AvaSplit) -> list[str]:
    """What the log says of a split at the start: how much there is, and what was left out."""
    samples = opened.samples
    lines = [f"data.{split}: {len(samples)} key frames, {len(samples.boxes)} boxes ({opened.source})"]
    lines += [f"data.{split}: left out: {count} {name}" for name, count in samples.left_out.items()]
    if opened.truth is not None:
        lines += _truth_remarks(split, opened, opened.truth)
    if any(opened.files.clips.glob("*.mp4")):
        lines.append(f"data.{split}: whole videos: each clip opens and indexes its file; one-second files are faster")
    if split != "train" and opened.files.people is None:
        lines.append(f"data.{split}: no person boxes are given (detect.{split}.people): the annotated ones are judged")
    return lines


def _truth_remarks(split: str, opened: AvaSplit, truth: Truth) -> list[str]:
    listed = {truth.numbers.keys[image] for image in truth.listed.tolist()}
    own = {(frame.video, frame.micros) for frame in opened.samples.frames}
    rows = truth.rows
    empty = int(((rows.box[:, 2] <= rows.box[:, 0]) | (rows.box[:, 3] <= rows.box[:, 1])).sum())
    counted = (
        (len(listed - own), "key frames of the ground truth have no person box: their boxes are missed"),
        (
            int((~np.isin(rows.label, list(opened.names))).sum()),
            "rows of the ground truth do not count: other classes",
        ),
        (empty, "boxes of the ground truth are inverted or empty"),
    )
    lines = [f"data.{split}: {count} {words}" for count, words in counted if count]
    if opened.files.labels is None and len(opened.names) < len(opened.columns):
        lines.append(f"data.{split}: no label map is given: AVA's {len(opened.names)} classes count")
    return lines


def check_clips(split: str, opened: AvaSplit) -> None:
    """Raise DataError where no clip of the first samples is there: so a wrong folder is found at the start."""
    videos = list(dict.fromkeys(frame.video for frame in opened.samples.frames))[:20]
    errors: list[DsvidError] = []
    for video in videos:
        try:
            video_size(opened.files.clips, video)
            return
        except DataError as error:
            errors.append(error)
    raise DataError(
        f"data.{split}: none of the first {len(videos)} videos can be read", found=str(errors[0]),
        fix="detect.clips is the folder of the clips, relative to data.root",
    )  # fmt: skip
