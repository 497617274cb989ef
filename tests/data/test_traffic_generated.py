"""The generated driving set: read back by the readers, anomalies are motions, one frame tells nothing, same bytes."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from dsvid.data import traffic, traffic_generated
from dsvid.data.traffic_generated import SIZE, Drive, draw_drive, make_set, render
from dsvid.errors import DataError

COUNTS = {"train": 4, "val": 2}


@pytest.fixture(scope="module")
def dota(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("dota")
    make_set(root, COUNTS)
    return root


@pytest.fixture(scope="module")
def dada(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("dada")
    make_set(root, {"train": 2, "val": 2}, layout="dada")
    return root


@pytest.mark.parametrize(("split", "count"), [("train", 4), ("val", 2)])
def test_dota_s_reader_gets_what_was_drawn(dota: Path, split: str, count: int) -> None:
    clips = traffic.read_dota(dota, f"{split}_split.txt")
    assert len(clips) == count
    for number, clip in enumerate(clips):
        drive = draw_drive(0, split, number)
        assert clip.labels.tolist() == drive.labels.tolist() and clip.labels.any() == (number % 2 == 1)
        assert (clip.ego, clip.night, clip.fps) == (drive.ego, drive.night, 10)
        assert clip.category == {"swerve": "LA", "stop": "ST"}[drive.deed]
        assert clip.kind == {"swerve": 3, "stop": 1}[drive.deed]
        read = traffic.read_frames(clip, range(len(clip.frames)))
        drawn = render(0, split, number, drive)
        assert read.shape == drawn.shape and abs(read.astype(int) - drawn).mean() < 6  # JPEG


def test_dada_s_reader_gets_what_was_drawn(dada: Path) -> None:
    for split, name in (("train", "training.txt"), ("val", "validation.txt")):
        clips = traffic.read_dada(dada, name)
        assert len(clips) == 2
        for number, clip in enumerate(clips):
            drive = draw_drive(0, split, number, fps=30)
            assert clip.labels.tolist() == drive.labels.tolist() and len(drive.labels) >= 108
            assert (clip.ego, clip.night, clip.fps) == (drive.ego, drive.night, 30)
            drawn = render(0, split, number, drive)
            assert (traffic.read_frames(clip, [0, 50]) == drawn[[0, 50]]).all()  # PNG loses nothing


def tree(root: Path) -> dict[str, str]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_bytes_are_the_same_at_every_call(dota: Path, tmp_path: Path) -> None:
    make_set(tmp_path / "again", COUNTS)
    assert tree(tmp_path / "again") == tree(dota)
    make_set(tmp_path / "fewer", {"train": 2})
    few, all_of_it = tree(tmp_path / "fewer"), tree(dota)
    for name in ("frames/generated-train_000001/images.zip", "dataset/annotations/generated-train_000001.json"):
        assert few[name] == all_of_it[name], "a clip does not depend on how many there are"
    make_set(tmp_path / "other", {"train": 2}, seed=1)
    assert tree(tmp_path / "other")["frames/generated-train_000001/images.zip"] not in all_of_it.values()


def speeds(drive: Drive) -> np.ndarray:
    """Fastest sideways step and farthest forward step from the common ones, of any car or the road, [T - 1, 2]."""
    side = [drive.road_x, *(car.x - drive.road_x for car in drive.cars)]
    forward = [drive.road_y - 2.9 * np.arange(len(drive.labels)), *(car.y for car in drive.cars)]
    return np.stack([np.abs(np.diff(np.stack(part), axis=1)).max(axis=0) for part in (side, forward)], axis=1)


def test_labels_are_where_the_motion_is() -> None:
    """A swerve is 3.4 pixels a frame or more, a lane change 0.6 or less; a car that stands nears at 2.4 or more."""
    seen = set()
    for number in range(60):
        drive = draw_drive(0, "train", number)
        inside = drive.labels[1:] == 1
        found = speeds(drive)
        column = 0 if drive.deed == "swerve" else 1
        threshold = 1.6 if drive.deed == "swerve" else 1.2
        if number % 2:
            assert (found[inside, column] > threshold).all() and 20 <= drive.labels.sum() <= 28
            assert drive.labels[0] == 0 and drive.labels[-1] == 0
            seen.add((drive.ego, drive.deed))
        else:
            assert not inside.any()
        assert (found[~inside] < threshold).all(), number
        assert 44 <= len(drive.labels) <= 56
    assert len(seen) == 4


def test_the_motion_is_that_of_the_rate() -> None:
    fast, slow = draw_drive(0, "train", 3, fps=30), draw_drive(0, "train", 3, fps=10)
    assert len(fast.labels) == 3 * len(slow.labels) and fast.labels.sum() == 3 * slow.labels.sum()
    assert np.allclose(np.diff(fast.cars[-1].y).mean() * 3, np.diff(slow.cars[-1].y).mean(), atol=0.1)


def single_frames(numbers: range) -> tuple[np.ndarray, np.ndarray]:
    """Of each clip 6 frames spread over it: grey levels, their spread and edges in 8 x 8 cells, and the labels."""
    features, labels = [], []
    for number in numbers:
        drive = draw_drive(0, "train", number)
        # frames inside and around the anomaly, so that both labels are common
        chosen = np.linspace(len(drive.labels) * 0.2, len(drive.labels) * 0.8, 6).astype(int)
        pictures = render(0, "train", number, drive)[chosen].astype(np.float64).mean(axis=3)
        cells = pictures.reshape(6, 8, SIZE // 8, 8, SIZE // 8)
        edges = np.abs(np.diff(pictures, axis=2, append=0)).reshape(cells.shape)
        parts = [cells.mean(axis=(2, 4)), cells.std(axis=(2, 4)), edges.mean(axis=(2, 4))]
        # sorted cells are blind to place, which is uniform anyway
        features.append(np.concatenate([np.sort(part.reshape(6, -1), axis=1) for part in parts], axis=1))
        labels.append(drive.labels[chosen])
    return np.concatenate(features), np.concatenate(labels)


def test_a_single_frame_does_not_tell_an_anomaly() -> None:
    train, test = single_frames(range(1, 241, 2)), single_frames(range(241, 401, 2))
    scale = train[0].std(axis=0) + 1e-6
    model = LogisticRegression(C=0.01, max_iter=500).fit(train[0] / scale, train[1])
    assert 0.3 < test[1].mean() < 0.7
    assert abs(roc_auc_score(test[1], model.predict_proba(test[0] / scale)[:, 1]) - 0.5) < 0.08
    for column in (0, 63, 64, 127, 128, 191):  # darkest and brightest cell, flattest and roughest, ...
        assert abs(roc_auc_score(test[1], test[0][:, column]) - 0.5) < 0.1


def test_places_are_uniform_with_and_without_an_anomaly() -> None:
    inside, outside = [], []
    for number in range(1, 801, 2):
        drive = draw_drive(0, "val", number)
        car = drive.cars[0]
        for part, frame in ((inside, np.flatnonzero(drive.labels)[-1]), (outside, 0)):
            part.append((car.x[frame] % SIZE, car.y[frame] % SIZE, drive.road_x[frame] % SIZE))
    for part in (inside, outside):
        for values in np.array(part).T:
            counts = np.histogram(values, bins=8, range=(0, SIZE))[0]
            assert ((counts - 50) ** 2 / 50).sum() < 24.3  # chi-square, 7 degrees of freedom, p = 0.001


@pytest.mark.parametrize(
    ("layout", "clips"), [("avi", {"train": 2}), ("dota", {}), ("dota", {"test": 2}), ("dada", {"val": 1})]
)
def test_a_set_that_cannot_be_is_an_error(tmp_path: Path, layout: str, clips: dict[str, int]) -> None:
    with pytest.raises(DataError, match="generated driving set"):
        traffic_generated.make_set(tmp_path, clips, layout=layout)
    assert not list(tmp_path.iterdir())
