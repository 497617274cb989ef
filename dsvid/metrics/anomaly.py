"""Measures of anomaly scores against labels, pooled over frames: exact areas, curves over thresholds, MCC.

Legend: n frames, K thresholds. A score is the probability of the anomaly class, a label 0 or 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
THRESHOLDS: Floats = np.arange(101, dtype=np.float64) * 0.01


@dataclass(frozen=True)
class Counts:
    """True and false positives, false and true negatives, each [K] (float64: their products exceed int64)."""

    tp: Floats
    fp: Floats
    fn: Floats
    tn: Floats

    @property
    def accuracy(self) -> Floats:
        return _share(self.tp + self.tn, self.tp + self.fp + self.fn + self.tn)

    @property
    def precision(self) -> Floats:
        """0 where nothing was called an anomaly."""
        return _share(self.tp, self.tp + self.fp)

    @property
    def recall(self) -> Floats:
        """0 where there is no anomaly."""
        return _share(self.tp, self.tp + self.fn)

    @property
    def false_alarms(self) -> Floats:
        """False positive rate; 0 where no frame is safe."""
        return _share(self.fp, self.fp + self.tn)

    @property
    def f1(self) -> Floats:
        return _share(2 * self.tp, 2 * self.tp + self.fp + self.fn)

    @property
    def mcc(self) -> Floats:
        """Matthews' correlation; 0 where a row or column of the confusion matrix is empty."""
        sides = (self.tp + self.fp) * (self.tp + self.fn) * (self.tn + self.fp) * (self.tn + self.fn)
        return _share(self.tp * self.tn - self.fp * self.fn, np.sqrt(sides))

    def matrix(self) -> list[list[int]]:
        """[[tn, fp], [fn, tp]] of the first threshold."""
        return [[int(self.tn[0]), int(self.fp[0])], [int(self.fn[0]), int(self.tp[0])]]


@dataclass(frozen=True)
class AnomalyScores:
    """The measures of one set of frames. `auroc` is NaN where only one class is present."""

    frames: int
    accuracy: float
    precision: float
    recall: float
    f1: float
    auroc: float
    ap: float
    mcc_auc: float
    mcc_max: float
    mcc_max_threshold: float
    mcc_05: float


def anomaly_scores(scores: ArrayLike, labels: ArrayLike) -> AnomalyScores:
    """Exact AUROC and AP, the MCC curve's area, maximum and value at 0.5, and the hard measures (score >= 0.5)."""
    scores, labels = _arrays(scores, labels)
    hard, curve = count_at(scores, labels, np.array([0.5])), count_at(scores, labels, THRESHOLDS)
    area, highest, at = mcc_summary(curve)
    return AnomalyScores(
        frames=len(labels),
        accuracy=float(hard.accuracy[0]),
        precision=float(hard.precision[0]),
        recall=float(hard.recall[0]),
        f1=float(hard.f1[0]),
        auroc=roc_area(scores, labels),
        ap=average_precision(scores, labels),
        mcc_auc=area,
        mcc_max=highest,
        mcc_max_threshold=at,
        mcc_05=float(hard.mcc[0]),
    )


def count_at(scores: ArrayLike, labels: ArrayLike, thresholds: ArrayLike = THRESHOLDS) -> Counts:
    """Counts where every score of at least the threshold is called an anomaly.

    Compared in the precision of the scores: float32 scores see float32 thresholds, as simple-tad's engine does.
    """
    scores, labels = _arrays(scores, labels)
    cuts = np.asarray(thresholds).astype(scores.dtype)
    positive, negative = np.sort(scores[labels == 1]), np.sort(scores[labels == 0])
    fn, tn = (np.searchsorted(part, cuts, side="left").astype(np.float64) for part in (positive, negative))
    return Counts(tp=len(positive) - fn, fp=len(negative) - tn, fn=fn, tn=tn)


def count_higher_logit(scores: ArrayLike, labels: ArrayLike) -> Counts:
    """Counts where the class of the higher logit is taken, a tie being safe: argmax, as simple-tad's engine does."""
    scores, labels = _arrays(scores, labels)
    return count_at(scores, labels, np.nextafter(np.asarray([0.5], dtype=scores.dtype), np.ones(1, scores.dtype)))


def roc_area(scores: ArrayLike, labels: ArrayLike) -> float:
    """Area under the ROC curve, ties counting one half; NaN where only one class is present."""
    rising = _distinct(scores, labels)
    if rising is None or rising.fp[-1] == 0 or rising.tp[-1] == 0:
        return float("nan")
    return _trapezoid(np.append(0.0, rising.fp) / rising.fp[-1], np.append(0.0, rising.tp) / rising.tp[-1])


def average_precision(scores: ArrayLike, labels: ArrayLike) -> float:
    """Sum of precision times the step in recall over the distinct scores; 0 without any anomaly."""
    rising = _distinct(scores, labels)
    if rising is None:
        return 0.0
    return float((np.diff(rising.recall, prepend=0.0) * rising.precision).sum())


def binned_roc_area(counts: Counts) -> float:
    """The area over fixed thresholds (no point is added at either end); 0 where only one class is present."""
    return _trapezoid(counts.false_alarms[::-1], counts.recall[::-1])


def binned_average_precision(counts: Counts) -> float:
    """Average precision over fixed, ascending thresholds."""
    recall = np.append(counts.recall, 0.0)
    return float(-(np.diff(recall) * counts.precision).sum())


def mcc_summary(counts: Counts, thresholds: ArrayLike = THRESHOLDS) -> tuple[float, float, float]:
    """(area under the MCC curve, its maximum, the first threshold there); the area can be negative."""
    cuts, mcc = np.asarray(thresholds, dtype=np.float64), counts.mcc
    best = int(mcc.argmax())
    return _trapezoid(cuts, mcc), float(mcc[best]), float(cuts[best])


def _distinct(scores: ArrayLike, labels: ArrayLike) -> Counts | None:
    """Counts at every distinct score, from the highest down; None for no frames."""
    scores, labels = _arrays(scores, labels)
    return count_at(scores, labels, np.unique(scores)[::-1]) if len(scores) else None


def _arrays(scores: ArrayLike, labels: ArrayLike) -> tuple[NDArray[np.floating], NDArray[np.int64]]:
    values, classes = np.asarray(scores), np.asarray(labels, dtype=np.int64)
    assert values.ndim == 1 and values.shape == classes.shape, (values.shape, classes.shape)
    return values if np.issubdtype(values.dtype, np.floating) else values.astype(np.float64), classes


def _share(part: Floats, whole: Floats) -> Floats:
    return np.divide(part, whole, out=np.zeros_like(whole, dtype=np.float64), where=whole > 0)


def _trapezoid(x: Floats, y: Floats) -> float:
    return float((np.diff(x) * (y[1:] + y[:-1])).sum() / 2)  # numpy 1 and 2 have different names for it
