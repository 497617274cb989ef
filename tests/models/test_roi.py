"""RoIAlign in plain torch: torchvision's numbers and gradients, and in its place where it is missing."""

from __future__ import annotations

import sys
import types

import pytest
import torch

from dsvid.models import roi
from dsvid.models.detector import box_features, box_logits

own = pytest.importorskip("torchvision.ops").roi_align


@pytest.fixture(autouse=True)
def _forget() -> None:
    roi._torchvision.cache_clear()
    yield
    roi._torchvision.cache_clear()


def some(count: int, height: int, width: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Boxes in pixels of a clip of 16-pixel cells: inside, across the edges, outside, empty, inverted, the whole."""
    generator = torch.Generator().manual_seed(seed)
    limits = torch.tensor([width, height, width, height]) * 16.0
    corner = torch.rand(count, 2, 2, generator=generator).sort(dim=1).values.reshape(count, 4)
    boxes = (corner * 1.4 - 0.2) * limits
    extra = torch.tensor(
        [[0, 0, 1, 1], [5, 5, 5, 5], [30, 40, 20, 10], [-90, -90, -40, -40], [1e4, 1e4, 2e4, 2e4], [0, 0, 0, 0]]
    )
    extra[-1] = limits
    return torch.cat([boxes, extra, limits[None] * torch.tensor([0, 0, 1, 1])]), torch.arange(count + 7) % 2


@pytest.mark.parametrize(("height", "width"), [(14, 14), (16, 29), (3, 5), (1, 1)])
def test_the_numbers_and_gradients_are_torchvision_s(height: int, width: int) -> None:
    boxes, image = some(60, height, width)
    features = torch.randn(2, 5, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    results = []
    for align in (roi.roi_align, roi.plain_roi_align):
        leaf = features.clone().requires_grad_()
        pooled = align(leaf, boxes.double(), image, 1 / 16)
        (pooled * torch.arange(49.0).reshape(7, 7)).sum().backward()
        results.append((pooled.detach(), leaf.grad))
    for ours, theirs in zip(*results, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-9)
    rows = torch.cat([image[:, None].double(), boxes.double()], dim=1)
    assert torch.equal(results[0][0], own(features, rows, 7, 1 / 16, 0, False))
    single = roi.plain_roi_align(features.float(), boxes, image, 1 / 16)
    assert torch.allclose(single, own(features.float(), rows.float(), 7, 1 / 16, 0, False), atol=1e-5)


def test_without_torchvision_plain_torch_takes_over(monkeypatch: pytest.MonkeyPatch) -> None:
    boxes, image = some(10, 4, 6)
    features = torch.randn(2, 3, 4, 6)
    with_it = roi.roi_align(features, boxes, image, 1 / 16)
    assert roi.roi_backend() == "torchvision"
    broken = types.ModuleType("torchvision.ops")  # one that does not fit the installed torch

    def refuse(*_: object) -> None:
        raise RuntimeError("operator torchvision::roi_align does not exist")

    broken.roi_align = refuse
    for module in (None, broken):
        roi._torchvision.cache_clear()
        monkeypatch.setitem(sys.modules, "torchvision.ops", module)
        assert roi.roi_backend() == "plain torch"
        assert torch.allclose(roi.roi_align(features, boxes, image, 1 / 16), with_it, atol=1e-5)


def test_no_boxes_give_no_features() -> None:
    features = torch.randn(2, 3, 4, 6, requires_grad=True)
    for align in (roi.roi_align, roi.plain_roi_align):
        pooled = align(features, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), 1 / 16)
        assert pooled.shape == (0, 3, 7, 7)


def test_the_head_sees_the_largest_of_the_raster() -> None:
    features = torch.zeros(1, 2, 4, 4)
    features[0, 0, 1, 2], features[0, 1, 3, 3] = 5.0, 7.0
    box, image = torch.tensor([[24.0, 8.0, 40.0, 24.0]]), torch.zeros(1, dtype=torch.int64)
    pooled = box_features(features.bfloat16(), box, image, 16)
    assert pooled.dtype == torch.float32 and pooled[0, 0] > 3 and pooled[0, 1] == 0
    head = torch.nn.Linear(2, 3).bfloat16()
    assert box_logits(head, pooled).shape == (1, 3)
