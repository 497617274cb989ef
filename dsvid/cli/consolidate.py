"""`dsvid consolidate RUN_OR_CHECKPOINT DST`: ZeRO shards -> one fp32 weight folder. No GPU, no distributed start."""

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
    parser.add_argument("destination", type=Path, help="folder for model.safetensors and config.json")
    parser.epilog = "example: dsvid consolidate runs/k400 weights/k400"


def run(args: argparse.Namespace) -> None:
    """Verify the checkpoint, consolidate, check every name and shape against the model, write."""
    from dsvid.checkpoint import verify
    from dsvid.weights.consolidate import consolidate
    from dsvid.weights.folder import check_finite, write_folder

    folder = find_checkpoint(args.source)
    manifest = verify(folder)
    state = consolidate(folder)
    check_finite(state, folder)
    config = describe(folder, int(manifest["step"]))
    check_names(config, {name: tuple(tensor.shape) for name, tensor in state.items()}, folder)
    write_folder(args.destination, state, config)
    count = sum(tensor.numel() for tensor in state.values())
    print(f"{args.destination / 'model.safetensors'}: {len(state)} tensors, {count / 1e6:.2f} M in fp32, from {folder}")


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
