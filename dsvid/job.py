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
from dsvid.data.decoder_choice import choose_decoder
from dsvid.data.device_jpegs import check_device, check_packed
from dsvid.data.loader import BadClips, TrainLoader
from dsvid.data.manifest import Manifest
from dsvid.data.randaugment import parse_policy
from dsvid.errors import CheckpointError, RecipeError
from dsvid.models.attention import choose_backend
from dsvid.models.flops import peak_flops, training_flops
from dsvid.models.init import initial_value
from dsvid.models.spec import ModelSpec, build_model
from dsvid.monitor import Monitor
from dsvid.optim import is_frozen
from dsvid.recipe import Recipe, load_recipe, split_overrides
from dsvid.runfolder import RunFolder
from dsvid.runtime import Ranks, log, on_first, pick_device, say_first, say_once, share
from dsvid.schedule import Schedule, resolve_schedule
from dsvid.stopping import Stopping
from dsvid.tasks import Task, task_of
from dsvid.watchdog import Watch
from dsvid.weights.card import read_card
from dsvid.weights.load import Start, open_start


@dataclass(frozen=True)
class Job:
    """The settled job. `config` is the resolved DeepSpeed JSON; `facts` are what a checkpoint must share with it;
    `paper` is the recipe without what the user changed; `lists` are the SHA-256 of the lists. `stop` and `watch` belong
    to this process: what asks it to stop, and where it is.
    """

    recipe: Recipe
    paper: Recipe
    config: dict[str, Any]
    schedule: Schedule
    spec: ModelSpec
    folder: RunFolder
    ranks: Ranks
    device: torch.device
    facts: dict[str, Any]
    lists: dict[str, str]
    stop: Stopping
    watch: Watch

    @property
    def pretrain(self) -> bool:
        return self.recipe.task == "pretrain"

    @property
    def task(self) -> Task:
        """What the recipe's task does."""
        return task_of(self.recipe)

    @property
    def test_list(self) -> str:
        """The list of the final test: data.test, else data.val, else nothing."""
        return "test" if self.recipe.data.test else "val" if self.recipe.data.val else ""


def resolve_job(
    recipe_name: str, ds_config: Path, overrides: list[str], *, out: Path, resume: str, ranks: Ranks, stop: Stopping
) -> Job:
    """Settle a job and check it. Raises DsvidError for anything the user has to mend; writes nothing."""
    ours, theirs = split_overrides(overrides)
    recipe = load_recipe(recipe_name, ours)
    tree = deepspeed_json.load_ds_config(ds_config)
    spec = model_spec(recipe)
    task = task_of(recipe)
    with torch.device("meta"):
        task.objective(recipe, build_model(spec, seed=None))  # finds every size that does not fit, without memory
    device = pick_device(ranks)
    splits = [split for split in ("train", "val", "test") if getattr(recipe.data, split)]
    lists = {split: task.open(recipe, split, log.info) for split in splits}
    if "train" not in lists:
        raise RecipeError("data.train is empty", expected="a list file, a data-set root or builtin")
    videos, limit = len(lists["train"]), recipe.data.train_limit
    schedule = resolve_schedule(recipe, world=ranks.world, videos=min(limit, videos) if limit else videos)
    config = deepspeed_json.resolve(tree, theirs, recipe, schedule)
    ds.check_precision(config, device)
    ds.check_reporters(config)
    check_backends(recipe, spec, device, deepspeed_json.precision(config))
    check_decoders(recipe, lists["train"], device)
    if recipe.data.augment.policy:
        parse_policy(recipe.data.augment.policy)
    task.class_names(recipe)
    for remark in [remark for split in splits for remark in task.remarks(recipe, split)]:
        if ranks.first:
            log.info("%s", remark)
    folder = RunFolder(out)
    folder.prepare(recipe, config, resume)
    if recipe.model.init and ranks.world == 1 and not folder.has_checkpoints():
        check_init(recipe.model.init)  # with more ranks rank 0 tells the others, once they are together
    facts = {
        "stage": deepspeed_json.get_dotted(config, "zero_optimization.stage") or 0,
        "precision": deepspeed_json.precision(config),
        "train_list": lists["train"].sha256,
    }
    hashes = {split: manifest.sha256 for split, manifest in lists.items()}
    paper = published(recipe_name, recipe)
    return Job(recipe, paper, config, schedule, spec, folder, ranks, device, facts, hashes, stop, Watch())


def published(recipe_name: str, recipe: Recipe) -> Recipe:
    """The recipe as its file has it; a file that needs the command line to be whole has published nothing."""
    try:
        return load_recipe(recipe_name)
    except RecipeError:
        return recipe


def check_init(init: str) -> None:
    """Raise CheckpointError where model.init is not there."""
    if not Path(init).expanduser().exists():
        raise CheckpointError(
            f"model.init={init}: nothing there", expected="a weight file or folder (docs/checkpoints.md)"
        )


def check_backends(recipe: Recipe, spec: ModelSpec, device: torch.device, precision: str) -> None:
    """Raise DsvidError where the attention or the op that is asked for is not there, or more blocks than there are."""
    size = spec.encoder_size
    if recipe.model.freeze_blocks > size.depth:
        raise RecipeError(
            "model.freeze_blocks is more than the model has",
            found=recipe.model.freeze_blocks,
            expected=f"0 .. {size.depth}",
        )
    choose_backend(recipe.model.attention, device.type, ds.DTYPES[precision], spec.grid.tokens, size.dim // size.heads)
    ops.backend(device.type)


def check_decoders(recipe: Recipe, train: object, device: torch.device) -> None:
    """Raise DataError where the decoders that are asked for are not there, or not for the training list."""
    if recipe.data.decoder != "auto":
        choose_decoder(recipe.data.decoder)
    if recipe.data.jpeg_decoder == "gpu":
        assert isinstance(train, Manifest), "the recipe checks it"
        check_packed(train)
        check_device(device)


def model_spec(recipe: Recipe) -> ModelSpec:
    """The model that a recipe asks for."""
    model = recipe.model
    return ModelSpec(
        task=recipe.task,
        arch=model.arch,
        num_frames=recipe.data.num_frames,
        input_size=recipe.data.input_size,
        tubelet=model.tubelet,
        dim=model.dim,
        depth=model.depth,
        heads=model.heads,
        patch=model.patch,
        mlp_hidden=model.mlp_hidden,
        num_classes=model.num_classes,
        positions=model.positions,
        gelu=model.gelu,
        final_norm="tokens" if model.final_norm == "ava" else "pooled",
        drop_path=model.drop_path,
        head_drop=model.head_drop,
        head_init_scale=model.head_init_scale,
        attention=model.attention,
        decoder=model.decoder,
        decoder_dim=model.decoder_dim,
        decoder_depth=model.decoder_depth,
        decoder_heads=model.decoder_heads,
        pool_heads=model.pool_heads,
        pool_dim=model.pool_dim,
    )


def weights_config(recipe: Recipe, step: int) -> dict[str, Any]:
    """What `weights/config.json` says besides the format: the model, its input, its labels, where it comes from."""
    data = recipe.data
    classes = {"classes": list(recipe.detect.classes)} if recipe.task == "detect" else {}
    return {
        "model": model_spec(recipe).to_config(),
        "input": {
            "mean": list(data.mean),
            "std": list(data.std),
            "sampling_rate": data.sampling_rate,
            "view_fps": data.view_fps,
            "short_side": data.short_side or data.input_size,
        },
        "labels": task_of(recipe).class_names(recipe),
        "trained": {"steps": step, "clips": step * recipe.batch.total, "init": recipe.model.init, **classes}
        | (
            {"norm_pix": recipe.pretrain.norm_pix, "mask_ratio": recipe.pretrain.mask_ratio}
            if recipe.task == "pretrain"
            else {}
        ),
    }


def build_engine(job: Job, *, fresh: bool, start: Start | None) -> Any:
    """Model, initial values (not `fresh`: a checkpoint follows) and DeepSpeed engine. A collective.

    `start` holds model.init's weights, on rank 0.
    """
    recipe, spec = job.recipe, job.spec
    objective: Any = ds.build_module(lambda: job.task.objective(recipe, build_model(spec, seed=None)), job.config)
    if fresh:
        given = share({f"model.{name}" for name in start.names} if start else set(), job.device)
        options = objective.model.init_options()

        def value(name: str, shape: torch.Size) -> Tensor:
            own = name.removeprefix("model.")
            if start is not None and own in start.names:
                return start.tensor(own)
            return initial_value(own, shape, recipe.run.seed, **options)

        ds.fill_parameters(objective, value, from_first=given, device=job.device)
    freeze(objective, recipe, spec)
    objective.model.set_checkpointing(
        ds.checkpointing_function(job.config), deepspeed_json.checkpointed_blocks(job.config)
    )
    return ds.build_engine(
        objective,
        job.config,
        layer_decay=recipe.optim.layer_decay,
        depth=spec.encoder_size.depth,
        weight_decay_end=recipe.optim.weight_decay_end,
        compile_mode=recipe.model.compile_mode if recipe.model.compile else None,
    )


def read_start(job: Job) -> Start | None:
    """The weights of model.init, on rank 0 alone (None elsewhere); all ranks fail if it fails. A collective."""
    model = job.recipe.model
    start: list[Start] = []

    def read() -> None:
        check_init(model.init)
        path = Path(model.init).expanduser()
        job.task.check_weights(job.recipe, path, read_card(path))
        start.append(
            open_start(
                Path(model.init).expanduser(), job.spec,
                family=model.init_family, final_norm=model.final_norm, head_map=model.head_map,
                fresh_decoder=model.fresh_decoder,
            )
        )  # fmt: skip
        log.info("weights   from %s\n          %s", model.init, "\n          ".join(start[0].report.lines()))

    on_first(job.ranks, job.device, f"reading model.init={model.init}", read)
    return start[0] if start else None


def freeze(objective: torch.nn.Module, recipe: Recipe, spec: ModelSpec) -> None:
    """Take the gradient from what model.freeze_blocks and model.linear_probe leave as it is."""
    model, depth = recipe.model, spec.encoder_size.depth
    for name, parameter in objective.named_parameters():
        if is_frozen(name, depth=depth, freeze_blocks=model.freeze_blocks, linear_probe=model.linear_probe):
            parameter.requires_grad_(False)


def make_loader(job: Job, step: int) -> TrainLoader:
    """This rank's micro-batches from place `step` of the stream on, in optimizer steps; nothing else decides on it."""
    return TrainLoader(
        job.recipe.data,
        "train",
        seed=job.recipe.run.seed,
        batch_total=job.schedule.batch_total,
        batch_micro=job.schedule.batch_micro,
        rank=job.ranks.rank,
        world=job.ranks.world,
        start_step=step,
        device=job.device,
        samples_per_epoch=job.recipe.run.samples_per_epoch,
        reader=job.task.reader(job.recipe, "train"),
    )


def make_monitor(job: Job, step: int, *, retest: bool = False) -> Monitor:
    """The monitor, which writes on rank 0; `retest`: the line of the final test is replaced."""
    schedule, pretrain = job.schedule, job.recipe.pretrain
    name = torch.cuda.get_device_name(job.device) if job.device.type == "cuda" else ""
    return Monitor(
        metrics=job.folder.metrics,
        tensorboard=job.folder.tensorboard,
        first=job.ranks.first,
        world=job.ranks.world,
        start_step=step,
        stop_step=schedule.stop_step,
        steps_per_epoch=schedule.steps_per_epoch,
        clips_per_step=schedule.batch_total,
        flops_per_clip=training_flops(
            job.spec, mask_ratio=pretrain.mask_ratio, decoder_mask_ratio=pretrain.decoder_mask_ratio
        ),
        peak_flops=peak_flops(name),
        retest=retest,
    )


def make_bad_clips(job: Job) -> BadClips:
    """The record of unreadable clips, which ends the run when there are too many."""
    data = job.recipe.data
    return BadClips(job.folder.bad_clips, rank=job.ranks.rank, max_fraction=data.max_bad_fraction, grace=data.bad_grace)


def counted(batch: dict[str, Any], bad: BadClips) -> dict[str, Any]:
    """The batch, its unreadable clips recorded; each file, and each remark of a decoder, is named once in the log."""
    for record in bad.add(batch):
        log.warning("unreadable clip: %s", record["error"])
    if bad.lost:
        say_first("lost bad clips", "%s", bad.lost)
    for remark in batch["notes"]:
        say_once("%s: %s", remark["path"], remark["note"])
    for _, path in batch["short"][:1]:
        say_first(
            "short",
            "some videos have fewer frames than a clip asks for, so frames are repeated (data.num_frames, "
            "data.sampling_rate, eval.segments); the first is %s",
            path,
        )
    return batch
