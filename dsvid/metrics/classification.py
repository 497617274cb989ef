"""Top-k accuracy, the confusion matrix and what follows from it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def topk_accuracy(
    scores: NDArray[np.floating], labels: NDArray[np.integer], ks: tuple[int, ...] = (1, 5)
) -> list[float]:
    """Percent of rows of `scores` [n, classes] whose label is among the k highest; NaN for no rows.

    Ties go to the lower class index, so that the result depends on nothing but the scores.
    """
    if len(scores) == 0:
        return [float("nan") for _ in ks]
    order = np.argsort(-scores, axis=1, kind="stable")
    hits = order == np.asarray(labels)[:, None]
    return [100.0 * float(hits[:, :k].any(axis=1).mean()) for k in ks]


def confusion_matrix(predicted: NDArray[np.integer], labels: NDArray[np.integer], classes: int) -> NDArray[np.int64]:
    """Counts [label, predicted]."""
    flat = np.asarray(labels, dtype=np.int64) * classes + np.asarray(predicted, dtype=np.int64)
    counts: NDArray[np.int64] = np.bincount(flat, minlength=classes * classes).reshape(classes, classes)
    return counts


def class_accuracy(confusion: NDArray[np.int64]) -> NDArray[np.float64]:
    """Percent of the videos of each class that were recognised [classes]; NaN for a class without videos."""
    totals = confusion.sum(axis=1)
    share = confusion.diagonal() / np.maximum(totals, 1)
    return np.where(totals > 0, 100.0 * share, np.nan)
