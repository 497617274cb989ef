"""`dsvid eval --weights W --recipe R`: multi-view test of a weight folder, on one rank or many."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from dsvid.errors import RecipeError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the subcommand."""
    parser.add_argument("--weights", type=Path, required=True, help="weight folder of a fine-tuned model")
    parser.add_argument(
        "--recipe", required=True, help="shipped name or YAML file: data.test, eval.segments, eval.crops"
    )
    parser.add_argument("--out", type=Path, default=None, help="folder for result.json and predictions.csv")
    parser.add_argument("--split", choices=("test", "val"), default="test")
    parser.add_argument("--play", choices=("forwards", "backwards", "still"), default="forwards",
                        help="play clips backwards, or their middle frame only")  # fmt: skip
    parser.add_argument("overrides", nargs="*", metavar="a.b=v")
    parser.epilog = "example: dsvid eval --weights runs/ft/weights --recipe demo_finetune eval.segments=2 eval.crops=3"


def run(args: argparse.Namespace) -> None:
    """Evaluate and print; rank 0 writes."""
    import numpy as np
    import torch

    from dsvid import engine as ds
    from dsvid.data.builtin import REVERSED
    from dsvid.data.loader import eval_batches
    from dsvid.evaluate import evaluate, write_result
    from dsvid.job import class_names, make_objective, model_spec, open_list
    from dsvid.metrics.classification import topk_accuracy
    from dsvid.objectives import ClassifyObjective
    from dsvid.recipe import load_recipe, split_overrides
    from dsvid.runtime import log, pick_device, read_ranks, start_log
    from dsvid.weights.load import load_model

    ranks = read_ranks()
    start_log(ranks)
    ours, theirs = split_overrides(args.overrides)
    if theirs:
        raise RecipeError("dsvid eval has no DeepSpeed JSON", found=f"ds.{next(iter(theirs))}", fix="leave it out")
    recipe = load_recipe(args.recipe, ours)
    if recipe.task != "classify":
        raise RecipeError("dsvid eval tests classification recipes", found=f"task: {recipe.task}", expected="classify")
    manifest = open_list(recipe, args.split)
    model, report = load_model(args.weights, num_classes=recipe.model.num_classes)
    if report.missing or model.grid != model_spec(recipe).grid:
        raise RecipeError(
            f"--weights {args.weights} does not suit the recipe",
            found=f"no {', '.join(report.missing[:3])}" if report.missing else f"token grid {model.grid}",
            expected=f"fine-tuned weights for {model_spec(recipe).grid}",
            fix="the weights folder of a run of this recipe",
        )
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
    result = evaluate(objective, views, videos=len(manifest), device=device)
    if ranks.first:
        extra: dict[str, Any] = {
            "split": args.split,
            "play": args.play,
            "segments": settings.segments,
            "crops": settings.crops,
        }
        names = class_names(recipe)
        if names:
            opposite = np.asarray(REVERSED)[result.labels]
            extra["opposite_top1"] = topk_accuracy(result.probabilities, opposite, ks=(1,))[0]
        numbers = write_result(args.out, result, names, extra=extra) if args.out else result.numbers() | extra
        log.info(
            "%s",
            " ".join(
                f"{key} {value:.2f}" if isinstance(value, float) else f"{key} {value}" for key, value in numbers.items()
            ),
        )
        for record in result.unreadable[:10]:
            log.warning("unreadable: %s", record["error"])
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
