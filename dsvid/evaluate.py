"""Multi-view evaluation over ranks: every (video, view) once, probabilities averaged per video. Knows no engine."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from dsvid.metrics.classification import topk_accuracy
from dsvid.objectives import ClassifyObjective


@dataclass(frozen=True)
class Evaluation:
    """Averaged probabilities [videos, classes] (zero rows where no view could be read), labels, and views per video."""

    probabilities: NDArray[np.float64]
    labels: NDArray[np.int64]
    views: NDArray[np.int64]
    unreadable: list[dict[str, Any]]

    def numbers(self) -> dict[str, Any]:
        """top1 and top5 in percent over the videos that could be read, and how many could not."""
        read = self.views > 0
        top1, top5 = topk_accuracy(self.probabilities[read], self.labels[read], ks=(1, 5))
        return {"top1": top1, "top5": top5, "videos": int(read.sum()), "unreadable": int((~read).sum())}


@torch.no_grad()
def evaluate(
    objective: ClassifyObjective, batches: Iterable[Mapping[str, Any]], *, videos: int, device: torch.device
) -> Evaluation:
    """Run `objective` over this rank's `batches` and merge the views of all ranks. A collective.

    Every rank must have the same number of batches (padding has weight 0): at ZeRO-3 each forward is a collective.
    """
    classes = objective.model.num_classes
    table = torch.zeros(videos, classes + 2, dtype=torch.float64, device=device)  # probabilities, label, views
    unreadable: list[dict[str, Any]] = []
    training = objective.training
    objective.eval()
    for batch in batches:
        on_device = {k: v.to(device, non_blocking=True) for k, v in batch.items() if isinstance(v, torch.Tensor)}
        weight, index = on_device["weight"].double(), on_device["index"].long()
        probabilities = objective.logits(on_device).double().softmax(dim=-1)
        label = on_device["label"].double()[:, None]
        rows = torch.cat([probabilities, label, torch.ones_like(label)], dim=1) * weight[:, None]
        table.index_add_(0, index, rows)
        unreadable += batch.get("bad", [])
    objective.train(training)
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(table)
        boxes: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(boxes, unreadable)
        unreadable = [item for box in boxes for item in box]
    counts = table[:, -1].clamp(min=1.0)
    merged = table[:, :-2] / counts[:, None]
    labels = (table[:, -2] / counts).round().long()
    return Evaluation(merged.cpu().numpy(), labels.cpu().numpy(), table[:, -1].long().cpu().numpy(), unreadable)


def write_result(folder: Path, result: Evaluation, names: list[str], *, extra: dict[str, Any]) -> dict[str, Any]:
    """Write `result.json` and `predictions.csv` (index, label, predicted, probability, views); returns the numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    numbers = {**result.numbers(), **extra}
    best = result.probabilities.argmax(axis=1)
    with (folder / "predictions.csv").open("w", newline="", encoding="utf-8") as handle:
        rows = csv.writer(handle)
        rows.writerow(["index", "label", "predicted", "probability", "views"])
        for i, (label, guess, views) in enumerate(zip(result.labels, best, result.views, strict=True)):
            if views:
                rows.writerow(
                    [i, _name(names, label), _name(names, guess), f"{result.probabilities[i, guess]:.6f}", views]
                )
            else:
                rows.writerow([i, "", "", "", 0])
    (folder / "result.json").write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
    return numbers


def _name(names: list[str], index: int) -> str:
    return names[index] if 0 <= index < len(names) else str(index)
