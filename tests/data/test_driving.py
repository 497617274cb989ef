"""Borders of driving clips: every kind, their sizes, the same for all frames and from the same numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dsvid.data import driving
from dsvid.data.augment import squash


def clip(height: int = 20, width: int = 40) -> torch.Tensor:
    ramp = torch.arange(height, dtype=torch.uint8)[None, :, None, None]
    return (ramp + torch.zeros(3, height, width, 3, dtype=torch.uint8)).contiguous()


@pytest.mark.parametrize("kind", sorted(set(driving.KINDS)))
def test_what_is_put_above_and_below(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driving, "KINDS", (kind,))
    frames = clip()
    out = driving.add_borders(frames, np.random.default_rng(4))
    if kind == "none":
        assert out is frames
        return
    found = next(top for top in range(11) if torch.equal(out[:, top : top + 20], frames))
    below = out[:, found + 20 :]
    assert found > 0 and below.shape[1] > 0 and out.shape[1] <= 40, "at most square"
    above = out[:, :found]
    if kind == "black":
        assert not above.any() and not below.any()
    elif kind == "colour":
        assert len(torch.cat([above, below], dim=1).reshape(-1, 3).unique(dim=0)) == 1
    elif kind == "replicate":
        assert (above == 0).all() and (below == 19).all()
    else:
        bright = torch.arange(found, 0, -1).float()  # the edge is not repeated
        shade = 1 - above[0, 0, 0, 0].float() / bright[0]
        assert 0 <= shade <= driving.MOST_SHADE + 0.05
        assert torch.allclose(above[0, :, 0, 0].float(), bright * (1 - shade), atol=1)


def test_the_shares_of_the_kinds_are_those_of_the_original() -> None:
    rng = np.random.default_rng(0)
    without = sum(driving.add_borders(clip(), rng).shape[1] == 20 for _ in range(600))
    assert 0.35 < without / 600 < 0.52  # 5 of 12, and borders that round to nothing


def test_frames_that_are_higher_than_wide_have_no_borders() -> None:
    tall = clip(40, 20)
    assert all(driving.add_borders(tall, np.random.default_rng(seed)).shape[1] == 40 for seed in range(20))


def test_a_squash_keeps_no_shape_and_follows_a_bicubic_reference() -> None:
    rng = np.random.default_rng(0)
    frames = torch.from_numpy(rng.integers(0, 256, size=(2, 24, 40, 3), dtype=np.uint8))
    planes = frames.permute(0, 3, 1, 2).double()
    wanted = torch.nn.functional.interpolate(planes, (16, 16), mode="bicubic", align_corners=False)
    error = squash(frames, 16).permute(0, 3, 1, 2).double() - wanted.round().clamp(0, 255)
    assert squash(frames, 16).shape == (2, 16, 16, 3) and error.abs().max() <= 1
