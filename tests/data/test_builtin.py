"""The built-in clips: only motion tells the class, opposite classes are time reversals, the cache is made safely."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from dsvid.data import builtin, made_once
from dsvid.data.builtin import CLASSES, FRAMES, REVERSED, draw_scene, play_backwards, render
from dsvid.data.decode import open_clip_source
from dsvid.data.manifest import open_split, read_list
from dsvid.errors import DataError

SMALL = {"train": 16, "val": 8, "test": 8}
SHOWN = (0, 1, FRAMES // 2, FRAMES - 1)


@pytest.fixture(scope="module")
def pictures() -> tuple[np.ndarray, np.ndarray]:
    """Four frames of 800 clips, uint8 [800, 4, 80, 80, 3], and their labels."""
    torch.set_num_threads(1)
    labels = np.arange(800) % len(CLASSES)
    return np.stack([render(draw_scene(5_000_000 + i, int(label)), SHOWN) for i, label in enumerate(labels)]), labels


def features(frames: np.ndarray) -> np.ndarray:
    """[n, F]: what a single picture shows: colours, contrast, a coarse picture, edges by direction and by place."""
    grey = frames.astype(np.float32).mean(-1)
    dy, dx = grey[:, 1:, :-1] - grey[:, :-1, :-1], grey[:, :-1, 1:] - grey[:, :-1, :-1]
    strength, direction = np.hypot(dx, dy), np.arctan2(dy, dx)
    bins = [
        np.where((direction >= low) & (direction < low + np.pi / 4), strength, 0).mean((1, 2))
        for low in np.arange(-4, 4) * np.pi / 4
    ]
    coarse = frames.reshape(len(frames), 8, 10, 8, 10, 3).mean((2, 4)).reshape(len(frames), -1)
    places = np.pad(strength, ((0, 0), (0, 1), (0, 1))).reshape(len(frames), 8, 10, 8, 10).mean((2, 4))
    colours = frames.astype(np.float32).reshape(len(frames), -1, 3)
    table = np.concatenate(
        [colours.mean(1), colours.std(1), np.stack(bins, 1), coarse, places.reshape(len(frames), -1)], axis=1
    )
    return (table - table.mean(0)) / (table.std(0) + 1e-6)


def motion_features(frames: np.ndarray) -> np.ndarray:
    """[n, F] from the first two frames: products of the change in time with the slopes in space."""
    first, second = (frames[:, k].astype(np.float32).mean(-1) for k in (0, 1))
    change, middle = second - first, (first + second) / 2
    dx, dy = np.gradient(middle, axis=2), np.gradient(middle, axis=1)
    axis = np.linspace(-1, 1, middle.shape[1])
    flows = [-change * dx, -change * dy, -change * (axis[None, None, :] * dx + axis[None, :, None] * dy)]
    flows.append(-change * (axis[None, None, :] * dy - axis[None, :, None] * dx))
    energy = (dx**2 + dy**2).mean((1, 2)) + 1e-3
    return np.stack([(flow.mean((1, 2)) / energy).clip(-5, 5) for flow in flows], 1)


def ridge_accuracy(table: np.ndarray, labels: np.ndarray, train: int, penalty: float) -> float:
    """Test accuracy of a linear classifier learnt from the first `train` rows, in percent."""
    x = np.concatenate([table, np.ones((len(table), 1))], axis=1)
    targets = np.eye(len(CLASSES))[labels]
    weights = np.linalg.solve(x[:train].T @ x[:train] + penalty * np.eye(x.shape[1]), x[:train].T @ targets[:train])
    return float(100 * ((x[train:] @ weights).argmax(1) == labels[train:]).mean())


def test_labels_and_opposites():
    assert len(CLASSES) == 8 and [REVERSED[REVERSED[i]] for i in range(8)] == list(range(8))
    pairs = {(CLASSES[i], CLASSES[j]) for i, j in enumerate(REVERSED)}
    assert {("left", "right"), ("up", "down"), ("cw", "ccw"), ("zoomin", "zoomout")} < pairs


def class_ratios(table: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """F statistic of every column: variance between the classes over variance within; 1 where the class is not seen."""
    groups = [table[labels == label] for label in range(len(CLASSES))]
    means = np.stack([group.mean(0) for group in groups])
    within = sum(((group - mean) ** 2).sum(0) for group, mean in zip(groups, means, strict=True))
    return len(groups[0]) * means.var(0, ddof=1) / (within / (len(table) - len(CLASSES)))


@pytest.mark.parametrize("shown", range(len(SHOWN)))
def test_no_statistic_of_a_single_frame_depends_on_the_class(pictures, shown):
    frames, labels = pictures
    table = features(frames[:, shown])
    rng = np.random.default_rng(shown)
    # features hang together, so what chance gives is measured: the same statistic with shuffled labels
    chance = [class_ratios(table, rng.permutation(labels)) for _ in range(100)]
    found = class_ratios(table, labels)
    assert found.mean() < 1.1 * max(ratios.mean() for ratios in chance)
    assert found.max() < 1.1 * max(ratios.max() for ratios in chance)
    if shown == 0:  # the statistic sees motion where it is looked for
        assert class_ratios(motion_features(frames), labels).max() > 30


@pytest.mark.parametrize("shown", range(len(SHOWN)))
def test_a_classifier_of_single_frames_stays_at_chance_and_the_same_one_on_motion_does_not(pictures, shown):
    frames, labels = pictures
    # 400 test clips: chance 12.5 %, standard error 1.65 %
    assert ridge_accuracy(features(frames[:, shown]), labels, 400, 300.0) < 12.5 + 3 * 1.65
    if shown == 0:
        assert ridge_accuracy(motion_features(frames), labels, 400, 0.01) > 50


@pytest.mark.parametrize("label", range(8))
def test_every_state_is_uniform_on_its_circle_in_every_frame_of_every_class(label):
    """This is why a single frame cannot tell: its law is the same for all classes."""
    scenes = [draw_scene(6_000_000 + 8 * i + label, label) for i in range(400)]
    circles = {
        "x": builtin.CANVAS, "y": builtin.CANVAS, "angle": 2 * np.pi, "log_zoom": 2 * builtin.ZOOM_HALF,
        "sprite_x": 80, "sprite_y": 80, "sprite_angle": 2 * np.pi,
    }  # fmt: skip
    for name, length in circles.items():
        for frame in (0, 9, FRAMES - 1):
            turns = np.sort([getattr(scene, name)[frame] % length / length for scene in scenes])
            gap = abs(turns - (np.arange(400) + 0.5) / 400).max()
            assert gap * 20 < 1.95 + 0.03, f"{name} of frame {frame} is not uniform"  # Kolmogorov, 0.1 % point


def test_a_scene_played_backwards_is_the_same_pictures_in_reverse():
    for label in range(8):
        scene = draw_scene(77 + label, label)
        assert np.array_equal(render(play_backwards(scene)), render(scene)[::-1])
        assert play_backwards(scene).label == REVERSED[label]


def steps(label: int, *, backwards: bool = False) -> np.ndarray:
    """[clips, 4]: how a frame's content moves between two frames: right, down, turn (clockwise), growth."""
    rows = []
    for number in range(300):
        scene = draw_scene(9_000_000 + 8 * number + label, label)
        scene = play_backwards(scene) if backwards else scene
        angle, scale = (scene.angle[4] + scene.angle[5]) / 2, np.exp(-scene.log_zoom[4])
        x, y = scene.x[5] - scene.x[4], scene.y[5] - scene.y[4]
        right, down = -(np.cos(angle) * x + np.sin(angle) * y) / scale, -(np.cos(angle) * y - np.sin(angle) * x) / scale
        half = builtin.ZOOM_HALF
        growth = (scene.log_zoom[5] - scene.log_zoom[4] + half) % (2 * half) - half
        rows.append((right, down, -(scene.angle[5] - scene.angle[4]), growth))
    return np.array(rows)


EXPECTED = {
    "left": (0, -1),
    "right": (0, 1),
    "up": (1, -1),
    "down": (1, 1),
    "cw": (2, 1),
    "ccw": (2, -1),
    "zoomin": (3, 1),
    "zoomout": (3, -1),
}


@pytest.mark.parametrize("label", range(8))
def test_classes_move_as_they_are_called_and_a_reversed_class_moves_like_its_opposite(label):
    moved, opposite = steps(label), steps(REVERSED[label], backwards=True)
    axis, sign = EXPECTED[CLASSES[label]]
    speed = moved[:, axis] * sign
    low, high = [(1.2, 3.2), (1.2, 3.2), (np.radians(3), np.radians(7)), (np.log(1.03), np.log(1.06))][axis]
    slack = [1.8, 1.8, 0.02, 1e-9][axis]  # the shake is part of the step
    assert speed.min() > low - slack and speed.max() < high + slack
    for other in set(range(4)) - {axis}:
        assert abs(moved[:, other].mean()) < [0.08, 0.08, 1e-3, 1e-9][other]
    for column in range(4):  # two-sample Kolmogorov-Smirnov, 1.95 is the 0.1 % point
        both = np.sort(np.concatenate([moved[:, column], opposite[:, column]]))
        gap = abs(
            np.searchsorted(np.sort(moved[:, column]), both, side="right")
            - np.searchsorted(np.sort(opposite[:, column]), both, side="right")
        ).max()
        assert both[-1] - both[0] < 1e-9 or gap / 300 * np.sqrt(150) < 1.95


def test_the_picture_moves_as_the_class_is_called():
    """Pixels, not state: the shift that aligns two frames points the way of the class."""
    for label, wanted in ((0, (-1, 0)), (1, (1, 0)), (2, (0, -1)), (3, (0, 1))):
        votes = np.zeros(2)
        for number in range(6):
            first, second = (
                render(draw_scene(3_000_000 + 8 * number + label, label), (4, 6)).astype(np.float32).mean(-1)
            )
            window = first[12:-12, 12:-12]
            errors = {
                (dx, dy): ((second[12 + dy : 68 + dy, 12 + dx : 68 + dx] - window) ** 2).mean()
                for dx in range(-8, 9)
                for dy in range(-8, 9)
            }
            votes += min(errors, key=errors.__getitem__)
        assert np.dot(votes, wanted) > 6 * 2 * 1.0 and abs(np.dot(votes, wanted[::-1])) < 8


# ---- the cache -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small_root(tmp_path_factory) -> Path:
    return builtin.prepare(tmp_path_factory.mktemp("cache"), workers=2, counts=SMALL)


def test_files_and_lists(small_root):
    for split, count in SMALL.items():
        manifest = read_list(small_root / f"{split}.csv")
        assert list(manifest.labels) == [i % 8 for i in range(count)]
    numbers = {split: builtin.FIRST_NUMBER[split] for split in SMALL}
    assert numbers == {"train": 0, "test": 3 * 10**6, "val": 2 * 10**6}
    assert (small_root / "classes.txt").read_text().split() == list(CLASSES)
    assert builtin.LABELLED % len(CLASSES) == 0
    assert sorted(small_root.parent.iterdir()) == [small_root, small_root.parent / f"{small_root.name}.lock"]


@pytest.mark.parametrize("decoder", ["decord", "pyav"])
@pytest.mark.parametrize(("split", "index"), [("train", 5), ("test", 2)])
def test_the_file_shows_the_scene_of_its_number(small_root, decoder, split, index):
    manifest = read_list(small_root / f"{split}.csv")
    scene = draw_scene(builtin.FIRST_NUMBER[split] + index, index % 8)
    with open_clip_source(manifest[index], decoder) as source:
        assert (source.frames, source.fps, source.note) == (FRAMES, builtin.FPS, None)
        coded = source.read(range(FRAMES)).astype(int)
    assert coded.shape == (FRAMES, 80, 80, 3)
    error = abs(coded - render(scene))
    assert error.mean() < 8, "not the same picture"
    assert error.mean() < abs(coded - render(draw_scene(scene.number + 8, scene.label))).mean() / 4


def test_files_are_equal_to_the_byte_however_many_processes_make_them(small_root, tmp_path):
    again = builtin.prepare(tmp_path, workers=1, counts=SMALL)
    names = json.loads((small_root / "files.json").read_text())["files"]
    assert len(names) == sum(SMALL.values()) + 4
    assert all((small_root / name).read_bytes() == (again / name).read_bytes() for name in names)


def test_a_whole_cache_is_taken_as_it_is_and_fast(small_root):
    before = (small_root / "train/00000.mp4").stat().st_mtime_ns
    said: list[str] = []
    started = time.perf_counter()
    assert builtin.prepare(small_root.parent, counts=SMALL, log=said.append) == small_root
    assert time.perf_counter() - started < 0.5 and said == []
    assert (small_root / "train/00000.mp4").stat().st_mtime_ns == before


@pytest.mark.parametrize("damage", ["missing clip", "short clip", "no file table", "bad file table", "left-over draft"])
def test_a_damaged_cache_is_made_anew(small_root, tmp_path, damage):
    root = tmp_path / small_root.name
    shutil.copytree(small_root, root)
    if damage == "missing clip":
        (root / "val/00003.mp4").unlink()
    elif damage == "short clip":
        (root / "val/00003.mp4").write_bytes(b"x")
    elif damage == "no file table":
        (root / "files.json").unlink()
    elif damage == "bad file table":
        (root / "files.json").write_text('{"files": 3}')
    else:
        root.rename(tmp_path / f"{root.name}.tmp-dead")
    said: list[str] = []
    assert builtin.prepare(tmp_path, workers=1, counts=SMALL, log=said.append) == root
    assert made_once.fault(root) is None and said
    assert not list(tmp_path.glob("*.tmp-*"))
    assert (root / "val/00003.mp4").read_bytes() == (small_root / "val/00003.mp4").read_bytes()


def _prepare_in_a_rank(folder: str, start: float, results: multiprocessing.Queue) -> None:
    time.sleep(max(0.0, start - time.time()))
    said: list[str] = []
    root = builtin.prepare(folder, workers=1, counts=SMALL, log=said.append)
    results.put((made_once.fault(root), any(line.startswith("making") for line in said)))


def test_four_ranks_that_start_together_make_one_cache(tmp_path):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    start = time.time() + 0.3
    ranks = [context.Process(target=_prepare_in_a_rank, args=(str(tmp_path), start, results)) for _ in range(4)]
    for rank in ranks:
        rank.start()
    found = [results.get(timeout=60) for _ in ranks]
    for rank in ranks:
        rank.join()
    assert [fault for fault, _ in found] == [None] * 4
    assert sum(made for _, made in found) == 1
    assert not list(tmp_path.glob("*.tmp-*"))


def test_a_maker_that_is_killed_leaves_nothing_that_counts_as_whole(tmp_path):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    maker = context.Process(target=_prepare_in_a_rank, args=(str(tmp_path), 0.0, results))
    maker.start()
    deadline = time.monotonic() + 20
    while not list(tmp_path.glob("*.tmp-*/train/*.mp4")):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    maker.kill()
    maker.join()
    assert list(tmp_path.glob("*.tmp-*")) and not list(tmp_path.glob("builtin-*[0-9]/files.json"))
    root = builtin.prepare(tmp_path, workers=1, counts=SMALL)  # the lock of the dead is free
    assert made_once.fault(root) is None and not list(tmp_path.glob("*.tmp-*"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(DataError, match="DSVID_CACHE"):
        builtin.prepare(tmp_path / "sub", counts=SMALL)


def test_a_file_in_place_of_the_cache_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="DSVID_CACHE"):
        builtin.prepare(tmp_path / "file", counts=SMALL)


def test_the_cache_variable_and_the_recipe_value(small_root, tmp_path, monkeypatch):
    monkeypatch.setenv("DSVID_CACHE", str(small_root.parent))
    assert made_once.cache_folder() == small_root.parent
    monkeypatch.delenv("DSVID_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert made_once.cache_folder() == tmp_path / ".cache" / "dsvid"
    monkeypatch.setattr(builtin, "prepare", lambda: small_root)
    assert len(open_split("builtin", "train")) == SMALL["train"]
