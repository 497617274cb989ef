"""`dsvid bench load`: peak memory and time of loading a model in bf16, over its bf16 weights.

Each source is loaded in a process of its own: a peak is never lowered, and imports would hide in it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

from dsvid.errors import DsvidError
from dsvid.models.spec import ModelSpec, build_model

SOURCES = ("fp32.pth", "fp32.safetensors", "bf16.safetensors", "random")
ALLOWED = 1.3  # peak over weights that is promised

# The first peak is that of a process that has imported everything and loaded nothing.
_MEASURE = """
import json, sys, time, torch
from dsvid.models.spec import ModelSpec, build_model
from dsvid.weights import load_model

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) * 1024

source, config = sys.argv[1], json.loads(sys.argv[2])
load = load_model
build_model(ModelSpec("classify", "vit_micro", 4, 16), seed=0, dtype=torch.bfloat16)
before, start = peak(), time.perf_counter()
if source == "random":
    model = build_model(ModelSpec(**config), seed=0, dtype=torch.bfloat16)
else:
    model, _ = load(source, dtype=torch.bfloat16)
seconds = time.perf_counter() - start
weights = sum(p.numel() * p.element_size() for p in model.parameters())
print(json.dumps({"peak_over_weights": (peak() - before) / weights, "weights_bytes": weights, "seconds": seconds}))
"""


def run(args: argparse.Namespace) -> dict[str, object]:
    """Measure, print and return each source's peak over the weights and its seconds."""
    spec = ModelSpec("classify", args.arch, 16, 224, num_classes=args.classes)
    result: dict[str, object] = {"arch": args.arch, "classes": args.classes, "torch": torch.__version__}
    with tempfile.TemporaryDirectory(dir=args.scratch) as folder:
        for source in SOURCES:
            numbers = measure(write_weights(spec, source, Path(folder)), spec)
            result[source] = numbers
            print(
                f"{source:<17} peak {numbers['peak_over_weights']:.3f} x {numbers['weights_bytes'] / 1e6:.0f} MB "
                f"of bf16 weights, {numbers['seconds']:.1f} s"
            )
    return result


def write_weights(spec: ModelSpec, source: str, folder: Path) -> str:
    """The path of a file of `source`'s kind with numbers that are no zeros, or "random"."""
    if source == "random":
        return source
    kind, _, layout = source.partition(".")
    dtype = torch.float32 if kind == "fp32" else torch.bfloat16
    with torch.device("meta"):
        shapes = {name: parameter.shape for name, parameter in build_model(spec, seed=None).named_parameters()}
    state = {name: torch.full(shape, 0.01, dtype=dtype) for name, shape in shapes.items()}
    path = folder / source
    if layout == "pth":
        torch.save({"module": state}, path)
    else:
        save_file(state, path)
    return str(path)


def measure(source: str, spec: ModelSpec) -> dict[str, float]:
    """Peak memory above an idle process over the weights, their bytes, and seconds. Linux only.

    Raises DsvidError where the process failed, with its last line.
    """
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", _MEASURE, source, json.dumps(spec.to_config())]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, check=False)
    if done.returncode:
        raise DsvidError(f"loading {source} failed", found=(done.stderr.strip().splitlines() or ["no message"])[-1])
    numbers: dict[str, float] = json.loads(done.stdout)
    return numbers
