"""AVA action detection: key frames with people's boxes, frame mAP."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from dsvid.data import ava_generated
from dsvid.data.ava import class_columns
from dsvid.data.ava_reader import AvaReader
from dsvid.data.ava_split import AvaSplit, check_clips, class_names, label_map, open_ava, remarks
from dsvid.data.reader import Reader
from dsvid.errors import CheckpointError
from dsvid.evaluate.detect import Detections, detect
from dsvid.models.sizes import encoder_size
from dsvid.objectives import DetectObjective
from dsvid.recipe import Recipe
from dsvid.tasks.task import EvalRun, Say, Task
from dsvid.weights.card import Card


class DetectTask(Task):
    """task: detect."""

    scored = "mAP"

    def open(self, recipe: Recipe, split: str, say: Say | None = None) -> AvaSplit:
        """The samples of a split and, in evaluation, its ground truth."""
        if getattr(recipe.data, split) == "builtin":
            ava_generated.prepare(say)
        return open_ava(recipe.data, recipe.detect, split, recipe.model.num_classes)

    def remarks(self, recipe: Recipe, split: str) -> list[str]:
        """How many key frames and boxes there are, and what was left out."""
        opened = self.open(recipe, split)
        check_clips(split, opened)
        return remarks(split, opened)

    def class_names(self, recipe: Recipe) -> list[str]:
        """Names by column, "" for a class that does not count."""
        columns = class_columns(recipe.detect.classes or recipe.model.num_classes)
        names = class_names(label_map(recipe.data), columns, custom=bool(recipe.detect.classes))
        return [names.get(number, "") for number in sorted(columns, key=lambda number: columns[number])]

    def check_weights(self, recipe: Recipe, path: Path, card: Card) -> None:
        """Raise CheckpointError for a head whose columns are other classes: the shapes would fit."""
        stated = card.trained.get("classes")
        if stated is not None and tuple(stated) != recipe.detect.classes:
            raise CheckpointError(
                f"{path}: the columns of the head are other classes than the recipe's", found=f"{list(stated)}",
                expected=f"detect.classes={list(recipe.detect.classes)}", fix=f"detect.classes={list(stated)}",
            )  # fmt: skip

    def objective(self, recipe: Recipe, model: Any) -> nn.Module:
        """Binary cross-entropy over the classes of each box."""
        return DetectObjective(
            model,
            model.grid,
            mean=recipe.data.mean,
            std=recipe.data.std,
            loss_clips=recipe.detect.loss_clips,
            batch_padding="batch_padding" in recipe.detect.seed_faults,
        )

    def reader(self, recipe: Recipe, split: str) -> Reader:
        """The clips around key frames."""
        patch = encoder_size(recipe.model.arch).patch
        return AvaReader(recipe.data, recipe.detect, self.open(recipe, split), patch)

    def evaluate(
        self, recipe: Recipe, objective: Any, split: str, run: EvalRun, *, final: bool, play: str = "forwards"
    ) -> Detections:
        """Every key frame once, the same as a validation and as the test."""
        batches = self.each_sample_once(recipe, split, run, play)
        opened = self.open(recipe, split)
        return detect(objective, batches, opened, protocol=recipe.detect.protocol, ranks=run.ranks, device=run.device)
