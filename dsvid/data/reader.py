"""From an entry of a list to a cropped uint8 clip: open, choose frames, decode, crop; and what the loader asks of every
such reader. Knows no order of clips.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dsvid.data import augment, handover, order, sampling
from dsvid.data.decode import ClipSource, open_clip_source
from dsvid.data.decoder_choice import choose_decoder, some_entries
from dsvid.data.manifest import Manifest, open_split
from dsvid.data.randaugment import parse_policy
from dsvid.errors import DataError

if TYPE_CHECKING:
    from dsvid.recipe import DataConfig


@dataclass(frozen=True)
class Held:
    """All frames of a video, as its source gave them."""

    pictures: NDArray[np.uint8]
    fps: float | None
    note: str | None


@dataclass(frozen=True)
class Chosen:
    """Frames uint8 [T, H, W, 3], a remark on how they were read, and whether the video was too short for them.

    A reader may have something else for frames, which its own `train_item` takes.
    """

    frames: Any
    note: str | None
    short: bool


Choice = sampling.Draws | tuple[int, int]
Ints = NDArray[np.int64]


class Reader(Protocol):
    """A data set as the loader sees it: `size` samples, each read to frames, cut to an item, then put into a batch."""

    @property
    def config(self) -> DataConfig: ...

    @property
    def size(self) -> int: ...

    @property
    def source(self) -> str:
        """What the samples come from, for messages."""

    @property
    def decoding(self) -> str:
        """What decodes the pictures, and why, for the log."""

    def path(self, index: int) -> str:
        """The file of sample `index`, for messages."""

    def locate(self, first: int, count: int, seed: int) -> tuple[Ints, Ints]:
        """(pass over the samples, sample) at the places first .. first+count-1 of the endless stream, int64 [count]."""

    def frames(self, index: int, choose: Choice) -> Chosen:
        """The frames of sample `index`: of random draws, or (segments, segment). Raises DataError."""

    def train_item(self, index: int, frames: Any, rng: np.random.Generator) -> Any:
        """The augmented item of a sample's frames; must not fail for frames that could be read."""

    def test_item(self, index: int, frames: Any, crops: int, number: int) -> Any:
        """The item of crop `number` of `crops`; None stands for frames that could not be read, or for padding."""

    def collate(self, items: Sequence[Any], indices: Sequence[int]) -> dict[str, Tensor]:
        """The tensors of a batch, "clip" [B, T, H, W, 3] among them."""


class InOrder:
    """A reader whose stream goes over all samples in a new random order in every pass."""

    size: int

    def locate(self, first: int, count: int, seed: int) -> tuple[Ints, Ints]:
        """As `order.locate`."""
        return order.locate(first, count, seed=seed, dataset_size=self.size)


class FrameCache:
    """Decoded frames of short videos, least recently used out first; `limit` bytes in each process that reads.

    For small data sets that are read many times, where opening and decoding a file costs more than the training step
    leaves. A video of more than `most_frames` is never held: decoding it whole would cost more than the clip.
    """

    def __init__(self, limit: int, most_frames: int) -> None:
        self.limit, self.most_frames = limit, most_frames
        self.used = 0
        self._held: OrderedDict[int, Held] = OrderedDict()

    def get(self, index: int) -> Held | None:
        """The frames of entry `index`, or None."""
        held = self._held.get(index)
        if held is not None:
            self._held.move_to_end(index)
        return held

    def wants(self, frames: int) -> bool:
        """Whether a video of so many frames is worth decoding whole."""
        return self.limit > 0 and frames <= self.most_frames

    def put(self, index: int, held: Held) -> None:
        """Hold the frames; drop others until they fit. Frames that fill the cache alone are not held."""
        size = held.pictures.nbytes
        if size > self.limit or index in self._held:
            return
        while self.used + size > self.limit:
            _, dropped = self._held.popitem(last=False)
            self.used -= dropped.pictures.nbytes
        self._held[index] = held
        self.used += size


class ClipReader(InOrder):
    """Reads one list by one recipe section: entry -> frames -> cropped uint8 clip."""

    def __init__(self, config: DataConfig, split: str) -> None:
        self.config = config
        self.manifest: Manifest = open_split(getattr(config, split), split, config.root)
        self.size = len(self.manifest)
        if split == "train" and config.train_limit:
            self.size = min(self.size, config.train_limit)
        self.decoder, why = choose_decoder(
            config.decoder, some_entries(self.manifest), frames=config.num_frames, distance=config.sampling_rate
        )
        self.decoding = f"{self.decoder} ({why})"
        if split == "train" and config.jpeg_decoder == "gpu":
            self.decoding = "nvJPEG, on the GPU (asked for)"
        policy = config.augment.policy
        self.policy = parse_policy(policy) if policy and split == "train" else None
        self.cache = FrameCache(config.cache_mb * 10**6, most_frames=4 * config.num_frames * config.sampling_rate)

    @property
    def source(self) -> str:
        """The list file."""
        return self.manifest.source

    def path(self, index: int) -> str:
        """The path of entry `index`."""
        return self.manifest.path(index)

    def frames(self, index: int, choose: Choice) -> Chosen:
        """The frames of entry `index` that `choose` picks: random draws, or (segments, segment).

        Raises DataError, UnreadableFrames where the frames were chosen already.
        """
        held = self.cache.get(index)
        if held is not None:
            picked, short = self.pick(len(held.pictures), held.fps, choose)
            return Chosen(torch.from_numpy(held.pictures[picked]), held.note, short)
        config = self.config
        with open_clip_source(
            self.manifest[index], self.decoder, frame_name=config.frame_name, frame_start=config.frame_start
        ) as source:
            picked, short = self.pick(source.frames, source.fps, choose)
            try:
                held = self._hold(index, source) if self.cache.wants(source.frames) else None
                if held is not None:
                    return Chosen(torch.from_numpy(held.pictures[picked]), held.note, short)
                return Chosen(torch.from_numpy(source.read(picked)), source.note, short)
            except DataError as error:
                raise UnreadableFrames(error, (int(picked.min()), int(picked.max()))) from error

    def _hold(self, index: int, source: ClipSource) -> Held | None:
        try:
            held = Held(source.read(np.arange(source.frames)), source.fps, source.note)
        except DataError:
            return None  # a damaged frame that the clip may not need: the cache must not change what is readable
        self.cache.put(index, held)
        return held

    def pick(self, frames: int, fps: float | None, choose: Choice) -> tuple[NDArray[np.int64], bool]:
        """Indices, and whether the video is too short for them: frames are repeated, or views are alike."""
        config = self.config
        step = sampling.frame_step(config.sampling_rate, config.view_fps, fps)
        if isinstance(choose, tuple):
            picked = sampling.eval_indices(config.sampling, frames, config.num_frames, step, *choose)
        else:
            picked = sampling.train_indices(config.sampling, frames, config.num_frames, step, choose)
        alike = isinstance(choose, tuple) and choose[0] > frames
        return picked, alike or len(np.unique(picked)) < len(picked)

    def train_item(self, index: int, frames: Tensor, rng: np.random.Generator) -> Tensor:
        """One augmented training clip, uint8 [T, input_size, input_size, 3].

        In the order of the VideoMAE scripts: short side (where data.short_side is set), RandAugment on the whole
        frame, crop, flip, erasing.
        """
        config, how = self.config, self.config.augment
        if config.short_side:
            frames = augment.resize_short_side(frames, config.short_side)
        if self.policy is not None:
            frames = self.policy(frames, rng)
        clip = augment.flip(self._cropped(frames, rng), config.flip, rng)
        if how.erase_prob == 0:
            return clip
        return augment.erase(
            clip,
            how.erase_prob,
            rng,
            mean=config.mean,
            std=config.std,
            area=how.erase_area,
            aspect=how.erase_aspect,
            count=how.erase_count,
        )

    def _cropped(self, frames: Tensor, rng: np.random.Generator) -> Tensor:
        config, how = self.config, self.config.augment
        if config.crop == "multi_scale":
            return augment.multi_scale_crop(frames, config.input_size, rng)
        if config.crop == "random_resized":
            return augment.random_resized_crop(frames, config.input_size, rng, how.crop_area, how.crop_aspect)
        if config.crop == "random":
            return augment.random_crop(frames, config.input_size, rng)
        return augment.center_crop(frames, config.input_size)

    def test_item(self, index: int, frames: Tensor | None, crops: int, number: int) -> Tensor:
        """Short side to data.short_side (0 = input_size), then crop `number` of `crops`; black without frames."""
        config = self.config
        if frames is None:
            return torch.zeros((config.num_frames, config.input_size, config.input_size, 3), dtype=torch.uint8)
        resized = augment.resize_short_side(frames, config.short_side or config.input_size)
        return augment.spatial_crop(resized, config.input_size, crops, number)

    def collate(self, items: Sequence[Tensor], indices: Sequence[int]) -> dict[str, Tensor]:
        """ "clip" uint8 [B, T, H, W, 3] and "label" int64 [B]."""
        labels = [self.manifest.labels[index] for index in indices]
        return {"clip": handover.stack(items), "label": torch.tensor(labels, dtype=torch.int64)}


class UnreadableFrames(DataError):
    def __init__(self, cause: DataError, frame_range: tuple[int, int]) -> None:
        super().__init__(cause.what, found=cause.found, expected=cause.expected, fix=cause.fix)
        self.frame_range = frame_range


def bad_record(reader: Reader, index: int, error: DataError, clips: int) -> dict[str, Any]:
    text = error.what if error.found is None else f"{error.what} ({error.found})"
    frames = list(error.frame_range) if isinstance(error, UnreadableFrames) else None
    return {"path": reader.path(index), "index": index, "frames": frames, "error": text, "clips": clips}
