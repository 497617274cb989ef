"""AVA's samples as the loader reads them: the frames around a key frame, cut to a view with its boxes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from dsvid.data import ava_boxes, ava_clips
from dsvid.data.ava_clips import AvaView
from dsvid.data.ava_split import AvaSplit
from dsvid.data.decoder_choice import choose_decoder
from dsvid.data.reader import Choice, Chosen, InOrder
from dsvid.errors import DataError

if TYPE_CHECKING:
    from dsvid.recipe import DataConfig, DetectConfig

SHAPE_TOLERANCE = 0.02  # of width / height: clips are re-encoded with sides rounded to even numbers


class AvaReader(InOrder):
    """Reads one split; clips are padded to multiples of `patch`."""

    def __init__(self, data: DataConfig, detect: DetectConfig, split: AvaSplit, patch: int) -> None:
        self.config, self.detect, self.split, self.patch = data, detect, split, patch
        self.size = len(split)
        self.source = split.source
        self.decoder, why = choose_decoder(data.decoder)
        self.decoding = f"{self.decoder} ({why})"

    def path(self, index: int) -> str:
        """The clip of sample `index`."""
        return self.split.path(index)

    def frames(self, index: int, choose: Choice) -> Chosen:
        """The frames around the key frame: the same in training and evaluation, so `choose` is not looked at.

        Raises DataError, also where the pictures have another shape than the annotations say: boxes would lie wrong.
        """
        data, frame = self.config, self.split.samples.frames[index]
        clip = ava_clips.read_clip(
            self.split.files.clips, frame, frames=data.num_frames, rate=data.sampling_rate, decoder=self.decoder,
            start_s=self.split.files.start_s,
        )  # fmt: skip
        height, width = clip.shape[1:3]
        if abs(width * frame.height / (height * frame.width) - 1) > SHAPE_TOLERANCE:
            raise DataError(
                f"{self.path(index)}: its pictures have another shape than the annotations say",
                found=f"{width} x {height}",
                expected=f"the shape of {frame.width} x {frame.height}",
            )
        return Chosen(clip, None, short=False)

    def train_item(self, index: int, frames: Tensor, rng: np.random.Generator) -> AvaView:
        """The augmented crop, its boxes moved by chance; it may have none."""
        data, detect = self.config, self.detect
        return ava_clips.train_view(
            frames, self.split.samples[index], rng, short=data.short_side, side=data.input_size, flip=data.flip,
            colour=detect.colour, max_boxes=detect.max_boxes, bugs=detect.seed_faults,
        )  # fmt: skip

    def test_item(self, index: int, frames: Tensor | None, crops: int, number: int) -> AvaView:
        """The whole frame with its widened boxes; black, without boxes, where there are no frames."""
        sample, data = self.split.samples[index], self.config
        if frames is not None:
            return ava_clips.eval_view(frames, sample, short=data.short_side, bugs=self.detect.seed_faults)
        width, height = ava_boxes.resized((sample.frame.width, sample.frame.height), data.short_side)
        return AvaView(
            torch.zeros((data.num_frames, height, width, 3), dtype=torch.uint8), sample.boxes[:0], sample.labels[:0],
            sample.scores[:0], np.arange(0),
        )  # fmt: skip

    def collate(self, items: Sequence[AvaView], indices: Sequence[int]) -> dict[str, Tensor]:
        """The batch of `ava_clips.collate`."""
        return ava_clips.collate(items, self.patch)
