"""The typed recipe of a run: its keys, defaults, YAML files and `a.b=v` overrides. Imports no torch.

The DeepSpeed JSON is `dsvid.deepspeed_json`'s, the batch and schedule arithmetic `dsvid.schedule`'s.
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from dsvid.errors import RecipeError
from dsvid.strict_yaml import load_yaml, parse_value

RECIPE_FOLDER = Path(__file__).resolve().parent / "recipes"
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Section(BaseModel):
    """Base of every section: immutable, and a key it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class About(Section):
    source: str = Field("", description="script or paper the values come from")
    published: str = Field("", description="number the authors report with it")
    gpus: int = Field(0, ge=0, description="devices of the published run; 0 = not known")
    note: str = ""


class ModelConfig(Section):
    arch: str = "vit_base"
    init: str = Field("", description="weights to start from: a file or folder of any known family; empty = random")
    init_family: str = Field("auto", description="the family of model.init; auto = by its tensor names")
    final_norm: Literal["family", "simple_tad", "ava"] = Field(
        "family", description="what becomes of the norm behind the encoder of a pre-training file (docs/checkpoints.md)"
    )
    head_map: str = Field("", description="file: for each class, the class of model.init's head it starts from")
    freeze_blocks: int = Field(
        0, ge=0, description="the patch embedding and the first n blocks, save their norms, rest"
    )
    linear_probe: bool = Field(False, description="train the head alone")
    num_classes: int = Field(0, ge=0)
    heads: int = Field(0, ge=0, description="attention heads; 0 = the architecture's own")
    tubelet: int = Field(2, ge=1)
    positions: Literal["sincos_flat", "sincos_separable", "sincos_umt", "learned", "learned_separate"] = "sincos_flat"
    gelu: Literal["erf", "tanh"] = "erf"
    drop_path: float = Field(0.0, ge=0, lt=1)
    head_drop: float = Field(0.0, ge=0, lt=1)
    head_init_scale: float = Field(0.001, gt=0)
    attention: Literal["auto", "flash_attn", "sdpa", "math"] = "auto"
    decoder: Literal["videomae", "videomaev2"] = "videomae"
    decoder_dim: int = Field(0, ge=0, description="0 = the size's own")
    decoder_depth: int = Field(0, ge=0, description="0 = the size's own")
    decoder_heads: int = Field(0, ge=0, description="0 = the size's own")
    compile: bool = False


class AugmentConfig(Section):
    policy: str = Field("", description="timm's RandAugment string, as rand-m7-n4-mstd0.5-inc1; empty = none")
    crop_area: tuple[float, float] = Field((0.08, 1.0), description="random_resized: share of the frame")
    crop_aspect: tuple[float, float] = Field((0.75, 1.3333), description="random_resized: width / height")
    erase_prob: float = Field(0.0, ge=0, le=1, description="random erasing: one box of noise for all frames")
    erase_area: tuple[float, float] = (0.02, 0.3333)
    erase_aspect: float = Field(0.3, gt=0, le=1, description="aspect from this to its inverse")
    erase_count: int = Field(1, ge=1)
    mixup: float = Field(0.0, ge=0, description="alpha of the Beta law; 0 = no mixup")
    cutmix: float = Field(0.0, ge=0, description="alpha of the Beta law; 0 = no cutmix")
    cutmix_minmax: tuple[float, float] | None = Field(None, description="sides of the box as shares, instead of alpha")
    mix_prob: float = Field(1.0, ge=0, le=1, description="share of the pairs that are mixed")
    cutmix_share: float = Field(0.5, ge=0, le=1, description="cutmix among the mixed pairs, where both are on")

    @property
    def mixes(self) -> bool:
        """Whether any pair of clips is mixed."""
        return self.mix_prob > 0 and (self.mixup > 0 or self.cutmix > 0 or self.cutmix_minmax is not None)


class DataConfig(Section):
    train: str = "builtin"
    val: str = ""
    test: str = ""
    labels: str = Field("", description="file with the names of the classes, one a line, from class 0 on")
    root: str = Field("", description="folder that relative paths of a list start from; empty = the list's own folder")
    num_frames: int = Field(16, ge=1)
    sampling_rate: int = Field(4, ge=1, description="distance of two sampled frames, in frames of the file")
    view_fps: float | None = Field(None, gt=0)
    sampling: Literal["stride", "dense", "segment"] = Field(
        "stride", description="stride: pre-training, frames at one distance; dense and segment: fine-tuning rules"
    )
    input_size: int = Field(224, ge=1)
    short_side: int = Field(0, ge=0, description="the short side becomes this; 0: not in training, input_size in tests")
    crop: Literal["multi_scale", "random_resized", "random", "center"] = "multi_scale"
    augment: AugmentConfig = AugmentConfig()
    flip: float = Field(0.0, ge=0, le=1)
    num_sample: int = Field(1, ge=1, description="clips cut from one decoded video (repeated augmentation)")
    num_workers: int = Field(4, ge=0)
    prefetch: int = Field(2, ge=1)
    cache_mb: int = Field(0, ge=0, description="decoded frames of short videos that each loader process keeps, in MB")
    decoder: Literal["auto", "decord", "pyav"] = "auto"
    max_bad_fraction: float = Field(0.01, ge=0, le=1)
    bad_grace: int = Field(10, ge=0, description="this many unreadable clips never stop a run")
    train_limit: int = Field(0, ge=0, description="use only the first n entries of the training list; 0 = all")
    frame_name: str = "img_{:05}.jpg"
    frame_start: int = Field(1, ge=0)
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD


class PretrainConfig(Section):
    mask_ratio: float = 0.9
    decoder_mask_ratio: float = Field(0.0, description="0 = VideoMAE, 0.5 = VideoMAE V2 dual masking")
    norm_pix: bool = True


class ClassifyConfig(Section):
    label_smoothing: float = Field(0.1, ge=0, lt=1)


class DetectFiles(Section):
    truth: str = Field("", description="ground-truth csv; empty = the boxes of the annotations")
    people: str = Field("", description="person boxes, json or csv; empty = the annotated boxes, with score 1")
    excluded: str = Field("", description="csv of key frames that do not count; empty = none")


SeedFault = Literal["swapped_sides", "cut_boxes", "batch_padding"]


class DetectConfig(Section):
    clips: str = Field("clips/trainval", description="folder of <video>/<second>.mp4, or of whole videos")
    start_s: float = Field(0.0, ge=0, description="second of the first frame of whole videos")
    video_list: str = Field("", description="names of the videos, whose places number images; for annotations as csv")
    seconds: str = Field("902-1798", description="key frames of every video, for annotations as csv")
    classes: tuple[int, ...] = Field((), description="class numbers that count, each a column; empty = 1, 2, 3, …")
    person_score: float = Field(0.8, ge=0, le=1, description="person boxes below it are left out")
    max_boxes: int = Field(100, ge=1, description="most boxes of a training clip")
    colour: bool = Field(True, description="colour jitter in training")
    exclude_training: str = Field("", description="csv of key frames that are not trained on; the seed trains on all")
    loss_clips: float = Field(
        0.0,
        ge=0,
        description="clips a GPU of the published run, whose loss grew with them; 0 = those of the micro-batch",
    )
    seed_faults: tuple[SeedFault, ...] = Field((), description="faults of the original code to have back (docs/ava.md)")
    protocol: Literal["seed", "official", "mmaction2"] = "seed"
    val: DetectFiles = DetectFiles()
    test: DetectFiles = DetectFiles()


class AnomalyConfig(Section):
    layout: Literal["dota", "dada"] = "dota"
    loss: Literal["crossentropy", "focal", "focal6x100", "focal2_2", "focal2_6", "smoothap", "2bce", "exponential1"] = (
        "crossentropy"
    )
    class_weights: tuple[float, float] = Field((1.0, 1.0), description="of safe and anomaly, in crossentropy")
    eval_rate: int = Field(0, ge=0, description="data.sampling_rate of evaluations; 0 = 1, every frame is a target")
    padding: Literal["none", "repeat"] = Field(
        "none", description="evaluation: repeat shows the first frame again, so that a clip's first frames count too"
    )
    nearest: bool = Field(False, description="a frame rate that data.view_fps does not divide: the nearest frames")
    driving: bool = Field(True, description="training: borders of twelve kinds around the frame, before the squash")


class OptimConfig(Section):
    base_lr: float = Field(1.5e-4, gt=0)
    min_lr: float = Field(1e-5, ge=0, description="scaled like base_lr")
    lr_scale_batch: int = Field(256, ge=1)
    warmup_epochs: float = Field(40, ge=0)
    warmup_steps: int = Field(0, ge=0, description="instead of warmup_epochs, where it is not 0")
    weight_decay: float = Field(0.05, ge=0)
    weight_decay_end: float | None = Field(
        None, ge=0, description="half a cosine from weight_decay to this; null = none"
    )
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = Field(1e-8, gt=0)
    clip_grad: float = Field(0.0, ge=0, description="0 = no clipping")
    layer_decay: float = Field(1.0, gt=0, le=1)
    ema_decay: float = Field(0.0, ge=0, lt=1, description="exponential moving average of the weights; 0 = none")


class BatchConfig(Section):
    total: int = Field(256, ge=1, description="clips per optimizer step over all ranks")
    micro: int = Field(0, ge=0, description="clips per rank per forward; 0 = total / ranks, within micro_limit")
    micro_limit: int = Field(0, ge=0, description="most clips per rank per forward where micro is 0; 0 = no limit")


class EvalConfig(Section):
    every_epochs: int = Field(0, ge=0, description="evaluate on data.val every n epochs; 0 = never")
    segments: int = Field(1, ge=1)
    crops: int = Field(1, ge=1)
    batch: int = Field(16, ge=1, description="views per rank per forward")
    merge: Literal["prob", "score"] = Field("prob", description="what is averaged over the views of a video")


def duration_s(text: str) -> float:
    """Seconds of `1d2h`, `23h30m`, `90m`, `45s` or a plain number of seconds; 0 of an empty text.

    Raises ValueError for anything else.
    """
    if not text:
        return 0.0
    found = re.fullmatch(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s?)?", text)
    if found is None:
        raise ValueError(f"{text!r} is not a time; write 23h30m, 90m, 45s or seconds")
    return sum(float(part or 0) * unit for part, unit in zip(found.groups(), (86400, 3600, 60, 1), strict=True))


class RunConfig(Section):
    epochs: int = Field(800, ge=1)
    samples_per_epoch: int = Field(0, ge=0, description="clips that make an epoch; 0 = the whole list")
    stop_epoch: int = Field(0, ge=0, description="stop after this epoch without changing the schedule; 0 = run.epochs")
    max_steps: int = Field(0, ge=0, description="stop after this step without changing the schedule; 0 = no limit")
    seed: int = 0
    log_every: int = Field(10, ge=1)
    save_every: int = Field(500, ge=0, description="steps; 0 = at the end only")
    keep: int = Field(2, ge=1, description="newest checkpoints that stay on disk")
    keep_every: int = Field(0, ge=0, description="checkpoints of every such step stay for good; 0 = none")
    bad_steps: int = Field(3, ge=0, description="steps in a row without finite numbers that send the run back, once")
    spike_factor: float = Field(10.0, ge=0, description="a loss this many times the usual is an alarm; 0 = no alarm")
    spike_back: bool = Field(False, description="such a loss sends the run back too")
    images_every: int = Field(0, ge=0, description="steps between reconstruction pictures; 0 = at the end only")
    max_time: str = Field("", description="save and stop after this wall time, as 23h30m, 90m or seconds; empty = none")
    watchdog_s: float = Field(1200, ge=0, description="end the run where nothing moves for so long; 0 = never")
    save_timeout_s: float = Field(7200, gt=0, description="the same for saving, loading and the start")

    @field_validator("max_time", mode="before")
    @classmethod
    def _readable_time(cls, value: object) -> str:
        text = str(value).strip()
        duration_s(text)
        return text

    @property
    def max_time_s(self) -> float:
        """Seconds of max_time; 0 = none."""
        return duration_s(self.max_time)


class Recipe(Section):
    about: About = About()
    task: Literal["pretrain", "classify", "detect", "anomaly"] = "pretrain"
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    pretrain: PretrainConfig = PretrainConfig()
    classify: ClassifyConfig = ClassifyConfig()
    detect: DetectConfig = DetectConfig()
    anomaly: AnomalyConfig = AnomalyConfig()
    optim: OptimConfig = OptimConfig()
    batch: BatchConfig = BatchConfig()
    eval: EvalConfig = EvalConfig()
    run: RunConfig = RunConfig()


# ---- reading -------------------------------------------------------------------------------------------------------


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
    if model.linear_probe and model.freeze_blocks:
        raise RecipeError(
            "model.linear_probe and model.freeze_blocks are both set",
            expected="one of them: a probe freezes every block",
            fix="model.freeze_blocks=0",
        )
    if (model.head_map or model.init_family != "auto") and not model.init:
        raise RecipeError(
            "model.head_map and model.init_family describe model.init, which is empty", fix="model.init=WEIGHTS"
        )
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
    _check_unused(recipe, crop="center", view_fps=recipe.data.view_fps, augment=how, short_side=0)


def _check_unused(recipe: Recipe, **needed: Any) -> None:
    """Raise RecipeError for a key that the task's data would not look at."""
    data, views = recipe.data, EvalConfig()
    rows = [(f"data.{key}", getattr(data, key), value) for key, value in needed.items()]
    rows += [("data.num_sample", data.num_sample, 1), ("data.sampling", data.sampling, "stride")]
    rows += [("data.cache_mb", data.cache_mb, 0)]
    rows += [(f"eval.{key}", getattr(recipe.eval, key), getattr(views, key)) for key in ("segments", "crops", "merge")]
    for key, value, expected in rows:
        if value != expected:
            raise RecipeError(
                f"{key} has no effect in task {recipe.task}", found=value, expected=expected, fix=f"{key}={expected}"
            )


def dump_yaml(recipe: Recipe) -> str:
    """The whole resolved recipe as YAML; `load_recipe` reads it back to an equal recipe."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
