"""Action detection over ranks: scores of every box, gathered, and held against the ground truth. Knows no engine.

Legend: K boxes of all samples, C classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dsvid.data.ava import detection_rows
from dsvid.data.ava_files import write_detections
from dsvid.data.ava_split import AvaSplit
from dsvid.evaluate.detect_report import write_report
from dsvid.evaluate.files import writing
from dsvid.evaluate.ranks import Batch, add_up, largest, not_finite, run_batches
from dsvid.metrics import ava
from dsvid.metrics.ava import AvaScores, BoxRows
from dsvid.objectives import DetectObjective
from dsvid.runtime import Ranks, on_first, one_thread


@dataclass(frozen=True)
class Detections:
    """The mAP of the samples that could be read, and what could not be read.

    `rows` are all boxes with all classes, on rank 0; `samples` is how many key frames were asked for.
    """

    rows: BoxRows | None
    split: AvaSplit
    scores: AvaScores
    samples: int
    unreadable: list[dict[str, Any]]
    short: list[tuple[int, str]]

    @property
    def any_read(self) -> bool:
        """Whether there is anything to judge."""
        return len(self.unreadable) < self.samples

    def numbers(self) -> dict[str, Any]:
        """mAP as a share of 1, its means over pose, object and person classes, and what was counted."""
        means = {name: value for name, value in self.scores.group_means().items() if not np.isnan(value)}
        return {
            "mAP": self.scores.mean,
            **{f"mAP_{name}": value for name, value in means.items()},
            "key_frames": self.samples,
            "unreadable": len(self.unreadable),
            "boxes": int(self.scores.truths.sum()),
            "detections": int(self.scores.detections.sum()),
        }

    def line(self) -> str:
        """The result in a line."""
        found = self.numbers()
        return (
            f"mAP {100 * found['mAP']:.2f} % at IoU 0.5 ({self.scores.protocol.name} protocol), "
            f"{found['boxes']} boxes, {found['detections']} detections on {found['key_frames']} key frames, "
            f"{found['unreadable']} unreadable"
        )

    def write(self, folder: Path, extra: Mapping[str, Any]) -> dict[str, Any]:
        """inference/result.csv and result.log as the original writes them, result.json, classes.csv, classes.png.

        Returns what result.json holds. Raises DataError where a file cannot be written.
        """
        truth = self.split.truth
        assert truth is not None and self.rows is not None, "rank 0 writes"
        with writing(folder):
            write_detections(folder / "inference" / "result.csv", truth.numbers.keys, self.rows)
        return write_report(folder, self.scores, self.split.names, {"unreadable": len(self.unreadable), **extra})


def detect(
    objective: DetectObjective, batches: Iterable[Batch], split: AvaSplit, *, protocol: str, ranks: Ranks,
    device: torch.device,
) -> Detections:  # fmt: skip
    """Run `objective` over this rank's `batches` and judge the boxes of all ranks. A collective.

    Batches must be put together alike for any number of ranks: then the numbers are those of one rank, to the last bit.
    """
    samples = split.samples
    table = torch.zeros(len(samples.boxes), samples.classes, device=device)
    read = torch.zeros(len(samples), device=device)

    def take(batch: dict[str, Tensor]) -> None:
        scores = objective.scores(batch, passes=largest(objective.sizes(batch), device))
        for place, (index, weight) in enumerate(zip(batch["index"].tolist(), batch["weight"].tolist(), strict=True)):
            if weight:  # 0: padding, or not readable
                first, last = int(samples.first[index]), int(samples.first[index + 1])
                table[first:last] = scores[place, : last - first]
                read[index] = 1

    with one_thread(device):
        met = run_batches(objective, batches, device, take)
    add_up(table)  # every row is 0 on all ranks but one
    add_up(read)
    kept: list[BoxRows] = []

    def judged() -> AvaScores:
        found, rows = judge(split, table.cpu().numpy(), read.cpu().numpy() > 0, protocol)
        kept.append(rows)  # not shared: millions, and the other ranks have no use for them
        return found

    found = on_first(ranks, device, "judging the boxes", judged)
    return Detections(kept[0] if kept else None, split, found, len(samples), met.unreadable, met.short)


def judge(
    split: AvaSplit, table: NDArray[np.float32], read: NDArray[np.bool_], protocol: str
) -> tuple[AvaScores, BoxRows]:
    """The mAP of scores [K, C] of the samples that were read, and its rows; key frames that were not count as missed.

    Raises DataError for scores that are not finite, which would give a number that looks like one.
    """
    truth, samples = split.truth, split.samples
    assert truth is not None, "training samples have no ground truth"
    sick = np.flatnonzero(~np.isfinite(table).all(axis=1) & np.repeat(read, np.diff(samples.first)))
    if len(sick):
        index = int(np.searchsorted(samples.first, sick[0], side="right")) - 1
        raise not_finite(f"scores of {len(sick)} of {len(table)} boxes", split.path(index))
    parts = []
    for index in np.flatnonzero(read).tolist():
        part = slice(int(samples.first[index]), int(samples.first[index + 1]))
        image = truth.numbers.number(*split.key(index))
        parts.append(detection_rows(samples[index], table[part], image, split.columns))
    rows = BoxRows(
        image=np.concatenate([np.zeros(0, dtype=np.int64), *(part.image for part in parts)]),
        box=np.concatenate([np.zeros((0, 4)), *(part.box for part in parts)]),
        label=np.concatenate([np.zeros(0, dtype=np.int64), *(part.label for part in parts)]),
        score=np.concatenate([np.zeros(0), *(part.score for part in parts)]),
    )
    scores = ava.score_detections(
        truth.rows, rows, list(split.names), ava.PROTOCOLS[protocol], listed=truth.listed, excluded=truth.excluded
    )
    return scores, rows
