"""The native resampling against torch's: the same bytes for every size; torch's where there is no kernel."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from dsvid.ops import native, resample

needs_kernel = pytest.mark.skipif(not native.resizes(), reason="no native build, or a processor without AVX2")


def box(height: int, width: int, frames: int = 2, seed: int = 0) -> Tensor:
    """A box inside larger frames: neither rows nor frames lie side by side."""
    rng = np.random.default_rng((seed, height, width))
    whole = torch.from_numpy(rng.integers(0, 256, (frames, height + 3, width + 5, 3), dtype=np.uint8))
    return whole[:, 2 : 2 + height, 4 : 4 + width]


SIZES = [
    (224, 192, 224, 224),  # columns stay
    (192, 224, 224, 224),  # rows stay
    (168, 168, 224, 224),  # larger: two taps
    (256, 340, 224, 224),  # smaller: four
    (720, 1280, 224, 298),  # twelve
    (1, 1, 5, 7),
    (3, 2, 1, 1),
    (40, 9, 3, 10),  # rows of fewer than 32 bytes
    (9, 500, 9, 6),
]


@needs_kernel
@pytest.mark.parametrize(("height", "width", "out_height", "out_width"), SIZES)
def test_the_kernel_gives_torch_s_bytes(height, width, out_height, out_width):
    clip = box(height, width)
    expected = resample.by_torch(clip, out_height, out_width)
    found = resample.resize(clip, out_height, out_width)
    assert found.is_contiguous() and torch.equal(found, expected)
    assert torch.equal(resample.resize(clip.contiguous(), out_height, out_width), expected), (
        "up to the end of its memory"
    )


@needs_kernel
def test_the_kernel_gives_torch_s_bytes_for_any_sizes(monkeypatch):
    calls = []
    monkeypatch.setattr(native, "resize", lambda arguments, run=native.resize: calls.append(run(arguments)))
    rng = np.random.default_rng(0)
    for case in range(150):
        height, width = (int(side) for side in rng.integers(1, 120, 2))
        out_height, out_width = (int(side) for side in rng.integers(1, 100, 2))
        clip = box(height, width, seed=case)
        found, expected = (each(clip, out_height, out_width) for each in (resample.resize, resample.by_torch))
        assert torch.equal(found, expected), (height, width, out_height, out_width)
    assert len(calls) >= 149, "torch's own was compared with itself"


@needs_kernel
@pytest.mark.parametrize("value", [0, 255])
def test_plain_clips_stay_plain(value):
    clip = torch.full((1, 50, 70, 3), value, dtype=torch.uint8)
    assert (resample.resize(clip, 224, 33) == value).all()


@pytest.mark.parametrize("mode", ["auto", "reference"])
def test_it_is_within_a_level_of_pillow(mode, monkeypatch):
    monkeypatch.setenv("DSVID_OPS", mode)
    clip = box(150, 210)
    for frame, found in zip(clip, resample.resize(clip, 112, 96), strict=True):
        picture = Image.fromarray(frame.numpy()).resize((96, 112), Image.Resampling.BILINEAR)
        assert np.abs(np.asarray(picture).astype(int) - found.numpy().astype(int)).max() <= 1


def test_without_the_kernel_torch_does_it(monkeypatch):
    monkeypatch.setenv("DSVID_OPS", "reference")
    monkeypatch.setattr(native, "resize", lambda arguments: pytest.fail("the kernel was called"))
    clip = box(30, 40)
    assert not native.resizes() and torch.equal(resample.resize(clip, 16, 20), resample.by_torch(clip, 16, 20))


@needs_kernel
@pytest.mark.parametrize(
    "clip",
    [box(20, 30).flip(3)[..., ::2], box(20, 30).transpose(1, 2), box(20, 30).float(), box(20, 30)[..., :2]],
    ids=["channels apart", "transposed", "float", "two channels"],
)
def test_what_the_kernel_cannot_read_goes_to_torch(clip, monkeypatch):
    monkeypatch.setattr(native, "resize", lambda arguments: pytest.fail("the kernel was called"))
    assert resample.resize(clip, 16, 20).shape == (2, 16, 20, clip.shape[3])


@pytest.mark.parametrize(("height", "width", "out_height", "out_width"), SIZES)
def test_what_a_gpu_computes_is_within_a_level(height, width, out_height, out_width, monkeypatch):
    clip = box(height, width)
    expected = resample.resize(clip, out_height, out_width)
    found = resample.in_float(clip, out_height, out_width)
    levels = (found.int() - expected.int()).abs()
    assert found.is_contiguous() and found.dtype == torch.uint8 and found.shape == expected.shape
    assert int(levels.max()) <= 1 and float(levels.float().mean()) < 0.4
    monkeypatch.setattr(resample, "by_torch", None)
    assert resample.resize(clip.to("meta"), out_height, out_width).shape == expected.shape, "not by the CPU's kernels"
