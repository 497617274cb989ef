"""Action detection: clips with people's boxes -> binary cross-entropy over the classes of each box; scores at test.

Legend: B clips, K places for boxes of a clip, N boxes of the batch, C classes, P values of a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsvid.models.detector import box_features, box_logits
from dsvid.models.roi import roi_backend
from dsvid.models.vit import ClipClassifier
from dsvid.objectives.output import Batch, Output, compute_dtype
from dsvid.ops import gather_tokens
from dsvid.tokens import TubeletGrid


def detection_loss(logits: Tensor, labels: Tensor, weight: Tensor, share: float) -> Tensor:
    """Binary cross-entropy over logits and 0/1 labels [N, C]: sum over boxes of the mean over classes, times `share`.

    `weight` [N] is 0 for boxes that do not count. With `share` 1 this is the seed's mean over N x C, times N.
    """
    losses = F.binary_cross_entropy_with_logits(logits.float(), labels.float(), reduction="none").mean(dim=1)
    return (losses * weight).sum() * share


class DetectObjective(nn.Module):
    """Batch of uint8 clips with boxes and labels -> loss; logs `boxes`, how many counted.

    `grid` is that of the model; clips may have any height and width. `loss_clips` is how many clips the loss stands
    for: the seed's grows with the boxes on a GPU, so its own number of clips a GPU (`loss_clips`) makes the gradient
    that of the published run on any number of ranks; 0 takes the clips of this micro-batch, which is the seed's rule
    as it stands. `batch_padding` pads clips to the largest of the batch, as the seed does; by default every clip is
    padded to its own multiple of the patch, and clips of one size run together, so that results do not depend on
    batch mates. Where parameters are gathered for every forward (ZeRO-3), all ranks have to run the model as often:
    training crops have one size; in evaluation `scores` takes the number of passes that the ranks agreed on.
    """

    def __init__(
        self,
        model: ClipClassifier,
        grid: TubeletGrid,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        loss_clips: float = 0.0,
        batch_padding: bool = False,
    ) -> None:
        super().__init__()
        self.model = model
        self.grid = grid
        self.mean, self.std = tuple(mean), tuple(std)
        self.loss_clips = loss_clips
        self.batch_padding = batch_padding

    def forward(self, batch: Batch) -> Output:
        """Loss over the boxes of a batch as `data.ava_clips.collate` makes it; 0 where it has none."""
        real = _real_boxes(batch)
        logits, clip, place = self._box_logits(batch, real)
        labels = batch["labels"][clip, place]
        # 0 = a clip that pads an uneven batch
        weight = batch["weight"][clip].float() if "weight" in batch else torch.ones_like(logits[:, 0])
        share = self.loss_clips / batch["clip"].shape[0] if self.loss_clips else 1.0
        return Output(detection_loss(logits, labels, weight, share), {"boxes": weight.sum()})

    def sizes(self, batch: Batch) -> int:
        """How many padded sizes the clips of a batch have: so many times `scores` runs the model."""
        return len(set(self._padded_sizes(batch)))

    def scores(self, batch: Batch, passes: int = 0) -> Tensor:
        """fp32 [B, K, C]: sigmoid of the logits times the score of the box; 0 where there is no box.

        The model runs `passes` times at least: as often as on the rank whose batch has the most sizes, where its
        parameters are gathered for every pass.
        """
        real = _real_boxes(batch)
        logits, clip, place = self._box_logits(batch, real, passes)
        values = torch.sigmoid(logits.float()) * batch["box_scores"][clip, place, None]
        out = values.new_zeros(*real.shape, values.shape[1])
        out[clip, place] = values
        return out

    def attention_choices(self) -> list[str]:
        """Lines for the start of the log: which attention runs where, and which RoIAlign."""
        return [*self.model.attention_choices(), f"boxes: RoIAlign of {roi_backend()}"]

    def _box_logits(self, batch: Batch, real: Tensor, passes: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """Logits [N, C], and of each box its clip and place [N].

        A batch without boxes runs all of the model too, so that every rank takes part in every collective.
        """
        parts = []
        clips, places = [], []
        for members, features in self._feature_maps(batch, passes):
            inner, place = real[members].nonzero(as_tuple=True)
            clips.append(members[inner])
            places.append(place)
            boxes = batch["boxes"][members[inner], place]
            parts.append(box_features(features, boxes, inner, self.grid.patch))
        # the head once, whatever the sizes: where its parameters are gathered, that is a collective
        return box_logits(self.model.head, torch.cat(parts)), torch.cat(clips), torch.cat(places)

    def _padded_sizes(self, batch: Batch) -> list[tuple[int, int]]:
        """(height, width) of each clip with its padding."""
        clip, patch = batch["clip"], self.grid.patch
        if self.batch_padding:
            return [(clip.shape[2], clip.shape[3])] * len(clip)
        return [(-(-height // patch) * patch, -(-width // patch) * patch) for height, width in batch["size"].tolist()]

    def _feature_maps(self, batch: Batch, passes: int = 0) -> list[tuple[Tensor, Tensor]]:
        """(numbers of clips, their feature map [b, D, h, w]) for each padded size that occurs; others, to make up
        `passes`, are of no clip.
        """
        clip, seeds = batch["clip"], batch.get("seed")
        sizes: list[list[int]] = batch["size"].tolist()
        wanted = self._padded_sizes(batch)
        occurring = sorted(set(wanted))
        maps = []
        for height, width in occurring + occurring[:1] * (passes - len(occurring)):
            chosen = [number for number, size in enumerate(wanted) if size == (height, width)]
            members = torch.tensor(chosen, device=clip.device)
            grid = replace(self.grid, height=height, width=width)
            patches = self._patches(clip[members, :, :height, :width], [sizes[number] for number in chosen], grid)
            features = self.model.map_patches(patches, grid, None if seeds is None else seeds[members])
            maps.append((members, features))
        return maps[: len(occurring)]

    def _patches(self, clip: Tensor, sizes: list[list[int]], grid: TubeletGrid) -> Tensor:
        """Normalised patches [b, N, P] in which everything outside of a clip's own height and width is 0."""
        every = torch.arange(grid.tokens, dtype=torch.int32, device=clip.device).expand(clip.shape[0], -1)
        patches, _ = gather_tokens(
            clip.contiguous(),
            every,
            None,
            grid,
            mean=self.mean,
            std=self.std,
            norm_pix=False,
            dtype=compute_dtype(self.model, clip.device),
        )
        if all(size == [grid.height, grid.width] for size in sizes):
            return patches
        inside = _inside(torch.tensor(sizes, device=clip.device), grid).to(patches.dtype)
        shape = (clip.shape[0], grid.t, grid.sites, 3, grid.tubelet, grid.patch, grid.patch)
        return (patches.view(shape) * inside[:, None, :, None, None]).view_as(patches)


def _real_boxes(batch: Batch) -> Tensor:
    """bool [B, K]: the places that hold a box."""
    places = torch.arange(batch["boxes"].shape[1], device=batch["boxes"].device)
    return places < batch["boxes_count"][:, None]


def _inside(sizes: Tensor, grid: TubeletGrid) -> Tensor:
    """bool [b, sites, p, p]: the pixels of each site inside of a clip's height and width."""
    rows = torch.arange(grid.height, device=sizes.device) < sizes[:, :1]
    columns = torch.arange(grid.width, device=sizes.device) < sizes[:, 1:]
    pixels = rows[:, :, None] & columns[:, None, :]
    cut = pixels.view(-1, grid.h, grid.patch, grid.w, grid.patch).permute(0, 1, 3, 2, 4)
    return cut.reshape(-1, grid.sites, grid.patch, grid.patch)
