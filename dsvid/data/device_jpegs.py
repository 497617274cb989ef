"""Training clips of packed shards that are decoded on the trainer's GPU: loader processes hand over compressed frames.

Which frames, which crops and which clips are those of the CPU's way; decoder and resize are the device's, so that the
pixels differ by levels. It has not run on a GPU yet: the tests run the same code on the CPU. Legend: B clips, T frames.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dsvid.data.manifest import Manifest
from dsvid.data.picture import PictureError, decode_jpegs
from dsvid.data.reader import Choice, Chosen, ClipReader, InOrder, Reader, UnreadableFrames
from dsvid.data.shards import open_packed, open_shards
from dsvid.errors import DataError
from dsvid.recipe import check_jpeg_decoder

Jpegs = list[memoryview]  # of T frames; the same object where a frame is shown again
CPU_WAY = "data.jpeg_decoder=cpu"


class JpegReader(InOrder):
    """Reads the clips of `clips`, a ClipReader of packed JPEGs, compressed; frames are Jpegs. Raises DataError."""

    def __init__(self, clips: Reader) -> None:
        assert isinstance(clips, ClipReader), "the recipe checks it"
        check_jpeg_decoder(clips.config)
        check_packed(clips.manifest)
        self._clips = clips
        self.config, self.size, self.source = clips.config, clips.size, clips.source
        self.decoding = clips.decoding

    def path(self, index: int) -> str:
        """The path of entry `index`."""
        return self._clips.path(index)

    def frames(self, index: int, choose: Choice) -> Chosen:
        """As ClipReader, but Jpegs. What can be known without decoding raises DataError, as there."""
        source = open_packed(self._clips.manifest[index])
        picked, short = self._clips.pick(source.frames, source.fps, choose)
        try:
            return Chosen(source.jpegs(picked), None, short)
        except DataError as error:
            raise UnreadableFrames(error, (int(picked.min()), int(picked.max()))) from error

    def train_item(self, index: int, frames: Jpegs, rng: np.random.Generator) -> Jpegs:
        """The frames: they are cropped where they are decoded."""
        return frames

    def test_item(self, index: int, frames: Jpegs | None, crops: int, number: int) -> Jpegs:
        """Evaluations decode on the CPU."""
        raise AssertionError("only training clips are handed over compressed")

    def collate(self, items: Sequence[Jpegs], indices: Sequence[int]) -> dict[str, Tensor]:
        """ "jpegs" uint8, each picture once; "spans" int64 [B, T, 2], start and size of each frame in it; "label"."""
        pictures = {id(picture): picture for item in items for picture in item}
        sizes = [len(picture) for picture in pictures.values()]
        starts = dict(zip(pictures, np.cumsum([0, *sizes]).tolist(), strict=False))
        spans = [[(starts[id(picture)], len(picture)) for picture in item] for item in items]
        labels = [self._clips.manifest.labels[index] for index in indices]
        return {
            "jpegs": torch.from_numpy(np.concatenate([np.frombuffer(each, np.uint8) for each in pictures.values()])),
            "spans": torch.tensor(spans, dtype=torch.int64),
            "label": torch.tensor(labels, dtype=torch.int64),
        }


class ClipMaker(Protocol):
    """What makes micro-batches the CPU's way."""

    reader: Reader

    def make(self, first: int, given_up: Mapping[int, str]) -> dict[str, Any] | DataError:
        """The micro-batch from a place of the stream on."""

    def item(self, index: int, frames: Any, seed: int) -> Any:
        """The clip with this seed, cropped from its video's frames."""


class DeviceJpegs:
    """Batches of JpegReader -> the batches of `clips`, "clip" uint8 [B, T, H, W, 3] on `device`. Raises DataError."""

    def __init__(self, clips: ClipMaker, device: torch.device | None) -> None:
        self._clips, self._device = clips, check_device(device)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any] | DataError:
        """Decode and crop; a batch that the device cannot decode is made again on the CPU, which replaces bad clips."""
        try:
            clip = decode_clips(self._clips, batch, self._device)
        except PictureError as error:
            return self._on_the_cpu(batch["place"], error)
        return {"clip": clip, **{name: value for name, value in batch.items() if name not in ("jpegs", "spans")}}

    def _on_the_cpu(self, place: int, error: PictureError) -> dict[str, Any] | DataError:
        made = self._clips.make(place, {})
        if isinstance(made, dict):
            why = f"the GPU cannot decode a picture ({error}): batches with such a one are decoded on the CPU"
            made["notes"].append({"path": self._clips.reader.source, "note": why})
        return made


def decode_clips(clips: ClipMaker, batch: Mapping[str, Any], device: torch.device) -> Tensor:
    """uint8 [B, T, H, W, 3] on `device` of a batch of JpegReader. Raises PictureError."""
    jpegs, made = batch["jpegs"], []
    shown: list[list[int]] = []
    for spans, index, seed in zip(*(batch[name].tolist() for name in ("spans", "index", "seed")), strict=True):
        if spans != shown:  # else another clip of the video before (data.num_sample)
            distinct = list(dict.fromkeys(map(tuple, spans)))
            frames = decode_jpegs([jpegs[start : start + size] for start, size in distinct], device)
            if len(distinct) < len(spans):
                frames = frames[[distinct.index(tuple(span)) for span in spans]]
            shown = spans
        made.append(clips.item(index, frames, seed))
    return torch.stack(made)


def check_packed(entries: Manifest) -> None:
    """Raise DataError where a list is not of packed JPEGs."""
    codec = open_shards(entries.packed).codec if entries.packed else ""
    if codec != "jpeg":
        raise DataError(
            f"{entries.source}: data.jpeg_decoder=gpu is for packed JPEGs",
            found=f"shards of codec {codec}" if codec else "no packed shards",
            expected="what `dsvid data pack LIST OUT` writes",
            fix=CPU_WAY,
        )


def check_device(device: torch.device | None) -> torch.device:
    """The device, on which a small picture was decoded. Raises DataError where that cannot be."""
    if device is None or device.type != "cuda":
        raise DataError(
            "data.jpeg_decoder=gpu needs CUDA", found="no such device" if device is None else device.type, fix=CPU_WAY
        )
    out = io.BytesIO()
    Image.new("RGB", (64, 64), (200, 100, 50)).save(out, "JPEG")
    try:
        decode_jpegs([torch.frombuffer(bytearray(out.getvalue()), dtype=torch.uint8)], device)
    except PictureError as error:
        raise DataError(
            "data.jpeg_decoder=gpu, but this torchvision decodes no JPEG on the GPU",
            found=error,
            expected="torchvision with nvJPEG, of this torch's version and CUDA",
            fix=f"pip install torchvision; or {CPU_WAY}",
        ) from error
    return device
