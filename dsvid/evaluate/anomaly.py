"""Traffic anomaly detection over ranks: a score for every judged frame, its measures, curves, tables. Knows no engine.

Legend: n windows, each judged at its last frame.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dsvid.data.traffic_split import TrafficSplit
from dsvid.evaluate.ranks import Batch, add_up, not_finite, run_batches, writing
from dsvid.metrics import anomaly as measures
from dsvid.metrics.anomaly_groups import group_masks, risk_of
from dsvid.objectives import AnomalyObjective
from dsvid.pictures import curve_picture, save_png
from dsvid.publish import publish_json, publish_text
from dsvid.runtime import one_thread

COLUMNS = ("index", "clip", "filename", "logits_safe", "logits_risk", "label", "ttc")  # simple-tad's


@dataclass(frozen=True)
class AnomalyResult:
    """Logits [n, 2] of the windows of a split, and which of them could be read [n]."""

    split: TrafficSplit
    logits: NDArray[np.float64]
    read: NDArray[np.bool_]
    unreadable: list[dict[str, Any]]
    short: list[tuple[int, str]]

    @property
    def any_read(self) -> bool:
        """Whether there is anything to judge."""
        return bool(self.read.any())

    @property
    def scores(self) -> NDArray[np.float64]:
        """Risk of the frames that were read."""
        return risk_of(self.logits[self.read])

    @property
    def labels(self) -> NDArray[np.int64]:
        """0 or 1 of the frames that were read."""
        return self.split.labels()[self.read]

    def numbers(self) -> dict[str, Any]:
        """auroc, ap, auc_mcc and the others, as shares of 1; exact, over all frames that were read."""
        return {
            **_measured(self.scores, self.labels), "anomalies": int(self.labels.sum()), "clips": len(self.split.clips),
            "unreadable": int((~self.read).sum()),
        }  # fmt: skip

    def binned(self) -> dict[str, float]:
        """AUROC and AP over 101 fixed thresholds, as simple-tad prints them."""
        counts = measures.count_at(self.scores.astype(np.float32), self.labels)
        return {
            "auroc_binned": measures.binned_roc_area(counts),
            "ap_binned": measures.binned_average_precision(counts),
        }

    def line(self) -> str:
        """The result in a line."""
        found = self.numbers()
        return (
            f"AUROC {100 * found['auroc']:.2f} % AP {100 * found['ap']:.2f} % AUC-MCC {100 * found['auc_mcc']:.2f} % "
            f"on {found['frames']} frames ({found['anomalies']} anomalies) of {found['clips']} clips, "
            f"{found['unreadable']} unreadable"
        )

    def groups(self) -> dict[str, dict[str, Any]]:
        """The same for the frames of ego and non-ego clips and of each category, where there are any."""
        clip, _ = self.split.windows.index.targets(np.flatnonzero(self.read))
        ego = np.array([each.ego for each in self.split.clips])[clip]
        category = np.array([each.category for each in self.split.clips])[clip]
        scores, labels = self.scores, self.labels
        return {
            name: {"clips": len(np.unique(clip[part])), **_measured(scores[part], labels[part])}
            for name, part in group_masks(ego, category).items()
        }

    def write(self, folder: Path, extra: Mapping[str, Any]) -> dict[str, Any]:
        """predictions.csv and stats.txt as simple-tad names them, result.json, groups.csv, roc.png, pr.png, mcc.png.

        Returns what result.json holds. Raises DataError where a file cannot be written.
        """
        groups = self.groups()
        content = {**self.numbers(), **self.binned(), **extra, "groups": groups}
        flat = {name: value for name, value in content.items() if name != "groups"}
        with writing(folder):
            publish_text(folder / "predictions.csv", self._predictions())
            publish_text(folder / "groups.csv", _group_table(groups))
            publish_text(folder / "stats.txt", "".join(f"{name}: {value}\n" for name, value in flat.items()))
            for name, picture in self._pictures().items():
                save_png(picture, folder / f"{name}.png")
            publish_json(folder / "result.json", content)
        return content

    def _predictions(self) -> str:
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(COLUMNS)
        for start in range(0, len(self.split), 10_000):
            numbers = np.flatnonzero(self.read[start : start + 10_000]) + start
            found = self.split.windows.take(numbers)
            for place, number in enumerate(numbers.tolist()):
                clip = self.split.clips[int(found.clip[place])]
                safe, risk = self.logits[number]
                name = clip.frames[int(found.frames[place, -1])]
                row = (number, clip.name, name, f"{safe:.6f}", f"{risk:.6f}", int(found.label[place]))
                writer.writerow((*row, f"{found.ttc_s[place]:g}"))
        return out.getvalue()

    def _pictures(self) -> dict[str, NDArray[np.uint8]]:
        found, cuts = self.numbers(), np.linspace(0, 1, 501)
        counts = measures.count_at(self.scores, self.labels, cuts)
        called = counts.tp + counts.fp > 0
        return {
            "roc": curve_picture(
                {f"AUROC {found['auroc']:.4f}": (np.append(1, counts.false_alarms), np.append(1, counts.recall))},
                title="ROC", axes=("false alarms", "recall"),
            ),
            "pr": curve_picture(
                {f"AP {found['ap']:.4f}": (counts.recall[called], counts.precision[called])},
                title="precision and recall", axes=("recall", "precision"),
            ),
            "mcc": curve_picture(
                {f"MCC, area {found['auc_mcc']:.4f}": (cuts, counts.mcc)}, title="MCC", axes=("threshold", "MCC")
            ),
        }  # fmt: skip


def detect_anomalies(
    objective: AnomalyObjective, batches: Iterable[Batch], split: TrafficSplit, *, device: torch.device
) -> AnomalyResult:
    """Run `objective` over this rank's `batches`; each window once over all ranks. A collective.

    Raises DataError for logits that are not finite.
    """
    table = torch.zeros(len(split), 3, dtype=torch.float64, device=device)  # logits, whether it was read

    def take(batch: dict[str, Tensor]) -> None:
        logits = objective.logits(batch).double()
        rows = torch.cat([logits, torch.ones_like(logits[:, :1])], dim=1)
        table.index_add_(0, batch["index"].long(), rows * batch["weight"].double()[:, None])

    with one_thread(device):
        met = run_batches(objective, batches, device, take)
    values = add_up(table).cpu().numpy()
    sick = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if len(sick):
        raise not_finite(f"logits of {len(sick)} of {len(values)} frames", split.path(int(sick[0])))
    return AnomalyResult(split, values[:, :2], values[:, 2] > 0, met.unreadable, met.short)


def _measured(scores: NDArray[np.float64], labels: NDArray[np.int64]) -> dict[str, Any]:
    """The measures by the names of metrics.jsonl."""
    found = asdict(measures.anomaly_scores(scores, labels))
    return {**{name: value for name, value in found.items() if name != "mcc_auc"}, "auc_mcc": found["mcc_auc"]}


def _group_table(groups: Mapping[str, Mapping[str, Any]]) -> str:
    out = io.StringIO()
    names = list(next(iter(groups.values())))
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("group", *names))
    for group, values in groups.items():
        shown = ["" if isinstance(value, float) and math.isnan(value) else value for value in values.values()]
        writer.writerow((group, *shown))
    return out.getvalue()
