"""The self-describing weight folder: `model.safetensors` (fp32) beside `config.json`. Knows files, not engines."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from dsvid.documents import read_json
from dsvid.errors import CheckpointError
from dsvid.publish import publish_folder
from dsvid.weights.stream import write_safetensors

FORMAT = "dsvid-weights"
VERSION = 1


def write_folder(folder: Path, state: Mapping[str, Tensor], config: dict[str, Any]) -> None:
    """Write both files into a temporary neighbour, then swap it in: never a half-written file under the final name.

    Raises CheckpointError where the folder holds something else than weights, or cannot be written.
    """
    foreign = [p.name for p in folder.iterdir()] if folder.is_dir() else []
    foreign = [name for name in foreign if name not in ("model.safetensors", "config.json")]
    if foreign or (folder.exists() and not folder.is_dir()):
        raise CheckpointError(
            f"weight folder {folder} holds other files",
            found=", ".join(sorted(foreign)[:5]) or "a file",
            expected="a new folder, or one that dsvid wrote",
            fix="choose another destination",
        )

    def fill(scratch: Path) -> None:
        with (scratch / "model.safetensors").open("wb") as out:
            write_safetensors(out, state)
        described = {"format": FORMAT, "version": VERSION, **config}
        (scratch / "config.json").write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")

    try:
        publish_folder(folder, fill)
    except OSError as error:
        raise CheckpointError(f"weight folder {folder} cannot be written", found=str(error)) from error


def read_config(folder: Path) -> dict[str, Any]:
    """The `config.json` of a weight folder. Raises CheckpointError where it is missing or not ours."""
    path = folder / "config.json"
    try:
        config = read_json(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"weight folder {folder}", found=f"config.json: {error}", expected="a folder written by dsvid"
        ) from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a dsvid weight description", expected=f'"format": "{FORMAT}"')
    if config.get("version", 0) > VERSION:
        raise CheckpointError(
            f"{path} was written by a newer dsvid", found=config["version"], expected=f"at most {VERSION}"
        )
    return config


def read_state(folder: Path) -> dict[str, Tensor]:
    """The tensors of a weight folder, on the CPU, fp32. Raises CheckpointError for a missing or damaged file."""
    path = folder / "model.safetensors"
    if not path.is_file():
        raise CheckpointError(f"{path} is missing", expected="a weight folder with model.safetensors and config.json")
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read", found=str(error), fix="copy the file again") from error


def check_finite(state: Mapping[str, Tensor], source: Path) -> None:
    """Raise CheckpointError that names the first tensor with a NaN or infinity in it."""
    for name, tensor in state.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"{source}: {name} holds NaN or infinity", fix="use an earlier checkpoint")
