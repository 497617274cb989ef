"""The run folder: verification, walking back, pruning, and folders that must not be touched."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dsvid import checkpoint as ck
from dsvid.errors import CheckpointError
from dsvid.recipe import Recipe, build_recipe, dump_yaml
from dsvid.runtime import Ranks

CONFIG = {"optimizer": {"params": {"lr": 1.0}}, "gradient_clipping": 0.0}
ONE = Ranks(0, 1, 0)
CPU = torch.device("cpu")


class Shards:
    """Stands where the DeepSpeed engine stands in `save`: writes two files into the tag folder."""

    device = CPU
    group_names = [["a"], ["b"]]

    def save_checkpoint(self, folder: str, tag: str, client_state: dict[str, object], save_latest: bool) -> None:
        assert save_latest is False, "DeepSpeed would point at shards that are not complete"
        target = Path(folder) / tag
        target.mkdir(parents=True)
        (target / "model.pt").write_bytes(b"m" * 1000)
        (target / "rank_0_optim_states.pt").write_bytes(b"o" * 2000)


def saved(tmp_path: Path, steps: list[int], keep: int = 10) -> ck.RunFolder:
    run = ck.RunFolder(tmp_path / "run")
    run.checkpoints.mkdir(parents=True)
    for step in steps:
        ck.save(Shards(), run, step=step, facts={"stage": 2}, ranks=ONE, keep=keep)
    return run


def test_a_saved_checkpoint_verifies_and_is_pointed_at(tmp_path: Path) -> None:
    run = saved(tmp_path, [4])
    manifest = ck.verify(run.checkpoints / "step-00000004")
    assert (manifest["step"], manifest["world_size"], manifest["stage"]) == (4, 1, 2)
    assert manifest["groups"] == [["a"], ["b"]]
    assert manifest["files"]["rank_0_optim_states.pt"]["bytes"] == 2000
    assert (run.checkpoints / "latest").read_text() == "step-00000004\n"
    assert not list(run.checkpoints.glob(".*"))


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "manifest", "format"])
def test_damage_is_found_and_the_one_before_is_used(damage: str, tmp_path: Path) -> None:
    run = saved(tmp_path, [4, 8])
    newest = run.checkpoints / "step-00000008"
    file = newest / "rank_0_optim_states.pt"
    if damage == "flip":
        content = bytearray(file.read_bytes())
        content[700] ^= 1
        file.write_bytes(content)
    elif damage == "truncate":
        file.write_bytes(file.read_bytes()[:500])
    elif damage == "remove":
        file.unlink()
    elif damage == "manifest":
        (newest / ck.MANIFEST).write_text("{")
    else:
        manifest = json.loads((newest / ck.MANIFEST).read_text())
        (newest / ck.MANIFEST).write_text(json.dumps({**manifest, "format": 99}))
    with pytest.raises(CheckpointError) as caught:
        ck.verify(newest)
    assert str(newest) in str(caught.value)
    found = ck.newest_verified(run.checkpoints)
    assert found is not None and found.step == 4


def test_only_damaged_checkpoints_is_an_error_not_a_fresh_start(tmp_path: Path) -> None:
    run = saved(tmp_path, [4])
    (run.checkpoints / "step-00000004" / "model.pt").unlink()
    for resume in ("auto", "must"):
        with pytest.raises(CheckpointError, match="none of 1 checkpoints is intact"):
            ck.find(run, resume, ONE, CPU)


def test_resume_must_and_auto_in_an_empty_folder(tmp_path: Path) -> None:
    run = ck.RunFolder(tmp_path / "new")
    assert ck.find(run, "auto", ONE, CPU) is None
    with pytest.raises(CheckpointError, match="--resume must"):
        ck.find(run, "must", ONE, CPU)


def test_a_folder_without_a_manifest_was_never_published(tmp_path: Path) -> None:
    run = saved(tmp_path, [4])
    (run.checkpoints / ".tmp-step-00000008").mkdir()
    found = ck.find(run, "auto", ONE, CPU)
    assert found is not None and found.step == 4
    ck.save(Shards(), run, step=8, facts={}, ranks=ONE, keep=2)
    assert not list(run.checkpoints.glob(".tmp*"))


def test_the_newest_are_kept(tmp_path: Path) -> None:
    run = saved(tmp_path, [1, 2, 3, 4], keep=2)
    assert sorted(p.name for p in run.checkpoints.glob("step-*")) == ["step-00000003", "step-00000004"]


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    run = saved(tmp_path, [4])
    (run.checkpoints / "step-00000004" / "model.pt").write_bytes(b"damaged")
    ck.save(Shards(), run, step=4, facts={}, ranks=ONE, keep=2)
    assert ck.verify(run.checkpoints / "step-00000004")["step"] == 4


def recipe(**run: object) -> Recipe:
    return build_recipe({"run": run})


def settings(run: ck.RunFolder, recipe: Recipe) -> None:
    (run.out / "recipe.yaml").write_text(dump_yaml(recipe))
    (run.out / "ds_config.json").write_text(json.dumps({**CONFIG, "steps_per_print": 10}))


def test_a_run_s_own_folder_may_change_what_changes_no_number(tmp_path: Path) -> None:
    run = saved(tmp_path, [4])
    settings(run, recipe(max_steps=20))
    before = (run.out / "recipe.yaml").read_bytes()
    run.prepare(recipe(max_steps=40, log_every=1, keep=9), CONFIG, "auto")
    assert (run.out / "recipe.yaml").read_bytes() == before, "checking a folder writes nothing"


@pytest.mark.parametrize(
    ("change", "key"), [({"run": {"seed": 1}}, "run.seed"), ({"model": {"arch": "vit_large"}}, "model.arch")]
)
def test_another_run_s_folder_is_refused_by_key(change: dict[str, object], key: str, tmp_path: Path) -> None:
    run = saved(tmp_path, [4])
    settings(run, recipe())
    with pytest.raises(CheckpointError, match="belongs to a different run") as caught:
        run.prepare(build_recipe(change), CONFIG, "auto")
    assert key in str(caught.value.found)


def test_a_changed_deepspeed_json_is_a_different_run(tmp_path: Path) -> None:
    run = saved(tmp_path, [4])
    settings(run, recipe())
    run.prepare(recipe(), CONFIG, "auto")  # steps_per_print differs, which changes no number
    with pytest.raises(CheckpointError, match="belongs to a different run") as caught:
        run.prepare(recipe(), {**CONFIG, "gradient_clipping": 1.0}, "auto")
    assert "ds.gradient_clipping: 0.0 there, 1.0 here" in str(caught.value.found)
    with pytest.raises(CheckpointError, match="ds.optimizer.params.lr"):
        run.prepare(recipe(), {**CONFIG, "optimizer": {"params": {"lr": 2.0}}}, "auto")


def test_a_run_that_never_saved_is_not_taken_over_by_another(tmp_path: Path) -> None:
    run = ck.RunFolder(tmp_path / "run")
    run.out.mkdir()
    settings(run, recipe())
    run.metrics.write_text("{}")
    with pytest.raises(CheckpointError, match="belongs to a different run"):
        run.prepare(recipe(seed=1), CONFIG, "auto")
    with pytest.raises(CheckpointError, match="--resume never"):
        run.prepare(recipe(), CONFIG, "never")
    run.prepare(recipe(), CONFIG, "auto")


def test_a_damaged_newer_checkpoint_never_outlives_the_one_just_written(tmp_path: Path) -> None:
    run = saved(tmp_path, [4, 12])
    (run.checkpoints / "step-00000012" / "model.pt").unlink()
    ck.save(Shards(), run, step=8, facts={}, ranks=ONE, keep=1)
    assert [p.name for p in run.checkpoints.glob("step-*")] == ["step-00000008"]
    assert (run.checkpoints / "latest").read_text() == "step-00000008\n"


def test_shards_that_stayed_on_another_node_are_not_published(tmp_path: Path) -> None:
    run = saved(tmp_path, [])
    Shards().save_checkpoint(str(run.checkpoints), ".tmp-step-00000004", {}, False)
    with pytest.raises(CheckpointError, match="all nodes share"):
        ck._publish(run.checkpoints, ".tmp-step-00000004", "step-00000004", {"stage": 2, "world_size": 2})
    assert not list(run.checkpoints.glob("step-*"))


def test_folders_that_are_not_a_run_are_refused(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").touch()
    with pytest.raises(CheckpointError, match="not a run folder"):
        ck.RunFolder(tmp_path / "photos").prepare(recipe(), CONFIG, "auto")
    with pytest.raises(CheckpointError, match="a file"):
        ck.RunFolder(tmp_path / "photos" / "cat.jpg").prepare(recipe(), CONFIG, "auto")
    run = saved(tmp_path, [4])
    with pytest.raises(CheckpointError, match="--resume never"):
        run.prepare(recipe(), CONFIG, "never")


def test_loading_refuses_another_topology_and_another_list(tmp_path: Path) -> None:
    run = saved(tmp_path, [])
    facts = {"stage": 2, "precision": "bf16", "train_list": "abc"}
    ck.save(Shards(), run, step=4, facts=facts, ranks=ONE, keep=2)
    found = ck.find(run, "must", ONE, CPU)
    assert found is not None
    with pytest.raises(CheckpointError, match="another topology") as caught:
        ck.load(Shards(), found, facts={**facts, "stage": 3}, ranks=ONE)
    assert "stage 2" in str(caught.value.expected)
    with pytest.raises(CheckpointError, match="another topology"):
        ck.load(Shards(), found, facts=facts, ranks=Ranks(0, 2, 0))
    with pytest.raises(CheckpointError, match=r"data\.train is not the list"):
        ck.load(Shards(), found, facts={**facts, "train_list": "xyz"}, ranks=ONE)
