"""The generated set of AVA's format: boxes where the figures are, one look for all motions, the same bytes again."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from dsvid.data import ava, ava_clips, ava_generated
from dsvid.data.ava_annotations import read_annotations, read_person_boxes
from dsvid.data.ava_files import ImageNumbers, read_boxes, read_exclusions, read_label_map
from dsvid.data.ava_generated import FPS, HEIGHT, WIDTH, draw_figures, render
from dsvid.errors import DataError
from dsvid.metrics.ava import BoxRows, score_detections

COUNTS = {"train": 3, "val": 2}


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return ava_generated.make_set(tmp_path_factory.mktemp("ava"), COUNTS, seconds=4)


def test_a_figure_is_bright_inside_of_its_box_only() -> None:
    for number in range(4):
        (figures,) = draw_figures(0, "train", number, 1)
        pictures = render(0, "train", number, [figures])
        for frames in (0, 3, 5):
            bright = pictures[frames].min(axis=2) > 125
            inside = np.zeros_like(bright)
            for figure in figures:
                x1, y1, x2, y2 = figure.box(frames)
                inside[max(0, int(y1 - 1)) : int(y2 + 3), max(0, int(x1 - 1)) : int(x2 + 3)] = True
                assert bright[int(y1 + 2) : int(y2), round((x1 + x2) / 2)].mean() > 0.95  # through its middle
            assert bright[~inside].mean() < 0.01


def test_around_every_key_frame_a_figure_has_one_motion() -> None:
    scenes = draw_figures(0, "train", 1, 3)
    pictures = render(0, "train", 1, scenes)
    for number, figures in enumerate(scenes):
        for frames in range(-4 if number else 0, 4):
            for figure in figures:
                x1, y1, x2, y2 = (round(edge) for edge in figure.box(frames))
                middle = pictures[number * FPS + frames, (y1 + y2) // 2, x1 + 3 : x2 - 2]
                assert (middle.min(axis=1) > 125).all(), (number, frames)


def test_the_csv_holds_the_boxes_of_the_figures(paths: dict[str, Path]) -> None:
    samples = ava.train_samples(read_annotations(paths["val_annotations"]), ava.class_columns())
    for number in range(2):
        for second, figures in enumerate(draw_figures(0, "val", number, 4)[1:]):
            sample = samples[3 * number + second]
            wanted = [figure.box() for figure in figures]
            assert np.abs(sample.boxes - np.array(wanted)).max() < 0.2
            labels = [(np.flatnonzero(row) + 1).tolist() for row in sample.labels]
            assert labels == ava_generated.actions(figures)


def test_figures_stay_inside_of_the_frame_while_they_move() -> None:
    for number in range(200):
        for figures in draw_figures(0, "val", number, 2):
            assert 2 <= len(figures) <= 3
            for figure in figures:
                for frames in (-ava_generated.HALF, ava_generated.HALF):
                    x1, y1, x2, y2 = figure.box(frames)
                    assert x1 >= 0 and y1 >= 0 and x2 <= WIDTH - 1 and y2 <= HEIGHT - 1


def test_the_key_frame_does_not_tell_the_motion() -> None:
    scenes = draw_figures(0, "train", 5, 2)
    frozen = [[ava_generated.still(figure) for figure in figures] for figures in scenes]
    moving, resting = (render(0, "train", 5, each) for each in (scenes, frozen))
    assert np.array_equal(moving[[0, FPS]], resting[[0, FPS]])
    assert not np.array_equal(moving, resting)
    everyone = [f for n in range(400) for figures in draw_figures(0, "train", n, 1) for f in figures]
    for name in ("x", "y", "half_width", "half_height"):
        by_motion = [np.mean([getattr(f, name) for f in everyone if f.motion == motion]) for motion in range(1, 8)]
        spread = np.std([getattr(f, name) for f in everyone]) / np.sqrt(len(everyone) / 7)
        assert np.std(by_motion) < 2 * spread, name


def test_the_files_are_those_of_ava(paths: dict[str, Path]) -> None:
    names = read_label_map(paths["labels"])
    assert names == ava_generated.NAMES
    numbers = ImageNumbers()
    for split, count in COUNTS.items():
        truth = read_boxes(paths[f"{split}_gt"], numbers)
        assert set(truth.rows.label.tolist()) <= set(names) and len(truth.images) == 3 * count
        annotations = read_annotations(paths[f"{split}_annotations"])
        assert len(annotations.images) == 3 * count
        samples = ava.train_samples(annotations, ava.class_columns(list(names)))
        assert len(samples) == 3 * count and not samples.left_out
    assert len(read_exclusions(paths["val_excluded"], numbers)) == 1
    assert len(read_exclusions(paths["train_excluded"], numbers)) == 0


def test_true_boxes_with_true_actions_score_full_marks(paths: dict[str, Path]) -> None:
    """The whole way: detections of the person boxes, scored by the ground truth that lies nearest."""
    names, numbers = read_label_map(paths["labels"]), ImageNumbers()
    truth = read_boxes(paths["val_gt"], numbers)
    annotations = read_annotations(paths["val_annotations"])
    samples = ava.val_samples(annotations, read_person_boxes(paths["people"]), ava.class_columns())
    rows = []
    for sample in (samples[number] for number in range(len(samples))):
        image = numbers.number(sample.frame.video, sample.frame.micros)
        shares = ava_clips.ava_boxes.frame_shares(sample.boxes, (WIDTH, HEIGHT))
        here = np.flatnonzero(truth.rows.image == image)
        for box, score in zip(shares, sample.scores, strict=True):
            distance = np.abs(truth.rows.box[here] - box).sum(axis=1)
            for row in here[distance < distance.min() + 1e-9]:
                rows.append((image, box, truth.rows.label[row], score))
    found = BoxRows(*(np.array(column) for column in zip(*rows, strict=True)))
    scores = score_detections(truth.rows, found, list(names), listed=truth.images)
    assert scores.mean == 1.0 and np.isnan(scores.ap).sum() < len(names)


def test_clips_of_seconds_and_whole_videos_show_the_same(paths: dict[str, Path], tmp_path: Path) -> None:
    whole = ava_generated.make_set(tmp_path, COUNTS, seconds=4, whole=True)
    assert whole["val_gt"].read_bytes() == paths["val_gt"].read_bytes()
    samples = ava.train_samples(read_annotations(whole["val_annotations"]), ava.class_columns())
    sample = samples[1]
    cut = ava_clips.read_clip(paths["clips"], sample.frame, frames=8, rate=1)
    one = ava_clips.read_clip(whole["clips"], sample.frame, frames=8, rate=1, start_s=ava_generated.FIRST_SECOND)
    assert cut.shape == (8, HEIGHT, WIDTH, 3)
    assert (cut.int() - one.int()).abs().float().mean() < 4  # encoded apart
    view = ava_clips.eval_view(cut, sample, short=HEIGHT)
    key = view.clip[4].numpy().min(axis=2)
    for x1, y1, x2, y2 in sample.boxes.astype(int):
        assert key[(y1 + y2) // 2, (x1 + x2) // 2] > 115


def test_the_same_bytes_at_every_call(paths: dict[str, Path], tmp_path: Path) -> None:
    def digests(root: Path) -> dict[str, str]:
        files = sorted(path for path in root.rglob("*") if path.is_file())
        return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    ava_generated.make_set(tmp_path, COUNTS, seconds=4)
    first = digests(paths["labels"].parents[1])
    assert digests(tmp_path) == first and len(first) == 5 * 4 + 9
    ava_generated.make_set(tmp_path / "other", COUNTS, seconds=4, seed=1)
    assert digests(tmp_path / "other")["annotations/ava_val_v2.2.csv"] != first["annotations/ava_val_v2.2.csv"]


def test_sizes_that_make_no_set_are_refused(tmp_path: Path) -> None:
    for videos, seconds in (({"train": 0, "val": 1}, 4), ({"test": 1}, 4), ({"train": 1, "val": 1}, 1), ({}, 4)):
        with pytest.raises(DataError, match="generated set"):
            ava_generated.make_set(tmp_path / "no", videos, seconds=seconds)
    assert not (tmp_path / "no").exists()
