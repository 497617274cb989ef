"""Top-k accuracy."""

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
