"""Driving footage in the loader: shares of every batch, whole passes over each source, the same for any ranks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from dsvid.data import traffic_generated
from dsvid.data.footage import list_footage, measure_footage
from dsvid.data.footage_reader import FootageReader, FootageSplit, open_footage
from dsvid.data.loader import TrainLoader
from dsvid.errors import DataError
from dsvid.recipe import DataConfig, FootageConfig, FootageSource, build_recipe
from dsvid.tasks import task_of

BATCH = 5


@pytest.fixture(scope="module")
def indexed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, FootageSource]:
    """Ten-frames-a-second zips in DoTA's layout, and thirty in DADA's, each with its index."""
    folder = tmp_path_factory.mktemp("footage")
    sources = {}
    for layout, clips in (("dota", 4), ("dada", 2)):
        traffic_generated.make_set(folder / layout, {"train": clips}, layout=layout)
        index = folder / f"{layout}.csv"
        list(measure_footage(list_footage(layout, folder / layout), index))
        rate, share = (1, 3.0) if layout == "dota" else (9, 2.0)
        sources[layout] = FootageSource(index=str(index), root=str(folder / layout), rate=rate, share=share)
    return sources


def data(**changes: object) -> DataConfig:
    base = {
        "train": "footage",
        "num_frames": 4,
        "view_fps": 10,
        "input_size": 32,
        "num_workers": 0,
        "crop": "multi_scale",
    }
    return DataConfig(**{**base, **changes})  # type: ignore[arg-type]


def both(indexed: dict[str, FootageSource], **changes: object) -> FootageConfig:
    return FootageConfig(first=indexed["dota"], second=indexed["dada"], **changes)  # type: ignore[arg-type]


def opened(indexed: dict[str, FootageSource]) -> FootageSplit:
    return open_footage(data(), both(indexed), BATCH)


def test_every_batch_has_its_share_of_each_source(indexed: dict[str, FootageSource]) -> None:
    split = opened(indexed)
    assert [source.a_batch for source in split.sources] == [3, 2]
    reader = FootageReader(data(), both(indexed), split)
    first = len(split.sources[0].windows)
    _, indices = reader.locate(0, 40 * BATCH, 7)
    own = (indices < first).reshape(-1, BATCH)
    assert (own.sum(axis=1) == 3).all()
    so_far = own.cumsum(axis=1)  # evenly: each start of a batch has its share, to within a clip
    assert (np.abs(so_far - 3 / 5 * np.arange(1, BATCH + 1)) < 1).all()


def test_a_pass_over_a_source_has_every_window_once_and_the_smaller_begins_again(
    indexed: dict[str, FootageSource],
) -> None:
    split = opened(indexed)
    sizes = [len(source.windows) for source in split.sources]
    assert sizes[0] / 3 > sizes[1] / 2, "the second source is through first"
    epochs, indices = FootageReader(data(), both(indexed), split).locate(0, BATCH * (sizes[0] // 3 + 1), 7)
    own = indices < sizes[0]
    assert sorted(indices[own][: sizes[0]]) == list(range(sizes[0]))
    other = indices[~own]
    assert sorted(other[: sizes[1]]) == list(range(sizes[0], sum(sizes)))
    assert epochs[~own].max() >= 1 and not np.array_equal(other[: sizes[1]], other[sizes[1] : 2 * sizes[1]])


def test_any_part_of_the_stream_is_that_of_the_whole(indexed: dict[str, FootageSource]) -> None:
    reader = FootageReader(data(), both(indexed), opened(indexed))
    whole = reader.locate(0, 60, 3)
    for first, count in ((0, 7), (7, 13), (59, 1)):
        for part, all_of_it in zip(reader.locate(first, count, 3), whole, strict=True):
            assert np.array_equal(part, all_of_it[first : first + count])


def test_batches_do_not_depend_on_ranks(indexed: dict[str, FootageSource]) -> None:
    def clips(world: int, micro: int) -> list[torch.Tensor]:
        reader = FootageReader(data(), both(indexed, aligned=True), open_footage(data(), both(indexed), 10))
        loaders = [
            iter(TrainLoader(data(), seed=1, batch_total=10, batch_micro=micro, rank=rank, world=world, reader=reader))
            for rank in range(world)
        ]
        return [next(loader)["clip"] for loader in loaders]

    (whole,) = clips(1, 10)
    assert whole.shape == (10, 4, 32, 32, 3)
    assert torch.equal(torch.cat(clips(2, 5)), whole)


def ramp(height: int = 360, width: int = 640) -> torch.Tensor:
    """Frames whose red is the column and whose green is the row, from 0 to 255 over the frame."""
    red = torch.linspace(0, 255, width).round().expand(height, width)
    green = torch.linspace(0, 255, height).round()[:, None].expand(height, width)
    return torch.stack([red, green, torch.full_like(red, 77)], dim=2).to(torch.uint8).expand(2, -1, -1, -1)


def test_aligned_clips_are_squares_of_whole_frames_with_borders(
    indexed: dict[str, FootageSource], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = data(input_size=64, augment={"policy": "rand-m3-n3-mstd0.5-inc1-tdriving"})
    reader = FootageReader(settings, both(indexed, aligned=True), opened(indexed))
    policies = 0

    def count(frames: torch.Tensor, _: np.random.Generator) -> torch.Tensor:
        nonlocal policies
        policies += 1
        return frames

    monkeypatch.setattr(reader, "policy", count)
    widths, heights, bordered = [], [], 0
    for seed in range(200):
        clip = reader.train_item(0, ramp(), np.random.default_rng(seed)).int()
        assert clip.shape == (2, 64, 64, 3)
        inside = (clip[0, :, :, 2] - 77).abs().amax(dim=1) < 3  # rows of the frame; mirrored ones are darker
        bordered += int(not inside.all())
        red, green = clip[0, inside, :, 0], clip[0, inside, :, 1]
        widths.append(float(red.max() - red.min()) / 255)
        heights.append(float(green.max() - green.min()) / 255)
    assert min(widths) > 0.8 and np.mean(widths) > 0.9, "the whole width, less a crop of 0.85 at the least"
    assert np.mean(heights) > 0.85, "and the whole height"
    # black, colour and reflect are 5 of 12 kinds; the other bordered ones repeat a row
    assert 0.3 < bordered / 200 < 0.55
    assert 0.6 < policies / 200 < 0.8


def test_clips_that_are_not_aligned_keep_their_shape(indexed: dict[str, FootageSource]) -> None:
    reader = FootageReader(data(input_size=64), both(indexed), opened(indexed))
    widths = []
    for seed in range(50):
        red = reader.train_item(0, ramp(), np.random.default_rng(seed)).int()[0, :, :, 0]
        widths.append(float(red.max() - red.min()) / 255)
    assert max(widths) < 0.62, "a square of the short side is 0.5625 of the width"


def test_a_recipe_on_footage_says_how_much_there_is(indexed: dict[str, FootageSource]) -> None:
    recipe = build_recipe(
        {
            "model": {"arch": "vit_micro"},
            "data": data().model_dump(),
            "footage": both(indexed).model_dump(),
            "batch": {"total": 5},
        }
    )
    split = task_of(recipe).open(recipe, "train")
    assert len(split) > 100 and "images.zip frame" in split.path(0)
    said = task_of(recipe).remarks(recipe, "train")
    assert len(said) == 2 and "3 in a batch" in said[0] and "0 clips are too short" in said[1]


def test_a_share_without_a_clip_and_windows_longer_than_any_clip_are_refused(indexed: dict[str, FootageSource]) -> None:
    lonely = FootageConfig(first=indexed["dota"], second=indexed["dada"].model_copy(update={"share": 0.001}))
    with pytest.raises(DataError, match="no clip in a batch"):
        open_footage(data(), lonely, BATCH)
    with pytest.raises(DataError, match="no clip is as long as a window"):
        open_footage(data(num_frames=400), both(indexed), BATCH)
    with pytest.raises(DataError, match="cannot be read"):
        open_footage(data(), FootageConfig(first=FootageSource(index=str(Path("nothing.csv")))), BATCH)
