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
    recipe_names,
    split_overrides,
)
from dsvid.strict_yaml import load_yaml, parse_value

CLASSIFY = {"task": "classify", "model": {"num_classes": 8}}


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


@pytest.mark.parametrize(
    "tree",
    [
        {"batch": {"micro": 3}, "data": {"num_sample": 2}},
        {"task": "classify"},
        {"run": {"epochs": 3, "stop_epoch": 4}},
        {"data": {"flip": 0.5}},  # a mirrored built-in clip belongs to another class
        {"data": {"augment": {"mixup": 0.8}}},  # pre-training has no targets to mix
        {"model": {"linear_probe": True}},
        {"model": {"compile_mode": "reduce-overhead"}},  # without compile
        {"task": "classify", "model": {"num_classes": 8, "linear_probe": True, "freeze_blocks": 2}},
        {"task": "classify", "model": {"num_classes": 8, "head_map": "map.json"}},  # without model.init
        {"data": {"augment": {"crop_area": [0.5, 0.1]}}},
        {"data": {"augment": {"erase_area": [0.1, 1.5]}}},
        {"batch": {"micro_limit": 1}, "data": {"num_sample": 2}},
        {"data": {"jpeg_decoder": "gpu"}},  # the built-in clips are no packed ones
        {"data": {"train": "shards", "jpeg_decoder": "gpu", "cache_mb": 10}},
        {"data": {"train": "shards", "jpeg_decoder": "gpu", "augment": {"erase_prob": 0.2}}},
        {**CLASSIFY, "data": {"train": "shards", "jpeg_decoder": "gpu", "augment": {"mixup": 0.8}}},
        {**CLASSIFY, "data": {"train": "shards", "jpeg_decoder": "gpu", "augment": {"policy": "rand-m7-n4"}}},
    ],
)
def test_sections_that_contradict_each_other(tree: dict[str, object]) -> None:
    with pytest.raises(RecipeError):
        build_recipe(tree)


def test_packed_clips_may_be_decoded_on_the_gpu_where_they_are_cropped_and_flipped_only() -> None:
    data = {"train": "shards", "jpeg_decoder": "gpu", "flip": 0.5}
    assert build_recipe({"data": data}).data.jpeg_decoder == build_recipe({**CLASSIFY, "data": data}).data.jpeg_decoder
    with pytest.raises(RecipeError, match=r"data\.jpeg_decoder has no effect in task anomaly"):
        load_recipe("demo_anomaly", {"data.train": "shards", "data.jpeg_decoder": "gpu"})


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_loads_states_its_source_and_survives_a_round_trip(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    assert recipe.about.source and recipe.about.published
    path = tmp_path / "again.yaml"
    path.write_text(dump_yaml(recipe))
    assert load_recipe(str(path)) == recipe


def test_the_contract_s_keys_exist() -> None:
    promised = """task model.arch model.init
    model.num_classes model.drop_path model.attention data.train data.val data.test
    data.num_frames data.sampling_rate data.view_fps data.input_size data.num_workers data.decoder pretrain.mask_ratio
    pretrain.decoder_mask_ratio optim.layer_decay optim.base_lr optim.lr_scale_batch batch.total batch.micro run.epochs
    run.samples_per_epoch run.stop_epoch run.max_steps run.seed run.log_every run.save_every run.keep""".split()
    assert set(promised) <= set(all_keys())


@pytest.mark.parametrize(
    ("recipe", "word"),
    [
        ("demo_anomaly", "classify.label_smoothing=0.3"),
        ("demo_anomaly", "data.augment.crop_area=[0.5, 1.0]"),
        ("demo_anomaly", "pretrain.mask_ratio=0.5"),
        ("demo_finetune", "anomaly.loss=focal"),
        ("demo_pretrain", "detect.max_boxes=3"),
        ("demo_dapt", "data.augment.erase_prob=0.5"),
        ("demo_dapt", "data.train_limit=5"),
    ],
)
def test_a_key_without_effect_in_the_task_is_an_error(recipe: str, word: str) -> None:
    with pytest.raises(RecipeError, match=f"{word.partition('=')[0]} has no effect"):
        load_recipe(recipe, split_overrides([word])[0])


@pytest.mark.parametrize(
    ("registered", "own"),
    [
        *((f"vit_{size}_patch16_224", f"vit_{size}") for size in ("tiny", "small", "base", "large", "huge")),
        ("vit_giant_patch14_224", "vit_giant"),
        ("pretrain_videomae_giant_patch14_224", "vit_giant"),
        ("pretrain_mae_small_patch16_224", "vit_small"),
        ("mvd_vit_large_patch16_224", "vit_large"),
        *((f"internvideo2_{size}_patch14_224", f"internvideo2_{size}") for size in ("small", "base", "large")),
    ],
)
def test_a_model_is_known_by_the_name_in_the_originals_registries(registered: str, own: str) -> None:
    from dsvid.models import encoder_size

    assert build_recipe({"model": {"arch": registered}}).model.arch == own
    assert f"_patch{encoder_size(own).patch}_" in registered


@pytest.mark.parametrize(
    ("registered", "said"),
    [
        ("vit_huge_patch14_224", "vit_huge, whose patches are of 16 pixels; others with model.patch=14"),
        ("vit_base_patch16_384", "vit_base; the size of a frame is data.input_size=384"),
    ],
)
def test_a_registered_name_that_says_something_else_is_an_error(registered: str, said: str) -> None:
    with pytest.raises(RecipeError) as raised:
        build_recipe({"model": {"arch": registered}})
    assert "model.arch" in raised.value.what and said in str(raised.value)
