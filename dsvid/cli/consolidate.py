"""`dsvid consolidate RUN_OR_CHECKPOINT DST`: ZeRO shards -> weights in one layout. No GPU, no distributed start."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

from dsvid.errors import CheckpointError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the subcommand."""
    parser.add_argument(
        "source", type=Path, help="a run folder (its newest intact checkpoint) or a step-XXXXXXXX folder"
    )
    where = "folder for the weights (--to videomae: a .pth, --unverified: a .safetensors file)"
    parser.add_argument("destination", type=Path, help=where)
    parser.add_argument("--to", choices=("dsvid", "hf", "videomae"), default="dsvid", help="layout (default: dsvid)")
    parser.add_argument("--weights", choices=("last", "ema"), default="last",
                        help="the weights of the last step (default) or their running average")  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file or Hugging Face folder")
    parser.add_argument("--unverified", action="store_true",
                        help="SOURCE is a checkpoint of another DeepSpeed program, without dsvid's manifest.json; "
                             "writes its fp32 weights under their own names into one file")  # fmt: skip
    parser.epilog = "example: dsvid consolidate runs/k400 weights/k400"


def run(args: argparse.Namespace) -> None:
    """Verify the checkpoint, consolidate, check every name and shape against the model, write."""
    if args.unverified:
        run_unverified(args)
        return
    from dsvid.checkpoint_files import verify
    from dsvid.models.spec import ModelSpec
    from dsvid.weights.card import card_of
    from dsvid.weights.consolidate import consolidate
    from dsvid.weights.export import check_destination, export
    from dsvid.weights.folder import check_finite
    from dsvid.weights.stream import shapes_of

    # A dsvid weight folder is made anew from the same run at will, as training itself does.
    overwrite = args.overwrite or args.to == "dsvid"
    check_destination(args.to, args.destination, overwrite=overwrite)
    folder = find_checkpoint(args.source)
    manifest = verify(folder)
    config = describe(folder, int(manifest["step"]))
    state = consolidate(folder, args.weights)
    check_names(config, shapes_of(state), folder)
    check_finite(state, folder)
    if args.weights == "ema":
        config["trained"] = {**config["trained"], "weights": "ema"}
    spec = ModelSpec.from_config(config["model"], str(folder))
    remarks = export(args.to, args.destination, state, spec, card_of(config), overwrite=overwrite)
    averaged = "running averages, " if args.weights == "ema" else ""
    shown = args.destination if args.to == "videomae" else args.destination / "model.safetensors"
    report(shown, shapes_of(state), f"{averaged}from {folder}")
    for remark in remarks:
        print(remark)


def report(path: Path, shapes: dict[str, tuple[int, ...]], origin: str) -> None:
    """Print what was written."""
    count = sum(math.prod(shape) for shape in shapes.values())
    print(f"{path}: {len(shapes)} tensors, {count / 1e6:.2f} M in fp32, {origin}")


# ---- checkpoints of other programs ---------------------------------------------------------------------------------


def run_unverified(args: argparse.Namespace) -> None:
    """A checkpoint that dsvid did not write: nothing says what its files should be, nor what the model is.

    Its files must agree with each other, and its names with those that it says its model has.
    """
    from dsvid.publish import publish_file
    from dsvid.weights.consolidate import consolidate
    from dsvid.weights.export import check_writable
    from dsvid.weights.folder import check_finite
    from dsvid.weights.stream import shapes_of, write_safetensors

    path = args.destination
    if args.to != "dsvid" or path.suffix != ".safetensors" or path.is_dir():
        raise CheckpointError(
            "--unverified writes one file and knows no model to write it for",
            found=f"{path}, --to {args.to}",
            expected="DST that ends in .safetensors, without --to",
            fix=f"dsvid consolidate --unverified {args.source} weights.safetensors, then dsvid convert it",
        )
    if path.exists() and not args.overwrite:
        raise CheckpointError(f"{path} exists", fix="another destination, or --overwrite")
    check_writable(path)
    folder = find_foreign(args.source)
    state = consolidate(folder, args.weights, prefix="")
    check_finite(state, folder)
    try:
        publish_file(path, lambda out: write_safetensors(out, state))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be written", found=str(error), fix="another destination") from error
    report(path, shapes_of(state), f"from {folder}")
    print("not verified: no manifest says what these files should be; a flipped bit in them is not seen")


def find_foreign(source: Path) -> Path:
    """The folder of DeepSpeed's files that `source` means: itself, or the tag that its `latest` names.

    Raises CheckpointError where there is none, or where dsvid wrote it: then it can be verified.
    """
    from dsvid.checkpoint_files import MANIFEST

    folder, pointer = source, source / "latest"
    if pointer.is_file() and not any(source.glob("*model_states.pt")):
        with pointer.open(encoding="utf-8", errors="replace") as handle:
            tag = handle.read(256).strip()
        if not tag or tag in (".", "..") or Path(tag).name != tag:
            raise CheckpointError(f"{pointer} names no folder beside it", found=repr(tag[:40]), expected="a tag")
        folder = source / tag
    if (folder / MANIFEST).exists():
        raise CheckpointError(
            f"{folder} has a {MANIFEST}: dsvid wrote it, and it can be verified", fix="leave --unverified out"
        )
    return folder


# ---- runs of dsvid -------------------------------------------------------------------------------------------------


def find_checkpoint(source: Path) -> Path:
    """The checkpoint folder that `source` means. Raises CheckpointError where there is none."""
    from dsvid.checkpoint import newest_verified
    from dsvid.checkpoint_files import MANIFEST

    if (source / MANIFEST).is_file():
        return source
    checkpoints = source / "checkpoints" if (source / "checkpoints").is_dir() else source
    found = newest_verified(checkpoints) if checkpoints.is_dir() else None
    if found is None:
        raise CheckpointError(
            f"{source} holds no checkpoint of dsvid",
            found="nothing there" if not source.exists() else "no step-XXXXXXXX folder with a manifest.json",
            expected="a run folder (--out) or one of its checkpoints/step-XXXXXXXX",
            fix=f"dsvid consolidate --unverified {source} weights.safetensors" if _is_foreign(source) else None,
        )
    return found.folder


def _is_foreign(source: Path) -> bool:
    """Whether another DeepSpeed program's files seem to lie there."""
    return any(source.glob("*model_states.pt")) or any(source.glob("*/*model_states.pt"))


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
    """Raise CheckpointError where the consolidated tensors are not exactly the model's parameters and buffers."""
    import torch

    from dsvid.models.spec import ModelSpec, build_model

    with torch.device("meta"):
        model = build_model(ModelSpec.from_config(config["model"], str(folder)), seed=None)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    wrong = sorted(name for name in expected.keys() | shapes.keys() if expected.get(name) != shapes.get(name))
    if wrong:
        raise CheckpointError(
            f"{folder} does not hold the recipe's model",
            found=", ".join(f"{name} {shapes.get(name, 'missing')}" for name in wrong[:3]),
            expected=", ".join(f"{name} {expected.get(name, 'no such tensor')}" for name in wrong[:3]),
        )
