"""Masked video pre-training: VideoMAE (all masked tokens) and VideoMAE V2 (dual masking).

Knows the loss; the masks and targets come from `dsvid.ops`, straight from the uint8 clip. Legend: B batch, T frames,
H W pixels, N tokens, L predicted tokens, P values of a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from dsvid.models.mae import MaskedAutoencoder
from dsvid.objectives.output import Batch, Output, compute_dtype
from dsvid.ops import TokenPlan, gather_tokens, plan_tokens
from dsvid.tokens import TubeletGrid, dropped_per_cell, masked_sites, patchify, unpatchify

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def masked_loss(predictions: Tensor, targets: Tensor, weight: Tensor | None) -> Tensor:
    """Mean squared error over the predicted tokens [B, L, P] of the whole micro-batch, in fp32 whatever the dtypes.

    `weight` None: plain mean (VideoMAE). Else sum(w * per-token mean) / sum(w) with `weight` [B, L] (VideoMAE V2,
    arXiv 2303.16727). Where every clip has the same number of tokens, the mean over micro-batches of equal size is
    exactly the loss of their union; with unequal counts (t % 4 != 0) it differs, as it does between ranks in the
    original.
    """
    if weight is None:
        weight = torch.ones(predictions.shape[:2], device=targets.device)
    share = (weight / weight.sum()).flatten()
    return cast("Tensor", _SquaredError.apply(predictions, targets, share))


class _SquaredError(torch.autograd.Function):
    """sum over tokens of share * mean((predictions - targets)^2), a piece of the tokens at a time on CPU.

    The fp32 differences of a whole batch are tens of megabytes; in pieces they never leave the cache.
    """

    @staticmethod
    def forward(ctx: Any, predictions: Tensor, targets: Tensor, share: Tensor) -> Tensor:
        ctx.save_for_backward(predictions, targets, share)
        pairs = zip(_pieces(predictions), _pieces(targets), strict=True)
        errors = [(p - t).square_().mean(dim=1) for p, t in pairs]
        return (torch.cat(errors) * share).sum()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        predictions, targets, share = ctx.saved_tensors
        scale = (share * grad * (2.0 / predictions.shape[-1]))[:, None]
        out = torch.empty(predictions.shape, dtype=predictions.dtype, device=predictions.device)
        parts = zip(_pieces(out), _pieces(predictions), _pieces(targets), _pieces(scale), strict=True)
        for piece, p, t, s in parts:
            piece.copy_((p - t).mul_(s))
        return out, None, None


def _pieces(tensor: Tensor) -> list[Tensor]:
    """Rows of [..., P]: pieces of 128 on CPU, all at once elsewhere."""
    rows = tensor.flatten(0, -2)
    return list(torch.split(rows, 128)) if tensor.device.type == "cpu" else [rows]


@dataclass(frozen=True)
class Rebuilt:
    """What an autoencoder makes of clips: `pictures`, each uint8 [B, T, H, W, 3]: `original`, `masked`, `rebuilt`,
    `patch_mean`; `hidden` bool [B, N], True = masked; `loss` [B, T], the mean squared error over the masked patches of
    each frame, in the units of training, and `loss_of_mean`, that of the true mean of each patch and colour.

    `rebuilt` fills every masked token with the prediction, scaled with the true mean and deviation of the patch where
    the targets are normalised; `patch_mean` fills in the true mean alone, to show how much of the picture that gives.
    """

    pictures: dict[str, Tensor]
    hidden: Tensor
    loss: Tensor
    loss_of_mean: Tensor


class PretrainObjective(nn.Module):
    """Batch of uint8 clips and seeds -> reconstruction loss of the masked tokens.

    Raises RecipeError where a ratio does not suit the grid.
    """

    def __init__(
        self,
        model: MaskedAutoencoder,
        grid: TubeletGrid,
        *,
        mask_ratio: float,
        decoder_mask_ratio: float = 0.0,
        norm_pix: bool = True,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        self.model = model
        self.grid = grid
        self.masked_sites = masked_sites(grid, mask_ratio)
        self.cell_drop = dropped_per_cell(grid, decoder_mask_ratio)
        self.norm_pix = norm_pix
        self.mean, self.std = tuple(mean), tuple(std)

    def forward(self, batch: Batch) -> Output:
        """Draw the masks from batch["seed"] and return the loss of batch["clip"]."""
        plan = plan_tokens(batch["seed"], self.grid, self.masked_sites, self.cell_drop)
        predictions, targets = self.predict(batch["clip"], plan, batch["seed"])
        return Output(masked_loss(predictions, targets, plan.target_weight))

    def attention_choices(self) -> list[str]:
        """Lines for the start of the log: which attention runs where, with this objective's token counts."""
        grid, drop = self.grid, self.cell_drop
        visible = grid.t * (grid.sites - self.masked_sites)
        decoded = grid.tokens * (4 - drop) // 4 if drop else grid.tokens - visible
        return self.model.attention_choices(visible=visible, decoded=decoded)

    def predict(self, clip: Tensor, plan: TokenPlan, seeds: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Predictions and fp32 targets [B, L, P] of `clip` uint8 [B, T, H, W, 3] for given token sets."""
        patches, targets = gather_tokens(
            clip,
            plan.visible,
            plan.decoded[:, : plan.max_targets],
            self.grid,
            mean=self.mean,
            std=self.std,
            norm_pix=self.norm_pix,
            dtype=compute_dtype(self.model, clip.device),
        )
        return self.model(patches, plan.visible, plan.decoded, plan.max_targets, seeds), targets

    def reconstruct(self, batch: Batch) -> dict[str, Tensor]:
        """Pictures of a batch, see `Rebuilt`."""
        return self.rebuild(batch).pictures

    @torch.no_grad()
    def rebuild(self, batch: Batch) -> Rebuilt:
        """Predict every masked token of batch["clip"], with the masks of batch["seed"]."""
        clip = batch["clip"]
        plan = plan_tokens(batch["seed"], self.grid, self.masked_sites, 0)
        was_training = self.model.training
        self.model.eval()
        predictions, targets = self.predict(clip, plan)
        self.model.train(was_training)
        pixels = patchify(clip, self.grid).float() / 255.0  # [B, N, P]
        index = plan.decoded.long()[:, :, None].expand(-1, -1, pixels.shape[-1])
        hidden = pixels.gather(1, index).view(*index.shape[:2], -1, 3)  # [B, L, pixels, 3]
        mean = hidden.mean(dim=2, keepdim=True)
        values = predictions.float().view_as(hidden)
        if self.norm_pix:
            values = values * (hidden.var(dim=2, keepdim=True).sqrt() + 1e-6) + mean
        fills = {"masked": torch.full_like(hidden, 0.5), "rebuilt": values, "patch_mean": mean.expand_as(hidden)}
        pictures = {"original": clip}
        for name, fill in fills.items():
            filled = pixels.scatter(1, index, fill.flatten(2))
            frames = unpatchify(filled, self.grid)
            pictures[name] = (frames * 255.0).round().clamp(0, 255).to(torch.uint8)
        by_frame = (*index.shape[:2], self.grid.tubelet, -1, 3)
        wrong, wanted = (predictions.float() - targets).view(by_frame), targets.view(by_frame)
        spread = wanted - wanted.mean(dim=(2, 3), keepdim=True)
        return Rebuilt(
            pictures,
            torch.zeros(pixels.shape[:2], dtype=torch.bool, device=clip.device).scatter(1, index[..., 0], True),
            self._mean_by_frame(wrong, plan),
            self._mean_by_frame(spread, plan),
        )

    def _mean_by_frame(self, values: Tensor, plan: TokenPlan) -> Tensor:
        """Mean squares of [B, L, u, pixels, 3] over the masked patches of each frame: [B, T]."""
        slots = plan.decoded.long() // self.grid.sites  # [B, L]; a tube mask hides as many sites in each slot
        sums = values.new_zeros(len(values), self.grid.t, self.grid.tubelet)
        each = values.square().mean(dim=(3, 4))  # [B, L, u]
        sums.scatter_add_(1, slots[..., None].expand_as(each), each)
        return (sums / self.masked_sites).flatten(1)
