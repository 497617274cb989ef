"""The classifier: video and patch paths agree, drop path by seed, checkpointing changes no gradient."""

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from dsvid.models import EncoderSize, VisionTransformer
from dsvid.models.vit import video_patches
from dsvid.tokens import TubeletGrid

GRID = TubeletGrid(4, 16, 24, 2, 8)
SIZE = EncoderSize(32, 3, 2, 8)


def _model(**options: object) -> VisionTransformer:
    return VisionTransformer(SIZE, GRID, num_classes=5, head_init_scale=1.0, **options)


def _video() -> Tensor:
    return torch.randn(3, 3, 4, 16, 24, generator=torch.Generator().manual_seed(0))


def test_features_are_the_input_of_the_head() -> None:
    model, video = _model(), _video()
    features = model.forward_features(video)
    assert features.shape == (3, 32)
    logits = model(video)
    assert torch.allclose(model.head(features), logits)
    assert torch.allclose(model.forward_patches(video_patches(video, GRID)), logits, atol=1e-6)


def test_positions_matter() -> None:
    model, video = _model(), _video()
    assert not torch.allclose(model(video), model(video.flip(2)), atol=1e-4)


@pytest.mark.parametrize("positions", ["sincos_flat", "sincos_separable"])
def test_both_position_tables(positions: str) -> None:
    assert _model(positions=positions)(_video()).isfinite().all()


def test_drop_path_and_dropout_follow_the_seeds() -> None:
    model, patches = _model(drop_path=0.5, head_drop=0.3), video_patches(_video(), GRID)
    seeds = torch.tensor([5, 6, 7])
    model.train()
    once = model.forward_patches(patches, seeds)
    assert torch.equal(once, model.forward_patches(patches, seeds))
    assert not torch.allclose(once, model.forward_patches(patches, seeds + 10), atol=1e-5)
    alone = model.forward_patches(patches[1:2], seeds[1:2])
    assert torch.allclose(alone, once[1:2], atol=1e-6)
    model.eval()
    assert torch.allclose(model.forward_patches(patches, seeds), model(_video()), atol=1e-6)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_changes_no_gradient(reentrant: bool) -> None:
    patches, seeds = video_patches(_video(), GRID), torch.tensor([5, 6, 7])
    gradients = []
    for function in (None, lambda block, *args: checkpoint(block, *args, use_reentrant=reentrant)):
        model = _model(drop_path=0.3).train()
        model.set_checkpointing(function)
        model.forward_patches(patches, seeds).square().sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])


def test_bf16_weights_give_nearly_the_same_logits() -> None:
    model, video = _model(), _video()
    exact = model(video)
    half = model.bfloat16()(video)
    assert half.dtype == torch.bfloat16
    assert torch.allclose(half.float(), exact, atol=0.05)


def test_attention_choices_name_part_device_and_length() -> None:
    (line,) = _model().attention_choices()
    assert "sdpa" in line and "cpu float32" in line and "12 tokens" in line
    (line,) = _model().attention_choices(dtype=torch.bfloat16)
    assert "math" in line and "bfloat16" in line
