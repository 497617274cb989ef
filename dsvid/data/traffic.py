"""Traffic anomaly data sets (DoTA, DADA-2000): their lists, labels and zipped frames, and the windows cut from them.

Each window is judged at its last frame. The layouts and rules are simple-tad's (arXiv 2504.12822).
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dsvid.data.window_index import WindowIndex, WindowRule
from dsvid.data.zip_frames import ZipFrames
from dsvid.errors import DataError

OUTSIDE_S = -100.0  # time to the anomaly of a frame that is near none
BEFORE_S, AFTER_S = 2.0, 1.0  # how long before and after an anomaly a frame counts as near it
DOTA_FPS, DADA_FPS = 10, 30
DOTA_CATEGORIES = {
    "start_stop_or_stationary": "ST",
    "moving_ahead_or_waiting": "AH",
    "lateral": "LA",
    "oncoming": "OC",
    "turning": "TC",
    "pedestrian": "VP",
    "obstacle": "VO",
    "leave_to_left": "OO",
    "leave_to_right": "OO",
    "unknown": "UK",
}
DOTA_ACCIDENT_IDS = {
    name: number
    for number, name in enumerate(
        (
            "start_stop_or_stationary",
            "moving_ahead_or_waiting",
            "lateral",
            "oncoming",
            "turning",
            "pedestrian",
            "obstacle",
            "leave_to_right",
            "leave_to_left",
            "unknown",
        ),
        start=1,
    )
}
DOTA_METADATA = {"train_split.txt": "metadata_train.json", "val_split.txt": "metadata_val.json"}
_DOTA_CODES = {number: DOTA_CATEGORIES[name] for name, number in DOTA_ACCIDENT_IDS.items()}
DADA_EGO_TYPES = frozenset([*range(1, 19), 61, 62])
DADA_COLUMNS = {
    "video": "video",
    "type": "type",
    "start": "abnormal start frame",
    "end": "abnormal end frame",
    "light": "light(day,night)1-2",
}
DADA_TOTAL = "total frames"  # not needed, but compared where it is there


ZIPS = ZipFrames()  # of this process; forks may go on with it


class FrameNames(Sequence[str]):
    """Names of numbered frames, as `000012.jpg`, in four bytes each: a large set has tens of millions."""

    def __init__(self, numbers: Sequence[int], digits: int, suffix: str) -> None:
        self._numbers = np.array(numbers, dtype=np.int32)
        self._digits = digits
        self._suffix = suffix

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return tuple(map(self._name, self._numbers[place].tolist()))
        return self._name(int(self._numbers[place]))

    def _name(self, number: int) -> str:
        return f"{number:0{self._digits}}{self._suffix}"


@dataclass(frozen=True)
class TrafficClip:
    """One video: the names of its frames in the zip, their labels (1 = anomaly), and what is known of the whole.

    `category` is empty and `ego` the annotation's where the list has no metadata; where both speak, the metadata count,
    as in simple-tad, and `disagreements` tells. `kind` is the number of the accident: DoTA's accident_id, DADA-2000's
    type.
    """

    name: str
    archive: Path
    frames: Sequence[str]
    labels: NDArray[np.int64]
    fps: int
    ego: bool
    night: bool
    category: str = ""
    kind: int = 0
    disagreements: tuple[str, ...] = ()


@dataclass(frozen=True)
class TrafficWindows:
    """Windows of many clips: which clip [n], positions in its frame list [n, T], and the targets at the last frame [n].

    `label` is 0 or 1, `ttc_s` the signed time to the anomaly, `risk` the smoothed label.
    """

    clip: NDArray[np.int64]
    frames: NDArray[np.int64]
    label: NDArray[np.int64]
    ttc_s: NDArray[np.float64]
    risk: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.clip)


# ---- windows and targets -------------------------------------------------------------------------------------------


def windows(
    frames: int, *, length: int, source_fps: int, view_fps: int, step: int, with_start: bool = False
) -> NDArray[np.int64]:
    """Positions int64 [n, length] of all windows of a clip, the last of which ends on the last frame; [0, length] if
    the clip is too short.

    `step` counts frames of the source. `with_start` appends a window at frame 0 where the first one starts late (the
    rule of simple-tad's pre-training sets). Raises DataError where view_fps does not divide source_fps.
    """
    rule = WindowRule(length, view_fps, step, with_start)
    rule.offsets(source_fps)  # an error for clips too short as well
    index = WindowIndex([frames], source_fps, rule)
    return index.positions(np.arange(len(index)))[1]


def time_to_anomaly(
    labels: ArrayLike, fps: float, before_s: float = BEFORE_S, after_s: float = AFTER_S
) -> NDArray[np.float64]:
    """Seconds [n]: negative before the next anomaly, positive after the last, 0 inside; OUTSIDE_S where none is near.

    A clip without an anomaly is 0 throughout, as in the original, though nothing in it is an anomaly.
    """
    anomalous = np.asarray(labels) == 1
    times = np.zeros(len(anomalous))
    inside = np.flatnonzero(anomalous)
    if not len(inside):
        return times
    outside = np.flatnonzero(~anomalous)
    place = np.searchsorted(inside, outside)
    until = np.append(inside, np.iinfo(np.int64).max)[place] - outside
    since = outside - np.append(inside, 0)[place - 1]
    near_next, near_last = until <= int(before_s * fps), (place > 0) & (since <= int(after_s * fps))
    times[outside] = np.select([near_next, near_last], [-until / fps, since / fps], OUTSIDE_S)
    return times


def smooth_risk(
    labels: ArrayLike, times_s: NDArray[np.float64], before_s: float = BEFORE_S, after_s: float = AFTER_S
) -> NDArray[np.float32]:
    """Smoothed label [n] of the anomaly class: 1 inside, rising before and falling after on logistic curves."""
    risk = (np.asarray(labels) == 1).astype(np.float64)
    before = (times_s >= -before_s) & (times_s < 0)
    after = (times_s > 0) & (times_s <= after_s)
    risk[before] = _logistic(12 / before_s * (times_s[before] + before_s / 2))
    risk[after] = _logistic(12 / after_s * (after_s / 2 - times_s[after]))
    smoothed: NDArray[np.float32] = risk.astype(np.float32)
    return smoothed


def _logistic(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return 1.0 / (1.0 + np.exp(-values))


class LabelledWindows:
    """The windows of labelled clips, numbered through; targets are worked out when they are asked for.

    One byte a frame and 24 a clip, whatever the number of windows. Raises DataError for an empty list.
    """

    def __init__(self, clips: Sequence[TrafficClip], rule: WindowRule) -> None:
        if not clips:
            raise DataError("traffic data", found="an empty list", expected="at least one clip")
        self.fps = np.array([clip.fps for clip in clips], dtype=np.float64)
        self.index = WindowIndex([len(clip.frames) for clip in clips], self.fps, rule)
        self._labels = np.concatenate([clip.labels for clip in clips]).astype(np.uint8)
        self._ends = np.cumsum(self.index.frames)

    def __len__(self) -> int:
        return len(self.index)

    def take(self, numbers: ArrayLike) -> TrafficWindows:
        """Windows by number, with their targets."""
        clip, frames = self.index.positions(np.atleast_1d(np.asarray(numbers, dtype=np.int64)))
        last = frames[:, -1]
        times, risk = np.zeros(len(clip)), np.zeros(len(clip), dtype=np.float32)
        order = np.argsort(clip, kind="stable")
        for group in np.split(order, np.flatnonzero(np.diff(clip[order])) + 1) if len(clip) else ():
            number = int(clip[group[0]])
            labels = self._clip_labels(number)
            of_all = time_to_anomaly(labels, self.fps[number])
            times[group] = of_all[last[group]]
            risk[group] = smooth_risk(labels, of_all)[last[group]]
        label = self.labels(clip, last)
        return TrafficWindows(clip, frames, label, times, risk)

    def labels(self, clip: NDArray[np.int64], frame: NDArray[np.int64]) -> NDArray[np.int64]:
        """0 or 1 for frames of clips [n]."""
        found: NDArray[np.int64] = self._labels[self._ends[clip] - self.index.frames[clip] + frame].astype(np.int64)
        return found

    def _clip_labels(self, clip: int) -> NDArray[np.uint8]:
        return self._labels[self._ends[clip] - self.index.frames[clip] : self._ends[clip]]


def cut_windows(
    clips: Sequence[TrafficClip], *, length: int, view_fps: int, step: int, with_start: bool = False
) -> TrafficWindows:
    """The windows of all clips, in their order, with the targets at the last frame of each. Raises DataError."""
    cut = LabelledWindows(clips, WindowRule(length, view_fps, step, with_start))
    return cut.take(np.arange(len(cut)))


# ---- reading -------------------------------------------------------------------------------------------------------


LAYOUTS = ("dota", "dada")
ClipReader = Callable[[str], TrafficClip]


def open_labels(layout: str, root: Path, split: str) -> tuple[list[str], ClipReader]:
    """(names of the clips of a split list, what reads one of them): faults of one clip are met when it is read.

    The list is `dataset/<split>` below a DoTA folder, `DADA2K_my_split/<split>` below a DADA-2000 folder; a path that
    exists is taken as it is. Raises DataError.
    """
    if layout == "dota":
        path = _split_path(root / "dataset", split)
        metadata = _dota_metadata(root / "dataset", path.name)
        return read_split(path), partial(_dota_clip, root, metadata)
    path, table = _split_path(root / "DADA2K_my_split", split), root / "annotation" / "full_anno.csv"
    rows: dict[tuple[int, int], list[dict[str, int]]] = {}
    for row in _dada_rows(table):
        rows.setdefault((row["type"], row["video"]), []).append(row)
    return read_split(path), partial(_dada_clip, root, path, table, rows)


def _dota_metadata(folder: Path, split: str) -> dict[str, Any]:
    """What is known of the clips of a list; those of the other one too, for lists that were drawn anew."""
    if split not in DOTA_METADATA:
        return {}
    others = (folder / name for name in DOTA_METADATA.values() if name != DOTA_METADATA[split])
    own = read_object(folder / DOTA_METADATA[split])
    return {name: facts for path in others if path.is_file() for name, facts in read_object(path).items()} | own


def _split_path(folder: Path, split: str) -> Path:
    inside = folder / split
    return inside if inside.is_file() or not Path(split).is_file() else Path(split)


def read_dota(root: Path, split: str) -> list[TrafficClip]:
    """The clips of `dataset/<split>` below a DoTA folder. Raises DataError."""
    names, read = open_labels("dota", root, split)
    return [read(name) for name in names]


def read_dada(root: Path, split: str) -> list[TrafficClip]:
    """The clips of `DADA2K_my_split/<split>` (lines `type/video`) below a DADA-2000 folder. Raises DataError."""
    names, read = open_labels("dada", root, split)
    return [read(name) for name in names]


def _dota_clip(root: Path, metadata: dict[str, Any], name: str) -> TrafficClip:
    path = root / "dataset" / "annotations" / f"{name}.json"
    if not path.is_file():
        raise DataError(f"clip {name!r} of the split list is unknown", found=f"no {path}", expected="its annotation")
    annotation = read_object(path)
    try:
        numbered = sorted(
            (int(Path(entry["image_path"]).stem), int(entry["accident_id"])) for entry in annotation["labels"]
        )
        kind_id = int(annotation.get("accident_id") or max((kind for _, kind in numbered), default=0))
        ego, night, category = bool(annotation["ego_involve"]), bool(annotation["night"]), ""
        counts = {annotation.get("num_frames"), len(numbered)}
        stated = (ego, _DOTA_CODES.get(kind_id, ""))
        if metadata:
            group, _, kind = metadata[name]["anomaly_class"].partition(": ")
            ego, category = group == "ego", DOTA_CATEGORIES[kind]
            counts.add(metadata[name].get("num_frames"))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"{path}: annotation of {name}",
            found=f"{type(error).__name__}: {error}",
            expected="labels with image_path and accident_id, ego_involve, night; in the metadata anomaly_class",
        ) from error
    if not numbered:
        raise DataError(f"{path}: annotation of {name}", found="no frames in labels", expected="one entry a frame")
    numbers = [number for number, _ in numbered]
    if len(set(numbers)) < len(numbers):
        again = next(number for number, after in pairwise(numbers) if number == after)
        raise DataError(f"{path}: annotation of {name}", found=f"{again:06}.jpg for the second time",
                        expected="one entry a frame")  # fmt: skip
    differing = []
    if metadata and stated != (ego, category):
        words = [f"{code or '?'} {'ego' if own else 'other'}" for own, code in (stated, (ego, category))]
        differing.append(f"{path}: {words[0]} in the annotation, {words[1]} in the metadata")
    told = sorted(str(count) for count in counts if count is not None)
    if len(told) > 1:
        differing.append(f"{path}: {len(numbered)} frames in labels, num_frames {', '.join(told)}")
    return TrafficClip(
        name=name,
        archive=root / "frames" / name / "images.zip",
        frames=FrameNames(numbers, 6, ".jpg"),
        labels=np.array([int(kind > 0) for _, kind in numbered], dtype=np.int64),
        fps=DOTA_FPS,
        ego=ego,
        night=night,
        category=category,
        kind=kind_id,
        disagreements=tuple(differing),
    )


def _dada_clip(
    root: Path, split: Path, table: Path, rows: Mapping[tuple[int, int], list[dict[str, int]]], name: str
) -> TrafficClip:
    kind, _, video = name.partition("/")
    known = rows.get((int(kind), int(video)), []) if kind.isdigit() and video.isdigit() else []
    if len(known) != 1:
        raise DataError(
            f"{table}: rows of clip {name!r} of {split.name}", found=len(known), expected="one, as type/video"
        )
    row = known[0]
    archive = root / "frames" / name / "images.zip"
    members = [member for member in ZIPS.names(archive) if member.endswith(".png")]
    if not members:
        raise DataError(f"{archive}: no frames", found="pictures of other kinds", expected="NNNN.png")
    try:
        numbered = sorted((int(Path(member).stem.split("_")[-1]), member) for member in members)
    except ValueError as error:
        raise DataError(f"{archive}: name of a frame", found=error, expected="NNNN.png") from error
    numbers = np.array([number for number, _ in numbered], dtype=np.int64)
    names, regular = tuple(member for _, member in numbered), FrameNames(numbers.tolist(), 4, ".png")
    labels = np.zeros(len(numbers), dtype=np.int64)
    if row["start"] > -1 and row["end"] > -1:
        labels[(numbers >= row["start"]) & (numbers <= row["end"])] = 1
        if not labels.any():
            raise DataError(f"{archive}: no frame is in the anomaly of {table}",
                            found=f"frames {numbers[0]} to {numbers[-1]}, the anomaly {row['start']} to {row['end']}",
                            expected="an anomaly inside of the clip")  # fmt: skip
    return TrafficClip(
        name=name,
        archive=archive,
        frames=regular if tuple(regular) == names else names,
        labels=labels,
        fps=DADA_FPS,
        ego=row["type"] in DADA_EGO_TYPES,
        night=row["light"] == 2,
        kind=row["type"],
        disagreements=()
        if row.get(DADA_TOTAL, len(numbers)) == len(numbers)
        else (f"{archive}: {len(numbers)} frames, {row[DADA_TOTAL]} by {table}",),
    )


def _dada_rows(path: Path) -> list[dict[str, int]]:
    rows = []
    with io.StringIO(_text(path), newline="") as handle:
        for row in csv.DictReader(handle):
            try:
                rows.append({key: int(float(row[column])) for key, column in DADA_COLUMNS.items()})
                if (row.get(DADA_TOTAL) or "").strip().isdigit():
                    rows[-1][DADA_TOTAL] = int(row[DADA_TOTAL])
            except (KeyError, TypeError, ValueError) as error:
                raise DataError(
                    f"{path}: row {len(rows) + 2}",
                    found=f"{type(error).__name__}: {error}",
                    expected=f"whole numbers in the columns {', '.join(map(repr, DADA_COLUMNS.values()))}",
                ) from error
    return rows


def read_frames(clip: TrafficClip, positions: ArrayLike, zips: ZipFrames = ZIPS) -> NDArray[np.uint8]:
    """The frames at these positions of the clip's list, uint8 RGB [T, H, W, 3]. Raises DataError with file and name."""
    return zips.read(clip.archive, [clip.frames[position] for position in np.asarray(positions).tolist()])


def read_split(path: Path) -> list[str]:
    """The clips of a split list. Raises DataError for one that leads out of the folder, or that comes twice."""
    names = read_names(path)
    seen: set[str] = set()
    for number, name in enumerate(names, start=1):
        refuse_outside(name, f"{path}, name {number}")
        if name in seen:
            raise DataError(f"{path}, name {number}", found=f"{name} for the second time", expected="every clip once")
        seen.add(name)
    return names


def refuse_outside(name: str, place: str) -> None:
    """Raise DataError where a name leads out of the data set's folder."""
    if Path(name).is_absolute() or ".." in Path(name).parts or "\0" in name:
        raise DataError(place, found=name, expected="a path below the data set's folder")


def read_names(path: Path) -> list[str]:
    """The lines of a list without the empty ones. Raises DataError."""
    names = [line.strip() for line in _text(path).splitlines()]
    return [name for name in names if name]


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object. Raises DataError."""
    try:
        content = json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: not JSON", found=error, expected="an object") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: not an object", found=type(content).__name__, expected="a JSON object")
    return content


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read", found=error, expected="a text file of the data set") from error
