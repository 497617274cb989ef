"""What classification says of its lists and classes before a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from dsvid.errors import DataError
from dsvid.recipe import Recipe, build_recipe
from dsvid.tasks import task_of


def recipe(classes: int = 3, **data: object) -> Recipe:
    return build_recipe(
        {
            "task": "classify",
            "model": {"arch": "vit_micro", "num_classes": classes},
            "data": {"train": "list.csv", "num_frames": 4, "input_size": 16, **data},
        }
    )


def names(settings: Recipe) -> list[str]:
    return task_of(settings).class_names(settings)


def test_class_names_come_from_a_file_of_as_many_lines(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_text("push\npull\n\nturn left\n")
    assert names(recipe(labels=str(path))) == ["push", "pull", "turn left"]
    assert names(recipe()) == []
    path.write_text("push\npull\n")
    with pytest.raises(DataError, match="2 names"):
        names(recipe(labels=str(path)))
    with pytest.raises(DataError, match="cannot be read"):
        names(recipe(labels=str(tmp_path / "nothing.txt")))


def test_classes_without_a_video_are_named(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("a.mp4 0\nb.mp4 2\nc.mp4 1\n")
    (tmp_path / "names.txt").write_text("push\npull\nturn\nlift\n")
    lists = {"train": str(tmp_path / "list.csv"), "val": str(tmp_path / "list.csv")}

    def said(split: str, settings: Recipe) -> str:
        return "".join(task_of(settings).remarks(settings, split))

    assert said("val", recipe(**lists)) == ""
    named = recipe(4, **lists, labels=str(tmp_path / "names.txt"))
    assert said("val", named).endswith("no video of 1 of 4 classes: lift; the mean over classes leaves them out")
    few = recipe(4, **lists, train_limit=2)
    assert said("train", few).endswith("no video of 2 of 4 classes: 1, 3; the head cannot learn them")
