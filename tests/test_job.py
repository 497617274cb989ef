"""What is settled before a device is used: class names, and what rests."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

from dsvid.data.manifest import read_list
from dsvid.errors import DataError
from dsvid.job import class_names, freeze, make_objective, model_spec, report_empty_classes
from dsvid.models.spec import build_model
from dsvid.recipe import Recipe, build_recipe
from dsvid.runtime import log


def recipe(**model: object) -> Recipe:
    data = {"train": "list.csv", "num_frames": 4, "input_size": 16, **model.pop("data", {})}  # type: ignore[dict-item]
    return build_recipe({"task": "classify", "model": {"arch": "vit_micro", "num_classes": 3, **model}, "data": data})


def trained(settings: Recipe) -> set[str]:
    spec = model_spec(settings)
    objective: nn.Module = make_objective(settings, build_model(spec, seed=0))
    freeze(objective, settings, spec)
    return {name for name, parameter in objective.named_parameters() if parameter.requires_grad}


def test_nothing_rests_unless_it_is_asked_for() -> None:
    settings = recipe()
    everything = {
        name for name, _ in make_objective(settings, build_model(model_spec(settings), seed=0)).named_parameters()
    }
    assert trained(settings) == everything
    assert trained(recipe(linear_probe=True)) == {"model.head.weight", "model.head.bias"}
    assert everything - trained(recipe(freeze_blocks=1)) == {
        name
        for name in everything
        if name.startswith(("model.patch_embed.", "model.blocks.0.")) and ".norm" not in name
    }


def test_class_names_come_from_a_file_of_as_many_lines(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_text("push\npull\n\nturn left\n")
    assert class_names(recipe(data={"labels": str(path)})) == ["push", "pull", "turn left"]
    assert class_names(recipe()) == []
    path.write_text("push\npull\n")
    with pytest.raises(DataError, match="2 names"):
        class_names(recipe(data={"labels": str(path)}))
    with pytest.raises(DataError, match="cannot be read"):
        class_names(recipe(data={"labels": str(tmp_path / "nothing.txt")}))


def test_classes_without_a_video_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "val.csv"
    path.write_text("a.mp4 0\nb.mp4 2\nc.mp4 1\n")
    manifest = read_list(path)
    monkeypatch.setattr(log, "propagate", True)
    report_empty_classes(manifest, "val", 3, [], 0)
    assert not caplog.records
    report_empty_classes(manifest, "val", 4, ["push", "pull", "turn", "lift"], 0)
    report_empty_classes(manifest, "train", 4, [], 2)
    assert "no video of 1 of 4 classes: lift; the mean over classes leaves them out" in caplog.text
    assert "no video of 2 of 4 classes: 1, 3; the head cannot learn them" in caplog.text
