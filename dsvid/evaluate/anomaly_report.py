"""The files that an evaluation of anomaly scores leaves behind. Knows metrics; imports no torch.

Legend: n judged frames.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsvid.errors import DataError
from dsvid.evaluate.files import writing
from dsvid.metrics import anomaly as measures
from dsvid.metrics.anomaly_groups import Predictions
from dsvid.pictures import curve_picture, risk_picture, save_png
from dsvid.publish import publish_json, publish_text

Scores = NDArray[np.float64]
Labels = NDArray[np.int64]


def measured(scores: Scores, labels: Labels) -> dict[str, Any]:
    """The exact measures by the names of metrics.jsonl."""
    return named(measures.anomaly_scores(scores, labels))


def named(found: measures.AnomalyScores) -> dict[str, Any]:
    """Measures by the names of metrics.jsonl."""
    values = asdict(found)
    return {**{name: value for name, value in values.items() if name != "mcc_auc"}, "auc_mcc": values["mcc_auc"]}


def binned(scores: Scores, labels: Labels) -> dict[str, float | None]:
    """AUROC and AP over 101 fixed thresholds, as simple-tad prints them; None where it prints 0 for want of a class."""
    if not len(labels) or labels.min() == labels.max():
        return {"auroc_binned": None, "ap_binned": None}
    counts = measures.count_at(scores.astype(np.float32), labels)
    return {"auroc_binned": measures.binned_roc_area(counts), "ap_binned": measures.binned_average_precision(counts)}


def write_report(
    folder: Path, scores: Scores, labels: Labels, numbers: Mapping[str, Any], groups: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """stats.txt as simple-tad names it, result.json, groups.csv, roc.png, pr.png, mcc.png; what result.json holds.

    Raises DataError where a file cannot be written.
    """
    content = {**numbers, "groups": groups}
    with writing(folder):
        publish_text(folder / "groups.csv", _group_table(groups))
        publish_text(folder / "stats.txt", "".join(f"{name}: {value}\n" for name, value in numbers.items()))
        for name, picture in _pictures(scores, labels).items():
            save_png(picture, folder / f"{name}.png")
        publish_json(folder / "result.json", content)
    return content


def write_curves(folder: Path, frames: Predictions, clips: Collection[str] = (), *, threshold: float = 0.5) -> int:
    """CLIP.png for each clip, or those of `clips`: the risk of its frames, and where the labels say anomaly.

    Returns how many. Raises DataError for a clip without a frame, and where a file cannot be written.
    """
    names = list(dict.fromkeys(frames.clip.tolist()))
    unknown = [name for name in clips if name not in set(names)]
    if unknown:
        raise DataError(
            f"no frame of clip {unknown[0]}", found=f"{len(names)} clips, the first {names[0]}",
            fix="a name of column clip",
        )  # fmt: skip
    order = np.argsort(frames.clip, kind="stable")
    starts = np.flatnonzero(np.append(True, frames.clip[order][1:] != frames.clip[order][:-1]))
    rows = {str(frames.clip[part[0]]): part for part in np.split(order, starts[1:])}
    taken: set[str] = set()
    with writing(folder):
        for name in clips or names:
            numbers = _numbers(frames.frame[rows[name]])
            rising = np.argsort(numbers, kind="stable")
            at = rows[name][rising]
            picture = risk_picture(
                numbers[rising], frames.score[at], frames.label[at] == 1, title=name, threshold=threshold
            )
            save_png(picture, folder / f"{_file_name(name, taken)}.png")
    return len(taken)


def _file_name(clip: str, taken: set[str]) -> str:
    """A name for the clip's file that stays in the folder: `10/003` is `10_003`; no two are the same."""
    plain = re.sub(r"[^\w.-]", "_", clip).lstrip(".") or "clip"
    name = plain
    while name in taken:
        name = f"{plain}_{len(taken)}"
    taken.add(name)
    return name


def _numbers(names: NDArray[np.str_]) -> NDArray[np.float64]:
    """The numbers of frames by their names; their places where a name has none."""
    found = [re.search(r"(\d+)(?:\.\w+)?$", name) for name in names.tolist()]
    if not all(found):
        return np.arange(len(names), dtype=np.float64)
    return np.array([float(each[1]) for each in found if each])


def _group_table(groups: Mapping[str, Mapping[str, Any]]) -> str:
    out = io.StringIO()
    names = list(next(iter(groups.values())))
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("group", *names))
    for group, values in groups.items():
        shown = ["" if isinstance(value, float) and math.isnan(value) else value for value in values.values()]
        writer.writerow((group, *shown))
    return out.getvalue()


def _pictures(scores: Scores, labels: Labels) -> dict[str, NDArray[np.uint8]]:
    found, cuts = measures.anomaly_scores(scores, labels), np.linspace(0, 1, 501)
    counts = measures.count_at(scores, labels, cuts)
    called = counts.tp + counts.fp > 0
    return {
        "roc": curve_picture(
            {f"AUROC {found.auroc:.4f}": (np.append(1, counts.false_alarms), np.append(1, counts.recall))},
            title="ROC", axes=("false alarms", "recall"),
        ),
        "pr": curve_picture(
            {f"AP {found.ap:.4f}": (counts.recall[called], counts.precision[called])},
            title="precision and recall", axes=("recall", "precision"),
        ),
        "mcc": curve_picture(
            {f"MCC, area {found.mcc_auc:.4f}": (cuts, counts.mcc)}, title="MCC", axes=("threshold", "MCC")
        ),
    }  # fmt: skip
