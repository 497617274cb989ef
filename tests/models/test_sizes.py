"""Parameter counts of every registered size against the released models, and refused head counts."""

import pytest
import torch

from dsvid.errors import RecipeError
from dsvid.models import ENCODERS, DecoderSize, EncoderSize, MaskedAutoencoder, VisionTransformer, decoder_size
from dsvid.tokens import TubeletGrid

# Millions of parameters: encoder, with VideoMAE's decoder, with V2's decoder (facts of the released models).
RELEASED = {
    "vit_small": (21.9, 24.0, 24.0),
    "vit_base": (86.2, 94.2, 94.2),
    "vit_large": (303.9, 343.0, 317.8),
    "vit_huge": (631.6, 692.5, 645.7),
    "vit_giant": (1011.6, None, 1025.5),
}
FINE_TUNED = {
    "vit_small": 22.03,
    "vit_base": 86.53,
    "vit_large": 304.27,
    "vit_huge": 632.12,
    "vit_giant": 1012.17,
}


def _grid(size: EncoderSize) -> TubeletGrid:
    return TubeletGrid(16, 224, 224, 2, size.patch)


def _millions(module: torch.nn.Module) -> float:
    return sum(p.numel() for p in module.parameters()) / 1e6


@pytest.mark.parametrize("arch", RELEASED)
def test_parameters_of_the_released_autoencoders(arch: str) -> None:
    encoder, first, second = RELEASED[arch]
    size = ENCODERS[arch]
    for flavour, total in (("videomae", first), ("videomaev2", second)):
        if total is None:
            continue
        with torch.device("meta"):
            model = MaskedAutoencoder(size, decoder_size(arch, flavour), _grid(size))
        assert _millions(model.encoder) == pytest.approx(encoder, abs=0.06)
        assert _millions(model) == pytest.approx(total, abs=0.06)


@pytest.mark.parametrize("arch", FINE_TUNED)
def test_parameters_of_the_released_classifiers(arch: str) -> None:
    with torch.device("meta"):
        model = VisionTransformer(ENCODERS[arch], _grid(ENCODERS[arch]), num_classes=400)
    assert _millions(model) == pytest.approx(FINE_TUNED[arch], abs=0.006)


def test_the_demo_size_is_the_one_that_was_tried_out() -> None:
    size = ENCODERS["vit_micro"]
    with torch.device("meta"):
        model = MaskedAutoencoder(size, decoder_size("vit_micro", "videomae"), TubeletGrid(8, 64, 64, 2, 8))
    assert _millions(model.encoder) == pytest.approx(0.84, abs=0.01)


@pytest.mark.parametrize("arch", ENCODERS)
@pytest.mark.parametrize("flavour", ["videomae", "videomaev2"])
def test_every_size_runs_forward(arch: str, flavour: str) -> None:
    size = ENCODERS[arch]
    grid = TubeletGrid(4, 2 * size.patch, 3 * size.patch, 2, size.patch)
    with torch.device("meta"):
        model = MaskedAutoencoder(size, decoder_size(arch, flavour), grid)
        visible = torch.zeros(2, 4, dtype=torch.int32)
        decoded = torch.zeros(2, 8, dtype=torch.int32)
        predictions = model(torch.zeros(2, 4, grid.values), visible, decoded, 5)
        logits = VisionTransformer(size, grid, num_classes=7)(torch.zeros(2, 3, 4, grid.height, grid.width))
    assert predictions.shape == (2, 5, grid.values)
    assert logits.shape == (2, 7)


def test_heads_that_do_not_divide_are_refused_with_a_cure() -> None:
    with pytest.raises(RecipeError, match="heads=4") as error:
        EncoderSize(192, 12, 5, 16)
    assert "192" in str(error.value)
    assert error.value.fix is not None
    with pytest.raises(RecipeError, match="decoder"):
        DecoderSize(64, 2, 0)


def test_an_unknown_architecture_is_refused() -> None:
    with pytest.raises(RecipeError, match="vit_smal"):
        decoder_size("vit_smal", "videomae")


def test_a_grid_of_another_patch_size_is_refused() -> None:
    with pytest.raises(RecipeError, match="patch 8"):
        VisionTransformer(ENCODERS["vit_small"], TubeletGrid(4, 16, 16, 2, 8))
