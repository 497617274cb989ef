"""The files that an evaluation of action detection leaves behind. Knows metrics; imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dsvid.evaluate.files import writing
from dsvid.metrics import ava_report
from dsvid.metrics.ava import AvaScores
from dsvid.pictures import bar_picture, save_png
from dsvid.publish import publish_json, publish_text


def write_report(
    folder: Path, scores: AvaScores, names: Mapping[int, str], extra: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """result.json, classes.csv, classes.png, inference/result.log. Raises DataError where they cannot be written."""
    bars = {names[int(label)]: float(ap) for label, ap in zip(scores.classes, scores.ap, strict=True)}
    title = f"AP in percent, {scores.protocol.name} protocol; mean {100 * scores.mean:.2f}"
    content = {**ava_report.result_json(scores, names), **(extra or {})}
    with writing(folder):
        publish_text(folder / "inference" / "result.log", ava_report.result_log(scores, names))
        publish_text(folder / "classes.csv", ava_report.class_table(scores, names))
        save_png(bar_picture(bars, title=title), folder / "classes.png")
        publish_json(folder / "result.json", content)
    return content
