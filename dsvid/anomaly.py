"""Evaluation of traffic anomaly detection over ranks: a score for every judged frame, its measures, curves, tables.

Knows objectives, windows and metrics; knows no loop and no engine. Legend: n windows, each judged at its last frame.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from dsvid.data.traffic_split import TrafficSplit
from dsvid.errors import DataError
from dsvid.metrics import anomaly as measures
from dsvid.metrics.anomaly_groups import CATEGORIES, risk_of
from dsvid.objectives import AnomalyObjective
from dsvid.pictures import curve_picture, save_png
from dsvid.publish import publish_text
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
        parts = {"total": np.ones(len(clip), dtype=bool), "ego": ego, "nonego": ~ego}
        for code in CATEGORIES:
            for name, part in (("all", parts["total"]), ("ego", ego), ("nonego", ~ego)):
                parts[f"{code}/{name}"] = part & (category == code)
        return {
            name: {
                "clips": len(np.unique(clip[part])),
                **_measured(self.scores[part], self.labels[part]),
            }
            for name, part in parts.items()
            if part.any()
        }

    def write(self, folder: Path, extra: Mapping[str, Any]) -> dict[str, Any]:
        """predictions.csv and stats.txt as simple-tad names them, result.json, groups.csv, roc.png, pr.png, mcc.png.

        Returns what result.json holds. Raises DataError where a file cannot be written.
        """
        groups = self.groups()
        content = {**self.numbers(), **self.binned(), **extra, "groups": groups}
        try:
            publish_text(folder / "predictions.csv", self._predictions())
            publish_text(folder / "groups.csv", _group_table(groups))
            flat = {name: value for name, value in content.items() if name != "groups"}
            publish_text(folder / "stats.txt", "".join(f"{name}: {value}\n" for name, value in flat.items()))
            for name, picture in self._pictures().items():
                save_png(picture, folder / f"{name}.png")
            publish_text(folder / "result.json", json.dumps(_plain(content), indent=1) + "\n")
        except OSError as error:
            raise DataError(f"{folder} cannot be written", found=str(error), fix="--out another folder") from error
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


@torch.no_grad()
def detect_anomalies(
    objective: AnomalyObjective, batches: Iterable[Mapping[str, Any]], split: TrafficSplit, *, device: torch.device
) -> AnomalyResult:
    """Run `objective` over this rank's `batches`; each window once over all ranks. A collective."""
    table = torch.zeros(len(split), 3, dtype=torch.float64, device=device)  # logits, whether it was read
    unreadable: list[dict[str, Any]] = []
    short: set[tuple[int, str]] = set()
    training = objective.training
    objective.eval()
    with one_thread(device):
        for batch in batches:
            on_device = {k: v.to(device, non_blocking=True) for k, v in batch.items() if isinstance(v, Tensor)}
            logits, weight = objective.logits(on_device).double(), on_device["weight"].double()
            rows = torch.cat([logits, torch.ones_like(logits[:, :1])], dim=1) * weight[:, None]
            table.index_add_(0, on_device["index"].long(), rows)
            unreadable += batch.get("bad", [])
            short.update(batch.get("short", []))
    objective.train(training)
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(table)
        told: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(told, (unreadable, short))
        unreadable = [record for each in told for record in each[0]]
        short = set().union(*(each[1] for each in told))
    values = table.cpu().numpy()
    return AnomalyResult(split, values[:, :2], values[:, 2] > 0, unreadable, sorted(short))


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


def _plain(value: Any) -> Any:
    """The same for JSON, whose numbers know no NaN."""
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
