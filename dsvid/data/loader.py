"""Batches of uint8 clips, a pure function of (seed, step): the same for any number of ranks, workers and restarts.

Knows the order of clips; knows no model, no task and no process group. Legend: B clips of a micro-batch,
T frames, H W pixels. A batch is {"clip": uint8 [B, T, H, W, 3], "seed", "index": int64 [B], what else the reader's
items have ("label" int64 [B], -1 unknown, of clip lists), "bad": records of unreadable clips, "notes": {"path", "note"}
where another decoder read a file, "short": (index, path) of videos with fewer frames than a clip shows}; evaluation
adds "weight" float32 [B] (0 = padding), "segment" and "crop" int64 [B]. Training that mixes clips adds "partner_label"
int64 [B] and "lam" float32 [B], the own share of the label; the clips are mixed already.
"""

from __future__ import annotations

import atexit
import ctypes
import json
import math
import os
import signal
import sys
import time
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch._C import _remove_worker_pids
from torch.utils.data import DataLoader, Dataset, Sampler

from dsvid.data import mix, order
from dsvid.data.decode import quiet_decoders
from dsvid.data.reader import Chosen, ClipReader, Reader, bad_record
from dsvid.errors import DataError

if TYPE_CHECKING:
    from dsvid.recipe import DataConfig

Batch = dict[str, Any]
ATTEMPTS = 10  # unreadable clips in a row, each in place of the one before, until the list counts as unusable
# streams of random numbers that belong to one video or clip
_FRAMES, _PIXELS, _REPLACEMENT, _MIX = 1, 2, 3, 4


class WorkerDied(RuntimeError):
    """A loader process was killed or crashed; not the user's mistake."""


# ---- training ------------------------------------------------------------------------------------------------------


class _TrainClips(Dataset[Any]):
    """Micro-batch by its first place in the endless clip stream."""

    def __init__(self, reader: Reader, seed: int, batch_micro: int) -> None:
        self.reader = reader
        self.seed = seed
        self.micro = batch_micro
        self.repeats = reader.config.num_sample

    def __getitem__(self, first: int) -> Batch | DataError:
        try:
            return self.micro_batch(first)
        except DataError as error:
            # handed over as a value: torch would wrap a raised one into the worker's traceback
            return error

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
                rng = np.random.default_rng(order.mix(seed, _PIXELS))
                items.append(self.reader.train_item(read, chosen.frames, rng))
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
                return self.reader.frames(tried, rng), tried
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


class _Places(Sampler[int]):
    """First clip of every micro-batch of one rank, from `start_step` on, without end."""

    def __init__(self, start_step: int, total: int, micro: int, rank: int, world: int) -> None:
        self.start_step, self.total, self.micro, self.rank, self.world = start_step, total, micro, rank, world

    def __iter__(self) -> Iterator[int]:
        for step in count(self.start_step):
            start, end = step * self.total, (step + 1) * self.total
            yield from range(start + self.rank * self.micro, end, self.world * self.micro)


class TrainLoader:
    """Micro-batches of one rank, from optimizer step `start_step` on, without end.

    Step s takes the clips s * batch_total .. (s+1) * batch_total - 1 of the stream; micro-batch m of rank r starts at
    (m * world + r) * batch_micro in it. `reader` is of another data set than clip lists. Raises DataError (lists, ten
    unreadable clips in a row) and WorkerDied.
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
        device_type: str = "cpu",
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
        places = _Places(start_step, batch_total, batch_micro, rank, world)
        self._loader = _make_loader(_TrainClips(self.reader, seed, batch_micro), places, config, device_type)
        self._running: list[Any] = []

    def __iter__(self) -> Iterator[Batch]:
        return _checked(self._loader, self.rank, self._running)

    def close(self) -> None:
        """End the worker processes now, also one that hangs in a decoder."""
        for iterator in self._running:
            _end_workers(iterator)
        self._running.clear()


# ---- evaluation ----------------------------------------------------------------------------------------------------


class _EvalViews(Dataset[Any]):
    """Batch of views by its number; view v = (video * segments + segment) * crops + crop."""

    def __init__(self, reader: Reader, segments: int, crops: int, batch: int, play: str, seed: int) -> None:
        self.reader, self.segments, self.crops, self.batch = reader, segments, crops, batch
        self.play, self.seed = play, seed
        self.views = reader.size * segments * crops

    def __getitem__(self, number: int) -> Batch | DataError:
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
            chosen = self.reader.frames(video, (self.segments, segment))
        except DataError as error:
            # never another video in its place: that would count a wrong answer for this one
            told.bad.append(bad_record(self.reader, video, error, self.crops))
            return None
        told.hear(video, self.reader.path(video), chosen)
        frames = chosen.frames
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
    device_type: str = "cpu",
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
    running: list[Any] = []
    try:
        yield from _checked(_make_loader(dataset, numbers, config, device_type), rank, running)
    finally:
        for iterator in running:
            _end_workers(iterator)


# ---- workers -------------------------------------------------------------------------------------------------------


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


def _make_loader(dataset: Dataset[Any], order_of_items: Any, config: DataConfig, device_type: str) -> DataLoader[Any]:
    quiet_decoders()
    workers = config.num_workers
    return DataLoader(
        dataset,
        batch_size=None,
        sampler=order_of_items,
        collate_fn=_as_it_is,
        num_workers=workers,
        prefetch_factor=config.prefetch if workers else None,
        persistent_workers=False,  # there is one endless pass
        pin_memory=device_type == "cuda",
        worker_init_fn=partial(_start_worker, os.getpid()) if workers else None,
        # fork: starts in no time and shares the list. Workers use one thread, no CUDA and no process group, so nothing
        # of the parent's other threads is missed in them. Elsewhere than on Linux fork breaks system libraries.
        multiprocessing_context=("fork" if sys.platform == "linux" else "spawn") if workers else None,
        generator=torch.Generator(),  # else torch's loader draws from the global one, which belongs to the caller
    )


def _as_it_is(item: Any) -> Any:
    return item


def _start_worker(parent: int, worker: int) -> None:
    # the scheduler signals the whole group: the parent decides when to stop, and workers go with it
    for name in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if sys.platform == "linux":
        # a worker that outlives a killed rank would hold its sockets open, and the other ranks would wait for ever
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(1)
    torch.set_num_threads(1)
    quiet_decoders()


def _checked(loader: DataLoader[Any], rank: int, running: list[Any]) -> Iterator[Batch]:
    try:
        iterator = iter(loader)
        running.append(iterator)
        atexit.register(_end_workers_of, weakref.ref(iterator))
        for item in iterator:
            if isinstance(item, DataError):
                raise item
            yield item
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise WorkerDied(f"rank {rank}: {_dead_workers(running)} ({str(error).splitlines()[0]})") from error


def _dead_workers(running: list[Any]) -> str:
    dead = []
    for iterator in running:
        for number, process in enumerate(getattr(iterator, "_workers", [])):
            process.join(timeout=0.2)
            if process.exitcode is not None:
                code = process.exitcode
                how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
                dead.append(f"loader worker {number} (pid {process.pid}) died: {how}")
    cure = "; SIGKILL is mostly the kernel's answer to memory running out: lower data.num_workers or data.prefetch"
    return ("; ".join(dead) or "a loader worker died") + (cure if any("SIGKILL" in line for line in dead) else "")


def _end_workers_of(reference: weakref.ref[Any]) -> None:
    iterator = reference()
    if iterator is not None:
        _end_workers(iterator)


def _end_workers(iterator: Any) -> None:
    shut_down = getattr(iterator, "_shutdown_workers", None)
    if shut_down is None:  # no workers
        return
    if iterator._worker_pids_set:
        # torch's SIGCHLD handler raises for a worker that was killed, again and again, and so out of its own clean-up
        _remove_worker_pids(id(iterator))
        iterator._worker_pids_set = False
    shut_down()
    # workers ignore SIGTERM, and Python's exit would wait for one that hangs in a decoder
    for process in iterator._workers:
        if process.is_alive():
            process.kill()


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
