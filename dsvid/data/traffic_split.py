"""A split of a traffic data set as a recipe names it: clips, windows and their targets. Knows no pixels."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dsvid.data import traffic_generated
from dsvid.data.footage import list_footage, measure_footage
from dsvid.data.made_once import Say, cache_folder, made_once
from dsvid.data.traffic import LabelledWindows, TrafficClip, open_labels
from dsvid.data.window_index import WindowRule
from dsvid.errors import DataError

if TYPE_CHECKING:
    from dsvid.recipe import AnomalyConfig, DataConfig

BUILTIN = {"train": 960, "val": 80}
FOOTAGE = "footage.csv"  # the index of its training clips, for pre-training without labels
BUILTIN_VERSION = "8"  # raise it with every change that alters a byte of the generated set


@dataclass(frozen=True)
class TrafficSplit:
    """`windows` numbers the samples."""

    source: str
    sha256: str
    clips: list[TrafficClip]
    windows: LabelledWindows

    def __len__(self) -> int:
        return len(self.windows)

    def path(self, index: int) -> str:
        """Clip and judged frame of a window, for messages."""
        clip, target = self.windows.index.targets(np.array([index]))
        found = self.clips[int(clip[0])]
        return f"{found.archive} {found.frames[int(target[0])]}"

    def labels(self) -> NDArray[np.int64]:
        """0 or 1 of every window."""
        return self.windows.labels(*self.windows.index.targets(np.arange(len(self))))


def open_traffic(data: DataConfig, anomaly: AnomalyConfig, split: str) -> TrafficSplit:
    """Open "train", "val" or "test" of a recipe. Raises DataError for a clip of the list that does not fit.

    Windows of evaluations are a target apart (`anomaly.eval_rate`), those of training `data.sampling_rate`.
    """
    training = split == "train"
    assert data.view_fps is not None, "the recipe checks it"
    rule = WindowRule(
        length=data.num_frames,
        view_fps=data.view_fps,
        step=data.sampling_rate if training else anomaly.eval_rate or 1,
        padding="none" if training else anomaly.padding,
        nearest=anomaly.nearest,
    )
    return _opened(place_of(data, anomaly, split), rule, data.train_limit if training else 0)


@lru_cache(maxsize=8)
def _opened(place: tuple[Path, str, str], rule: WindowRule, limit: int) -> TrafficSplit:
    root, name, layout = place
    names, read = open_labels(layout, root, name)
    clips = [read(each) for each in (names[:limit] if limit else names)]
    windows = LabelledWindows(clips, rule)
    if not len(windows):
        raise DataError(
            f"{root}: no clip of {name} is as long as a window",
            found=f"{len(clips)} clips, the longest of {max(len(clip.frames) for clip in clips)} frames",
            expected=f"{rule.length} frames at {rule.view_fps:g} fps",
            fix="fewer data.num_frames, or anomaly.padding=repeat",
        )
    return TrafficSplit(f"{root} {name}", _fingerprint(clips, rule), clips, windows)


def place_of(data: DataConfig, anomaly: AnomalyConfig, split: str) -> tuple[Path, str, str]:
    """(folder of the set, split list, layout): data.root, or the folder of the generated set."""
    value = getattr(data, split)
    part = "train" if split == "train" else "val"
    if value == "builtin":
        return prepare(), f"{part}_split.txt", "dota"
    if not value:
        raise DataError(f"data.{split} is empty", expected="a split list, as train_split.txt, or `builtin`")
    root = Path(data.root).expanduser()
    if not data.root or not root.is_dir():
        raise DataError(
            f"data.root={data.root!r} is no folder", expected="the folder of the data set, with frames/ in it",
            fix="data.root=/path/to/DoTA",
        )  # fmt: skip
    return root, value, anomaly.layout


def prepare(log: Say | None = None) -> Path:
    """The folder of the generated set that recipes call `builtin`, made once per machine."""

    def make(folder: Path) -> None:
        traffic_generated.make_set(folder, BUILTIN)
        for _ in measure_footage(list_footage("dota", folder), folder / FOOTAGE):
            pass

    return made_once(cache_folder() / f"drives-{BUILTIN_VERSION}", make, what="built-in drives", log=log)


def remarks(split: str, opened: TrafficSplit) -> list[str]:
    """What the log says of a split at the start."""
    labels = opened.labels()
    short = len(opened.windows.index.left_out)
    lines = [
        f"data.{split}: {len(labels)} windows of {len(opened.clips)} clips, {100 * labels.mean():.1f} % anomalies "
        f"({opened.source})"
    ]
    if short:
        lines.append(f"data.{split}: {short} clips are shorter than a window and have none")
    if labels.min() == labels.max():
        lines.append(f"data.{split}: one class only; AUROC is not defined")
    return lines


def _fingerprint(clips: list[TrafficClip], rule: WindowRule) -> str:
    """SHA-256 of all clips' names, numbers, first and last of their frames, labels, and of the rule."""
    digest = hashlib.sha256(repr(rule).encode())
    for clip in clips:
        digest.update(f"{clip.name}\0{len(clip.frames)}\0{clip.frames[0]}\0{clip.frames[-1]}\0{clip.fps}".encode())
        digest.update(clip.labels.astype(np.uint8).tobytes())
    return digest.hexdigest()
