"""Multi-view evaluation over ranks: every (video, view) once, the views of a video averaged. Knows no engine."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from dsvid.metrics.classification import class_accuracy, confusion_matrix, topk_accuracy
from dsvid.objectives import ClassifyObjective
from dsvid.pictures import confusion_picture, save_png
from dsvid.publish import publish_file

Merge = Literal["prob", "score"]
SHOWN_CLASSES = 60  # a confusion picture of more classes is shrunk, and unlabelled


@dataclass(frozen=True)
class Evaluation:
    """Averaged scores [videos, classes] (zero rows where no view could be read), labels, and views read per video.

    `asked` is the number of views of a video; `short` lists (index, path) of videos with fewer frames than a clip
    shows, whose frames were repeated. `merge`: what was averaged, "prob", softmax probabilities, or "score", logits.
    """

    scores: NDArray[np.float64]
    labels: NDArray[np.int64]
    views: NDArray[np.int64]
    unreadable: list[dict[str, Any]]
    asked: int
    short: list[tuple[int, str]]
    merge: Merge = "prob"

    @property
    def any_read(self) -> bool:
        """Whether there is anything to judge."""
        return bool(self.views.any())

    def line(self) -> str:
        """The result in a line."""
        found = self.numbers()
        return (
            f"top-1 {found['top1']:.2f} % top-5 {found['top5']:.2f} % on {found['videos']} videos, "
            f"{found['unreadable']} unreadable, {self.asked} views each"
        )

    @property
    def probabilities(self) -> NDArray[np.float64]:
        """[videos, classes]; of averaged logits, their softmax."""
        if self.merge == "prob":
            return self.scores
        powers = np.exp(self.scores - self.scores.max(axis=1, keepdims=True))
        shares: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
        return shares

    @property
    def confusion(self) -> NDArray[np.int64]:
        """Counts [label, predicted] over the videos that could be read."""
        read = self.views > 0
        return confusion_matrix(self.scores[read].argmax(axis=1), self.labels[read], self.scores.shape[1])

    def numbers(self) -> dict[str, Any]:
        """top1, top5 and the mean over classes in percent, over the videos that could be read, and how many could not.

        `views_missing` counts views of readable videos that could not be read, `short_videos` repeat frames.
        """
        read = self.views > 0
        top1, top5 = topk_accuracy(self.scores[read], self.labels[read], ks=(1, 5))
        by_class = class_accuracy(self.confusion)
        known = by_class[~np.isnan(by_class)]
        return {
            "top1": top1,
            "top5": top5,
            "mean_class": float(known.mean()) if len(known) else float("nan"),
            "videos": int(read.sum()),
            "unreadable": int((~read).sum()),
            "views_missing": int((self.asked - self.views[read]).sum()),
            "short_videos": len(self.short),
        }


@torch.no_grad()
def evaluate(
    objective: ClassifyObjective,
    batches: Iterable[Mapping[str, Any]],
    *,
    labels: NDArray[np.int64],
    views: int,
    device: torch.device,
    merge: Merge = "prob",
) -> Evaluation:
    """Run `objective` over this rank's `batches` and merge the `views` of each video over all ranks. A collective.

    `labels` [videos] are the list's. Every rank must have the same number of batches (padding has weight 0): at ZeRO-3
    each forward is a collective.
    """
    classes = objective.model.num_classes
    table = torch.zeros(len(labels), classes + 1, dtype=torch.float64, device=device)  # scores, views
    unreadable: list[dict[str, Any]] = []
    short: set[tuple[int, str]] = set()
    training = objective.training
    objective.eval()
    for batch in batches:
        on_device = {k: v.to(device, non_blocking=True) for k, v in batch.items() if isinstance(v, torch.Tensor)}
        weight, index = on_device["weight"].double(), on_device["index"].long()
        logits = objective.logits(on_device).double()
        scores = logits.softmax(dim=-1) if merge == "prob" else logits
        table.index_add_(0, index, torch.cat([scores, torch.ones_like(scores[:, :1])], dim=1) * weight[:, None])
        unreadable += batch.get("bad", [])
        short.update(batch.get("short", []))
    objective.train(training)
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(table)
        boxes: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(boxes, (unreadable, short))
        unreadable = [item for box in boxes for item in box[0]]
        short = set().union(*(box[1] for box in boxes))
    counts = table[:, -1].clamp(min=1.0)
    merged = (table[:, :-1] / counts[:, None]).cpu().numpy()
    return Evaluation(merged, labels, table[:, -1].long().cpu().numpy(), unreadable, views, sorted(short), merge)


def write_result(
    folder: Path, result: Evaluation, names: list[str], paths: list[str], *, extra: dict[str, Any]
) -> dict[str, Any]:
    """Write result.json, predictions.csv and confusion.png; returns what result.json holds.

    predictions.csv: path, label, predicted, probability, views, then the five best classes with their probabilities.
    result.json: the numbers, `extra`, and `classes`: name, videos and top-1 of each.
    """
    folder.mkdir(parents=True, exist_ok=True)
    confusion = result.confusion
    classes = [
        {"class": _name(names, i), "videos": int(confusion[i].sum()), "top1": None if np.isnan(top1) else float(top1)}
        for i, top1 in enumerate(class_accuracy(confusion))
    ]
    numbers = {**result.numbers(), **extra, "classes": classes}
    _write_predictions(folder / "predictions.csv", result, names, paths)
    shown = [_name(names, i) for i in range(len(confusion))] if len(confusion) <= SHOWN_CLASSES else []
    save_png(confusion_picture(confusion, shown), folder / "confusion.png")
    text = json.dumps({key: _json_number(value) for key, value in numbers.items()}, indent=2) + "\n"
    publish_file(folder / "result.json", lambda out: out.write(text.encode()))
    return numbers


def _write_predictions(path: Path, result: Evaluation, names: list[str], paths: list[str]) -> None:
    probabilities = result.probabilities
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :5]
    with path.open("w", newline="", encoding="utf-8") as handle:
        rows = csv.writer(handle)
        rows.writerow(["path", "label", "predicted", "probability", "views", "best"])
        for i, (label, best, views) in enumerate(zip(result.labels, order, result.views, strict=True)):
            if not views:
                rows.writerow([paths[i], _name(names, label), "", "", 0, ""])
                continue
            listed = " ".join(f"{_name(names, k)}:{probabilities[i, k]:.4f}" for k in best)
            own = [_name(names, label), _name(names, best[0]), f"{probabilities[i, best[0]]:.6f}"]
            rows.writerow([paths[i], *own, views, listed])


def _json_number(value: Any) -> Any:
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _name(names: list[str], index: int) -> str:
    return names[index] if 0 <= index < len(names) else str(index)
