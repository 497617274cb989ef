"""What the reader of AVA's samples refuses, and what it gives in place of frames that cannot be read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dsvid.data import ava_generated
from dsvid.data.ava_reader import AvaReader
from dsvid.data.ava_split import open_ava
from dsvid.data.builtin import write_clip
from dsvid.errors import DataError
from dsvid.recipe import load_recipe


@pytest.fixture()
def reader(tmp_path: Path) -> AvaReader:
    ava_generated.make_set(tmp_path, {"val": 1}, seconds=3)
    recipe = load_recipe("demo_ava", {
        "data.root": str(tmp_path), "data.val": "annotations/ava_val_v2.2_min.json", "data.num_frames": 4,
        "data.labels": "annotations/action_list.pbtxt", "data.short_side": 40, "data.input_size": 32,
    })  # fmt: skip
    return AvaReader(recipe.data, recipe.detect, open_ava(recipe.data, recipe.detect, "val", 80), patch=8)


def test_pictures_of_another_shape_than_the_annotations_say_are_refused(reader: AvaReader, tmp_path: Path) -> None:
    assert reader.frames(0, (1, 0)).frames.shape == (4, 80, 96, 3)
    for second in (tmp_path / "clips" / "trainval").glob("*/*.mp4"):
        write_clip(second, np.zeros((ava_generated.FPS, 96, 80, 3), dtype=np.uint8))  # lying on their side
    with pytest.raises(DataError, match="another shape than the annotations say"):
        reader.frames(0, (1, 0))
    for second in (tmp_path / "clips" / "trainval").glob("*/*.mp4"):
        write_clip(second, np.zeros((ava_generated.FPS, 160, 192, 3), dtype=np.uint8))  # twice as large is the same
    assert reader.frames(0, (1, 0)).frames.shape == (4, 160, 192, 3)


def test_what_stands_for_frames_that_cannot_be_read_has_their_size_and_no_box(reader: AvaReader) -> None:
    blank, read = reader.test_item(0, None, 1, 0), reader.test_item(0, reader.frames(0, (1, 0)).frames, 1, 0)
    assert blank.clip.shape == read.clip.shape == (4, 40, 48, 3) and not blank.clip.any()
    assert len(blank.boxes) == 0 < len(read.boxes)
    batch = reader.collate([blank, read], [0, 0])
    assert batch["boxes_count"].tolist() == [0, len(read.boxes)] and batch["clip"].shape == (2, 4, 40, 48, 3)
