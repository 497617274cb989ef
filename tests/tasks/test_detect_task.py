"""What action detection asks of weights and shared memory before a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from dsvid.data import ava_generated
from dsvid.errors import CheckpointError
from dsvid.recipe import Recipe, load_recipe
from dsvid.tasks import task_of
from dsvid.weights.card import Card


def recipe(**changes: object) -> Recipe:
    return load_recipe("demo_ava", {key.replace("__", "."): value for key, value in changes.items()})


def test_a_head_with_the_same_classes_in_another_order_is_refused() -> None:
    chosen = recipe(detect__classes=[1, 2, 64], model__num_classes=3)
    task = task_of(chosen)
    task.check_weights(chosen, Path("w"), Card(trained={"classes": [1, 2, 64]}))
    task.check_weights(chosen, Path("w"), Card())  # published files do not say
    with pytest.raises(CheckpointError, match=r"detect.classes=\[64, 1, 2\]"):
        task.check_weights(chosen, Path("w"), Card(trained={"classes": [64, 1, 2]}))


def test_names_come_by_column_and_those_that_do_not_count_are_empty(tmp_path: Path) -> None:
    names = task_of(recipe()).class_names(recipe(data__labels=str(label_map(tmp_path))))
    assert len(names) == 80 and names[0] == "left" and names[63] == "near another figure" and names[40] == ""
    chosen = recipe(detect__classes=[64, 3], model__num_classes=2, data__labels=str(label_map(tmp_path)))
    assert task_of(chosen).class_names(chosen) == ["near another figure", "up"]


def label_map(folder: Path) -> Path:
    path = folder / "map.pbtxt"
    path.write_text("".join(f'item {{\n  name: "{name}"\n  id: {k}\n}}\n' for k, name in ava_generated.NAMES.items()))
    return path
