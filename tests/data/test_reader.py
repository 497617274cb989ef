"""The cache of decoded frames: the same clips with and without it, never more bytes than allowed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from dsvid.data.loader import TrainLoader
from dsvid.data.reader import FrameCache, Held
from dsvid.recipe import DataConfig


@pytest.fixture()
def clip_list(videos: Path, tmp_path: Path) -> Path:
    path = tmp_path / "list.csv"
    path.write_text("".join(f"{video} 0\n" for video in sorted(videos.glob("*.mp4"))))
    return path


def held(megabytes: float) -> Held:
    return Held(np.zeros((1, 1, int(megabytes * 1e6), 1), np.uint8), 25.0, None)


def test_batches_are_the_same_with_and_without_the_cache(clip_list: Path) -> None:
    settings = {"train": str(clip_list), "num_frames": 4, "sampling_rate": 2, "input_size": 32, "num_workers": 0}
    plain, cached = (
        iter(TrainLoader(DataConfig(**settings, crop="random", cache_mb=mb), seed=3, batch_total=4, batch_micro=4))
        for mb in (0, 50)
    )
    for _ in range(8):  # 32 clips of 12 videos: most come from the cache the second time
        first, second = next(plain), next(cached)
        assert torch.equal(first["clip"], second["clip"])
        assert torch.equal(first["seed"], second["seed"])


def test_a_cached_video_is_decoded_once(clip_list: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dsvid.data import reader

    opened = []
    real = reader.open_clip_source

    def counting(entry, *arguments, **options):  # type: ignore[no-untyped-def]
        opened.append(entry.path)
        return real(entry, *arguments, **options)

    monkeypatch.setattr(reader, "open_clip_source", counting)
    config = DataConfig(
        train=str(clip_list), num_frames=4, sampling_rate=2, input_size=32, num_workers=0, crop="random", cache_mb=50
    )
    batches = iter(TrainLoader(config, seed=3, batch_total=6, batch_micro=6))
    for _ in range(6):
        next(batches)
    assert len(opened) == 12 == len(set(opened))


def test_the_oldest_go_first_and_the_limit_holds() -> None:
    cache = FrameCache(10_000_000, most_frames=100)
    for index in range(3):
        cache.put(index, held(4))
        assert cache.used <= 10_000_000
    assert cache.get(0) is None and cache.get(1) is not None
    cache.put(3, held(4))  # 1 was asked for last, so 2 goes
    assert cache.get(2) is None and cache.get(1) is not None
    cache.put(4, held(11))
    assert cache.get(4) is None and cache.get(3) is not None


def test_long_videos_and_a_cache_of_nothing_are_left_alone() -> None:
    assert not FrameCache(10, most_frames=5).wants(6)
    assert FrameCache(10, most_frames=5).wants(5)
    assert not FrameCache(0, most_frames=5).wants(1)
