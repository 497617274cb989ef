"""How much faster packed clips are read than loose ones: a few, read the way the loader reads them. Packs nothing."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from dsvid.data.reader import ClipReader
from dsvid.data.shard_samples import PackOptions
from dsvid.data.shards import open_shards
from dsvid.errors import DataError
from dsvid.recipe import DataConfig

VIDEOS, CLIPS = 4, 3  # of each


def measure_speed(source: str, root: str, packed: Path, options: PackOptions) -> tuple[float, float]:
    """(clips a second of the list `source`, of the shards): 16 frames at distance 4, a crop scaled to 224 x 224.

    Raises DataError where a clip cannot be read.
    """
    good = np.flatnonzero(open_shards(packed).samples["shard"] >= 0)
    chosen = good[np.linspace(0, len(good) - 1, min(VIDEOS, len(good))).astype(int)].tolist()
    shared = {"decoder": options.decoder, "frame_name": options.frame_name, "frame_start": options.frame_start}
    loose = ClipReader(DataConfig(train=source, root=root, **shared), "train")
    return _clips_per_s(loose, chosen), _clips_per_s(
        ClipReader(DataConfig(train=str(packed), **shared), "train"), chosen
    )


def _clips_per_s(reader: ClipReader, numbers: list[int]) -> float:
    _read(reader, numbers[0], 0)  # what is loaded and looked at once only
    since = time.perf_counter()
    for number in numbers:
        for clip in range(CLIPS):
            _read(reader, number, clip)
    return len(numbers) * CLIPS / (time.perf_counter() - since)


def _read(reader: ClipReader, number: int, clip: int) -> None:
    rng = np.random.default_rng((number, clip))
    try:
        reader.train_item(number, reader.frames(number, rng).frames, rng)
    except OSError as error:
        raise DataError(f"{reader.path(number)}: cannot be read", found=error) from error
