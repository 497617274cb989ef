"""Masked pre-training: clip lists without labels, no evaluation."""

from __future__ import annotations

from typing import Any

from dsvid.data import traffic_split
from dsvid.data.builtin import prepare
from dsvid.data.footage_reader import FootageReader, FootageSplit, open_footage, remarks
from dsvid.data.manifest import Manifest, open_split
from dsvid.data.reader import ClipReader, Reader
from dsvid.objectives import PretrainObjective
from dsvid.recipe import Recipe
from dsvid.tasks.task import Samples, Say, Task


class PretrainTask(Task):
    """task: pretrain."""

    def open(self, recipe: Recipe, split: str, say: Say | None = None) -> Samples:
        """The list, or the indexed footage."""
        if split == "train" and recipe.data.train == "footage":
            if "builtin" in (recipe.footage.first.index, recipe.footage.second.index):
                traffic_split.prepare(say)
            return open_footage(recipe.data, recipe.footage, recipe.batch.total)
        return open_clip_list(recipe, split, say)

    def remarks(self, recipe: Recipe, split: str) -> list[str]:
        """How many windows the footage has."""
        opened = self.open(recipe, split)
        return remarks(opened) if isinstance(opened, FootageSplit) else []

    def objective(self, recipe: Recipe, model: Any) -> PretrainObjective:
        """The loss over masked patches."""
        return PretrainObjective(
            model,
            model.grid,
            mask_ratio=recipe.pretrain.mask_ratio,
            decoder_mask_ratio=recipe.pretrain.decoder_mask_ratio,
            norm_pix=recipe.pretrain.norm_pix,
            mean=recipe.data.mean,
            std=recipe.data.std,
        )

    def reader(self, recipe: Recipe, split: str) -> Reader:
        """Clips of the list, or windows of the footage."""
        opened = self.open(recipe, split)
        if isinstance(opened, FootageSplit):
            return FootageReader(recipe.data, recipe.footage, opened)
        return ClipReader(recipe.data, split)


def open_clip_list(recipe: Recipe, split: str, say: Say | None) -> Manifest:
    """The list of a split. Raises DataError for a line that is not understood."""
    value = getattr(recipe.data, split)
    if value == "builtin":
        prepare(log=say)  # said aloud: the first call on a machine draws and encodes 2200 clips
    return open_split(value, split, recipe.data.root)
