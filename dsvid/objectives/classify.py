"""Clip classification: all tokens of a clip -> cross-entropy with label smoothing, on mixed clips where the batch says
so.

Legend: B batch, N tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsvid.models.vit import VisionTransformer
from dsvid.objectives.output import Batch, Output, compute_dtype
from dsvid.objectives.pretrain import IMAGENET_MEAN, IMAGENET_STD
from dsvid.ops import gather_tokens
from dsvid.tokens import TubeletGrid


class ClassifyObjective(nn.Module):
    """Batch of uint8 clips and labels -> loss; logs `correct`, the number of clips whose highest logit is the label."""

    def __init__(
        self,
        model: VisionTransformer,
        grid: TubeletGrid,
        *,
        label_smoothing: float = 0.0,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        self.model = model
        self.grid = grid
        self.label_smoothing = label_smoothing
        self.mean, self.std = tuple(mean), tuple(std)

    def forward(self, batch: Batch) -> Output:
        """Loss over batch["clip"] and batch["label"]; batch["weight"] (0 = padding) weighs the clips where it is
        given.

        A mixed batch has "partner_label" and "lam" [B]: the target is lam * own + (1 - lam) * the partner's, each
        smoothed (arXiv 1710.09412, 1905.04899).
        """
        logits = self.logits(batch)
        labels, weight = batch["label"], batch.get("weight")
        if self.training and "lam" in batch:
            targets = mixed_targets(labels, batch["partner_label"], batch["lam"], logits.shape[1], self.label_smoothing)
            losses = F.cross_entropy(logits, targets, reduction="none")
        else:
            losses = F.cross_entropy(logits, labels, reduction="none", label_smoothing=self.label_smoothing)
        right = (logits.detach().argmax(dim=-1) == labels).float()
        if weight is None:
            return Output(losses.mean(), {"correct": right.sum()})
        # A batch of padding alone has weight 0: its loss is 0, not NaN.
        loss = (losses * weight).sum() / weight.sum().clamp(min=1.0)
        return Output(loss, {"correct": (right * weight).sum()})

    def attention_choices(self) -> list[str]:
        """Lines for the start of the log: which attention runs where."""
        return self.model.attention_choices()

    def logits(self, batch: Batch) -> Tensor:
        """fp32 logits [B, classes] of batch["clip"]; batch["seed"] serves drop path in training and may be missing
        else.
        """
        clip = batch["clip"]
        every = torch.arange(self.grid.tokens, dtype=torch.int32, device=clip.device).expand(clip.shape[0], -1)
        patches, _ = gather_tokens(
            clip,
            every,
            None,
            self.grid,
            mean=self.mean,
            std=self.std,
            norm_pix=False,
            dtype=compute_dtype(self.model, clip.device),
        )
        logits: Tensor = self.model.forward_patches(patches, batch.get("seed"))
        return logits.float()


def mixed_targets(
    labels: Tensor, partner_labels: Tensor, lam: Tensor | float, classes: int, smoothing: float = 0.0
) -> Tensor:
    """Soft targets float32 [B, classes]: lam * own + (1 - lam) * partner's, each smoothed by smoothing / classes."""

    def smooth(values: Tensor) -> Tensor:
        return F.one_hot(values, classes).float() * (1.0 - smoothing) + smoothing / classes

    share = torch.as_tensor(lam, dtype=torch.float32, device=labels.device).reshape(-1, 1)
    return share * smooth(labels) + (1.0 - share) * smooth(partner_labels)
