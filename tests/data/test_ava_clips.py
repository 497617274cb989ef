"""Frames around key frames, from seconds and from whole videos; clip and boxes change together."""

from __future__ import annotations

import colorsys
from pathlib import Path

import numpy as np
import pytest
import torch

from dsvid.data import augment, ava_clips
from dsvid.data.ava import AvaSample
from dsvid.data.ava_annotations import KeyFrame
from dsvid.errors import DataError
from tests.data.numbered_videos import read_number, write_video

FPS = 12
BIG = [-31 + 4 * k for k in range(16)]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`cut`: seconds 900 to 907 of 12 frames each, frame k of second s shows 12 * (s - 900) + k; `whole`: the same in
    one file."""
    folder = tmp_path_factory.mktemp("clips")
    (folder / "cut").mkdir()
    for second in range(8):
        write_video(folder / "cut" / f"{900 + second}.mp4", FPS, 64, 80, rate=FPS, offset=FPS * second, g=12)
    write_video(folder / "whole.mp4", 8 * FPS, 64, 80, rate=FPS, g=12)
    return folder


def frame(video: str, second: float) -> KeyFrame:
    return KeyFrame(video, round(second * 1_000_000), 80, 64)


def numbers(clip: torch.Tensor) -> list[int]:
    return [read_number(picture) for picture in clip.numpy()]


def test_offsets_are_the_original_s_whatever_the_window() -> None:
    assert ava_clips.key_offsets().tolist() == BIG
    for raw in (64, 96, 100, 120):
        assert (ava_clips.window_indices(raw) - raw // 2).tolist() == BIG


@pytest.mark.parametrize("second", [903, 904, 905])
def test_seconds_and_whole_videos_give_the_same_frames(root: Path, second: int) -> None:
    wanted = np.clip(FPS * (second - 900) + np.array(BIG), 0, 8 * FPS - 1).tolist()
    assert numbers(ava_clips.read_clip(root, frame("cut", second))) == wanted
    assert numbers(ava_clips.read_clip(root, frame("whole", second), start_s=900)) == wanted


def test_at_the_ends_the_last_frame_is_repeated(root: Path) -> None:
    clips = [
        numbers(ava_clips.read_clip(root, frame(video, second), frames=8, rate=4, start_s=900))
        for second in (900, 907)
        for video in ("cut", "whole")
    ]
    assert clips[0] == clips[1] == [0, 0, 0, 0, 1, 5, 9, 13]
    assert clips[2] == clips[3] == [69, 73, 77, 81, 85, 89, 93, 95]


def test_a_key_frame_between_two_seconds_needs_a_whole_video(root: Path) -> None:
    clip = ava_clips.read_clip(root, frame("whole", 903.5), frames=2, rate=2, start_s=900)
    assert numbers(clip) == [40, 42]
    with pytest.raises(DataError, match="whole second"):
        ava_clips.read_clip(root, frame("cut", 903.5))


def test_what_is_missing_is_named(root: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere: no such video[\s\S]*903\.mp4"):
        ava_clips.read_clip(root, frame("nowhere", 903))
    with pytest.raises(DataError, match=r"cut/950\.mp4: no such file"):
        ava_clips.read_clip(root, frame("cut", 950))
    with pytest.raises(DataError, match=r"whole\.mp4: no key frame of whole second 0950[\s\S]*96 frames"):
        ava_clips.read_clip(root, frame("whole", 950), start_s=900)


def test_a_damaged_second_is_named(root: Path, tmp_path: Path) -> None:
    (tmp_path / "cut").mkdir()
    for second in (901, 902, 903):
        source = (root / "cut" / f"{second}.mp4").read_bytes()
        (tmp_path / "cut" / f"{second}.mp4").write_bytes(source if second != 903 else b"no video at all")
    with pytest.raises(DataError, match=r"903\.mp4"):
        ava_clips.read_clip(tmp_path, frame("cut", 902))


# ---- views ---------------------------------------------------------------------------------------------------------


def painted(boxes: list[list[int]], width: int = 160, height: int = 120) -> tuple[torch.Tensor, AvaSample]:
    """A black clip with a white rectangle in each box (both ends included)."""
    clip = torch.zeros(2, height, width, 3, dtype=torch.uint8)
    for x1, y1, x2, y2 in boxes:
        clip[:, y1 : y2 + 1, x1 : x2 + 1] = 255
    labels = np.eye(len(boxes), 80, dtype=np.uint8)
    scores = np.ones(len(boxes), dtype=np.float32)
    return clip, AvaSample(
        KeyFrame("v", 0, width, height), np.array(boxes, dtype=np.float32).reshape(-1, 4), labels, scores
    )


def bounds(clip: torch.Tensor) -> list[float]:
    rows, columns = np.nonzero(clip[0, :, :, 0].numpy() > 127)
    return [columns.min(), rows.min(), columns.max(), rows.max()]


@pytest.mark.parametrize("seed", range(6))
def test_boxes_follow_the_pixels_in_training(seed: int) -> None:
    clip, sample = painted([[40, 30, 99, 89]])
    view = ava_clips.train_view(clip, sample, np.random.default_rng(seed), short=96, side=80, colour=False)
    assert view.clip.shape == (2, 80, 80, 3) and view.clip.is_contiguous()
    seen, box = bounds(view.clip), view.boxes[0]
    shares = np.array([0.2, 0.1, 0.2, 0.1]) * 48 + 2  # of the jitter, and the raster
    assert (np.abs(box - seen) <= shares).all()


def test_boxes_follow_the_pixels_at_test() -> None:
    clip, sample = painted([[40, 30, 99, 89]])
    view = ava_clips.eval_view(clip, sample, short=96)
    assert view.clip.shape == (2, 96, 128, 3)
    x1, y1, x2, y2 = bounds(view.clip)
    assert view.boxes[0] == pytest.approx([x1 - 2.4, y1 - 1.2, x2 + 2.4, y2 + 1.2], abs=1.1)


def test_boxes_outside_of_the_crop_go_or_stay_as_the_seed_has_them() -> None:
    clip, sample = painted([[0, 0, 9, 119], [150, 0, 159, 119], [60, 40, 99, 79]])
    counts = {"kept": set(), "seed": set()}
    for seed in range(20):
        view = ava_clips.train_view(clip, sample, np.random.default_rng(seed), short=120, side=64)
        assert (view.boxes[:, 2] > view.boxes[:, 0]).all() and np.array_equal(view.labels, sample.labels[view.rows])
        counts["kept"].add(len(view.boxes))
        same = ava_clips.train_view(clip, sample, np.random.default_rng(seed), short=120, side=64, bugs=("cut_boxes",))
        assert torch.equal(same.clip, view.clip)
        counts["seed"].add(len(same.boxes))
    assert counts["seed"] == {3} and max(counts["kept"]) <= 2 and len(counts["kept"]) > 1


def test_the_clip_does_not_depend_on_switches_that_draw_numbers() -> None:
    clip, sample = painted([[40, 30, 99, 89]])
    clip = torch.randint(0, 256, clip.shape, dtype=torch.uint8)
    plain, flipped, coloured = (
        ava_clips.train_view(clip, sample, np.random.default_rng(3), short=96, side=64, flip=flip, colour=colour).clip
        for flip, colour in ((0.0, False), (1.0, False), (0.0, True))
    )
    assert torch.equal(plain, flipped.flip(2)) and not torch.equal(plain, coloured)


def test_more_boxes_than_the_cap_are_drawn_from() -> None:
    clip, sample = painted([[k % 40, k % 30, 100 + k % 50, 90 + k % 20] for k in range(70)])
    views = [
        ava_clips.train_view(clip, sample, np.random.default_rng(seed), short=120, side=120, max_boxes=25)
        for seed in range(2)
    ]
    for view in views:
        assert len(view.boxes) == len(view.labels) == len(view.scores) == 25 == len(set(view.rows.tolist()))
        assert np.array_equal(view.labels, sample.labels[view.rows])
    assert views[0].rows.tolist() != views[1].rows.tolist()
    assert len(ava_clips.eval_view(clip, sample).boxes) == 70


def test_a_crop_larger_than_the_clip_is_an_error() -> None:
    clip, sample = painted([[40, 30, 99, 89]])
    with pytest.raises(DataError, match="short side of a clip is 48"):
        ava_clips.train_view(clip, sample, np.random.default_rng(0), short=48, side=64)


def test_a_batch_holds_clips_of_any_size_and_images_without_boxes() -> None:
    clip, sample = painted([[40, 30, 99, 89], [0, 0, 20, 20]])
    none = AvaSample(sample.frame, sample.boxes[:0], sample.labels[:0], sample.scores[:0])
    views = [
        ava_clips.eval_view(clip, sample, short=40),
        ava_clips.eval_view(clip.transpose(1, 2).contiguous(), none, short=40),
    ]
    batch = ava_clips.collate(views, 16)
    assert batch["clip"].shape == (2, 2, 64, 64, 3) and batch["size"].tolist() == [[40, 53], [53, 40]]
    assert batch["boxes"].shape == (2, 2, 4) and batch["labels"].shape == (2, 2, 80)
    assert batch["boxes_count"].tolist() == [2, 0] and not batch["boxes"][1].any()
    assert torch.equal(batch["clip"][0, :, :40, :53], views[0].clip)
    assert not batch["clip"][0, :, 40:].any() and not batch["clip"][0, :, :, 53:].any()
    empty = ava_clips.collate(views[1:], 16)
    assert empty["boxes"].shape == (1, 1, 4) and empty["boxes_count"].tolist() == [0]


# ---- colour --------------------------------------------------------------------------------------------------------


def test_no_shift_of_colour_changes_next_to_nothing() -> None:
    clip = torch.randint(0, 256, (2, 40, 40, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    same = augment.shift_colour(clip, 0, 0, 0)
    assert (same.int() - clip.int()).abs().max() <= 4  # a step of hue is 2 degrees: up to 4 levels of a full colour
    assert (same.int() - clip.int()).abs().float().mean() < 1


@pytest.mark.parametrize("shift", [(10, 26, -26), (-10, -26, 26), (4, 0, 13)])
def test_colours_are_those_of_the_textbook(shift: tuple[int, int, int]) -> None:
    clip = torch.randint(0, 256, (1, 12, 12, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    ours = augment.shift_colour(clip, *shift)[0].reshape(-1, 3).tolist()
    for before, after in zip(clip.reshape(-1, 3).tolist(), ours, strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*(level / 255 for level in before))
        hue = (hue + shift[0] / 180) % 1
        saturation = min(max(saturation + shift[1] / 255, 0), 1)
        value = min(max(value + shift[2] / 255, 0), 1)
        wanted = [255 * level for level in colorsys.hsv_to_rgb(hue, saturation, value)]
        assert after == pytest.approx(wanted, abs=5)
