"""Score files of multi-view tests, one per rank, as the VideoMAE scripts write them: reading, merging, accuracy."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dsvid.errors import DataError
from dsvid.metrics.classification import topk_accuracy

_LINE = re.compile(r"(?P<name>.+) \[(?P<scores>[^\[\]]+)\] (?P<label>-?\d+) (?P<chunk>\d+) (?P<crop>\d+)\s*")


@dataclass(frozen=True)
class View:
    """One line: the logits of one view of a video, and where it stands."""

    name: str
    scores: NDArray[np.float64]
    label: int
    place: tuple[int, int]
    source: str


@dataclass(frozen=True)
class MergedViews:
    """Averaged scores [videos, classes] with their labels; how often a view came twice; how many each video lacks.

    `missing` [videos] counts against all the (chunk, crop) places that any video has.
    """

    names: list[str]
    scores: NDArray[np.float64]
    labels: NDArray[np.int64]
    missing: NDArray[np.int64]
    repeated: int

    def accuracy(self) -> tuple[float, float]:
        """(top-1, top-5) in percent of the videos."""
        top1, top5 = topk_accuracy(self.scores, self.labels, (1, 5))
        return top1, top5


def score_files(folder: Path) -> list[Path]:
    """`0.txt`, `1.txt`, ... of a folder, by number. Raises DataError where there is none or a number is left out."""
    found = sorted((int(path.stem), path) for path in folder.glob("*.txt") if path.stem.isdigit())
    if [number for number, _ in found] != list(range(len(found))) or not found:
        raise DataError(
            f"{folder}: score files of a test",
            found=", ".join(path.name for _, path in found) or "none",
            expected="0.txt, 1.txt, ... of every rank",
        )
    return [path for _, path in found]


def read_views(path: Path) -> list[View]:
    """The views of one file; its first line (per-view accuracy) is skipped. Raises DataError with file and line."""
    views: list[View] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines()[1:], start=2):
        if line.strip():
            views.append(_parse(line, f"{path}:{number}"))
            if len(views[-1].scores) != len(views[0].scores):
                raise DataError(
                    f"{path}:{number}: number of classes",
                    found=len(views[-1].scores),
                    expected=f"{len(views[0].scores)}, as in {views[0].source}",
                )
    return views


def _parse(line: str, source: str) -> View:
    parts = _LINE.fullmatch(line)
    try:
        scores = np.array([float(text) for text in parts["scores"].split(",")]) if parts else np.empty(0)
    except ValueError:
        parts = None
    if parts is None or not np.isfinite(scores).all():
        raise DataError(
            f"{source}: not a line of a score file",
            found=line if len(line) <= 80 else f"{line[:77]}...",
            expected="`name [logit, logit, ...] label chunk crop` with finite logits",
        )
    return View(parts["name"], scores, int(parts["label"]), (int(parts["chunk"]), int(parts["crop"])), source)


def merge_files(files: Iterable[Path], method: Literal["prob", "score"] = "prob") -> MergedViews:
    """Average the views of each video over all files: probabilities ("prob") or logits ("score").

    A view that comes again, as padded ranks write them, is dropped; the first file wins. Raises DataError.
    """
    kept: dict[str, dict[tuple[int, int], View]] = {}
    repeated = 0
    for path in files:
        for view in read_views(path):
            views = kept.setdefault(view.name, {})
            _check_same_video(view, views)
            repeated += view.place in views
            views.setdefault(view.place, view)
    if not kept:
        raise DataError("score files of a test", found="no view in any file", expected="at least one line each")
    places = {place for views in kept.values() for place in views}
    weigh = _softmax if method == "prob" else np.asarray
    return MergedViews(
        names=list(kept),
        scores=np.stack([weigh(np.stack([v.scores for v in views.values()])).mean(axis=0) for views in kept.values()]),
        labels=np.array([next(iter(views.values())).label for views in kept.values()], dtype=np.int64),
        missing=np.array([len(places) - len(views) for views in kept.values()], dtype=np.int64),
        repeated=repeated,
    )


def _check_same_video(view: View, others: dict[tuple[int, int], View]) -> None:
    for other in others.values():
        if other.label != view.label or len(other.scores) != len(view.scores):
            raise DataError(
                f"{view.source}: {view.name!r} stands for two videos",
                found=f"label {view.label} of {len(view.scores)} classes here, "
                f"label {other.label} of {len(other.scores)} in {other.source}",
                expected="a name for each video (the scripts keep the file name up to its first dot only)",
                fix="rename one of the files",
            )
        break


def _softmax(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    shares: NDArray[np.float64] = powers / powers.sum(axis=-1, keepdims=True)
    return shares
