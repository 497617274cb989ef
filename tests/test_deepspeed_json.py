"""The DeepSpeed JSON: strictness, unknown keys at every level, autos, refused combinations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dsvid import deepspeed_json as dj
from dsvid.errors import RecipeError
from dsvid.recipe import Recipe, build_recipe
from dsvid.schedule import Schedule, resolve_schedule

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted((ROOT / "ds_configs").glob("*.json"))


def job(**optim: Any) -> tuple[Recipe, Schedule]:
    recipe = build_recipe({"batch": {"total": 16}, "run": {"epochs": 40}, "optim": {"warmup_epochs": 2, **optim}})
    return recipe, resolve_schedule(recipe, world=2, videos=1600)


def resolved(tree: dict[str, Any], **optim: Any) -> dict[str, Any]:
    recipe, schedule = job(**optim)
    return dj.resolve(tree, {}, recipe, schedule)


def test_six_configs_are_shipped() -> None:
    assert {path.stem for path in CONFIGS} == {
        "zero1",
        "zero2",
        "zero3",
        "zero2_fp16",
        "zero2_offload",
        "zero3_offload",
    }


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_config_resolves_without_a_single_auto_left(path: Path) -> None:
    config = resolved(dj.load_ds_config(path), layer_decay=0.75)
    assert "auto" not in json.dumps(config)
    assert config["train_batch_size"] == 16
    assert config["train_micro_batch_size_per_gpu"] == 8
    assert config["optimizer"]["params"]["lr"] == pytest.approx(1.5e-4 / 16)
    assert config["scheduler"]["params"] == {
        "total_num_steps": 4000, "warmup_num_steps": 200, "cos_min_ratio": pytest.approx(1 / 15),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("tree", "wrong", "near"),
    [
        ({"zero_optimisation": {}}, "zero_optimisation", "zero_optimization"),
        ({"zero_optimization": {"stag": 2}}, "zero_optimization.stag", "zero_optimization.stage"),
        ({"zero_optimization": {"offload_optimizer": {"devise": "cpu"}}}, "offload_optimizer.devise", "device"),
        ({"bf16": {"enable": True}}, "bf16.enable", "bf16.enabled"),
        ({"optimizer": {"type": "AdamW", "params": {"weight_deacy": 1}}}, "weight_deacy", "weight_decay"),
        ({"scheduler": {"type": "WarmupCosineLR", "params": {"total_steps": 1}}}, "total_steps", "total_num_steps"),
        ({"optimizer": {"type": "AdmaW"}}, "AdmaW", "AdamW"),
        ({"scheduler": {"type": "WarmupCosinLR"}}, "WarmupCosinLR", "WarmupCosineLR"),
        ({"activation_checkpointing": {"cpu_checkpoint": True}}, "cpu_checkpoint", "cpu_checkpointing"),
    ],
)
def test_a_typo_at_any_level_names_the_nearest_key(tree: dict[str, Any], wrong: str, near: str) -> None:
    with pytest.raises(RecipeError) as caught:
        dj.check_keys(tree)
    assert wrong in str(caught.value)
    assert near in str(caught.value.fix)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"bf16": {"enabled": true},}', "not strict JSON"),
        ('{"bf16": {"enabled": true} // comment\n}', "not strict JSON"),
        ("{'bf16': 1}", "not strict JSON"),
        ('{"steps_per_print": 1, "steps_per_print": 2}', "given twice"),
        ('{"gradient_clipping": NaN}', "NaN"),
        ("[1]", "JSON object"),
        ("", "not strict JSON"),
        ('{"zero_optimization": 2}', "JSON object"),
        ('{"bf16": {"enabled": "auto"}}', "cannot be"),
    ],
)
def test_what_is_not_strict_json(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "ds.json"
    path.write_text(text)
    with pytest.raises(RecipeError, match=message):
        dj.load_ds_config(path)


def test_missing_folder_and_binary_files(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="nothing there"):
        dj.load_ds_config(tmp_path / "none.json")
    with pytest.raises(RecipeError, match="a folder"):
        dj.load_ds_config(tmp_path)
    (tmp_path / "b.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="not text"):
        dj.load_ds_config(tmp_path / "b.json")
    (tmp_path / "deep.json").write_text("[" * 100_000)
    with pytest.raises(RecipeError):
        dj.load_ds_config(tmp_path / "deep.json")


@pytest.mark.parametrize("kind", dj.ERASING_SCHEDULERS)
def test_a_scheduler_that_would_erase_layer_decay_is_refused(kind: str) -> None:
    tree = {"scheduler": {"type": kind, "params": {}}}
    with pytest.raises(RecipeError, match="erase the layer-wise lr decay"):
        resolved(tree, layer_decay=0.75)
    assert resolved(tree)["scheduler"]["type"] == kind, "without layer decay it may be used"


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"train_batch_size": 32}, "contradicts the recipe"),
        ({"gradient_accumulation_steps": 4}, "contradicts the recipe"),
        ({"fp16": {"enabled": True}, "bf16": {"enabled": True}}, "both enabled"),
        ({"fp16": {"enabled": True}}, "stage 1, 2 or 3"),
        ({"zero_optimization": {"stage": 2, "round_robin_gradients": True}}, "round_robin_gradients"),
        ({"zero_optimization": {"stage": 2, "allgather_bucket_size": 500000001}}, "allgather_bucket_size=500000002"),
        ({"zero_optimization": {"stage": 1, "elastic_checkpoint": True}}, "elastic_checkpoint"),
        ({"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "nvme"}}}, "offload_optimizer.device"),
        ({"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}}}, "offload_param.device"),
        ({"checkpoint": {"use_node_local_storage": True}}, "use_node_local_storage"),
        ({"zero_optimization": {"stage": 4}}, "0, 1, 2 or 3"),
        ({"activation_checkpointing": {"partition_activations": True}}, "needs model parallelism"),
        ({"zero_optimization": {"stage": 2, "reduce_bucket_size": "abc"}}, "reduce_bucket_size"),
        ({"zero_optimization": {"stage": 3, "stage3_max_live_parameters": "x"}}, "stage3_max_live_parameters"),
        ({"zero_optimization": {"stage": 2, "allgather_bucket_size": True}}, "allgather_bucket_size"),
        ({"gradient_clipping": "abc"}, "gradient_clipping"),
        ({"gradient_clipping": -1}, "gradient_clipping"),
        ({"activation_checkpointing": {"number_checkpoints": 0}}, "number_checkpoints"),
        ({"activation_checkpointing": {"number_checkpoints": True}}, "number_checkpoints"),
        ({"activation_checkpointing": {"number_checkpoints": 2.5}}, "number_checkpoints"),
        ({"activation_checkpointing": {"profile": True}}, "profile has no effect"),
        ({"activation_checkpointing": {"contiguous_memory_optimization": True}}, "has no effect"),
        ({"zero_optimization": {"stage": "3"}}, "0, 1, 2 or 3"),
        ({"bf16": {"enabled": 1}}, "true or false"),
    ],
)
def test_combinations_that_go_wrong_are_refused(tree: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        resolved(tree)


def test_overrides_reach_the_json_and_are_checked_too() -> None:
    recipe, schedule = job()
    config = dj.resolve({}, {"zero_optimization.stage": 3, "optimizer.params.lr": 0.5}, recipe, schedule)
    assert (config["zero_optimization"]["stage"], config["optimizer"]["params"]["lr"]) == (3, 0.5)
    with pytest.raises(RecipeError, match="zero_optimization.stage"):
        dj.resolve({}, {"zero_optimization.stge": 3}, recipe, schedule)


def test_the_key_tables_are_the_installed_deepspeed_s() -> None:
    from deepspeed.monitor.config import CSVConfig, TensorBoardConfig, WandbConfig
    from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from deepspeed.runtime.zero.offload_config import (
        DeepSpeedZeroOffloadOptimizerConfig,
        DeepSpeedZeroOffloadParamConfig,
    )

    for section, model in {
        "zero_optimization": DeepSpeedZeroConfig,
        "zero_optimization.offload_param": DeepSpeedZeroOffloadParamConfig,
        "zero_optimization.offload_optimizer": DeepSpeedZeroOffloadOptimizerConfig,
        "bf16": DeepSpeedBF16Config,
        "fp16": DeepSpeedFP16Config,
        "tensorboard": TensorBoardConfig,
        "csv_monitor": CSVConfig,
        "wandb": WandbConfig,
    }.items():
        theirs = {field.alias or name for name, field in model.model_fields.items()}
        assert set(dj.SECTIONS[section]) <= theirs, section


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_deepspeed_itself_accepts_what_we_hand_over(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from deepspeed.runtime.config import DeepSpeedConfig

    from dsvid.engine import _for_deepspeed

    recipe, _ = job()
    schedule = resolve_schedule(recipe, world=1, videos=1600)
    config = dj.resolve(dj.load_ds_config(path), {}, recipe, schedule)
    parsed = DeepSpeedConfig(_for_deepspeed(config))
    assert parsed.train_batch_size == 16
    assert parsed.zero_optimization_stage == config["zero_optimization"]["stage"]
