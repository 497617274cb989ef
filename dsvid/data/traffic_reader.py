"""Windows of traffic clips as the loader reads them: frames out of zips, squashed to a square, with their targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from dsvid.data import augment, handover
from dsvid.data.driving import add_borders
from dsvid.data.picture import decoder_name
from dsvid.data.randaugment import parse_policy
from dsvid.data.reader import Choice, Chosen, InOrder
from dsvid.data.traffic import read_frames
from dsvid.data.traffic_split import TrafficSplit

if TYPE_CHECKING:
    from dsvid.recipe import AnomalyConfig, DataConfig


@dataclass(frozen=True)
class WindowItem:
    """A clip uint8 [T, S, S, 3] and the targets at its last frame."""

    clip: Tensor
    label: int
    ttc_s: float
    risk: float


class TrafficReader(InOrder):
    """Reads one split."""

    def __init__(self, data: DataConfig, anomaly: AnomalyConfig, split: TrafficSplit) -> None:
        self.config, self.anomaly, self.split = data, anomaly, split
        self.size = len(split)
        self.source = split.source
        self.decoding = f"{decoder_name()} (pictures inside of zips)"
        self.policy = parse_policy(data.augment.policy) if data.augment.policy else None

    def path(self, index: int) -> str:
        """Clip and judged frame of window `index`."""
        return self.split.path(index)

    def frames(self, index: int, choose: Choice) -> Chosen:
        """The frames of a window, the same in training and evaluation. Raises DataError."""
        window = self.split.windows.take([index])
        clip = self.split.clips[int(window.clip[0])]
        return Chosen(torch.from_numpy(read_frames(clip, window.frames[0])), None, short=False)

    def train_item(self, index: int, frames: Tensor, rng: np.random.Generator) -> WindowItem:
        """Borders, squash, RandAugment, flip, erasing: simple-tad's order, whose recipes have no flip."""
        data, how = self.config, self.config.augment
        clip = add_borders(frames, rng) if self.anomaly.driving else frames
        clip = augment.squash(clip, data.input_size)
        if self.policy is not None:
            clip = self.policy(clip, rng)
        clip = augment.flip(clip, data.flip, rng)
        if how.erase_prob:
            clip = augment.erase(
                clip, how.erase_prob, rng, mean=data.mean, std=data.std, area=how.erase_area, aspect=how.erase_aspect,
                count=how.erase_count,
            )  # fmt: skip
        return self._item(index, clip)

    def test_item(self, index: int, frames: Tensor | None, crops: int, number: int) -> WindowItem:
        """The squashed frames; black where there are none."""
        side = self.config.input_size
        blank = (self.config.num_frames, side, side, 3)
        clip = torch.zeros(blank, dtype=torch.uint8) if frames is None else augment.squash(frames, side)
        return self._item(index, clip)

    def collate(self, items: Sequence[WindowItem], indices: Sequence[int]) -> dict[str, Tensor]:
        """ "clip" uint8 [B, T, S, S, 3], "label" int64, "ttc_s" and "risk" float32 [B]."""
        return {
            "clip": handover.stack([item.clip for item in items]),
            "label": torch.tensor([item.label for item in items]),
            "ttc_s": torch.tensor([item.ttc_s for item in items], dtype=torch.float32),
            "risk": torch.tensor([item.risk for item in items], dtype=torch.float32),
        }

    def _item(self, index: int, clip: Tensor) -> WindowItem:
        window = self.split.windows.take([index])
        return WindowItem(clip, int(window.label[0]), float(window.ttc_s[0]), float(window.risk[0]))
