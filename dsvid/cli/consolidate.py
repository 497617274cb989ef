"""`dsvid consolidate RUN_OR_CHECKPOINT DST`: ZeRO shards -> weights in one layout. No GPU, no distributed start."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from dsvid.errors import CheckpointError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the subcommand."""
    parser.add_argument(
        "source", type=Path, help="a run folder (its newest intact checkpoint) or a step-XXXXXXXX folder"
    )
    parser.add_argument("destination", type=Path, help="folder for the weights (--to videomae: a .pth file)")
    parser.add_argument("--to", choices=("dsvid", "hf", "videomae"), default="dsvid", help="layout (default: dsvid)")
    parser.add_argument("--weights", choices=("last", "ema"), default="last",
                        help="the weights of the last step (default) or their running average")  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file or Hugging Face folder")
    parser.epilog = "example: dsvid consolidate runs/k400 weights/k400"


def run(args: argparse.Namespace) -> None:
    """Verify the checkpoint, consolidate, check every name and shape against the model, write."""
    from dsvid.checkpoint import verify
    from dsvid.models.spec import ModelSpec
    from dsvid.weights.card import card_of
    from dsvid.weights.consolidate import consolidate
    from dsvid.weights.export import check_destination, export
    from dsvid.weights.folder import check_finite

    # A dsvid weight folder is made anew from the same run at will, as training itself does.
    overwrite = args.overwrite or args.to == "dsvid"
    check_destination(args.to, args.destination, overwrite=overwrite)
    folder = find_checkpoint(args.source)
    manifest = verify(folder)
    config = describe(folder, int(manifest["step"]))
    state = consolidate(folder, args.weights)
    check_finite(state, folder)
    check_names(config, {name: tuple(tensor.shape) for name, tensor in state.items()}, folder)
    if args.weights == "ema":
        config["trained"] = {**config["trained"], "weights": "ema"}
    spec = ModelSpec.from_config(config["model"], str(folder))
    remarks = export(args.to, args.destination, state, spec, card_of(config), overwrite=overwrite)
    count = sum(tensor.numel() for tensor in state.values())
    averaged = "running averages, " if args.weights == "ema" else ""
    shown = args.destination if args.to == "videomae" else args.destination / "model.safetensors"
    print(f"{shown}: {len(state)} tensors, {count / 1e6:.2f} M in fp32, {averaged}from {folder}")
    for remark in remarks:
        print(remark)


def find_checkpoint(source: Path) -> Path:
    """The checkpoint folder that `source` means. Raises CheckpointError where there is none."""
    from dsvid.checkpoint import MANIFEST, newest_verified

    if (source / MANIFEST).is_file():
        return source
    checkpoints = source / "checkpoints" if (source / "checkpoints").is_dir() else source
    found = newest_verified(checkpoints) if checkpoints.is_dir() else None
    if found is None:
        raise CheckpointError(
            f"{source} holds no checkpoint of dsvid",
            found="nothing there" if not source.exists() else "no step-XXXXXXXX folder with a manifest.json",
            expected="a run folder (--out) or one of its checkpoints/step-XXXXXXXX",
        )
    return found.folder


def describe(folder: Path, step: int) -> dict[str, Any]:
    """The `config.json` of the weights, from the run's recipe.yaml beside the checkpoints."""
    from dsvid.job import weights_config
    from dsvid.recipe import load_recipe

    recipe = folder.parent.parent / "recipe.yaml"
    if not recipe.is_file():
        raise CheckpointError(
            f"{folder}: the run's recipe.yaml is missing, so the model is not known",
            expected=str(recipe),
            fix="copy recipe.yaml two folders above the checkpoint",
        )
    return weights_config(load_recipe(str(recipe)), step)


def check_names(config: dict[str, Any], shapes: dict[str, tuple[int, ...]], folder: Path) -> None:
    """Raise CheckpointError where the consolidated tensors are not exactly the model's parameters."""
    import torch

    from dsvid.models.spec import ModelSpec, build_model

    with torch.device("meta"):
        model = build_model(ModelSpec.from_config(config["model"], str(folder)), seed=None)
    expected = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    wrong = sorted(name for name in expected.keys() | shapes.keys() if expected.get(name) != shapes.get(name))
    if wrong:
        raise CheckpointError(
            f"{folder} does not hold the recipe's model",
            found=", ".join(f"{name} {shapes.get(name, 'missing')}" for name in wrong[:3]),
            expected=", ".join(f"{name} {expected.get(name, 'no such parameter')}" for name in wrong[:3]),
        )
