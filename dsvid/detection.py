"""Evaluation of action detection over ranks: scores of every box, gathered, and held against the ground truth.

Knows objectives, samples and metrics; knows no loop and no engine. Legend: K boxes of all samples, C classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from dsvid.data.ava import detection_rows
from dsvid.data.ava_files import write_detections
from dsvid.data.ava_split import AvaSplit
from dsvid.detection_report import write_report
from dsvid.errors import DataError
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
        try:
            write_detections(folder / "inference" / "result.csv", truth.numbers.keys, self.rows)
        except OSError as error:
            raise DataError(f"{folder} cannot be written", found=str(error)) from error
        return write_report(folder, self.scores, self.split.names, {"unreadable": len(self.unreadable), **extra})


@torch.no_grad()
def detect(
    objective: DetectObjective,
    batches: Iterable[Mapping[str, Any]],
    split: AvaSplit,
    *,
    protocol: str,
    device: torch.device,
) -> Detections:
    """Run `objective` over this rank's `batches` and judge the boxes of all ranks. A collective.

    Every rank must have the same number of batches, put together alike for any number of ranks: then the numbers are
    those of one rank, to the last bit.
    """
    samples = split.samples
    table = torch.zeros(len(samples.boxes), samples.classes, device=device)
    read = torch.zeros(len(samples), device=device)
    unreadable: list[dict[str, Any]] = []
    short: set[tuple[int, str]] = set()
    training = objective.training
    objective.eval()
    with one_thread(device):
        for batch in batches:
            on_device = {k: v.to(device, non_blocking=True) for k, v in batch.items() if isinstance(v, Tensor)}
            scores = objective.scores(on_device, passes=_most(objective.sizes(on_device), device))
            for place in batch["weight"].nonzero().flatten().tolist():  # 0: padding, or not readable
                index = int(batch["index"][place])
                first, last = int(samples.first[index]), int(samples.first[index + 1])
                table[first:last] = scores[place, : last - first]
                read[index] = 1
            unreadable += batch.get("bad", [])
            short.update(batch.get("short", []))
    objective.train(training)
    if _ranks() > 1:
        dist.all_reduce(table)  # every row is 0 on all ranks but one
        dist.all_reduce(read)
        told: list[Any] = [None] * _ranks()
        dist.all_gather_object(told, (unreadable, short))
        unreadable = [record for each in told for record in each[0]]
        short = set().union(*(each[1] for each in told))

    kept: list[BoxRows] = []

    def judged() -> AvaScores:
        found, rows = judge(split, table.cpu().numpy(), read.cpu().numpy() > 0, protocol)
        kept.append(rows)  # not shared: millions, and the other ranks have no use for them
        return found

    ranks = Ranks(dist.get_rank() if _ranks() > 1 else 0, _ranks(), 0)
    found = on_first(ranks, device, "judging the boxes", judged)
    return Detections(kept[0] if kept else None, split, found, len(samples), unreadable, sorted(short))


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
        raise DataError(
            f"scores of {len(sick)} of {len(table)} boxes are not finite",
            found=f"the first at {split.path(index)}",
            fix="bf16 or fp32 instead of fp16, or weights that are whole",
        )
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


def _ranks() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def _most(own: int, device: torch.device) -> int:
    """The largest number of any rank. A collective."""
    if _ranks() == 1:
        return own
    most = torch.tensor([own], device=device)
    dist.all_reduce(most, op=dist.ReduceOp.MAX)
    return int(most)
