"""Whether the batches on their way from the loader's processes fit into /dev/shm, where a container has 64 MB."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from dsvid.errors import DataError

if TYPE_CHECKING:
    from dsvid.recipe import DataConfig

SHARED_MEMORY = Path("/dev/shm")


def bytes_in_flight(config: DataConfig, *, batch_total: int, batch_micro: int, eval_bytes: int) -> int:
    """Most bytes that one rank's loaders have in shared memory: training's, and an evaluation's, of whose batches
    each has `eval_bytes`.

    A worker has `data.prefetch` batches ready, the reader holds one more. A micro-batch of mixed clips lies in the
    memory of all clips that were read for it, those of partners included.
    """
    if config.num_workers == 0:
        return 0
    side = config.input_size
    clip = config.num_frames * side * side * 3
    clips = batch_micro
    if config.augment.mixes:
        videos, total = batch_micro // config.num_sample, batch_total // config.num_sample
        # whole pairs are read: one more of an odd number, and two more where an even number may start inside a pair
        clips += config.num_sample * (1 if videos % 2 else 2 * (total % 2))
    return (config.num_workers * config.prefetch + 1) * (clips * clip + eval_bytes)


def check_shared_memory(config: DataConfig, need: int, ranks_here: int, place: Path = SHARED_MEMORY) -> None:
    """Raise DataError where `need` bytes for each of this node's ranks are not free: it would end in a bus error."""
    try:
        space = os.statvfs(place)
    except OSError:
        return
    free, whole = space.f_bavail * space.f_frsize, need * ranks_here
    if whole <= free:
        return
    batches = config.num_workers * config.prefetch + 1
    gigabytes = -(-(whole + (1 << 28)) // (1 << 30))  # room for what the collectives keep there
    raise DataError(
        f"{place} is too small for the batches of the loader's processes",
        found=f"{free / 1e6:.0f} MB free",
        expected=f"{whole / 1e6:.0f} MB: {ranks_here} ranks here x (data.num_workers={config.num_workers} x "
        f"data.prefetch={config.prefetch} + 1) batches of {need / batches / 1e6:.1f} MB",
        fix=f"docker run --shm-size={gigabytes}g …, or fewer data.num_workers or data.prefetch",
    )
