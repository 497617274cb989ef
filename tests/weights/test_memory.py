"""Loading a large model in bf16 costs little more memory than its bf16 weights: measured in a process of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from dsvid.cli.bench_load import ALLOWED, measure, write_weights
from dsvid.models.spec import ModelSpec

LARGE = ModelSpec("classify", "vit_large", 16, 224, num_classes=400)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells the peak of a process")
@pytest.mark.parametrize("source", ["fp32.pth", "bf16.safetensors", "random"])
def test_a_model_is_never_in_memory_twice(source: str, tmp_path: Path) -> None:
    numbers = measure(write_weights(LARGE, source, tmp_path), LARGE)
    assert numbers["weights_bytes"] == 608_541_472  # ViT-L with 400 classes in bf16
    assert 0.9 < numbers["peak_over_weights"] <= ALLOWED
