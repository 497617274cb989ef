"""A job: everything that is settled before a device is used, and the objects that follow from it alone.

`resolve_job` does all checks that need no device. Knows no loop and no command line.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dsvid import deepspeed_json, ops
from dsvid import engine as ds
from dsvid.checkpoint import RunFolder
from dsvid.data.builtin import CLASSES, prepare
from dsvid.data.manifest import Manifest, open_split
from dsvid.errors import CheckpointError, RecipeError
from dsvid.models.attention import choose_backend
from dsvid.models.init import initial_value
from dsvid.models.spec import ModelSpec, build_model
from dsvid.objectives import ClassifyObjective, PretrainObjective
from dsvid.recipe import Recipe, Schedule, load_recipe, resolve_schedule, split_overrides
from dsvid.runtime import Ranks, log, pick_device
from dsvid.weights.load import initial_state


@dataclass(frozen=True)
class Job:
    """The settled job. `config` is the resolved DeepSpeed JSON; `facts` are what a checkpoint must share with it."""

    recipe: Recipe
    config: dict[str, Any]
    schedule: Schedule
    spec: ModelSpec
    folder: RunFolder
    ranks: Ranks
    device: torch.device
    facts: dict[str, Any]

    @property
    def pretrain(self) -> bool:
        return self.recipe.task == "pretrain"

    @property
    def test_list(self) -> str:
        """The list of the final test: data.test, else data.val, else nothing."""
        return "test" if self.recipe.data.test else "val" if self.recipe.data.val else ""


def resolve_job(
    recipe_name: str, ds_config: Path, overrides: list[str], *, out: Path, resume: str, ranks: Ranks
) -> Job:
    """Settle a job and check it. Raises DsvidError for anything the user has to mend; writes nothing."""
    ours, theirs = split_overrides(overrides)
    recipe = load_recipe(recipe_name, ours)
    tree = deepspeed_json.load_ds_config(ds_config)
    spec = model_spec(recipe)
    with torch.device("meta"):
        make_objective(recipe, build_model(spec, seed=None))  # finds every size that does not fit, without memory
    device = pick_device(ranks)
    lists = {split: open_list(recipe, split) for split in ("train", "val", "test") if getattr(recipe.data, split)}
    if "train" not in lists:
        raise RecipeError("data.train is empty", expected="a list file, a data-set root or builtin")
    videos, limit = len(lists["train"]), recipe.data.train_limit
    schedule = resolve_schedule(recipe, world=ranks.world, videos=min(limit, videos) if limit else videos)
    config = deepspeed_json.resolve(tree, theirs, recipe, schedule)
    ds.check_precision(config, device)
    check_backends(recipe, spec, device, deepspeed_json.precision(config))
    folder = RunFolder(out)
    folder.prepare(recipe, config, resume)
    facts = {
        "stage": deepspeed_json.get_dotted(config, "zero_optimization.stage") or 0,
        "precision": deepspeed_json.precision(config),
        "train_list": lists["train"].sha256,
    }
    return Job(recipe, config, schedule, spec, folder, ranks, device, facts)


def check_backends(recipe: Recipe, spec: ModelSpec, device: torch.device, precision: str) -> None:
    """Raise DsvidError where the weights to start from, the attention or the op that is asked for is not there."""
    if recipe.model.init and not Path(recipe.model.init).exists():
        raise CheckpointError(
            f"model.init={recipe.model.init}: nothing there",
            expected="a weight folder of dsvid or a VideoMAE .pth file",
        )
    size = spec.encoder_size
    choose_backend(recipe.model.attention, device.type, ds.DTYPES[precision], spec.grid.tokens, size.dim // size.heads)
    ops.backend(device.type)


def open_list(recipe: Recipe, split: str) -> Manifest:
    """The list of a split, its labels checked for classification. Raises DataError for a line that does not fit."""
    if getattr(recipe.data, split) == "builtin":
        # Said aloud: the first call on a machine draws and encodes 2200 clips.
        prepare(log=log.info)
    manifest = open_split(getattr(recipe.data, split), split, recipe.data.root)
    if recipe.task == "classify":
        manifest.check_labels(recipe.model.num_classes, limit=recipe.data.train_limit if split == "train" else 0)
    return manifest


def class_names(recipe: Recipe) -> list[str]:
    """Names of the classes where they are known (the built-in clips); else empty."""
    return list(CLASSES) if recipe.data.train == "builtin" and recipe.task == "classify" else []


def model_spec(recipe: Recipe) -> ModelSpec:
    """The model that a recipe asks for."""
    model = recipe.model
    return ModelSpec(
        task=recipe.task,
        arch=model.arch,
        num_frames=recipe.data.num_frames,
        input_size=recipe.data.input_size,
        tubelet=model.tubelet,
        num_classes=model.num_classes,
        positions=model.positions,
        drop_path=model.drop_path,
        head_drop=model.head_drop,
        head_init_scale=model.head_init_scale,
        attention=model.attention,
        decoder=model.decoder,
        decoder_dim=model.decoder_dim,
        decoder_depth=model.decoder_depth,
        decoder_heads=model.decoder_heads,
    )


def make_objective(recipe: Recipe, model: Any) -> PretrainObjective | ClassifyObjective:
    """The recipe's objective around `model`. Raises RecipeError where a ratio does not suit the grid."""
    mean, std = recipe.data.mean, recipe.data.std
    if recipe.task == "classify":
        smoothing = recipe.classify.label_smoothing
        return ClassifyObjective(model, model.grid, label_smoothing=smoothing, mean=mean, std=std)
    return PretrainObjective(
        model,
        model.grid,
        mask_ratio=recipe.pretrain.mask_ratio,
        decoder_mask_ratio=recipe.pretrain.decoder_mask_ratio,
        norm_pix=recipe.pretrain.norm_pix,
        mean=mean,
        std=std,
    )


def weights_config(recipe: Recipe, step: int) -> dict[str, Any]:
    """What `weights/config.json` says besides the format: the model, its input, its labels, where it comes from."""
    data = recipe.data
    return {
        "model": model_spec(recipe).to_config(),
        "input": {"mean": list(data.mean), "std": list(data.std), "sampling_rate": data.sampling_rate},
        "labels": class_names(recipe),
        "trained": {"steps": step, "clips": step * recipe.batch.total, "init": recipe.model.init},
    }


def build_engine(job: Job, *, fresh: bool) -> Any:
    """Model, initial values (not `fresh`: a checkpoint follows) and DeepSpeed engine. A collective at ZeRO-3."""
    recipe, spec = job.recipe, job.spec
    objective: Any = ds.build_module(lambda: make_objective(recipe, build_model(spec, seed=None)), job.config)
    if fresh:
        start: dict[str, Tensor] = {}
        if recipe.model.init:
            start, report = initial_state(Path(recipe.model.init), spec)
            log.info("weights   from %s\n          %s", recipe.model.init, "\n          ".join(report.lines()))
        options = objective.model.init_options()

        def value(name: str, shape: torch.Size) -> Tensor:
            own = name.removeprefix("model.")
            return start[own] if own in start else initial_value(own, shape, recipe.run.seed, **options)

        ds.fill_parameters(objective, value)
    objective.model.set_checkpointing(ds.checkpointing_function(job.config))
    return ds.build_engine(
        objective,
        job.config,
        layer_decay=recipe.optim.layer_decay,
        depth=spec.encoder_size.depth,
        compiled=recipe.model.compile,
    )
