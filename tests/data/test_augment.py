"""Crops and resizes of uint8 clips."""

from __future__ import annotations

import collections

import numpy as np
import pytest
import torch
from PIL import Image

from dsvid.data import augment


def coordinates(height: int, width: int, frames: int = 2) -> torch.Tensor:
    """A clip whose red is the row, green the column, blue the frame."""
    clip = torch.zeros((frames, height, width, 3), dtype=torch.uint8)
    clip[..., 0] = torch.arange(height, dtype=torch.uint8)[None, :, None]
    clip[..., 1] = torch.arange(width, dtype=torch.uint8)[None, None, :]
    clip[..., 2] = torch.arange(frames, dtype=torch.uint8)[:, None, None]
    return clip


@pytest.mark.parametrize(("size", "target"), [((120, 170), (224, 224)), ((256, 200), (112, 90))])
def test_resize_is_within_one_level_of_pil(size, target):
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (2, size[0] // 8, size[1] // 8, 3), dtype=np.uint8)
    clip = torch.from_numpy(np.repeat(np.repeat(small, 8, 1), 8, 2))
    out = augment.resize(clip, *target)
    assert out.dtype == torch.uint8 and out.shape == (2, *target, 3) and out.is_contiguous()
    for frame, resized in zip(clip, out, strict=True):
        wanted = np.asarray(Image.fromarray(frame.numpy()).resize(target[::-1], Image.Resampling.BILINEAR))
        assert abs(wanted.astype(int) - resized.numpy()).max() <= 1


def test_multi_scale_sizes_are_videomaes():
    sizes = augment.multi_scale_sizes(240, 320, 224)
    sides = (240, 210, 180, 158)
    assert sizes == [(sides[i], sides[j]) for i in range(4) for j in range(4) if abs(i - j) <= 1]
    assert (224, 224) in augment.multi_scale_sizes(256, 340, 224)  # 256 * .875 is exactly 224
    assert (224, 224) in augment.multi_scale_sizes(226, 340, 224)  # 226 is within 3 pixels
    assert (224, 224) not in augment.multi_scale_sizes(227, 340, 224)
    assert max(augment.multi_scale_sizes(222, 340, 224)) == (222, 222)  # never larger than the frame


def test_thirteen_places_are_the_originals():
    w, h = (320 - 210) // 4, (240 - 180) // 4
    corners = [(0, 0), (4 * w, 0), (0, 4 * h), (4 * w, 4 * h), (2 * w, 2 * h)]
    more = [(0, 2 * h), (4 * w, 2 * h), (2 * w, 4 * h), (2 * w, 0), (w, h), (3 * w, h), (w, 3 * h), (3 * w, 3 * h)]
    places = augment.thirteen_places(240, 320, 180, 210)
    assert len(places) == 13 and {(left, top) for top, left in places} == set(corners + more)


def test_multi_scale_crop_uses_every_size_and_place_and_one_box_for_all_frames():
    clip = coordinates(64, 96)
    seen = collections.Counter()
    for seed in range(400):
        out = augment.multi_scale_crop(clip, 32, np.random.default_rng(seed))
        assert out.shape == (2, 32, 32, 3)
        assert torch.equal(out[0, ..., :2], out[1, ..., :2]), "frames have different boxes"
        seen[(out[0, 0, 0, 0].item(), out[0, 0, 0, 1].item(), out[0, -1, -1, 0].item(), out[0, -1, -1, 1].item())] += 1
    assert len(seen) > 60
    assert min(key[1] for key in seen) <= 1 and max(key[3] for key in seen) >= 94  # left and right edge are reached


def test_random_crop_reaches_every_place_once_and_enlarges_small_frames():
    clip = coordinates(10, 12)
    corners = {tuple(augment.random_crop(clip, 8, np.random.default_rng(s))[0, 0, 0, :2].tolist()) for s in range(300)}
    assert corners == {(row, column) for row in range(3) for column in range(5)}
    assert augment.random_crop(clip, 16, np.random.default_rng(0)).shape == (2, 16, 16, 3)


def test_center_crop_and_short_side():
    assert augment.center_crop(coordinates(80, 100), 64)[0, 0, 0, :2].tolist() == [8, 18]
    assert augment.resize_short_side(coordinates(100, 133), 50).shape[1:3] == (50, 66)
    assert augment.resize_short_side(coordinates(133, 100), 50).shape[1:3] == (66, 50)


@pytest.mark.parametrize(("height", "width", "axis"), [(8, 14, 1), (14, 8, 0)])
def test_spatial_crops_are_spread_along_the_long_side(height, width, axis):
    clip = coordinates(height, width)
    assert [augment.spatial_crop(clip, 8, 3, number)[0, 0, 0, axis].item() for number in range(3)] == [0, 3, 6]
    assert augment.spatial_crop(clip, 8, 1, 0)[0, 0, 0, axis].item() == 3


def test_flip_mirrors_with_its_probability():
    clip = coordinates(4, 6)
    flips = sum(torch.equal(augment.flip(clip, 0.25, np.random.default_rng(seed)), clip.flip(2)) for seed in range(400))
    assert 70 <= flips <= 130
    assert torch.equal(augment.flip(clip, 0.0, np.random.default_rng(0)), clip)
    assert torch.equal(augment.flip(clip, 1.0, np.random.default_rng(0)), clip.flip(2))


# ---- fine-tuning ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(120, 160), (200, 90), (64, 64)])
def test_random_resized_crop_keeps_to_area_and_aspect(height, width):
    area, aspect = (0.2, 0.9), (0.5, 1.5)
    shares, ratios = [], []
    for seed in range(400):
        box = augment.resized_crop_box(height, width, np.random.default_rng(seed), area, aspect)
        top, left, box_height, box_width = box
        assert top >= 0 and left >= 0 and top + box_height <= height and left + box_width <= width
        shares.append(box_height * box_width / (height * width))
        ratios.append(box_width / box_height)
    assert min(shares) > 0.2 - 0.02 and max(shares) < 0.9 + 0.02 and min(shares) < 0.25 and max(shares) > 0.5
    assert min(ratios) > 0.5 - 0.03 and max(ratios) < 1.5 + 0.05
    if height == width:
        assert abs(np.mean(np.log(ratios)) - np.log(0.75) / 2) < 0.05, "the logarithm is drawn evenly"


def test_random_resized_crop_is_one_box_for_all_frames():
    clip = coordinates(90, 120, frames=3)
    out = augment.random_resized_crop(clip, 32, np.random.default_rng(5))
    assert out.shape == (3, 32, 32, 3) and out.is_contiguous()
    assert torch.equal(out[0, ..., :2], out[2, ..., :2])
    assert torch.equal(out, augment.random_resized_crop(clip, 32, np.random.default_rng(5)))
    assert not torch.equal(out, augment.random_resized_crop(clip, 32, np.random.default_rng(6)))


@pytest.mark.parametrize(
    ("height", "width", "box"),
    [(100, 1000, (0, 434, 100, 133)), (1000, 100, (434, 0, 133, 100)), (100, 120, (0, 0, 100, 120))],
)
def test_where_no_box_fits_the_largest_centred_one_is_taken(height, width, box):
    """An area larger than the frame never fits, so that all ten tries fail."""
    found = augment.resized_crop_box(height, width, np.random.default_rng(0), (1.5, 1.6), (0.75, 1.3333))
    assert found == ((height - found[2]) // 2, (width - found[3]) // 2, *found[2:])
    assert abs(found[2] - box[2]) <= 1 and abs(found[3] - box[3]) <= 1


def test_erase_is_one_box_with_new_noise_in_every_frame_of_a_copy():
    clip = torch.full((4, 60, 80, 3), 7, dtype=torch.uint8)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    shares, ratios = [], []
    for seed in range(200):
        out = augment.erase(clip, 1.0, np.random.default_rng(seed), mean=mean, std=std)
        changed = (out != 7).any(dim=3)
        rows, columns = changed[0].any(dim=1).nonzero(), changed[0].any(dim=0).nonzero()
        box = changed[:, rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        assert box.float().mean() > 0.99 and changed.sum() == box.sum(), "not one box for all frames"
        assert not torch.equal(out[0], out[1])
        shares.append(box[0].numel() / (60 * 80))
        ratios.append(box.shape[1] / box.shape[2])
    assert (clip == 7).all()
    assert 0.015 < min(shares) < 0.06 and 0.27 < max(shares) < 0.36
    assert min(ratios) < 0.6 and max(ratios) > 1.7 and min(ratios) > 0.28 and max(ratios) < 3.6


def test_the_noise_of_erasing_has_the_mean_and_deviation_of_normalised_noise():
    mean, std = (0.5, 0.4, 0.6), (0.1, 0.05, 0.15)
    clip = torch.zeros((8, 64, 64, 3), dtype=torch.uint8)
    pixels = []
    for seed in range(20):
        out = augment.erase(clip, 1.0, np.random.default_rng(seed), mean=mean, std=std, area=(0.3, 0.33))
        pixels.append(out[(out > 0).all(dim=3)].double() / 255)
    noise = (torch.cat(pixels) - torch.tensor(mean)) / torch.tensor(std)
    assert noise.mean(dim=0).abs().max() < 0.02 and (noise.std(dim=0) - 1).abs().max() < 0.02


def test_erasing_has_its_probability_and_count():
    clip = torch.zeros((1, 40, 40, 3), dtype=torch.uint8)
    options = {"mean": (0.5,) * 3, "std": (0.1,) * 3}
    hit = [augment.erase(clip, 0.25, np.random.default_rng(s), **options).any().item() for s in range(600)]
    assert 0.2 < np.mean(hit) < 0.3
    assert augment.erase(clip, 0.0, np.random.default_rng(0), **options) is clip
    covered = [
        (augment.erase(clip, 1.0, np.random.default_rng(s), count=5, area=(0.5, 0.5), **options) > 0).float().mean()
        for s in range(50)
    ]
    assert max(covered) <= 0.53 and min(covered) < 0.45  # several boxes share the area, and may overlap


def test_resizing_without_antialiasing_samples_between_four_pixels() -> None:
    """OpenCV's rule: the centre of a pixel maps to (i + 1/2) * old / new - 1/2, held inside."""
    clip = torch.randint(0, 256, (2, 36, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    rows, columns = (np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1) for old, new in ((36, 25), (64, 45)))
    low_y, low_x = np.floor(rows).astype(int), np.floor(columns).astype(int)
    dy, dx = (rows - low_y)[None, :, None, None], (columns - low_x)[None, None, :, None]
    high_y, high_x = np.minimum(low_y + 1, 35), np.minimum(low_x + 1, 63)
    values = clip.numpy().astype(float)
    top = values[:, low_y][:, :, low_x] * (1 - dx) + values[:, low_y][:, :, high_x] * dx
    bottom = values[:, high_y][:, :, low_x] * (1 - dx) + values[:, high_y][:, :, high_x] * dx
    wanted = top * (1 - dy) + bottom * dy
    ours = augment.resize(clip, 25, 45, antialias=False)
    assert np.abs(ours.numpy() - wanted).max() <= 1.01
    assert np.abs(augment.resize(clip, 25, 45).numpy() - wanted).max() > 10
