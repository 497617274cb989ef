"""The recipe of a run: from YAML files and `a.b=v` overrides to checked sections. Imports no torch.

The DeepSpeed JSON is `dsvid.deepspeed_json`'s, the batch and schedule arithmetic `dsvid.schedule`'s.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from dsvid.errors import RecipeError
from dsvid.sections import (
    AnomalyConfig,
    AugmentConfig,
    DataConfig,
    DetectConfig,
    DetectFiles,
    EvalConfig,
    FootageConfig,
    FootageSource,
    Recipe,
    Section,
    duration_s,
)
from dsvid.strict_yaml import load_yaml, parse_value

__all__ = [
    "DEFAULT_RECIPE",
    "RECIPE_FOLDER",
    "AnomalyConfig",
    "AugmentConfig",
    "DataConfig",
    "DetectConfig",
    "DetectFiles",
    "EvalConfig",
    "FootageConfig",
    "FootageSource",
    "Recipe",
    "Section",
    "all_keys",
    "build_recipe",
    "check_jpeg_decoder",
    "dump_yaml",
    "duration_s",
    "load_recipe",
    "nearest",
    "recipe_names",
    "recipe_path",
    "set_dotted",
    "split_overrides",
]
RECIPE_FOLDER = Path(__file__).resolve().parent / "recipes"


# ---- reading -------------------------------------------------------------------------------------------------------

DEFAULT_RECIPE = "demo_pretrain"  # of a training without --recipe


def recipe_names() -> list[str]:
    """Names of the shipped recipes, sorted."""
    return sorted(path.stem for path in RECIPE_FOLDER.glob("*.yaml"))


def recipe_path(name: str) -> Path:
    """Path of a shipped recipe or of a YAML file. Raises RecipeError with the nearest name."""
    if name in recipe_names():
        return RECIPE_FOLDER / f"{name}.yaml"
    if name.endswith((".yaml", ".yml")) or Path(name).is_file():
        return Path(name)
    near = nearest(name, recipe_names())
    raise RecipeError(
        f"unknown recipe {name!r}",
        expected="a shipped recipe (`dsvid recipes` lists them) or a YAML file",
        fix=f"--recipe {near}" if near else "dsvid recipes",
    )


def nearest(word: str, known: list[str]) -> str | None:
    """The known word most like `word`, or None where none is alike."""
    found = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return found[0] if found else None


def split_overrides(items: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """`a.b=v` items -> ({dotted recipe key: value}, {dotted DeepSpeed key: value}). Raises RecipeError."""
    ours: dict[str, Any] = {}
    theirs: dict[str, Any] = {}
    for item in items:
        key, equals, text = item.partition("=")
        if not equals or not key:
            raise RecipeError(
                f"argument {item!r} is not understood",
                expected="`section.key=value`, for example run.max_steps=20 or ds.zero_optimization.stage=3",
            )
        if key.startswith("ds."):
            theirs[key[3:]] = parse_value(text)
        else:
            ours[key] = parse_value(text)
    return ours, theirs


def set_dotted(tree: dict[str, Any], key: str, value: Any) -> None:
    """Set `a.b.c` in a nested dict. Raises RecipeError where a part of the way is a value, not a section."""
    *way, last = key.split(".")
    node = tree
    for depth, part in enumerate(way):
        child = node.setdefault(part, {})
        if not isinstance(child, dict):
            raise RecipeError(
                f"{key}: {'.'.join(way[: depth + 1])} is a value, not a section", found=child, expected="a section"
            )
        node = child
    node[last] = value


def load_recipe(name: str, overrides: dict[str, Any] | None = None) -> Recipe:
    """Defaults <- recipe `name` (shipped, or a file) <- dotted overrides, validated. Raises RecipeError."""
    tree = load_yaml(recipe_path(name))
    for key, value in (overrides or {}).items():
        set_dotted(tree, key, value)
    return build_recipe(tree)


def build_recipe(tree: dict[str, Any]) -> Recipe:
    """Validate a plain tree. Raises RecipeError that names the dotted key and, for a typo, the nearest one."""
    try:
        recipe = Recipe.model_validate(tree)
    except ValidationError as error:
        raise _first_error(error) from error
    _check(recipe)
    return recipe


def _first_error(error: ValidationError) -> RecipeError:
    detail = error.errors()[0]
    key = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        near = _nearest_key(key)
        return RecipeError(
            f"unknown recipe key {key!r}",
            found=f"{key}={detail['input']!r}",
            expected="a key that the recipe has",
            fix=f"did you mean {near!r}?" if near else "`dsvid recipes NAME` prints every key",
        )
    said = detail["msg"].removeprefix("Value error, ")
    expected = said[0].lower() + said[1:]
    return RecipeError(f"recipe key {key!r} has a wrong value", found=repr(detail["input"]), expected=expected)


def all_keys(model: type[BaseModel] = Recipe, prefix: str = "") -> list[str]:
    """Every dotted key of the recipe, in order."""
    keys: list[str] = []
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            keys += all_keys(kind, f"{prefix}{name}.")
        else:
            keys.append(prefix + name)
    return keys


def _nearest_key(key: str) -> str | None:
    known = all_keys()
    same_leaf = [k for k in known if k.split(".")[-1] == key.split(".")[-1]]
    if same_leaf:
        return same_leaf[0]
    section, _, leaf = key.rpartition(".")
    inside = [k for k in known if section and k.startswith(section + ".")]
    near = nearest(leaf, [k.split(".")[-1] for k in inside])
    return f"{section}.{near}" if near else nearest(key, known + [k.split(".")[0] for k in known])


# ---- checks that need no torch and no device -----------------------------------------------------------------------


def _check(recipe: Recipe) -> None:
    repeat = recipe.data.num_sample
    if recipe.batch.micro % repeat or (recipe.batch.micro_limit and recipe.batch.micro_limit < repeat):
        key = "micro" if recipe.batch.micro else "micro_limit"
        raise RecipeError(
            f"batch.{key} must hold whole videos",
            found=f"batch.{key}={getattr(recipe.batch, key)}, data.num_sample={repeat}",
            expected=f"a multiple of {repeat}",
            fix=f"batch.{key}={max(1, getattr(recipe.batch, key) // repeat) * repeat}",
        )
    _check_training(recipe)
    _check_sections(recipe)
    check_jpeg_decoder(recipe.data)
    if recipe.data.jpeg_decoder == "gpu" and recipe.task not in ("pretrain", "classify"):
        raise RecipeError(f"data.jpeg_decoder has no effect in task {recipe.task}", found="gpu", fix=JPEG_CPU)
    if recipe.data.train == "footage":
        _check_footage(recipe)
    elif recipe.footage != FootageConfig():
        raise RecipeError(
            "footage.… is set, but not read", found=f"data.train={recipe.data.train}", fix="data.train=footage"
        )
    if recipe.task == "detect":
        _check_detect(recipe)
    elif recipe.task == "anomaly":
        _check_anomaly(recipe)
    elif recipe.data.flip > 0 and "builtin" in (recipe.data.train, recipe.data.val, recipe.data.test):
        raise RecipeError(
            "data.flip with the built-in clips",
            found=f"data.flip={recipe.data.flip}",
            expected="0: a mirrored clip belongs to another class (left and right, cw and ccw)",
            fix="data.flip=0",
        )
    if recipe.task == "classify" and recipe.model.num_classes < 2:
        raise RecipeError(
            "task classify needs the number of classes",
            found=f"model.num_classes={recipe.model.num_classes}",
            expected="2 or more",
            fix="model.num_classes=400",
        )
    if recipe.run.stop_epoch > recipe.run.epochs:
        raise RecipeError(
            "run.stop_epoch lies behind the end of the schedule",
            found=f"stop_epoch={recipe.run.stop_epoch}, epochs={recipe.run.epochs}",
            expected="stop_epoch <= epochs",
            fix=f"run.stop_epoch={recipe.run.epochs}",
        )


JPEG_CPU = "data.jpeg_decoder=cpu"


def check_jpeg_decoder(data: DataConfig) -> None:
    """Raise RecipeError where the GPU is to decode clips that are not packed, or are not only cropped and flipped."""
    how = data.augment
    for key, value, used, fix in (
        ("data.train", data.train, data.train in ("builtin", "footage"), JPEG_CPU),
        ("data.augment.policy", how.policy, bool(how.policy), JPEG_CPU),
        ("data.augment.erase_prob", how.erase_prob, how.erase_prob > 0, JPEG_CPU),
        ("data.augment.mixup and cutmix", (how.mixup, how.cutmix), how.mixes, JPEG_CPU),
        ("data.cache_mb", data.cache_mb, data.cache_mb > 0, "data.cache_mb=0"),
    ):
        if used and data.jpeg_decoder == "gpu":
            raise RecipeError(
                f"{key} does not go with data.jpeg_decoder=gpu", found=value,
                expected="packed shards whose clips are cropped and flipped, no more", fix=fix,
            )  # fmt: skip


def _check_training(recipe: Recipe) -> None:
    model, augment = recipe.model, recipe.data.augment
    if recipe.task == "pretrain":
        for key, on in (
            ("data.augment.mixup and cutmix", augment.mixes),
            ("model.linear_probe", model.linear_probe),
            ("model.freeze_blocks", model.freeze_blocks > 0),
            ("model.head_map", bool(model.head_map)),
        ):
            if on:
                raise RecipeError(f"{key}: only for fine-tuning", found="task=pretrain", fix="leave it out")
    if model.compile_mode != "default" and not model.compile:
        raise RecipeError(
            "model.compile_mode has no effect without model.compile", found=model.compile_mode, fix="model.compile=true"
        )
    if model.linear_probe and model.freeze_blocks:
        raise RecipeError(
            "model.linear_probe and model.freeze_blocks are both set",
            expected="one of them: a probe freezes every block",
            fix="model.freeze_blocks=0",
        )
    if (model.head_map or model.init_family != "auto" or model.fresh_decoder) and not model.init:
        raise RecipeError(
            "model.head_map, init_family and fresh_decoder describe model.init, which is empty",
            fix="model.init=WEIGHTS",
        )
    if model.fresh_decoder and recipe.task != "pretrain":
        raise RecipeError("model.fresh_decoder: only for pre-training", found=f"task={recipe.task}", fix="leave it out")
    for key, (low, high) in (
        ("crop_area", augment.crop_area),
        ("crop_aspect", augment.crop_aspect),
        ("erase_area", augment.erase_area),
        ("cutmix_minmax", augment.cutmix_minmax or (0.2, 0.8)),
    ):
        if not 0 < low <= high or (key != "crop_aspect" and high > 1):
            raise RecipeError(
                f"recipe key 'data.augment.{key}' has a wrong value",
                found=f"[{low}, {high}]",
                expected="0 < low <= high" + ("" if key == "crop_aspect" else " <= 1"),
            )


def _check_sections(recipe: Recipe) -> None:
    """Raise RecipeError where a section of another task is set."""
    defaults = Recipe()
    for task in ("pretrain", "classify", "detect", "anomaly"):
        own, default = getattr(recipe, task), getattr(defaults, task)
        if task != recipe.task and own != default:
            key = next(name for name in type(own).model_fields if getattr(own, name) != getattr(default, name))
            raise RecipeError(
                f"{task}.{key} has no effect in task {recipe.task}", found=getattr(own, key),
                fix=f"leave it out, or task={task}",
            )  # fmt: skip


def _check_detect(recipe: Recipe) -> None:
    model, data, detect = recipe.model, recipe.data, recipe.detect
    if model.num_classes < 1 or (detect.classes and len(detect.classes) != model.num_classes):
        raise RecipeError(
            "task detect needs the number of classes",
            found=f"model.num_classes={model.num_classes}, {len(detect.classes)} detect.classes",
            expected="80 for AVA, or as many as detect.classes lists",
            fix=f"model.num_classes={len(detect.classes) or 80}",
        )
    if model.final_norm != "ava":
        raise RecipeError(
            "task detect needs the norm over all tokens", found=f"model.final_norm={model.final_norm}",
            fix="model.final_norm=ava",
        )  # fmt: skip
    if data.short_side < data.input_size:
        raise RecipeError(
            "data.short_side is shorter than the crop",
            found=f"short_side={data.short_side}, input_size={data.input_size}",
            expected="the short side of the frames before the crop", fix="data.short_side=256 data.input_size=224",
        )  # fmt: skip
    if (data.val or data.test) and "builtin" in (data.train, data.val, data.test) and data.flip > 0:
        raise RecipeError("data.flip with the built-in figures: left would be right", fix="data.flip=0")
    _check_unused(recipe, crop="random", view_fps=None, augment=AugmentConfig(), short_side=data.short_side)


def _check_anomaly(recipe: Recipe) -> None:
    if recipe.model.num_classes != 2 or recipe.data.view_fps is None:
        raise RecipeError(
            "task anomaly has two classes, safe and anomaly, and a frame rate",
            found=f"model.num_classes={recipe.model.num_classes}, data.view_fps={recipe.data.view_fps}",
            fix="model.num_classes=2 data.view_fps=10",
        )
    if min(recipe.anomaly.class_weights) <= 0:
        raise RecipeError("anomaly.class_weights", found=recipe.anomaly.class_weights, expected="above 0")
    if recipe.anomaly.class_weights != (1.0, 1.0) and recipe.anomaly.loss != "crossentropy":
        raise RecipeError(
            f"anomaly.class_weights has no effect in loss {recipe.anomaly.loss}", fix="anomaly.loss=crossentropy"
        )
    how = recipe.data.augment
    if how.mixes:
        raise RecipeError("data.augment.mixup and cutmix: not for task anomaly", fix="leave them out")
    _check_augment(recipe, "policy", "erase_prob", "erase_area", "erase_aspect", "erase_count")
    _check_unused(recipe, crop="center", short_side=0, num_sample=recipe.data.num_sample)


def _check_footage(recipe: Recipe) -> None:
    if recipe.task != "pretrain" or not recipe.footage.first.index or recipe.data.view_fps is None:
        raise RecipeError(
            "data.train=footage is for pre-training on indexed footage",
            found=f"task={recipe.task}, footage.first.index={recipe.footage.first.index!r}, "
            f"data.view_fps={recipe.data.view_fps}",
            expected="task: pretrain, an index and a frame rate",
            fix="footage.first.index=bdd100k.csv (dsvid traffic index) data.view_fps=10",
        )
    data = recipe.data
    _check_augment(recipe, "policy")
    _check_unused(
        recipe, crop="multi_scale", sampling_rate=DataConfig().sampling_rate, short_side=0, flip=0.0, train_limit=0
    )
    if data.augment.policy and not recipe.footage.aligned:
        raise RecipeError("data.augment.policy has no effect without footage.aligned", fix="footage.aligned=true")


def _check_augment(recipe: Recipe, *used: str) -> None:
    """Raise RecipeError for a key of data.augment, other than those that are used, that is set."""
    defaults = AugmentConfig()
    for key in AugmentConfig.model_fields:
        value = getattr(recipe.data.augment, key)
        if key not in used and value != getattr(defaults, key):
            raise RecipeError(f"data.augment.{key} has no effect here", found=value, fix="leave it out")


def _check_unused(recipe: Recipe, **needed: Any) -> None:
    """Raise RecipeError for a key that the task's data would not look at."""
    data, views = recipe.data, EvalConfig()
    expected_data = {"num_sample": 1, "sampling": "stride", "cache_mb": 0, **needed}
    rows = [(f"data.{key}", getattr(data, key), value) for key, value in expected_data.items()]
    rows += [(f"eval.{key}", getattr(recipe.eval, key), getattr(views, key)) for key in ("segments", "crops", "merge")]
    for key, value, expected in rows:
        if value != expected:
            raise RecipeError(
                f"{key} has no effect in task {recipe.task}", found=value, expected=expected, fix=f"{key}={expected}"
            )


def dump_yaml(recipe: Recipe) -> str:
    """The whole resolved recipe as YAML; `load_recipe` reads it back to an equal recipe."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
