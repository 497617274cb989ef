"""Which decoder reads the videos of a list: the one that was asked for, or the faster one, measured on a few of them.

Those that are measured give the same pictures, so that nothing but speed hangs on the choice.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from dsvid.data.decode import (
    ON_GPU,
    TORCHCODEC,
    import_decord,
    import_torchcodec,
    open_clip_source,
    quiet_decoders,
)
from dsvid.data.manifest import Entry, Manifest
from dsvid.data.workers import Limits, WorkerDied, Workers, working_on
from dsvid.errors import DataError

VIDEOS, READS = 3, 2  # measured: so many videos, each so often by either decoder
LIMIT_S = 60.0
MARGIN = 0.9  # decord has to need less than this share of PyAV's time: a choice should not hang on noise


def choose_decoder(name: str, entries: Sequence[Entry] = (), *, frames: int = 16, distance: int = 4) -> tuple[str, str]:
    """(the decoder's name, why) for a recipe's data.decoder; `auto` times clips of the `entries`, a few.

    Raises DataError where the wanted one is not installed.
    """
    if name == "pyav":
        _require_pyav("data.decoder=pyav")
        return "pyav", "asked for"
    if name in TORCHCODEC:  # only where it is asked for: its import alone takes seconds in every process
        _require_torchcodec(name)
        return name, "asked for"
    try:
        decord = import_decord()
    except Exception as error:  # a wheel for another platform raises OSError, RuntimeError, ...
        if name == "decord":
            raise DataError(
                "data.decoder=decord, but decord cannot be imported",
                found=f"{type(error).__name__}: {error}",
                fix="pip install decord (x86-64) or decord2, or data.decoder=pyav",
            ) from error
        _require_pyav(f"decord cannot be imported ({type(error).__name__})")
        return "pyav", f"decord cannot be imported ({type(error).__name__})"
    if name == "decord":
        return "decord", "asked for"
    videos = tuple(entry for entry in entries if entry.kind == "video")
    seconds = _measure_apart(videos, frames, distance)
    if seconds is None:
        return "pyav", f"not measured; decord {decord.__version__} is installed as well"
    ours = "decord" if seconds["decord"] < MARGIN * seconds["pyav"] else "pyav"
    measured = ", ".join(f"{decoder} {1e3 * each:.1f}" for decoder, each in seconds.items())
    return ours, f"the faster one here, in ms a clip: {measured}"


def some_entries(entries: Manifest) -> list[Entry]:
    """A few entries from all over a long list, to measure on."""
    return [entries[number] for number in range(0, len(entries), max(1, len(entries) // VIDEOS))][:VIDEOS]


@lru_cache(maxsize=64)
def _measure_apart(entries: tuple[Entry, ...], frames: int, distance: int) -> dict[str, float] | None:
    """As `_measure`, in a process of its own: a video that hangs or crashes its decoder ends no training."""
    if not entries or sys.platform != "linux":
        return _measure(entries, frames, distance)

    def make(task: int, given_up: Mapping[int, str]) -> Any:
        if task in given_up:
            return None
        with working_on(task):
            return {"seconds": _measure(entries, frames, distance)}

    workers = Workers(make, [0], count=1, ahead=1, limits=Limits(key_s=LIMIT_S))
    try:
        item = next(workers)
    except (WorkerDied, RuntimeError):
        return None
    finally:
        workers.close()
    return None if item is None else item["seconds"]


def _measure(entries: tuple[Entry, ...], frames: int, distance: int) -> dict[str, float] | None:
    """Seconds a clip of either decoder, in turns; None where no video could be read by both."""
    quiet_decoders()
    spent: dict[str, list[float]] = {"decord": [], "pyav": []}
    for entry in entries:
        own: dict[str, list[float]] = {name: [] for name in spent}
        try:
            for number in range(READS):
                for name, times in own.items():
                    since = time.perf_counter()
                    with open_clip_source(entry, name) as source:
                        first = max(0, source.frames - 1 - (frames - 1) * distance) * (number + 1) // (READS + 1)
                        source.read(np.minimum(first + distance * np.arange(frames), source.frames - 1))
                    times.append(time.perf_counter() - since)
        except DataError:
            continue
        for name, times in own.items():
            spent[name] += times
    if not spent["pyav"]:
        return None
    return {name: sum(times) / len(times) for name, times in spent.items()}


def _require_torchcodec(name: str) -> None:
    import torch

    if name == ON_GPU and not torch.cuda.is_available():
        raise DataError(f"data.decoder={name} needs CUDA", found="no such device", fix="data.decoder=auto")
    try:
        module = import_torchcodec()
        try:
            module.VideoDecoder(b"no video")  # the library is loaded at the first use only
        except Exception as error:
            if "Could not load" in str(error):
                raise
    except Exception as error:
        raise DataError(
            f"data.decoder={name}, but torchcodec cannot be used",
            found=f"{type(error).__name__}: {str(error).strip().splitlines()[0]}",
            fix="pip install torchcodec, and FFmpeg 4 to 9 with its shared libraries; or data.decoder=auto",
        ) from error


def _require_pyav(why: str) -> None:
    try:
        import av  # noqa: F401
    except Exception as error:
        raise DataError(f"{why}, but PyAV cannot be imported", found=str(error), fix="pip install av") from error
