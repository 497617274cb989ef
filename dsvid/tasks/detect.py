"""AVA action detection: key frames with people's boxes, frame mAP."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from dsvid.data import ava_generated
from dsvid.data.ava import class_columns
from dsvid.data.ava_reader import AvaReader
from dsvid.data.ava_split import AvaSplit, check_clips, class_names, label_map, open_ava, remarks
from dsvid.data.loader import eval_batches
from dsvid.data.reader import Reader
from dsvid.detection import Detections, detect
from dsvid.errors import RecipeError
from dsvid.models.sizes import encoder_size
from dsvid.objectives import DetectObjective
from dsvid.recipe import Recipe
from dsvid.tasks.task import Ranked

LONG_SIDE = 464  # 256 pixels high at 16 : 9, rounded up to the patch


class DetectTask:
    """task: detect."""

    scored = "mAP"

    def open(self, recipe: Recipe, split: str, say: Callable[[str], None] | None = None) -> AvaSplit:
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
        names = class_names(label_map(recipe.data), columns)
        return [names.get(number, "") for number in sorted(columns, key=lambda number: columns[number])]

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

    def eval_clip_bytes(self, recipe: Recipe) -> int:
        """A whole frame, at 16 : 9."""
        side = recipe.data.short_side
        return recipe.data.num_frames * side * (side * LONG_SIDE // 256) * 3

    def evaluate(
        self, recipe: Recipe, objective: Any, split: str, where: Ranked, *, final: bool, play: str = "forwards"
    ) -> Detections:
        """Every key frame once, the same as a validation and as the test."""
        if play != "forwards":
            raise RecipeError("--play is for classification", found=f"--play {play}", fix="leave it out")
        views = eval_batches(
            recipe.data, split, rank=where.rank, world=where.world, batch=recipe.eval.batch,
            device_type=where.device.type, reader=self.reader(recipe, split),
        )  # fmt: skip
        return detect(
            objective, where.watched(views), self.open(recipe, split), protocol=recipe.detect.protocol,
            device=where.device,
        )  # fmt: skip

    def write(
        self, recipe: Recipe, result: Any, split: str, folder: Path, extra: Mapping[str, Any],
        names: list[str] | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """inference/result.csv, inference/result.log, result.json, classes.csv and classes.png."""
        found: dict[str, Any] = result.write(folder, {"split": split, **extra})
        return found
