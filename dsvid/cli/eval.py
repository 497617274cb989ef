"""`dsvid eval --weights W --recipe R`: multi-view test of a fine-tuned model, on one rank or many."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsvid.errors import CheckpointError, RecipeError

if TYPE_CHECKING:
    from dsvid.recipe import Recipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the subcommand."""
    parser.add_argument(
        "--weights", type=Path, required=True, help="fine-tuned weights: a folder of a run, or a file of any family"
    )
    parser.add_argument(
        "--recipe", required=True, help="shipped name or YAML file: data.test, eval.segments, eval.crops"
    )
    parser.add_argument("--out", type=Path, default=None, help="folder for result.json, predictions.csv, confusion.png")
    parser.add_argument("--split", choices=("test", "val"), default="test")
    parser.add_argument("--play", choices=("forwards", "backwards", "still"), default="forwards",
                        help="play clips backwards, or their middle frame only")  # fmt: skip
    parser.add_argument("overrides", nargs="*", metavar="a.b=v")
    parser.epilog = "example: dsvid eval --weights runs/ft/weights --recipe demo_finetune eval.segments=2 eval.crops=3"


def run(args: argparse.Namespace) -> None:
    """Evaluate and print; rank 0 writes."""
    import torch

    from dsvid import engine as ds
    from dsvid.data.loader import eval_batches
    from dsvid.evaluate import evaluate
    from dsvid.job import class_names, make_objective, open_list
    from dsvid.objectives import ClassifyObjective
    from dsvid.recipe import load_recipe, split_overrides
    from dsvid.runtime import pick_device, read_ranks, start_log

    ranks = read_ranks()
    start_log(ranks)
    ours, theirs = split_overrides(args.overrides)
    if theirs:
        raise RecipeError("dsvid eval has no DeepSpeed JSON", found=f"ds.{next(iter(theirs))}", fix="leave it out")
    recipe = load_recipe(args.recipe, ours)
    if recipe.task != "classify":
        raise RecipeError("dsvid eval tests classification recipes", found=f"task: {recipe.task}", expected="classify")
    names = class_names(recipe)
    manifest = open_list(recipe, args.split)
    model, stored_names = fine_tuned(args.weights, recipe)
    device = pick_device(ranks)
    if ranks.world > 1:
        ds.start_distributed(device, ranks)
    objective = make_objective(recipe, model)
    assert isinstance(objective, ClassifyObjective)
    objective.to(device)
    settings = recipe.eval
    views = eval_batches(
        recipe.data, args.split, segments=settings.segments, crops=settings.crops, rank=ranks.rank, world=ranks.world,
        batch=settings.batch, reverse=args.play == "backwards", freeze=args.play == "still", device_type=device.type,
    )  # fmt: skip
    result = evaluate(objective, views, videos=len(manifest), device=device, merge=settings.merge)
    if ranks.first:
        paths = [manifest[index].path for index in range(len(manifest))]
        report(args, recipe, result, names or stored_names, paths)
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def fine_tuned(path: Path, recipe: Recipe) -> tuple[Any, list[str]]:
    """The model of a weight folder or file, with its own head, for the recipe's clips; and the class names it stores.

    Raises CheckpointError where it has no head, or one of another number of classes; RecipeError for another grid.
    """
    from dsvid.job import model_spec
    from dsvid.weights.card import read_card
    from dsvid.weights.load import load_model

    wanted = model_spec(recipe).grid
    model, report = load_model(
        path,
        family=recipe.model.init_family,
        num_frames=recipe.data.num_frames,
        image_size=recipe.data.input_size,
        final_norm_policy=recipe.model.final_norm,
        attention=recipe.model.attention,
        gelu=recipe.model.gelu,
    )
    classes = getattr(model, "num_classes", 0)
    if report.missing or not classes:
        raise CheckpointError(
            f"--weights {path} is not a fine-tuned classifier",
            found=f"no {', '.join(report.missing[:3]) or 'head.weight'}",
            expected="weights with a head",
            fix="fine-tune them first: deepspeed dsvid/train.py --recipe finetune_… model.init=" + str(path),
        )
    if classes != recipe.model.num_classes:
        raise CheckpointError(
            f"--weights {path} has another number of classes than the recipe",
            found=f"{classes} in the head, model.num_classes={recipe.model.num_classes}",
            fix=f"model.num_classes={classes} with lists that have these classes, or other weights",
        )
    if model.grid != wanted:
        raise RecipeError(f"--weights {path} does not suit the recipe", found=model.grid, expected=wanted)
    return model, list(read_card(path).labels)


def report(args: argparse.Namespace, recipe: Recipe, result: Any, names: list[str], paths: list[str]) -> None:
    """Write the result where --out says, print it, and name what could not be counted."""
    import numpy as np

    from dsvid.data.builtin import REVERSED
    from dsvid.evaluate import write_result
    from dsvid.metrics.classification import topk_accuracy
    from dsvid.runtime import log

    settings = recipe.eval
    extra: dict[str, Any] = {
        "split": args.split,
        "play": args.play,
        "segments": settings.segments,
        "crops": settings.crops,
        "merge": settings.merge,
    }
    if recipe.data.test == "builtin":
        opposite = np.asarray(REVERSED)[result.labels]
        extra["opposite_top1"] = topk_accuracy(result.scores, opposite, ks=(1,))[0]
    numbers = write_result(args.out, result, names, paths, extra=extra) if args.out else result.numbers() | extra
    shown = {key: value for key, value in numbers.items() if key != "classes"}
    log.info(
        "%s",
        " ".join(
            f"{key} {value:.2f}" if isinstance(value, float) else f"{key} {value}" for key, value in shown.items()
        ),
    )
    empty = [
        names[i] if i < len(names) else str(i) for i, count in enumerate(result.confusion.sum(axis=1)) if not count
    ]
    if empty:
        more = f" and {len(empty) - 8} more" if len(empty) > 8 else ""
        log.warning("%d classes have no video in data.%s: %s%s", len(empty), args.split, ", ".join(empty[:8]), more)
    for record in result.unreadable[:10]:
        log.warning("unreadable: %s", record["error"])
    if args.out:
        log.info("written to %s", args.out)
