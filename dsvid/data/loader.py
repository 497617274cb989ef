"""Batches of uint8 clips, a pure function of (seed, step): the same for any number of ranks, workers and restarts.

Knows the order of clips; knows no model, no task and no process group. Legend: B clips of a micro-batch,
T frames, H W pixels. A batch is {"clip": uint8 [B, T, H, W, 3], "seed", "index": int64 [B], what else the reader's
items have ("label" int64 [B], -1 unknown, of clip lists), "bad": records of unreadable clips, "notes": {"path", "note"}
where another decoder read a file, "short": (index, path) of videos with fewer frames than a clip shows}; evaluation
adds "weight" float32 [B] (0 = padding), "segment" and "crop" int64 [B]. Training that mixes clips adds "partner_label"
int64 [B] and "lam" float32 [B], the own share of the label; the clips are mixed already. Training tells "place", the
first clip's in the stream.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dsvid.data import mix, order
from dsvid.data.decode import ON_GPU, quiet_decoders
from dsvid.data.device_copy import DeviceCopy
from dsvid.data.device_jpegs import DeviceJpegs, JpegReader
from dsvid.data.in_thread import InThread
from dsvid.data.reader import Choice, Chosen, ClipReader, Reader, bad_record
from dsvid.data.workers import Limits, Workers, working_on
from dsvid.errors import DataError
from dsvid.heap import keep_freed_memory

if TYPE_CHECKING:
    from dsvid.recipe import DataConfig

Batch = dict[str, Any]
ATTEMPTS = 10  # unreadable clips in a row, each in place of the one before, until the list counts as unusable
# streams of random numbers that belong to one video or clip
_FRAMES, _PIXELS, _REPLACEMENT, _MIX = 1, 2, 3, 4


class _Clips(Protocol):
    def make(self, number: int, given_up: Mapping[int, str]) -> Batch | DataError:
        """The item of a number. `given_up`: samples that cannot be read, and why."""


# ---- training ------------------------------------------------------------------------------------------------------


class _TrainClips:
    """Micro-batch by its first place in the endless clip stream."""

    def __init__(self, reader: Reader, seed: int, batch_micro: int) -> None:
        self.reader = reader
        self.seed = seed
        self.micro = batch_micro
        self.repeats = reader.config.num_sample
        self.given_up: Mapping[int, str] = {}

    def make(self, first: int, given_up: Mapping[int, str]) -> Batch | DataError:
        """The micro-batch from place `first` on; an error is handed over as a value, as it is."""
        self.given_up = given_up
        try:
            return {**self.micro_batch(first), "place": first}
        except DataError as error:
            return error

    def item(self, index: int, frames: Any, seed: int) -> Any:
        """The item of the clip with this seed, from the frames of its video."""
        return self.reader.train_item(index, frames, np.random.default_rng(order.mix(seed, _PIXELS)))

    def micro_batch(self, first: int) -> Batch:
        """The clips from place `first` of the stream on, mixed with their partners where the recipe mixes."""
        video, count = first // self.repeats, self.micro // self.repeats
        if not self.reader.config.augment.mixes:
            return self.clips(video, count, own=range(count))
        # A partner that belongs to another micro-batch is read here too: who is mixed with whom never depends on ranks.
        lead, tail = video % 2, (video + count) % 2
        batch = self.clips(video - lead, lead + count + tail, own=range(lead, lead + count))
        return mix.mixed_part(
            batch, self.reader.config.augment, self.repeats, lead * self.repeats, self.micro, stream=_MIX
        )

    def clips(self, first_video: int, count: int, own: range) -> Batch:
        """`count` videos of the stream from `first_video` on, each cut into its clips.

        What is told of unreadable videos is told of those at the places `own`: another batch tells of the others.
        """
        epochs, indices = self.reader.locate(first_video, count, self.seed)
        items: list[Any] = []
        seeds: list[int] = []
        used: list[int] = []
        told = Told()
        for place, (epoch, index) in enumerate(zip(epochs.tolist(), indices.tolist(), strict=True)):
            chosen, read = self.readable(epoch, index, told.bad if place in own else [])
            if place in own:
                told.hear(read, self.reader.path(read), chosen)
            for repeat in range(self.repeats):
                seed = order.sample_seed(self.seed, epoch, index, repeat)
                items.append(self.item(read, chosen.frames, seed))
                seeds.append(seed)
                used.append(read)
        return _batch(self.reader, items, seeds, used, told)

    def readable(self, epoch: int, index: int, bad: list[dict[str, Any]]) -> tuple[Chosen, int]:
        """Frames of the video, or of the first readable one in its place; who was unreadable is added to `bad`."""
        tried = index
        failures: list[str] = []
        for attempt in range(1, ATTEMPTS + 1):
            rng = np.random.default_rng(order.mix(self.seed, epoch, index, attempt, _FRAMES))
            try:
                return _read(self.reader, tried, rng, self.given_up), tried
            except DataError as error:
                bad.append(bad_record(self.reader, tried, error, self.repeats))
                failures.append(bad[-1]["error"])
            tried = order.mix(self.seed, epoch, index, attempt, _REPLACEMENT) % self.reader.size
        raise DataError(
            f"{self.reader.source}: {ATTEMPTS} clips in a row cannot be read",
            found="".join(f"\n    {failure}" for failure in dict.fromkeys(failures)),
            expected="videos that can be decoded",
            fix="look at the first of them; data.root says where relative paths start",
        )


def _places(start_step: int, total: int, micro: int, rank: int, world: int) -> Iterator[int]:
    """First clip of every micro-batch of one rank, from `start_step` on, without end."""
    for step in count(start_step):
        start, end = step * total, (step + 1) * total
        yield from range(start + rank * micro, end, world * micro)


class TrainLoader:
    """Micro-batches of one rank, from optimizer step `start_step` on, without end.

    Step s takes the clips s * batch_total .. (s+1) * batch_total - 1 of the stream; micro-batch m of rank r starts at
    (m * world + r) * batch_micro in it. `reader` is of another data set than clip lists. Raises DataError (lists, ten
    unreadable clips in a row; data.jpeg_decoder=gpu without a CUDA `device` or packed JPEGs) and WorkerDied.
    """

    def __init__(
        self,
        config: DataConfig,
        split: str = "train",
        *,
        seed: int,
        batch_total: int,
        batch_micro: int,
        rank: int = 0,
        world: int = 1,
        start_step: int = 0,
        device: torch.device | None = None,
        samples_per_epoch: int = 0,
        reader: Reader | None = None,
    ) -> None:
        assert batch_total % (batch_micro * world) == 0, "the recipe checks that the batch divides"
        assert 0 <= rank < world
        if batch_micro % config.num_sample:
            raise DataError(
                "batch.micro is not divisible by data.num_sample",
                found=f"batch.micro={batch_micro}, data.num_sample={config.num_sample}",
                expected="whole videos in a micro-batch",
                fix=f"batch.micro={math.ceil(batch_micro / config.num_sample) * config.num_sample}",
            )
        self.reader = reader or ClipReader(config, split)
        self.rank = rank
        self.dataset_size = self.reader.size
        samples = samples_per_epoch or self.dataset_size * config.num_sample
        self.steps_per_epoch = max(1, samples // batch_total)
        self._places = partial(_places, start_step, batch_total, batch_micro, rank, world)
        self._clips = _TrainClips(self.reader, seed, batch_micro)
        self._decode: DeviceJpegs | None = None
        if config.jpeg_decoder == "gpu":
            self._decode = DeviceJpegs(self._clips, device)
            self._clips = _TrainClips(JpegReader(self.reader), seed, batch_micro)
        self._device = device
        self._running: list[_Running] = []

    def __iter__(self) -> Iterator[Batch]:
        running = _Running(self._clips, self._places(), self.reader, self.rank, self._device, self._decode)
        self._running.append(running)
        return iter(running)

    @property
    def processes(self) -> list[Any]:
        """The worker processes that read at this moment."""
        passes = [running.workers.workers for running in self._running if running.workers is not None]
        return [worker.process for workers in passes for worker in workers]

    def close(self) -> None:
        """End the worker processes now, also one that hangs in a decoder."""
        for running in self._running:
            running.close()
        self._running.clear()


# ---- evaluation ----------------------------------------------------------------------------------------------------


class _EvalViews:
    """Batch of views by its number; view v = (video * segments + segment) * crops + crop."""

    def __init__(self, reader: Reader, segments: int, crops: int, batch: int, play: str, seed: int) -> None:
        self.reader, self.segments, self.crops, self.batch = reader, segments, crops, batch
        self.play, self.seed = play, seed
        self.views = reader.size * segments * crops
        self.given_up: Mapping[int, str] = {}

    def make(self, number: int, given_up: Mapping[int, str]) -> Batch | DataError:
        """The batch of a number; an error is handed over as a value."""
        self.given_up = given_up
        try:
            return self.batch_of_views(number)
        except DataError as error:
            return error

    def batch_of_views(self, number: int) -> Batch:
        items: list[Any] = []
        told = Told()
        weights: list[float] = []
        views = np.arange(number * self.batch, (number + 1) * self.batch)
        real = views < self.views
        videos, segments, crops = self._parts(np.where(real, views, 0))
        frames: Tensor | None = None
        at = (-1, -1)
        for place in range(self.batch):
            video, segment = int(videos[place]), int(segments[place])
            if real[place] and at != (video, segment):  # the crops of one segment share its frames
                at = (video, segment)
                frames = self._frames(video, segment, told)
            usable = frames if real[place] else None
            weights.append(0.0 if usable is None else 1.0)
            items.append(self.reader.test_item(video, usable, self.crops, int(crops[place])))
        seeds = [order.sample_seed(self.seed, 0, int(view)) for view in views]
        result = _batch(self.reader, items, seeds, videos.tolist(), told)
        result["weight"] = torch.tensor(weights)
        result["segment"], result["crop"] = torch.from_numpy(segments), torch.from_numpy(crops)
        return result

    def _parts(self, views: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        videos, rest = np.divmod(views, self.segments * self.crops)
        segments, crops = np.divmod(rest, self.crops)
        return videos, segments, crops

    def _frames(self, video: int, segment: int, told: Told) -> Tensor | None:
        try:
            chosen = _read(self.reader, video, (self.segments, segment), self.given_up)
        except DataError as error:
            # never another video in its place: that would count a wrong answer for this one
            told.bad.append(bad_record(self.reader, video, error, self.crops))
            return None
        told.hear(video, self.reader.path(video), chosen)
        frames: Tensor = chosen.frames
        if self.play == "backwards":
            return frames.flip(0)
        if self.play == "still":
            return frames[len(frames) // 2].expand_as(frames)
        return frames


def eval_batches(
    config: DataConfig,
    split: str,
    *,
    segments: int = 1,
    crops: int = 1,
    rank: int = 0,
    world: int = 1,
    batch: int = 16,
    reverse: bool = False,
    freeze: bool = False,
    seed: int = 0,
    device: torch.device | None = None,
    reader: Reader | None = None,
) -> Iterator[Batch]:
    """Every (video, segment, crop) once over all ranks; as many batches of `batch` on every rank (weight 0 = padding).

    `reverse` plays the clips backwards, `freeze` repeats their middle frame. A view that cannot be read has weight 0
    and stands in "bad". `reader` is of another data set than clip lists. Raises DataError (list, split) and WorkerDied.
    """
    assert not (reverse and freeze)
    reader = reader or ClipReader(config, split)
    play = "backwards" if reverse else "still" if freeze else "forwards"
    dataset = _EvalViews(reader, segments, crops, batch, play, seed)
    batches = math.ceil(math.ceil(dataset.views / batch) / world)
    numbers = range(rank, batches * world, world)
    running = _Running(dataset, numbers, reader, rank, device)
    try:
        yield from running
    finally:
        running.close()


# ---- workers -------------------------------------------------------------------------------------------------------


def _read(reader: Reader, index: int, choose: Choice, given_up: Mapping[int, str]) -> Chosen:
    """Frames of a sample, in a time that the parent watches. Raises DataError."""
    if index in given_up:
        raise DataError(f"{reader.path(index)}: cannot be read", found=given_up[index])
    with working_on(index):
        return reader.frames(index, choose)


@dataclass
class Told:
    """What a batch tells of its files: unreadable clips, remarks, and videos that are too short for a clip."""

    bad: list[dict[str, Any]] = field(default_factory=list)
    notes: list[dict[str, str]] = field(default_factory=list)
    short: list[tuple[int, str]] = field(default_factory=list)

    def hear(self, index: int, path: str, chosen: Chosen) -> None:
        if chosen.note is not None:
            self.notes.append({"path": path, "note": chosen.note})
        if chosen.short:
            self.short.append((index, path))


def _batch(reader: Reader, items: list[Any], seeds: list[int], indices: list[int], told: Told) -> Batch:
    return {
        **reader.collate(items, indices),
        "seed": torch.tensor(seeds, dtype=torch.int64),
        "index": torch.tensor(indices, dtype=torch.int64),
        "bad": told.bad,
        "notes": told.notes,
        "short": told.short,
    }


class _Running:
    """One pass over the items of `clips`, made in worker processes, or here where there are none.

    `close` ends the processes now.
    """

    def __init__(
        self,
        clips: _Clips,
        numbers: Iterable[int],
        reader: Reader,
        rank: int,
        device: torch.device | None,
        decode: DeviceJpegs | None = None,
    ) -> None:
        config = reader.config
        self.source = reader.source
        self.workers: Workers | None = None
        self.told: list[str] = []
        quiet_decoders()
        items: Iterable[Any]
        if config.num_workers and sys.platform == "linux":
            grown_mb = config.recycle_mb and config.recycle_mb + config.cache_mb
            items = self.workers = Workers(
                clips.make,
                numbers,
                count=config.num_workers,
                ahead=config.prefetch,
                limits=Limits(key_s=config.clip_limit_s, grown_mb=grown_mb, keys=config.recycle_clips),
                name=f"rank {rank}: ",
                # a fork of a trainer that uses CUDA cannot use it
                start="spawn" if config.decoder == ON_GPU else "fork",
                ready=partial(_make_ready, device if config.decoder == ON_GPU else None),
            )
            self.told = self.workers.told
        else:
            items = _made_here(clips, numbers, device)
            if config.num_workers:  # elsewhere fork breaks system libraries
                self.told = ["clips are read by the trainer itself: processes for it need Linux (data.num_workers)"]
        self._copy = DeviceCopy(device, decode) if device is not None and device.type == "cuda" else None
        self._sent = InThread(items, self._copy.start) if self._copy else None
        self._items = self._sent or items

    def __iter__(self) -> Iterator[Batch]:
        for sent in self._items:
            item = self._copy.finish(sent) if self._copy else sent
            if isinstance(item, DataError):
                raise item
            while self.told:
                item["notes"].append({"path": self.source, "note": self.told.pop(0)})
            yield item

    def close(self) -> None:
        if self.workers is not None:
            self.workers.close()
        if self._sent is not None:
            self._sent.close()


def _make_ready(device: torch.device | None) -> None:
    quiet_decoders()
    keep_freed_memory()
    _use(device)


def _made_here(clips: _Clips, numbers: Iterable[int], device: torch.device | None) -> Iterator[Batch | DataError]:
    _use(device)  # a thread's own, and another thread may ask for the items
    for number in numbers:
        yield clips.make(number, {})


def _use(device: torch.device | None) -> None:
    if device is not None and device.type == "cuda":
        torch.cuda.set_device(device)


# ---- unreadable clips ----------------------------------------------------------------------------------------------


class BadClips:
    """Writes `bad_clips.jsonl` and decides when there are too many.

    A run stops when more than `grace` different files were unreadable and they make more than `max_fraction` of the
    clips seen: a few damaged files never stop a run, however small the list is.
    """

    def __init__(self, path: str | Path, *, max_fraction: float, grace: int, rank: int = 0) -> None:
        self.path = Path(path)
        self.max_fraction = max_fraction
        self.grace = grace
        self.rank = rank
        self.seen = 0
        self.bad = 0
        self.files: dict[str, str] = {}
        self.lost = ""  # why lines could not be written

    def add(self, batch: Batch) -> list[dict[str, Any]]:
        """Count a batch, append its unreadable clips to the file, and return those of files not met before."""
        self.seen += len(batch["index"])
        new = []
        lines = []
        for record in batch["bad"]:
            self.bad += record["clips"]
            if record["path"] not in self.files:
                self.files[record["path"]] = record["error"]
                new.append(record)
            lines.append(json.dumps({**record, "rank": self.rank, "time": round(time.time(), 3)}) + "\n")
        if lines:
            # one write in append mode: ranks may share the file
            try:
                handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
                try:
                    os.write(handle, "".join(lines).encode())
                finally:
                    os.close(handle)
            except OSError as error:  # a full disk is no reason to end a run
                self.lost = f"{self.path.name} cannot be written: {error}"
        return new

    def verdict(self) -> DataError | None:
        """The error that ends the run, or None; returned and not raised, so that the ranks can agree on it first."""
        if len(self.files) <= self.grace or self.bad <= self.max_fraction * self.seen:
            return None
        first = "".join(f"\n    {error}" for error in list(self.files.values())[:10])
        return DataError(
            f"too many unreadable clips: {self.bad} of {self.seen} ({len(self.files)} files)",
            found=f"the first {min(10, len(self.files))} files:{first}",
            expected=f"at most {self.max_fraction:.2%} of the clips (data.max_bad_fraction)",
            fix=f"see {self.path}; mend the list, or raise data.max_bad_fraction",
        )
