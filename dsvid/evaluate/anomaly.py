"""Traffic anomaly detection over ranks: a score for every judged frame, its measures, curves, tables. Knows no engine.

Legend: n windows, each judged at its last frame.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dsvid.data.traffic_split import TrafficSplit
from dsvid.evaluate.anomaly_report import binned, measured, write_report
from dsvid.evaluate.files import writing
from dsvid.evaluate.ranks import Batch, add_up, not_finite, run_batches
from dsvid.metrics.anomaly_groups import group_masks, risk_of
from dsvid.objectives import AnomalyObjective
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
            **measured(self.scores, self.labels), "anomalies": int(self.labels.sum()), "clips": len(self.split.clips),
            "unreadable": int((~self.read).sum()),
        }  # fmt: skip

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
            name: {"clips": len(np.unique(clip[part])), **measured(scores[part], labels[part])}
            for name, part in group_masks(ego, category).items()
        }

    def write(self, folder: Path, extra: Mapping[str, Any]) -> dict[str, Any]:
        """predictions.csv and stats.txt as simple-tad names them, result.json, groups.csv, roc.png, pr.png, mcc.png.

        Returns what result.json holds. Raises DataError where a file cannot be written.
        """
        with writing(folder):
            publish_text(folder / "predictions.csv", self._predictions())
        numbers = {**self.numbers(), **binned(self.scores, self.labels), **extra}
        return write_report(folder, self.scores, self.labels, numbers, self.groups())

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
                name = Path(clip.frames[int(found.frames[place, -1])]).name
                row = (number, clip.name, name, f"{safe:.6f}", f"{risk:.6f}", int(found.label[place]))
                writer.writerow((*row, f"{found.ttc_s[place]:g}"))
        return out.getvalue()


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
