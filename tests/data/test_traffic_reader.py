"""Windows of traffic clips in the loader: targets, pixels in training and evaluation, how many there are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from dsvid.data import traffic_generated
from dsvid.data.augment import squash
from dsvid.data.loader import TrainLoader
from dsvid.data.traffic import read_frames
from dsvid.data.traffic_reader import TrafficReader
from dsvid.data.traffic_split import TrafficSplit, open_traffic
from dsvid.errors import DataError
from dsvid.recipe import AnomalyConfig, AugmentConfig, DataConfig


@pytest.fixture(scope="module")
def drives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drives")
    traffic_generated.make_set(folder, {"train": 4, "val": 2})
    return folder


def data(root: Path, **changes: object) -> DataConfig:
    base = {"root": str(root), "train": "train_split.txt", "val": "val_split.txt", "num_frames": 4, "view_fps": 10,
            "sampling_rate": 1, "input_size": 32}  # fmt: skip
    return DataConfig(**{**base, **changes})  # type: ignore[arg-type]


def opened(root: Path, split: str = "train", anomaly: AnomalyConfig | None = None, **changes: object) -> TrafficSplit:
    return open_traffic(data(root, **changes), anomaly or AnomalyConfig(), split)


def reader(root: Path, split: str = "train", anomaly: AnomalyConfig | None = None, **changes: object) -> TrafficReader:
    how = anomaly or AnomalyConfig()
    return TrafficReader(data(root, **changes), how, opened(root, split, how, **changes))


def test_an_item_is_its_window_with_the_targets_of_its_last_frame(drives: Path) -> None:
    own = reader(drives, "val")
    number = int(np.flatnonzero(own.split.labels())[0]) - 2  # shortly before an anomaly
    window = own.split.windows.take([number])
    clip = own.split.clips[int(window.clip[0])]
    assert torch.equal(own.frames(number, (1, 0)).frames, torch.from_numpy(read_frames(clip, window.frames[0])))
    item = own.test_item(number, own.frames(number, (1, 0)).frames, 1, 0)
    assert torch.equal(item.clip, squash(own.frames(number, (1, 0)).frames, 32))
    batch = own.collate([item, own.test_item(number + 2, None, 1, 0)], [number, number + 2])
    assert batch["label"].tolist() == [0, 1] and not batch["clip"][1].any()
    assert batch["ttc_s"].tolist() == pytest.approx([-0.2, 0.0]) and 0.5 < batch["risk"][0] < batch["risk"][1] == 1


@pytest.mark.parametrize(
    ("anomaly", "changes"),
    [
        (AnomalyConfig(driving=True), {}),
        (AnomalyConfig(driving=False), {"flip": 1.0}),
        (AnomalyConfig(driving=False), {"augment": AugmentConfig(erase_prob=1.0)}),
        (AnomalyConfig(driving=False), {"augment": AugmentConfig(policy="rand-m9-n3-p1.0-tdriving")}),
    ],
)
def test_each_augmentation_changes_pixels_and_comes_from_the_generator(
    anomaly: AnomalyConfig, changes: dict[str, object], drives: Path
) -> None:
    # frames that are wider than high: square ones have no room for borders
    frames = reader(drives).frames(5, (1, 0)).frames[:, :40]
    own = reader(drives, anomaly=anomaly, **changes)
    drawn = [own.train_item(5, frames, np.random.default_rng(seed)).clip for seed in range(8)]
    plain = squash(frames, 32)
    assert any(not torch.equal(clip, plain) for clip in drawn), "the augmentation is not applied"
    again = [own.train_item(5, frames, np.random.default_rng(seed)).clip for seed in range(8)]
    assert all(torch.equal(one, other) for one, other in zip(drawn, again, strict=True))
    off = reader(drives, anomaly=AnomalyConfig(driving=False)).train_item(5, frames, np.random.default_rng(0))
    assert torch.equal(off.clip, plain)


def test_how_many_frames_are_judged(drives: Path) -> None:
    frames = sum(len(clip.frames) for clip in opened(drives, "val").clips)
    assert len(opened(drives, "val")) == frames - 2 * 3
    assert len(opened(drives, "val", AnomalyConfig(padding="repeat"))) == frames
    third = opened(drives, "val", AnomalyConfig(eval_rate=3))
    assert len(third) == sum((len(clip.frames) - 4) // 3 + 1 for clip in third.clips)
    assert len(opened(drives, "val", sampling_rate=5)) == frames - 2 * 3, "that is for training"
    trained = opened(drives, sampling_rate=5)
    assert len(trained) == sum((len(clip.frames) - 4) // 5 + 1 for clip in trained.clips)
    assert len(opened(drives, train_limit=2).clips) == 2


def test_what_decides_on_the_windows_is_in_the_hash(drives: Path, tmp_path: Path) -> None:
    base = opened(drives).sha256
    assert opened(drives, input_size=64).sha256 == base and opened(drives, sampling_rate=2).sha256 != base
    assert opened(drives, num_frames=5).sha256 != base and opened(drives, train_limit=3).sha256 != base


def test_a_zip_that_is_gone_is_named(tmp_path: Path) -> None:
    traffic_generated.make_set(tmp_path, {"train": 2})
    own = reader(tmp_path)
    (tmp_path / "frames" / "generated-train_000000" / "images.zip").unlink()
    with pytest.raises(DataError, match=r"generated-train_000000/images\.zip: no such file"):
        own.frames(0, (1, 0))


def test_a_window_comes_twice_in_a_row_and_looks_different(drives: Path) -> None:
    """data.num_sample 2, as simple-tad's jobs on half of the clips have it."""
    own = reader(drives, augment=AugmentConfig(erase_prob=1.0), num_sample=2, num_workers=0)
    batch = next(iter(TrainLoader(own.config, seed=0, batch_total=8, batch_micro=8, reader=own)))
    first, second = batch["index"][::2], batch["index"][1::2]
    assert torch.equal(first, second) and len(set(first.tolist())) == 4
    assert torch.equal(batch["label"][::2], batch["label"][1::2])
    assert all(not torch.equal(batch["clip"][place], batch["clip"][place + 1]) for place in (0, 2, 4, 6))
