"""What an AVA evaluation leaves behind: the seed's result.log, result.json, a table of the classes."""

from __future__ import annotations

import csv
import io
import math
import pprint
from collections.abc import Mapping
from typing import Any

import numpy as np

from dsvid.metrics.ava import AvaScores

CLASS_KEY = "PascalBoxes_PerformanceByCategory/AP@0.5IOU/"
MEAN_KEY = "PascalBoxes_Precision/mAP@0.5IOU"


def log_values(scores: AvaScores, names: Mapping[int, str]) -> dict[str, float]:
    """The seed's keys: one for each class, by its name, and the mean."""
    values = {CLASS_KEY + names[int(label)]: float(ap) for label, ap in zip(scores.classes, scores.ap, strict=True)}
    return {**values, MEAN_KEY: scores.mean}


def result_log(scores: AvaScores, names: Mapping[int, str]) -> str:
    """The text of `inference/result.log`: pprint of the dictionary, keys in the order of letters, nan as nan."""
    return pprint.pformat(log_values(scores, names))


def result_json(scores: AvaScores, names: Mapping[int, str]) -> dict[str, Any]:
    """The content of `result.json`; null stands for NaN. `range` is [lowest, highest] over orders of equal scores."""
    low, high = scores.mean_range
    columns = (scores.classes, scores.ap, scores.lowest, scores.highest, scores.truths, scores.detections)
    return {
        "metric": "frame mAP at IoU 0.5",
        "protocol": scores.protocol.name,
        "cap": scores.protocol.cap,
        "mAP": _number(scores.mean),
        "range": [_number(low), _number(high)],
        "groups": {name: _number(value) for name, value in scores.group_means().items()},
        "images": scores.images,
        "boxes": int(scores.truths.sum()),
        "detections": int(scores.detections.sum()),
        "classes_counted": int((~np.isnan(scores.ap)).sum()),
        "classes": [
            {
                "id": int(label),
                "name": names[int(label)],
                "ap": _number(ap),
                "range": [_number(lowest), _number(highest)],
                "boxes": int(boxes),
                "detections": int(detections),
            }
            for label, ap, lowest, highest, boxes, detections in zip(*columns, strict=True)
        ],
    }


def class_table(scores: AvaScores, names: Mapping[int, str]) -> str:
    """The classes as CSV: id, name, ap, lowest, highest, boxes, detections; an empty cell for NaN."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("id", "name", "ap", "lowest", "highest", "boxes", "detections"))
    for entry in result_json(scores, names)["classes"]:
        shown = ["" if value is None else f"{value:.6f}" for value in (entry["ap"], *entry["range"])]
        writer.writerow((entry["id"], entry["name"], *shown, entry["boxes"], entry["detections"]))
    return out.getvalue()


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
