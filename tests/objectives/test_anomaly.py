"""Losses of traffic anomaly detection against their formulas, window by window."""

from __future__ import annotations

import math

import pytest
import torch

from dsvid.errors import RecipeError
from dsvid.models.spec import ModelSpec, build_model
from dsvid.objectives import AnomalyObjective
from dsvid.objectives.anomaly import LOSSES, AnomalyTargets, anomaly_loss, ranking_loss, temporal_loss


def batch(count: int = 12) -> tuple[torch.Tensor, AnomalyTargets]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(count, 2, generator=generator, dtype=torch.float64)
    labels = torch.arange(count) % 3 == 0
    ttc = torch.where(labels, 0.0, torch.linspace(-2, 1, count, dtype=torch.float64))
    return logits, AnomalyTargets(labels.long(), ttc, torch.rand(count, generator=generator, dtype=torch.float64))


def test_every_loss_is_finite_down_to_its_gradient_and_unknown_names_are_errors() -> None:
    logits, targets = batch()
    for dtype in (torch.float32, torch.float64):
        for name in LOSSES:
            z = logits.to(dtype).requires_grad_()
            loss = anomaly_loss(name, z, targets)
            loss.backward()
            assert loss.ndim == 0 and loss.isfinite() and z.grad is not None and z.grad.isfinite().all(), name
    with pytest.raises(RecipeError, match="focal2_6"):
        anomaly_loss("focal3", logits, targets)


@pytest.mark.parametrize(
    ("name", "scale", "gamma", "weights"),
    [
        ("focal", 0.75, 2, (1, 1)),
        ("focal6x100", 75, 6, (1, 1)),
        ("focal2_2", 10, 2, (0.4, 0.6)),
        ("focal2_6", 50, 6, (0.4, 0.6)),
    ],
)
def test_focal_losses(name: str, scale: float, gamma: int, weights: tuple[float, float]) -> None:
    logits, targets = batch()
    total = 0.0
    for z, y in zip(logits.tolist(), targets.label.tolist(), strict=True):
        p = math.exp(z[y]) / (math.exp(z[0]) + math.exp(z[1]))
        total -= scale * weights[y] * (1 - p) ** gamma * math.log(p)
    assert anomaly_loss(name, logits, targets).item() == pytest.approx(total / len(logits))


def test_ranking_counts_every_pair_and_is_zero_without_an_anomaly() -> None:
    logits, targets = batch()
    risk = logits.softmax(dim=1)[:, 1].tolist()
    labels = targets.label.tolist()
    pairs = [
        max(0.0, safe - high + 0.01)
        for high, y in zip(risk, labels, strict=True)
        if y
        for safe, other in zip(risk, labels, strict=True)
        if not other
    ]
    assert ranking_loss(logits, targets.label).item() == pytest.approx(sum(pairs) / sum(labels))
    z = logits.requires_grad_()
    nothing = ranking_loss(z, torch.zeros(len(z), dtype=torch.long))
    nothing.backward()
    assert nothing.item() == 0 and z.grad is not None and not z.grad.any()


def test_the_temporal_loss_weighs_before_and_after_and_never_above_one() -> None:
    logits = torch.zeros(4, 2, dtype=torch.float64)
    labels = torch.tensor([0, 0, 1, 0])
    ttc = torch.tensor([-2.0, 1.0, 0.0, -100.0], dtype=torch.float64)
    weights = [math.exp(-0.2), math.exp(-0.5), 1.0, math.exp(-10)]
    assert temporal_loss(logits, labels, ttc).item() == pytest.approx(math.log(2) * sum(weights) / 4)


def test_two_binary_losses() -> None:
    logits, targets = batch()
    total = 0.0
    for z, risk in zip(logits.tolist(), targets.risk.tolist(), strict=True):
        for value, target in zip(z, (1 - risk, risk), strict=True):
            p = 1 / (1 + math.exp(-value))
            total -= target * math.log(p) + (1 - target) * math.log(1 - p)
    assert anomaly_loss("2bce", logits, targets).item() == pytest.approx(total / len(logits))


def test_the_objective_weighs_classes_window_by_window() -> None:
    model = build_model(ModelSpec("anomaly", "vit_micro", 4, 16, num_classes=2, head_init_scale=1.0), seed=0).eval()
    clip = torch.randint(0, 256, (4, 4, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    given = {"clip": clip, "label": torch.tensor([0, 1, 1, 0]), "ttc_s": torch.zeros(4), "risk": torch.zeros(4)}
    plain = AnomalyObjective(model, model.grid)  # type: ignore[arg-type]
    each = torch.nn.functional.cross_entropy(plain.logits(given), given["label"], reduction="none")
    assert plain(given).loss.item() == pytest.approx(each.mean().item())
    weighed = AnomalyObjective(model, model.grid, class_weights=(0.5, 3.0))  # type: ignore[arg-type]
    by_hand = (each * torch.tensor([0.5, 3.0, 3.0, 0.5])).mean()
    assert weighed(given).loss.item() == pytest.approx(by_hand.item())
    right = (plain.logits(given).argmax(dim=1) == given["label"]).sum()
    assert plain(given).logs["correct"] == right
    with pytest.raises(RecipeError, match="focal3"):
        AnomalyObjective(model, model.grid, loss="focal3")  # type: ignore[arg-type]
