"""`dsvid env`: what is installed, what runs what on this machine, and the cure for what is missing."""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import platform
import shutil
import sys
from pathlib import Path

PACKAGES = {
    "torch": "torch", "deepspeed": "deepspeed", "decord": "decord", "av": "av", "timm": "timm",
    "torchvision": "torchvision",
    "einops": "einops", "numpy": "numpy", "safetensors": "safetensors", "tensorboard": "tensorboard",
    "flash-attn": "flash_attn", "transformers": "transformers",
}  # fmt: skip
OPTIONAL = {
    "flash-attn": "optional; SDPA runs instead: pip install flash-attn --no-build-isolation",
    "transformers": "only for `dsvid bench step`: pip install transformers",
    "torchvision": "only for timm and later features",
    "timm": "not used by pre-training",
    "tensorboard": "pip install tensorboard, or go without its files",
    "decord": "PyAV decodes instead: pip install decord",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """No arguments."""


def run(args: argparse.Namespace) -> int:
    """Print the report; 1 where training cannot start."""
    print(f"python       {platform.python_version()} on {platform.system()} {platform.machine()}")
    broken = []
    for name, module in PACKAGES.items():
        state, works = _package(name, module)
        cure = "" if works else f" -> {OPTIONAL.get(name, f'pip install {name}')}"
        print(f"{name:12} {state}{cure}")
        if not works and name not in OPTIONAL:
            broken.append(name)
    if "torch" in broken:
        print("training cannot start: torch is missing")
        return 1
    _devices()
    print(f"launcher     {_launcher() or 'not on PATH: python -m deepspeed.launcher.runner is the same'}")
    ssh = "several nodes over ssh"
    for tool, use in (("ssh", ssh), ("pdsh", ssh), ("srun", "Slurm"), ("sbatch", "Slurm"), ("nvcc", "the CUDA op")):
        print(f"{tool:12} {shutil.which(tool) or f'not found (only for {use})'}")
    if broken:
        print(f"training cannot start: {', '.join(broken)}")
    return 1 if broken else 0


def _launcher() -> str | None:
    """The `deepspeed` command: on PATH, or beside this Python, where an environment that is not activated has it."""
    return shutil.which("deepspeed") or shutil.which("deepspeed", path=str(Path(sys.executable).parent))


def _package(name: str, module: str) -> tuple[str, bool]:
    """(version, or why it cannot be imported; whether it imports)."""
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        version = None
    try:
        importlib.import_module(module)
    except ImportError as error:
        return ("not installed" if version is None else f"{version}, but it does not import: {error}"), False
    except (OSError, RuntimeError) as error:  # a broken binary beside another torch build
        return f"{version}, but it does not import: {str(error).splitlines()[0]}", False
    return version or "installed", True


def _devices() -> None:
    import torch

    from dsvid import ops
    from dsvid.data.decoder_choice import choose_decoder
    from dsvid.errors import DsvidError
    from dsvid.models.attention import choose_backend

    kinds = ["cpu"]
    if torch.cuda.is_available():
        kinds.append("cuda")
        for index in range(torch.cuda.device_count()):
            memory = torch.cuda.get_device_properties(index).total_memory / 1e9
            print(f"cuda:{index}       {torch.cuda.get_device_name(index)}, {memory:.0f} GB")
    else:
        print(f"cuda         no device visible; training runs on the CPU, {torch.get_num_threads()} threads")
    for kind in kinds:
        chosen = {str(dtype).removeprefix("torch."): choose_backend("auto", kind, dtype, 1568, 64)
                  for dtype in (torch.float32, torch.bfloat16)}  # fmt: skip
        print(f"attention    {kind}: " + ", ".join(f"{backend} in {dtype}" for dtype, backend in chosen.items()))
    for line in ops.clear_message():
        print(f"op           {line}")
    try:
        print("decoder      {} ({})".format(*choose_decoder("auto")))
    except DsvidError as error:
        print(f"decoder      {error}")
