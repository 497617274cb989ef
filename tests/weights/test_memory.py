"""Loading a large model in bf16 costs little more memory than its bf16 weights: measured in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dsvid.models.spec import ModelSpec, build_model

ALLOWED = 1.3
LARGE = ModelSpec("classify", "vit_large", 16, 224, num_classes=400)

# The peak of a process is never lowered, so both numbers come from one that does nothing else.
_MEASURE = """
import sys, torch
from dsvid.models.spec import ModelSpec, build_model
from dsvid.weights import load_model

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) * 1024

load_model, _ = load_model, build_model(ModelSpec("classify", "vit_micro", 4, 16), seed=0, dtype=torch.bfloat16)
before = peak()
if sys.argv[1] == "random":
    model = build_model(ModelSpec("classify", "vit_large", 16, 224, num_classes=400), seed=0, dtype=torch.bfloat16)
else:
    model, _ = load_model(sys.argv[1], dtype=torch.bfloat16)
weights = sum(p.numel() * p.element_size() for p in model.parameters())
print((peak() - before) / weights, weights)
"""


def _ratio(source: str) -> float:
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, source], capture_output=True, text=True, cwd=root, check=True
    )
    ratio, weights = done.stdout.split()
    assert int(weights) == 608_541_472  # ViT-L with 400 classes in bf16
    return float(ratio)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("large")
    with torch.device("meta"):
        shapes = {name: p.shape for name, p in build_model(LARGE, seed=None).named_parameters()}
    state = {name: torch.zeros(shape) for name, shape in shapes.items()}
    paths = {"fp32.pth": folder / "fp32.pth", "bf16.safetensors": folder / "bf16.safetensors"}
    torch.save({"module": state}, paths["fp32.pth"])
    save_file({name: tensor.bfloat16() for name, tensor in state.items()}, paths["bf16.safetensors"])
    return paths


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells the peak of a process")
@pytest.mark.parametrize("name", ["fp32.pth", "bf16.safetensors"])
def test_a_file_is_never_whole_in_memory(name: str, files: dict[str, Path]) -> None:
    assert 0.9 < _ratio(str(files[name])) <= ALLOWED


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells the peak of a process")
def test_random_weights_are_never_whole_in_fp32() -> None:
    assert 0.9 < _ratio("random") <= ALLOWED
