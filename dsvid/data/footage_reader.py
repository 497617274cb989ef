"""Windows of unlabelled driving footage as the loader reads them: one or two sources, each with its part of a batch.

Knows indexed footage; knows no step and no rank.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dsvid.data import augment, handover, order, traffic_split
from dsvid.data.decoder_choice import choose_decoder
from dsvid.data.driving import add_borders
from dsvid.data.footage import Footage, read_clip, read_index
from dsvid.data.randaugment import parse_policy
from dsvid.data.reader import Choice, Chosen
from dsvid.data.window_index import WindowIndex, WindowRule
from dsvid.errors import DataError

if TYPE_CHECKING:
    from dsvid.recipe import DataConfig, FootageConfig, FootageSource

Ints = NDArray[np.int64]
ALIGNED_SCALES = (1.0, 1.0, 0.975, 0.95, 0.9, 0.875, 0.85)  # simple-tad's crops aligned with its fine-tuning
ALIGNED_SHORT = 320  # its frames' short side is no longer before the borders, and its square has this side
POLICY_SHARE = 0.7  # of the clips get its RandAugment


@dataclass(frozen=True)
class Source:
    """Clips, their windows, and how many clips of a batch come from here."""

    footage: Footage
    windows: WindowIndex
    a_batch: int


@dataclass(frozen=True)
class FootageSplit:
    """Samples of all sources numbered through, the first source's first."""

    sources: tuple[Source, ...]
    sha256: str

    def __len__(self) -> int:
        return sum(len(source.windows) for source in self.sources)

    def place(self, index: int) -> tuple[Source, int]:
        """(source, number of its window) of a sample."""
        first = len(self.sources[0].windows)
        return (self.sources[0], index) if index < first else (self.sources[1], index - first)

    def path(self, index: int) -> str:
        """Clip and last frame of a sample, for messages."""
        source, number = self.place(index)
        clip, target = source.windows.targets(np.array([number]))
        return f"{source.footage[int(clip[0])].path} frame {int(target[0])}"


@lru_cache(maxsize=2)
def open_footage(data: DataConfig, footage: FootageConfig, batch: int) -> FootageSplit:
    """Open the sources of a recipe whose batch has `batch` clips. Raises DataError for an index that does not fit."""
    given = [source for source in (footage.first, footage.second) if source.index]
    whole = sum(source.share for source in given)
    counts = [round(batch * source.share / whole) for source in given]
    counts[-1] = batch - sum(counts[:-1])
    if min(counts) < 1:
        raise DataError(
            "a source of footage has no clip in a batch",
            found=f"batch.total={batch}, shares {[source.share for source in given]}",
            expected="at least one clip of each source",
        )
    digest = hashlib.sha256(repr((counts, footage.with_start, footage.nearest, data.view_fps)).encode())
    sources = tuple(_open(source, data, footage, count, digest) for source, count in zip(given, counts, strict=True))
    return FootageSplit(sources, digest.hexdigest())


def _open(source: FootageSource, data: DataConfig, footage: FootageConfig, count: int, digest: hashlib._Hash) -> Source:
    path = (
        traffic_split.prepare() / traffic_split.FOOTAGE
        if source.index == "builtin"
        else Path(source.index).expanduser()
    )
    clips = read_index(path, Path(source.root).expanduser() if source.root else path.parent)
    digest.update(hashlib.sha256(path.read_bytes()).digest() + source.rate.to_bytes(8, "big"))
    assert data.view_fps is not None, "the recipe checks it"
    rule = WindowRule(
        length=data.num_frames, view_fps=data.view_fps, step=source.rate, with_start=footage.with_start,
        nearest=footage.nearest,
    )  # fmt: skip
    windows = WindowIndex(clips.frames, clips.fps, rule)
    if not len(windows):
        raise DataError(
            f"{path}: no clip is as long as a window", found=f"the longest has {int(clips.frames.max())} frames",
            expected=f"{data.num_frames} frames at {data.view_fps:g} fps",
        )  # fmt: skip
    return Source(clips, windows, count)


def remarks(opened: FootageSplit) -> list[str]:
    """What the log says of the footage at the start."""
    lines = []
    for source in opened.sources:
        broken = int((source.footage.frames == 0).sum())
        short = len(source.windows.left_out) - broken
        lines.append(
            f"footage: {len(source.windows)} windows of {len(source.footage)} clips, {source.a_batch} in a batch "
            f"({source.footage.source}); {short} clips are too short, {broken} could not be read when it was indexed"
        )
    return lines


class FootageReader:
    """Reads the windows of `split`."""

    def __init__(self, data: DataConfig, footage: FootageConfig, split: FootageSplit) -> None:
        self.config, self.footage, self.split = data, footage, split
        self.size = len(split)
        self.source = " and ".join(source.footage.source for source in split.sources)
        self.decoder, why = choose_decoder(data.decoder)
        self.decoding = f"{self.decoder} ({why})"
        self.policy = parse_policy(data.augment.policy) if data.augment.policy else None

    def path(self, index: int) -> str:
        """Clip and last frame of a sample."""
        return self.split.path(index)

    def locate(self, first: int, count: int, seed: int) -> tuple[Ints, Ints]:
        """Each batch of the stream has its share of either source, evenly spread, so that ranks have like work.

        A source that is through before the other begins again, in a new order.
        """
        share, total = self.split.sources[0].a_batch, sum(source.a_batch for source in self.split.sources)
        batch, slot = np.divmod(np.arange(first, first + count, dtype=np.int64), total)
        # Bresenham's line: a slot is the first source's where floor(slot * share / total) steps up behind it
        before = slot * share // total
        own = (slot + 1) * share // total > before
        epochs, indices, offset = np.zeros_like(batch), np.zeros_like(batch), 0
        parts = ((own, before), (~own, slot - before))
        for number, (source, (here, taken)) in enumerate(zip(self.split.sources, parts, strict=False)):
            for place in np.flatnonzero(here).tolist():
                at = int(batch[place]) * source.a_batch + int(taken[place])
                epoch, index = order.locate(at, 1, seed=order.mix(seed, number), dataset_size=len(source.windows))
                epochs[place], indices[place] = epoch[0], index[0] + offset
            offset += len(source.windows)
        return epochs, indices

    def frames(self, index: int, choose: Choice) -> Chosen:
        """The frames of a window. Raises DataError."""
        source, number = self.split.place(index)
        clip, positions = source.windows.positions(np.array([number]))
        return Chosen(
            torch.from_numpy(read_clip(source.footage[int(clip[0])], positions[0], self.decoder)), None, short=False
        )

    def train_item(self, index: int, frames: Tensor, rng: np.random.Generator) -> Tensor:
        """VideoMAE's crop; or, aligned with the fine-tuning, borders, a square without keeping the shape, RandAugment
        for seven clips in ten, and larger crops.
        """
        side = self.config.input_size
        if not self.footage.aligned:
            return augment.multi_scale_crop(frames, side, rng)
        if min(frames.shape[1:3]) > ALIGNED_SHORT:
            frames = augment.resize_short_side(frames, ALIGNED_SHORT)
        frames = augment.squash(add_borders(frames, rng), ALIGNED_SHORT)
        if rng.random() < POLICY_SHARE and self.policy is not None:
            frames = self.policy(frames, rng)
        return augment.multi_scale_crop(frames, side, rng, ALIGNED_SCALES)

    def test_item(self, index: int, frames: Tensor | None, crops: int, number: int) -> Tensor:
        """There is no evaluation of footage."""
        raise AssertionError("footage has no evaluation")

    def collate(self, items: Sequence[Tensor], indices: Sequence[int]) -> dict[str, Tensor]:
        """ "clip" uint8 [B, T, H, W, 3]."""
        return {"clip": handover.stack(items)}
