"""What the loaders have on their way in /dev/shm, counted and measured."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from dsvid.data import shared_memory
from dsvid.data.loader import TrainLoader
from dsvid.data.shared_memory import bytes_in_flight, check_shared_memory
from dsvid.errors import DataError
from dsvid.recipe import AugmentConfig, DataConfig

CLIP = 8 * 64 * 64 * 3


def config(**changes: object) -> DataConfig:
    base = {"num_frames": 8, "input_size": 64, "sampling_rate": 1, "num_workers": 2, "prefetch": 3, "crop": "random"}
    return DataConfig(**{**base, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "total", "micro", "evaluated", "clips"),
    [
        ({}, 16, 4, 0, 7 * 4),
        ({"num_workers": 0}, 16, 4, 0, 0),
        ({"num_sample": 2}, 16, 4, 0, 7 * 4),
        ({"augment": AugmentConfig(mixup=0.8)}, 16, 4, 0, 7 * 4),  # whole pairs
        ({"augment": AugmentConfig(mixup=0.8)}, 6, 3, 0, 7 * 4),  # an odd number: one partner more
        ({"augment": AugmentConfig(mixup=0.8), "num_sample": 2}, 12, 6, 5, 7 * (8 + 5)),
        ({"augment": AugmentConfig(mixup=0.8)}, 18, 2, 0, 7 * 2),
        ({"augment": AugmentConfig(mixup=0.8)}, 9, 9, 0, 7 * 10),
    ],
)
def test_the_arithmetic(changes: dict[str, object], total: int, micro: int, evaluated: int, clips: int) -> None:
    need = bytes_in_flight(config(**changes), batch_total=total, batch_micro=micro, eval_bytes=evaluated * CLIP)
    assert need == clips * CLIP


@pytest.mark.parametrize("changes", [{"num_sample": 2}, {"augment": AugmentConfig(mixup=0.8)}])
def test_what_is_counted_is_what_is_used(changes: dict[str, object]) -> None:
    micro = 30 if "num_sample" in changes else 31
    settings = config(train="builtin", num_workers=1, prefetch=2, input_size=128, **changes)
    need = bytes_in_flight(settings, batch_total=micro, batch_micro=micro, eval_bytes=0)
    before = used()
    loader = TrainLoader(settings, seed=0, batch_total=micro, batch_micro=micro)
    batches = iter(loader)
    held = next(batches)
    deadline, most = time.monotonic() + 30, 0
    while most < 0.9 * need and time.monotonic() < deadline:
        most = max(most, used() - before)
        time.sleep(0.05)
    loader.close()
    assert 0.9 * need <= most <= 1.05 * need, (most, need, len(held["index"]))


def used() -> int:
    space = os.statvfs(shared_memory.SHARED_MEMORY)
    return (space.f_blocks - space.f_bfree) * space.f_frsize


def test_too_little_is_an_error_with_the_number_and_the_flag() -> None:
    need = 10**15
    with pytest.raises(DataError, match=r"(?s)too small.*8000000000 MB: 8 ranks here.*--shm-size=7450581g"):
        check_shared_memory(config(), need, ranks_here=8)
    check_shared_memory(config(), 1, ranks_here=8)
    check_shared_memory(config(), need, ranks_here=8, place=Path("/nowhere"))
