"""Classification: loss against torch on float video, padding weights, counts, and that it learns."""

import pytest
import torch
import torch.nn.functional as F
from timm.data.mixup import mixup_target
from torch import Tensor

from dsvid.models import EncoderSize, VisionTransformer
from dsvid.objectives import ClassifyObjective
from dsvid.objectives.classify import mixed_targets
from dsvid.objectives.pretrain import IMAGENET_MEAN, IMAGENET_STD
from dsvid.tokens import TubeletGrid

GRID = TubeletGrid(4, 16, 24, 2, 8)


def _objective(**options: object) -> ClassifyObjective:
    model = VisionTransformer(EncoderSize(32, 2, 2, 8), GRID, num_classes=5, head_init_scale=1.0)
    return ClassifyObjective(model, GRID, **options)


def _batch() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    clip = torch.randint(0, 256, (4, 4, 16, 24, 3), generator=generator).to(torch.uint8)
    return {"clip": clip, "label": torch.tensor([0, 3, 1, 4]), "seed": torch.arange(4)}


def test_loss_is_cross_entropy_of_the_normalised_video() -> None:
    objective, batch = _objective(label_smoothing=0.1), _batch()
    mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    video = ((batch["clip"].float() / 255 - mean) / std).permute(0, 4, 1, 2, 3)
    logits = objective.model(video)
    assert torch.allclose(objective.logits(batch), logits, atol=1e-5)
    expected = F.cross_entropy(logits, batch["label"], label_smoothing=0.1)
    out = objective(batch)
    assert float(out.loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert float(out.logs["correct"]) == float((logits.argmax(1) == batch["label"]).sum())


def test_padding_counts_for_nothing() -> None:
    objective, batch = _objective(), _batch()
    part = {name: value[:3] for name, value in batch.items()}
    padded = batch | {"weight": torch.tensor([1.0, 1.0, 1.0, 0.0])}
    assert float(objective(padded).loss.detach()) == pytest.approx(float(objective(part).loss.detach()), rel=1e-6)
    assert float(objective(padded).logs["correct"]) == float(objective(part).logs["correct"])
    nothing = objective(batch | {"weight": torch.zeros(4)})
    assert float(nothing.loss.detach()) == 0.0


@pytest.mark.parametrize("cast", [False, True])
def test_it_learns_a_few_clips(cast: bool) -> None:
    objective, batch = _objective(), _batch()
    if cast:
        objective.bfloat16()
    optimizer = torch.optim.AdamW(objective.parameters(), lr=5e-3)
    for _ in range(25):
        optimizer.zero_grad()
        out = objective(batch)
        out.loss.backward()
        optimizer.step()
    assert out.loss.dtype == torch.float32
    assert float(out.logs["correct"]) == 4


def _mixed(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return batch | {"partner_label": batch["label"].flip(0), "lam": torch.tensor([0.7, 0.7, 1.0, 0.4])}


def test_the_targets_of_a_mixed_batch_are_mixed() -> None:
    objective, batch = _objective(label_smoothing=0.1), _mixed(_batch())
    logits = objective.logits(batch)
    onehot, other = (F.one_hot(batch[key], 5) * 0.9 + 0.1 / 5 for key in ("label", "partner_label"))
    lam = batch["lam"][:, None]
    expected = -((lam * onehot + (1 - lam) * other) * logits.log_softmax(1))
    assert float(objective(batch).loss.detach()) == pytest.approx(float(expected.sum(1).mean().detach()), rel=1e-5)


def test_evaluation_never_mixes() -> None:
    objective, batch = _objective(label_smoothing=0.1), _batch()
    objective.eval()
    assert float(objective(_mixed(batch)).loss.detach()) == float(objective(batch).loss.detach())


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_targets_are_timms(smoothing: float) -> None:
    labels = torch.tensor([0, 3, 2, 1])
    ours = mixed_targets(labels, labels.flip(0), 0.3, 5, smoothing)
    assert torch.allclose(ours, mixup_target(labels, 5, 0.3, smoothing), atol=1e-6)
    each = mixed_targets(labels, labels.flip(0), torch.tensor([1.0, 0.3, 0.7, 0.0]), 5, smoothing)
    assert torch.allclose(each[1], ours[1]) and torch.allclose(each.sum(dim=1), torch.ones(4))
