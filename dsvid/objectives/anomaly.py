"""Traffic anomaly detection: windows of frames -> logits of two classes (safe, anomaly), and the losses on them.

Legend: B windows. The formulas and their constants are simple-tad's (arXiv 2504.12822, code). Two of its losses fail
there: the pair of binary cross-entropies for want of smoothed labels, the temporal one in its constructor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dsvid.errors import RecipeError
from dsvid.models.vit import VisionTransformer
from dsvid.objectives.classify import ClassifyObjective
from dsvid.objectives.output import Batch, Output
from dsvid.objectives.pretrain import IMAGENET_MEAN, IMAGENET_STD
from dsvid.tokens import TubeletGrid

CLASSES = ("safe", "anomaly")


@dataclass(frozen=True)
class AnomalyTargets:
    """Of each window: the label int64 [B], the signed time to the anomaly in s [B], the smoothed label [B]."""

    label: Tensor
    ttc_s: Tensor
    risk: Tensor


def focal_loss(
    logits: Tensor, labels: Tensor, *, gamma: float, scale: float, class_weights: Sequence[float] = (1.0, 1.0)
) -> Tensor:
    """Mean of scale * w_y * (1 - p_y)^gamma * cross-entropy (arXiv 1708.02002, eq. 5)."""
    losses = F.cross_entropy(logits, labels, reduction="none")
    weights = torch.tensor(class_weights, dtype=logits.dtype, device=logits.device)[labels]
    return (scale * weights * (1.0 - torch.exp(-losses)) ** gamma * losses).mean()


def ranking_loss(logits: Tensor, labels: Tensor, margin: float = 0.01) -> Tensor:
    """Sum over pairs of how far a safe window comes within `margin` of an anomaly or above it, per anomaly (SmoothAP).

    0 without any anomaly.
    """
    risk = logits.softmax(dim=1)[:, 1]
    above = F.relu(risk[labels == 0][None, :] - risk[labels == 1][:, None] + margin)  # [anomalies, safe]
    return above.sum() / max(1, above.shape[0])


def double_binary_loss(logits: Tensor, risk: Tensor) -> Tensor:
    """Binary cross-entropies of the two logits against [1 - risk, risk], summed over the two, meaned over B."""
    targets = torch.stack([1.0 - risk, risk], dim=1).to(logits.dtype)
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").sum(dim=1).mean()


def temporal_loss(logits: Tensor, labels: Tensor, ttc_s: Tensor, before: float = 0.1, after: float = 0.5) -> Tensor:
    """Mean cross-entropy weighed by e^(before * t) before the anomaly and e^(-after * t) after it; 1 inside."""
    rate = torch.where(ttc_s < 0, before, -after)
    weights = torch.exp(rate * ttc_s).clamp(max=1.0)
    return (F.cross_entropy(logits, labels, reduction="none") * weights).mean()


class AnomalyObjective(ClassifyObjective):
    """Batch of uint8 windows with targets -> loss; logs `correct`. `class_weights` are of the cross-entropy."""

    def __init__(
        self,
        model: VisionTransformer,
        grid: TubeletGrid,
        *,
        loss: str = "crossentropy",
        class_weights: Sequence[float] = (1.0, 1.0),
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        super().__init__(model, grid, mean=mean, std=std)
        if loss not in LOSSES:
            raise _unknown_loss(loss)
        self.loss, self.class_weights = loss, tuple(class_weights)

    def forward(self, batch: Batch) -> Output:
        """Loss over batch["clip"], "label", "ttc_s" and "risk" [B]."""
        logits = self.logits(batch)
        targets = AnomalyTargets(batch["label"], batch["ttc_s"], batch["risk"])
        if self.loss == "crossentropy" and self.class_weights != (1.0, 1.0):
            weights = torch.tensor(self.class_weights, device=logits.device)[targets.label]
            # a plain mean: torch's own divides by the weights that happen to be in the batch
            loss = (F.cross_entropy(logits, targets.label, reduction="none") * weights).mean()
        else:
            loss = anomaly_loss(self.loss, logits, targets)
        right = (logits.detach().argmax(dim=-1) == targets.label).float()
        return Output(loss, {"correct": right.sum()})


def anomaly_loss(name: str, logits: Tensor, targets: AnomalyTargets) -> Tensor:
    """The loss that simple-tad's `--loss` calls `name`. Raises RecipeError for a name that is none of LOSSES."""
    labels, weights = targets.label, (0.40, 0.60)
    match name:
        case "crossentropy":
            return F.cross_entropy(logits, labels)
        case "focal":
            return focal_loss(logits, labels, gamma=2, scale=0.75)
        case "focal6x100":
            return focal_loss(logits, labels, gamma=6, scale=75)
        case "focal2_2":
            return focal_loss(logits, labels, gamma=2, scale=10, class_weights=weights)
        case "focal2_6":
            return focal_loss(logits, labels, gamma=6, scale=50, class_weights=weights)
        case "smoothap":
            return ranking_loss(logits, labels)
        case "2bce":
            return double_binary_loss(logits, targets.risk)
        case "exponential1":
            return temporal_loss(logits, labels, targets.ttc_s)
    raise _unknown_loss(name)


def _unknown_loss(name: str) -> RecipeError:
    return RecipeError(f"unknown loss {name!r}", expected=f"one of {', '.join(LOSSES)}")


LOSSES = ("crossentropy", "focal", "focal6x100", "focal2_2", "focal2_6", "smoothap", "2bce", "exponential1")
