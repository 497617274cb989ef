"""`dsvid eval --weights W --recipe R`: test of a fine-tuned model, on one rank or many."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsvid.errors import CheckpointError, RecipeError

if TYPE_CHECKING:
    from dsvid.evaluate.classify import Evaluation
    from dsvid.recipe import Recipe
    from dsvid.tokens import TubeletGrid


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the subcommand."""
    parser.add_argument(
        "--weights", type=Path, required=True, help="fine-tuned weights: a folder of a run, or a file of any family"
    )
    parser.add_argument("--family", default=None, help="family of the file; default: the recipe's model.init_family")
    parser.add_argument(
        "--recipe", required=True, help="shipped name or YAML file: data.test, eval.segments, eval.crops"
    )
    parser.add_argument("--out", type=Path, default=None, help="folder for result.json and what else the task writes")
    parser.add_argument("--split", choices=("test", "val"), default="test")
    parser.add_argument("--play", choices=("forwards", "backwards", "still"), default="forwards",
                        help="play clips backwards, or their middle frame only")  # fmt: skip
    parser.add_argument("overrides", nargs="*", metavar="a.b=v")
    parser.epilog = "example: dsvid eval --weights runs/ft/weights --recipe demo_finetune eval.segments=2 eval.crops=3"


def run(args: argparse.Namespace) -> None:
    """Evaluate and print; rank 0 writes. Raises DataError where no video could be read."""
    import torch

    from dsvid import engine as ds
    from dsvid.evaluate.classify import Evaluation
    from dsvid.recipe import load_recipe, split_overrides
    from dsvid.runtime import log, pick_device, read_ranks, start_log
    from dsvid.tasks import TASKS, EvalRun, task_of, unreadable_split
    from dsvid.weights.card import read_card

    ranks = read_ranks()
    start_log(ranks)
    ours, theirs = split_overrides(args.overrides)
    if theirs:
        raise RecipeError("dsvid eval has no DeepSpeed JSON", found=f"ds.{next(iter(theirs))}", fix="leave it out")
    recipe = load_recipe(args.recipe, ours)
    task = task_of(recipe)
    if not task.scored:
        scored = ", ".join(name for name, each in TASKS.items() if each.scored)
        raise RecipeError("dsvid eval tests fine-tuned models", found=f"task: {recipe.task}", expected=scored)
    check_out(args.out)
    task.open(recipe, args.split, log.info)
    if ranks.first and recipe.task != "classify":  # of classes `report` says it, by the names in the weights
        for remark in task.remarks(recipe, args.split):
            log.info("%s", remark)
    card = read_card(args.weights)
    task.check_weights(recipe, args.weights, card)
    # model.init_family tells of the weights that the training began with
    family = args.family or ("auto" if card.model else recipe.model.init_family)
    model = fine_tuned(args.weights, recipe, family)
    recipe = with_pixels(recipe, card.input)
    device = pick_device(ranks)
    if ranks.world > 1:
        ds.start_distributed(device, ranks)
    objective = task.objective(recipe, model).to(device)
    run = EvalRun(ranks, device)
    result = task.evaluate(recipe, objective, args.split, run, final=True, play=args.play)
    if isinstance(result, Evaluation):
        result = replace(result, names=tuple(names_of_classes(recipe, args.split, list(card.labels))))
    if ranks.first and result.any_read:
        report(args, recipe, result)
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
    if not result.any_read:
        raise unreadable_split(args.split, result)


def check_out(out: Path | None) -> None:
    """Raise CheckpointError where --out cannot be a folder to write into: before the work, not after it."""
    if out is None:
        return
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"--out {out} cannot be written", found=error.strerror or str(error)) from error
    if not os.access(out, os.W_OK | os.X_OK):
        raise CheckpointError(f"--out {out} cannot be written", found="no permission")


def fine_tuned(path: Path, recipe: Recipe, family: str) -> Any:
    """The model of a weight folder or file, with its own head, for the recipe's clips.

    What the weights say of themselves (positions, GELU, heads, eps) holds; for files that say nothing the recipe does.
    Raises CheckpointError where it has no head, or one of another number of classes; RecipeError for another grid.
    """
    from dsvid.job import model_spec
    from dsvid.weights.load import load_model

    wanted = model_spec(recipe).grid
    model, report = load_model(path, family=family, attention=recipe.model.attention, **said_by(recipe, path))
    if report.missing or not model.num_classes:
        raise CheckpointError(
            f"--weights {path} is not a fine-tuned model",
            found=f"no {', '.join(report.missing[:3]) or 'head.weight'}",
            expected="weights with a head",
            fix=f"fine-tune them first: deepspeed dsvid/train.py --recipe finetune_… model.init={path}",
        )
    if model.num_classes != recipe.model.num_classes:
        raise CheckpointError(
            f"--weights {path} has another number of classes than the recipe",
            found=f"{model.num_classes} in the head, model.num_classes={recipe.model.num_classes}",
            fix=f"model.num_classes={model.num_classes} with lists that have these classes, or other weights",
        )
    if model.grid != wanted:
        raise RecipeError(
            f"--weights {path} does not suit the recipe",
            found=_clip_words(model.grid),
            expected=_clip_words(wanted),
            fix="the recipe of the weights, or its model.arch, model.tubelet, data.num_frames and data.input_size",
        )
    return model


def _clip_words(grid: TubeletGrid) -> str:
    size = f"{grid.frames} frames of {grid.height} x {grid.width}"
    return f"{size}, cut into {grid.tubelet} x {grid.patch} x {grid.patch}"


def said_by(recipe: Recipe, path: Path) -> dict[str, Any]:
    """The recipe's clip, and what else it says of a file that does not describe itself; at a key's default the family
    decides.
    """
    from dsvid.weights.card import read_card

    model = recipe.model
    said: dict[str, Any] = {"num_frames": recipe.data.num_frames, "image_size": recipe.data.input_size}
    if read_card(path).model.get("arch"):
        return said
    if recipe.task != "classify":
        said["task"] = recipe.task
    said["final_norm_policy"] = model.final_norm
    if model.positions != "sincos_flat":
        said["positions"] = model.positions
    if model.gelu != "erf":
        said["gelu"] = model.gelu
    if model.heads:
        said["num_heads"] = model.heads
    return said


def with_pixels(recipe: Recipe, stated: Mapping[str, Any]) -> Recipe:
    """The recipe with the pixel mean and std that the weights were trained with, where they say so; aloud."""
    from dsvid.runtime import log

    own = {key: tuple(stated[key]) for key in ("mean", "std") if stated.get(key)}
    differing = [key for key, value in own.items() if value != tuple(getattr(recipe.data, key))]
    for key in differing:
        log.warning("data.%s is %s, as the weights say, not the recipe's %s", key, own[key], getattr(recipe.data, key))
    return recipe.model_copy(update={"data": recipe.data.model_copy(update=own)}) if differing else recipe


def names_of_classes(recipe: Recipe, split: str, stored: list[str]) -> list[str]:
    """data.labels, else the names in the weights, else those of the built-in clips where they are evaluated."""
    from dsvid.tasks import task_of

    names = task_of(recipe).class_names(recipe)
    if recipe.data.labels:
        return names
    if len(stored) == recipe.model.num_classes:
        return stored
    return names if getattr(recipe.data, split) == "builtin" else []


def report(args: argparse.Namespace, recipe: Recipe, result: Any) -> None:
    """Write the result where --out says, print it, and name what could not be counted."""
    from dsvid.runtime import log

    extra: dict[str, Any] = {"split": args.split, "play": args.play}
    if recipe.task == "classify":
        extra |= classified(args.split, recipe, result)
    log.info("%s", result.line())
    shown = result.numbers() | extra
    log.info("%s", " ".join(f"{key} {v:.4g}" if isinstance(v, float) else f"{key} {v}" for key, v in shown.items()))
    for record in result.unreadable[:10]:
        log.warning("unreadable: %s", record["error"])
    if result.short:
        log.warning(
            "%d videos have fewer frames than %d frames at distance %d in %d segments ask for: frames are repeated; "
            "the first is %s (data.num_frames, data.sampling_rate, eval.segments)",
            len(result.short), recipe.data.num_frames, recipe.data.sampling_rate, recipe.eval.segments,
            result.short[0][1],
        )  # fmt: skip
    if args.out:
        result.write(args.out, extra)
        log.info("written to %s", args.out)


def classified(split: str, recipe: Recipe, result: Evaluation) -> dict[str, Any]:
    """What a classification says besides: classes without a video, and the opposite motions of the built-in clips."""
    import numpy as np

    from dsvid.data.builtin import REVERSED
    from dsvid.metrics.classification import topk_accuracy
    from dsvid.runtime import log

    empty = [result.name(i) for i, count in enumerate(result.confusion.sum(axis=1)) if not count]
    if empty:
        more = f" and {len(empty) - 8} more" if len(empty) > 8 else ""
        log.warning("%d classes have no video in data.%s: %s%s", len(empty), split, ", ".join(empty[:8]), more)
    if getattr(recipe.data, split) != "builtin":
        return {}
    opposite = np.asarray(REVERSED)[result.labels]
    return {"opposite_top1": topk_accuracy(result.scores, opposite, ks=(1,))[0]}
