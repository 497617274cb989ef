"""The run folder: whose it is, and folders that must not be touched."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dsvid.errors import CheckpointError
from dsvid.recipe import Recipe, build_recipe, dump_yaml, load_recipe
from dsvid.runfolder import RunFolder

CONFIG = {"optimizer": {"params": {"lr": 1.0}}, "gradient_clipping": 0.0}


def begun(tmp_path: Path) -> RunFolder:
    """A run that has a checkpoint."""
    run = RunFolder(tmp_path / "run")
    (run.checkpoints / "step-00000004").mkdir(parents=True)
    return run


def recipe(**run: object) -> Recipe:
    return build_recipe({"run": run})


def settings(run: RunFolder, recipe: Recipe) -> None:
    (run.out / "recipe.yaml").write_text(dump_yaml(recipe))
    (run.out / "ds_config.json").write_text(json.dumps({**CONFIG, "steps_per_print": 10}))


def test_a_run_s_own_folder_may_change_what_changes_no_number(tmp_path: Path) -> None:
    run = begun(tmp_path)
    settings(run, recipe(max_steps=20))
    before = (run.out / "recipe.yaml").read_bytes()
    run.prepare(recipe(max_steps=40, log_every=1, keep=9), CONFIG, "auto")
    assert (run.out / "recipe.yaml").read_bytes() == before, "checking a folder writes nothing"


@pytest.mark.parametrize(
    ("change", "key"), [({"run": {"seed": 1}}, "run.seed"), ({"model": {"arch": "vit_large"}}, "model.arch")]
)
def test_another_run_s_folder_is_refused_by_key(change: dict[str, object], key: str, tmp_path: Path) -> None:
    run = begun(tmp_path)
    settings(run, recipe())
    with pytest.raises(CheckpointError, match="belongs to a different run") as caught:
        run.prepare(build_recipe(change), CONFIG, "auto")
    assert key in str(caught.value.found)


def test_a_changed_deepspeed_json_is_a_different_run(tmp_path: Path) -> None:
    run = begun(tmp_path)
    settings(run, recipe())
    run.prepare(recipe(), CONFIG, "auto")  # steps_per_print differs, which changes no number
    with pytest.raises(CheckpointError, match="belongs to a different run") as caught:
        run.prepare(recipe(), {**CONFIG, "gradient_clipping": 1.0}, "auto")
    assert "ds.gradient_clipping: 0.0 there, 1.0 here" in str(caught.value.found)
    with pytest.raises(CheckpointError, match="ds.optimizer.params.lr"):
        run.prepare(recipe(), {**CONFIG, "optimizer": {"params": {"lr": 2.0}}}, "auto")


def test_a_run_that_never_saved_is_not_taken_over_by_another(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.out.mkdir()
    settings(run, recipe())
    run.metrics.write_text("{}")
    with pytest.raises(CheckpointError, match="belongs to a different run"):
        run.prepare(recipe(seed=1), CONFIG, "auto")
    with pytest.raises(CheckpointError, match="--resume never"):
        run.prepare(recipe(), CONFIG, "never")
    run.prepare(recipe(), CONFIG, "auto")


def test_a_start_that_was_killed_before_its_recipe_stood_is_no_foreign_folder(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    (run.checkpoints).mkdir(parents=True)
    (run.out / "ds_config.json").write_text("{}")
    (run.out / ".recipe.yaml-x1y2").write_text("half")
    run.prepare(recipe(), CONFIG, "auto")
    settings(run, recipe())
    assert load_recipe(str(run.out / "recipe.yaml")) == recipe()
    (run.out / "recipe.yaml").unlink()
    (run.out / "cat.jpg").touch()  # what no start leaves behind
    with pytest.raises(CheckpointError, match="not a run folder"):
        run.prepare(recipe(), CONFIG, "auto")


def test_folders_that_are_not_a_run_are_refused(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").touch()
    with pytest.raises(CheckpointError, match="not a run folder"):
        RunFolder(tmp_path / "photos").prepare(recipe(), CONFIG, "auto")
    with pytest.raises(CheckpointError, match="a file"):
        RunFolder(tmp_path / "photos" / "cat.jpg").prepare(recipe(), CONFIG, "auto")
    run = begun(tmp_path)
    with pytest.raises(CheckpointError, match="--resume never"):
        run.prepare(recipe(), CONFIG, "never")
