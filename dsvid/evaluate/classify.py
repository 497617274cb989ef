"""Clip classification over ranks: every (video, view) once, the views of a video averaged. Knows no engine."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dsvid.evaluate.files import writing
from dsvid.evaluate.ranks import Batch, add_up, not_finite, run_batches
from dsvid.metrics.classification import class_accuracy, confusion_matrix, topk_accuracy
from dsvid.objectives import ClassifyObjective
from dsvid.pictures import confusion_picture, save_png
from dsvid.publish import publish_json, publish_text

Merge = Literal["prob", "score"]
SHOWN_CLASSES = 60  # a confusion picture of more classes is shrunk, and unlabelled


@dataclass(frozen=True)
class Evaluation:
    """Averaged scores [videos, classes] (zero rows where no view could be read), labels, and views read per video.

    `asked` is the number of views of a video; `short` lists (index, path) of videos with fewer frames than a clip
    shows, whose frames were repeated. `merge`: what was averaged, "prob", softmax probabilities, or "score", logits.
    `names` of classes, `paths` of videos and what is said `about` the evaluation are for the files.
    """

    scores: NDArray[np.float64]
    labels: NDArray[np.int64]
    views: NDArray[np.int64]
    unreadable: list[dict[str, Any]]
    asked: int
    short: list[tuple[int, str]]
    merge: Merge = "prob"
    names: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    about: Mapping[str, Any] = field(default_factory=dict)

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

    def write(self, folder: Path, extra: Mapping[str, Any]) -> dict[str, Any]:
        """result.json, predictions.csv and confusion.png; returns what result.json holds.

        predictions.csv: path, label, predicted, probability, views, then the five best classes with their
        probabilities. result.json: the numbers, `about`, `extra`, and `classes`: name, videos and top-1 of each. Raises
        DataError where a file cannot be written.
        """
        confusion = self.confusion
        classes = [
            {"class": self.name(i), "videos": int(confusion[i].sum()), "top1": None if np.isnan(top1) else float(top1)}
            for i, top1 in enumerate(class_accuracy(confusion))
        ]
        numbers = {**self.numbers(), **self.about, **extra, "classes": classes}
        shown = [self.name(i) for i in range(len(confusion))] if len(confusion) <= SHOWN_CLASSES else []
        with writing(folder):
            publish_text(folder / "predictions.csv", self._predictions())
            save_png(confusion_picture(confusion, shown), folder / "confusion.png")
            publish_json(folder / "result.json", numbers)
        return numbers

    def _predictions(self) -> str:
        probabilities = self.probabilities
        order = np.argsort(-probabilities, axis=1, kind="stable")[:, :5]
        out = io.StringIO()
        rows = csv.writer(out)
        rows.writerow(["path", "label", "predicted", "probability", "views", "best"])
        for i, (label, best, views) in enumerate(zip(self.labels, order, self.views, strict=True)):
            if not views:
                rows.writerow([self.paths[i], self.name(label), "", "", 0, ""])
                continue
            listed = " ".join(f"{self.name(k)}:{probabilities[i, k]:.4f}" for k in best)
            own = [self.name(label), self.name(best[0]), f"{probabilities[i, best[0]]:.6f}"]
            rows.writerow([self.paths[i], *own, views, listed])
        return out.getvalue()

    def name(self, index: int) -> str:
        """The name of a class, or its number."""
        return self.names[index] if 0 <= index < len(self.names) else str(index)


def evaluate(
    objective: ClassifyObjective,
    batches: Iterable[Batch],
    *,
    labels: NDArray[np.int64],
    views: int,
    device: torch.device,
    merge: Merge = "prob",
    names: Sequence[str] = (),
    paths: Sequence[str] = (),
    about: Mapping[str, Any] | None = None,
) -> Evaluation:
    """Run `objective` over this rank's `batches` and merge the `views` of each video over all ranks. A collective.

    `labels` [videos], `paths` and `names` are the list's, `about` what result.json says besides. Every rank must have
    the same number of batches (padding has weight 0). Raises DataError for scores that are not finite.
    """
    classes = objective.model.num_classes
    table = torch.zeros(len(labels), classes + 1, dtype=torch.float64, device=device)  # scores, views

    def take(batch: dict[str, Tensor]) -> None:
        logits = objective.logits(batch).double()
        scores = logits.softmax(dim=-1) if merge == "prob" else logits
        rows = torch.cat([scores, torch.ones_like(scores[:, :1])], dim=1)
        table.index_add_(0, batch["index"].long(), rows * batch["weight"].double()[:, None])

    met = run_batches(objective, batches, device, take)
    add_up(table)
    counts = table[:, -1].clamp(min=1.0)
    merged = (table[:, :-1] / counts[:, None]).cpu().numpy()
    sick = np.flatnonzero(~np.isfinite(merged).all(axis=1))
    if len(sick):
        first = int(sick[0])
        raise not_finite(f"scores of {len(sick)} of {len(merged)} videos", paths[first] if paths else f"video {first}")
    read = table[:, -1].long().cpu().numpy()
    return Evaluation(
        merged, labels, read, met.unreadable, views, met.short, merge, tuple(names), tuple(paths), about or {}
    )
