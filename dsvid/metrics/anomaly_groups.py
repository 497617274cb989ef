"""Measures of groups of frames: `predictions.csv` of a run joined with the frame annotations of DoTA or DADA-2000.

Columns read: clip, filename, logits_safe, logits_risk, label; clip, filename, ego, night, clip_lvl_cat, clip_lvl_ego.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dsvid.errors import DataError
from dsvid.metrics.anomaly import AnomalyScores, anomaly_scores

CATEGORIES = ("ST", "AH", "LA", "OC", "TC", "VP", "VO", "OO", "UK")
DIGITS = {".jpg": 6, ".png": 4}  # of the frame names of DoTA and DADA-2000
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Predictions:
    """A `predictions.csv`: clip, frame name, score and label [n], in the order of the file; `repeated` rows of frames
    that had come before are left out.
    """

    clip: NDArray[np.str_]
    frame: NDArray[np.str_]
    score: NDArray[np.float64]
    label: NDArray[np.int64]
    repeated: int = 0


@dataclass(frozen=True)
class JoinedFrames:
    """Frames that have an annotation: clip, score and label [n], the annotation's columns [n], share left out."""

    clip: NDArray[np.str_]
    score: NDArray[np.float64]
    label: NDArray[np.int64]
    columns: Mapping[str, NDArray[np.str_]]
    unmatched: float

    def flag(self, column: str) -> Flags:
        """Where a yes/no column (1, True) says yes."""
        lowered = np.char.lower(self.columns[column])
        return np.isin(lowered, ["1", "1.0", "true"])


@dataclass(frozen=True)
class GroupScores:
    """Measures of one group of frames, and how many clips it comes from."""

    clips: int
    scores: AnomalyScores


def read_predictions(path: Path) -> Predictions:
    """Read the file that dsvid's evaluation of task anomaly, or simple-tad's, writes.

    A frame counts once, by its first row: simple-tad's files repeat the padding of the last batch, and those of several
    ranks everything. Raises DataError for a file without frames, for logits that are no numbers, for labels other than
    0 and 1, and for a frame with both.
    """
    rows = _read(path, ("clip", "filename", "logits_safe", "logits_risk", "label"))
    if not rows["clip"]:
        raise DataError(f"{path}: no frame", expected="a row for each judged frame")
    logits = np.array([_numbers(rows[column], path, column) for column in ("logits_safe", "logits_risk")]).T
    labels = _numbers(rows["label"], path, "label")
    for column, wrong in (("logits", ~np.isfinite(logits).all(axis=1)), ("label", ~np.isin(labels, (0, 1)))):
        if wrong.any():
            place = int(np.argmax(wrong))
            raise DataError(
                f"{path}:{place + 2}: {column}", found=labels[place] if column == "label" else logits[place],
                expected="0 or 1" if column == "label" else "two finite numbers",
            )  # fmt: skip
    firsts: dict[tuple[str, str], int] = {}
    for place, key in enumerate(zip(rows["clip"], rows["filename"], strict=True)):
        first = firsts.setdefault(key, place)
        if labels[first] != labels[place]:
            raise DataError(f"{path}:{place + 2}: label of {key[0]} {key[1]}", found=labels[place],
                            expected=f"{labels[first]:g}, as in line {first + 2}")  # fmt: skip
    kept = np.fromiter(firsts.values(), dtype=np.int64)
    return Predictions(
        np.array(rows["clip"])[kept], np.array(rows["filename"])[kept], risk_of(logits)[kept],
        labels[kept].astype(np.int64), len(labels) - len(kept),
    )  # fmt: skip


def join_annotations(rows: Predictions, annotations: Path, *, max_unmatched: float = 0.3) -> JoinedFrames:
    """Join by clip and frame name. Frames without an annotation are left out; that share, or all, are a DataError."""
    known = _read(annotations, ("clip", "filename", "ego", "night"))
    places = {key: place for place, key in enumerate(zip(known["clip"], known["filename"], strict=True))}
    suffix = Path(known["filename"][0]).suffix if known["filename"] else ".jpg"
    names = [_frame_name(name, suffix) for name in rows.frame.tolist()]
    found = np.array([places.get(key, -1) for key in zip(rows.clip.tolist(), names, strict=True)], dtype=np.int64)
    kept = found >= 0
    unmatched = 1.0 - float(kept.mean())
    if unmatched >= max_unmatched and unmatched > 0:
        raise DataError(
            f"frames without a row in {annotations}",
            found=f"{unmatched:.1%}",
            expected=f"less than {max_unmatched:.0%}",
            fix="check that both are of the same data set and split",
        )
    return JoinedFrames(
        clip=rows.clip[kept],
        score=rows.score[kept],
        label=rows.label[kept],
        columns={name: np.array(values)[found[kept]] for name, values in known.items()},
        unmatched=unmatched,
    )


def risk_of(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Softmax probability of the second class, [n, 2] -> [n]."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    risk: NDArray[np.float64] = powers[:, 1] / powers.sum(axis=1)
    return risk


def group_scores(frames: JoinedFrames, where: Flags | None = None) -> GroupScores:
    """Measures of the frames in the group (default: all)."""
    chosen = np.ones(len(frames.label), dtype=bool) if where is None else where
    return GroupScores(
        clips=len(np.unique(frames.clip[chosen])), scores=anomaly_scores(frames.score[chosen], frames.label[chosen])
    )


def clip_groups(frames: JoinedFrames) -> dict[str, GroupScores]:
    """DoTA's table: total, ego, non-ego, and each category that occurs as CODE/all, CODE/ego, CODE/nonego.

    Ego and category are those of the whole clip; a group without frames is left out. An annotation file of frames only,
    as simple-tad's of DADA-2000, gives total, ego and non-ego.
    """
    if not {"clip_lvl_ego", "clip_lvl_cat"} <= set(frames.columns):
        ego = ego_clips(frames)
        parts = {"total": np.ones(len(ego), dtype=bool), "ego": ego, "nonego": ~ego}
        return {name: group_scores(frames, where) for name, where in parts.items() if where.any()}
    groups = group_masks(frames.flag("clip_lvl_ego"), frames.columns["clip_lvl_cat"])
    return {name: group_scores(frames, where) for name, where in groups.items()}


def group_masks(ego: Flags, category: NDArray[np.str_]) -> dict[str, Flags]:
    """Which frames [n] belong to total, ego, nonego, and CODE/all, CODE/ego, CODE/nonego, of their clips' ego and
    category [n]; groups without frames are left out.
    """
    everyone = np.ones(len(ego), dtype=bool)
    groups = {"total": everyone, "ego": ego, "nonego": ~ego}
    for code in CATEGORIES:
        for name, part in (("all", everyone), ("ego", ego), ("nonego", ~ego)):
            groups[f"{code}/{name}"] = part & (category == code)
    return {name: where for name, where in groups.items() if where.any()}


def ego_clips(frames: JoinedFrames) -> Flags:
    """Frames of clips with at least one ego frame: DADA-2000's groups, whose annotation is of frames only."""
    involved: Flags = np.isin(frames.clip, np.unique(frames.clip[frames.flag("ego")]))
    return involved


def _frame_name(name: str, suffix: str) -> str:
    return f"{int(name):0{DIGITS.get(suffix, 6)}}{suffix}" if name.isdigit() else name


def _numbers(values: list[str], path: Path, column: str) -> NDArray[np.float64]:
    try:
        return np.array([float(value) for value in values])
    except ValueError as error:
        raise DataError(f"{path}: column {column!r}", found=error, expected="numbers") from error


def _read(path: Path, needed: tuple[str, ...]) -> dict[str, list[str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as handle:
            reader = csv.DictReader(handle)
            columns = reader.fieldnames or []
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read", found=error, expected="a CSV file") from error
    missing = [name for name in needed if name not in columns]
    if missing:
        raise DataError(f"{path}: columns", found=", ".join(columns), expected=f"also {', '.join(missing)}")
    return {name: [row[name] or "" for row in rows] for name in columns if name}
