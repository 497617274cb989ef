"""The recipe: strict keys, YAML traps, batch arithmetic, every shipped recipe."""

from __future__ import annotations

from pathlib import Path

import pytest

from dsvid.errors import RecipeError
from dsvid.recipe import (
    all_keys,
    build_recipe,
    dump_yaml,
    load_recipe,
    load_yaml,
    parse_value,
    recipe_names,
    resolve_schedule,
    split_overrides,
)


@pytest.mark.parametrize(
    ("tree", "wrong", "near"),
    [
        ({"modle": {}}, "modle", "model"),
        ({"model": {"arhc": "vit_base"}}, "model.arhc", "model.arch"),
        ({"optim": {"base_lrr": 1}}, "optim.base_lrr", "optim.base_lr"),
        ({"run": {"layer_decay": 0.5}}, "run.layer_decay", "optim.layer_decay"),
        ({"data": {"workers": 4}}, "data.workers", "data.num_workers"),
    ],
)
def test_an_unknown_key_is_an_error_that_names_the_nearest(tree: dict[str, object], wrong: str, near: str) -> None:
    with pytest.raises(RecipeError) as caught:
        build_recipe(tree)
    assert repr(wrong) in str(caught.value)
    assert repr(near) in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data.num_frames", "many"),
        ("optim.base_lr", -1),
        ("model.attention", "fast"),
        ("run.epochs", 0),
        ("task", "dance"),
        ("data.flip", 1.5),
        ("model.drop_path", 1.0),
    ],
)
def test_a_wrong_value_names_its_key(key: str, value: object) -> None:
    tree: dict[str, object] = {}
    section, _, leaf = key.rpartition(".")
    if section:
        tree[section] = {leaf: value}
    else:
        tree[leaf] = value
    with pytest.raises(RecipeError, match=key.replace(".", r"\.")):
        build_recipe(tree)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("2", 2),
        ("false", False),
        ("[0.9, 0.95]", [0.9, 0.95]),
        ("", ""),
        ("a b", "a b"),
        ("1.5e-4", 1.5e-4),
    ],
)
def test_override_values_are_what_they_look_like(text: str, value: object) -> None:
    parsed = parse_value(text)
    assert parsed == value
    assert type(parsed) is type(value)


def test_overrides_are_split_and_laid_over_the_recipe() -> None:
    ours, theirs = split_overrides(["run.max_steps=20", "ds.zero_optimization.stage=3", "data.train=/a=b.csv"])
    assert theirs == {"zero_optimization.stage": 3}
    recipe = load_recipe("demo_pretrain", ours)
    assert recipe.run.max_steps == 20
    assert recipe.data.train == "/a=b.csv"
    assert recipe.model.arch == "vit_micro", "the recipe's own values stay"


@pytest.mark.parametrize("item", ["run.max_steps", "=3", "--run.max_steps"])
def test_an_argument_that_is_no_override_is_an_error(item: str) -> None:
    with pytest.raises(RecipeError, match=r"section\.key=value"):
        split_overrides([item])


def test_an_override_through_a_value_is_an_error() -> None:
    with pytest.raises(RecipeError, match="is a value, not a section"):
        load_recipe("demo_pretrain", {"model.arch.size": 3})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("task: pretrain\ntask: classify\n", "key given twice"),
        ("a: &x [1]\nb: *x\n", "aliases"),
        ("a: [1\n", "not valid YAML"),
        ("- a\n- b\n", "key: value"),
        ("!!python/object/apply:os.system ['true']\n", "not valid YAML"),
    ],
)
def test_traps_in_a_recipe_file(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=message) as caught:
        load_yaml(path)
    assert str(path) in str(caught.value)


def test_missing_binary_and_unknown_recipes(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="nothing there"):
        load_yaml(tmp_path / "none.yaml")
    binary = tmp_path / "b.yaml"
    binary.write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(RecipeError):
        load_yaml(binary)
    with pytest.raises(RecipeError, match="--recipe demo_pretrain"):
        load_recipe("demo_pretrian")


def test_the_batch_arithmetic() -> None:
    recipe = build_recipe({"batch": {"total": 48, "micro": 4}, "run": {"epochs": 10}, "optim": {"warmup_epochs": 2}})
    schedule = resolve_schedule(recipe, world=3, videos=1000)
    assert (schedule.batch_micro, schedule.accumulation, schedule.steps_per_epoch) == (4, 4, 20)
    assert (schedule.total_steps, schedule.warmup_steps, schedule.stop_step) == (200, 40, 200)
    assert schedule.lr == pytest.approx(1.5e-4 * 48 / 256)


def test_stop_epoch_and_max_steps_never_change_the_schedule() -> None:
    base = {"batch": {"total": 10}, "optim": {"warmup_epochs": 1}}
    whole = resolve_schedule(build_recipe({**base, "run": {"epochs": 20}}), world=1, videos=100)
    stopped = resolve_schedule(build_recipe({**base, "run": {"epochs": 20, "stop_epoch": 12}}), world=1, videos=100)
    short = resolve_schedule(build_recipe({**base, "run": {"epochs": 20, "max_steps": 7}}), world=1, videos=100)
    assert stopped.total_steps == short.total_steps == whole.total_steps == 200
    assert (stopped.stop_step, short.stop_step) == (120, 7)


@pytest.mark.parametrize(
    ("tree", "world", "message"),
    [
        ({"batch": {"total": 16}}, 3, "batch.total does not divide over the ranks"),
        ({"batch": {"total": 16, "micro": 3}}, 2, "batch.micro does not divide"),
        ({"batch": {"total": 16, "micro": 16}}, 2, "batch.micro does not divide"),
        ({"batch": {"total": 2000}}, 1, "less than one step"),
        ({"batch": {"total": 16}, "run": {"epochs": 5}}, 1, "warm-up is as long"),
    ],
)
def test_a_batch_that_does_not_fit_says_what_would(tree: dict[str, object], world: int, message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        resolve_schedule(build_recipe(tree), world=world, videos=1000)
    assert caught.value.fix


def test_the_suggested_micro_batch_works() -> None:
    with pytest.raises(RecipeError) as caught:
        resolve_schedule(build_recipe({"batch": {"total": 24, "micro": 5}}), world=2, videos=100)
    micro = int(str(caught.value.fix).split("=")[1])
    tree = {"batch": {"total": 24, "micro": micro}, "optim": {"warmup_epochs": 1}}
    assert resolve_schedule(build_recipe(tree), world=2, videos=100).batch_micro == micro


@pytest.mark.parametrize(
    "tree",
    [
        {"batch": {"micro": 3}, "data": {"num_sample": 2}},
        {"task": "classify"},
        {"run": {"epochs": 3, "stop_epoch": 4}},
        {"data": {"flip": 0.5}},  # a mirrored built-in clip belongs to another class
    ],
)
def test_sections_that_contradict_each_other(tree: dict[str, object]) -> None:
    with pytest.raises(RecipeError):
        build_recipe(tree)


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_loads_states_its_source_and_survives_a_round_trip(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    assert recipe.about.source and recipe.about.published
    path = tmp_path / "again.yaml"
    path.write_text(dump_yaml(recipe))
    assert load_recipe(str(path)) == recipe


@pytest.mark.parametrize(
    ("name", "gpus", "lr", "min_lr"),
    [  # effective rates of the released scripts: base * batch / 256
        ("pretrain_videomae_small_k400", 32, 6e-4, 4e-5),
        ("pretrain_videomae_base_k400", 64, 1.2e-3, 8e-5),
        ("pretrain_videomae_large_k400", 64, 3e-4, 2e-5),
        ("pretrain_videomae_huge_k400", 64, 6e-4, 4e-5),
        ("pretrain_videomae_base_ucf101", 8, 2.25e-4, 7.5e-6),
        ("pretrain_videomaev2_base", 32, 4e-3, 4e-5),
        ("pretrain_videomaev2_large", 48, 6e-3, 6e-5),
        ("pretrain_videomaev2_huge", 64, 8e-3, 8e-5),
        ("pretrain_videomaev2_giant", 64, 4.8e-3, 8e-5),
    ],
)
def test_the_released_recipes_have_the_released_learning_rates(name: str, gpus: int, lr: float, min_lr: float) -> None:
    schedule = resolve_schedule(load_recipe(name), world=gpus, videos=240_000)
    assert schedule.accumulation == 1, "the script's own number of GPUs needs no accumulation"
    assert schedule.lr == pytest.approx(lr)
    assert schedule.min_lr == pytest.approx(min_lr)


def test_the_contract_s_keys_exist() -> None:
    promised = """task model.arch model.init
    model.num_classes model.drop_path model.attention data.train data.val data.test
    data.num_frames data.sampling_rate data.view_fps data.input_size data.num_workers data.decoder pretrain.mask_ratio
    pretrain.decoder_mask_ratio optim.layer_decay optim.base_lr optim.lr_scale_batch batch.total batch.micro run.epochs
    run.samples_per_epoch run.stop_epoch run.max_steps run.seed run.log_every run.save_every run.keep""".split()
    assert set(promised) <= set(all_keys())
