"""Clip classification: lists with labels, top-1 and top-5 over views."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from dsvid.data.builtin import CLASSES
from dsvid.data.loader import eval_batches
from dsvid.data.manifest import Manifest, open_split
from dsvid.data.reader import ClipReader, Reader
from dsvid.documents import read_text
from dsvid.errors import DataError
from dsvid.evaluate.classify import Evaluation, evaluate
from dsvid.objectives import ClassifyObjective
from dsvid.recipe import Recipe
from dsvid.tasks.pretrain import open_clip_list
from dsvid.tasks.task import EvalRun, Say, Task


class ClassifyTask(Task):
    """task: classify."""

    scored = "top1"

    def open(self, recipe: Recipe, split: str, say: Say | None = None) -> Manifest:
        """The list, its labels checked."""
        manifest = open_clip_list(recipe, split, say)
        manifest.check_labels(recipe.model.num_classes, limit=recipe.data.train_limit if split == "train" else 0)
        return manifest

    def remarks(self, recipe: Recipe, split: str) -> list[str]:
        """Classes that no entry of the split belongs to: legitimate, but rarely meant."""
        limit = recipe.data.train_limit if split == "train" else 0
        manifest, names = self._manifest(recipe, split), self.class_names(recipe)
        present = set(manifest.labels[:limit] if limit else manifest.labels)
        empty = [names[i] if names else str(i) for i in range(recipe.model.num_classes) if i not in present]
        if not empty:
            return []
        shown = ", ".join(empty[:8]) + (f" and {len(empty) - 8} more" if len(empty) > 8 else "")
        effect = "the head cannot learn them" if split == "train" else "the mean over classes leaves them out"
        return [
            f"data.{split} ({manifest.source}) has no video of {len(empty)} of {recipe.model.num_classes} classes: "
            f"{shown}; {effect}"
        ]

    def class_names(self, recipe: Recipe) -> list[str]:
        """Names of the classes: those of data.labels, of the built-in clips, else none.

        Raises DataError where the file has another number of lines than the model has classes.
        """
        if not recipe.data.labels:
            return list(CLASSES) if recipe.data.train == "builtin" else []
        path = Path(recipe.data.labels).expanduser()
        try:
            names = [line.strip() for line in read_text(path).splitlines() if line.strip()]
        except (OSError, ValueError) as error:
            raise DataError(f"data.labels={path} cannot be read", found=str(error), expected="a text file") from error
        if len(names) != recipe.model.num_classes:
            raise DataError(
                f"data.labels={path} does not fit model.num_classes",
                found=f"{len(names)} names",
                expected=f"{recipe.model.num_classes}, one a line",
            )
        return names

    def objective(self, recipe: Recipe, model: Any) -> ClassifyObjective:
        """Cross-entropy."""
        return ClassifyObjective(
            model,
            model.grid,
            label_smoothing=recipe.classify.label_smoothing,
            mean=recipe.data.mean,
            std=recipe.data.std,
        )

    def reader(self, recipe: Recipe, split: str) -> Reader:
        """Clips of the list."""
        return ClipReader(recipe.data, split)

    def evaluate(
        self, recipe: Recipe, objective: Any, split: str, run: EvalRun, *, final: bool, play: str = "forwards"
    ) -> Evaluation:
        """One view a video as a validation, eval.segments x eval.crops views as the test."""
        settings, manifest = recipe.eval, self._manifest(recipe, split)
        segments, crops = (settings.segments, settings.crops) if final else (1, 1)
        views = eval_batches(
            recipe.data, split, segments=segments, crops=crops, rank=run.ranks.rank, world=run.ranks.world,
            batch=settings.batch, reverse=play == "backwards", freeze=play == "still", device=run.device,
        )  # fmt: skip
        return evaluate(
            objective,
            run.watched(views),
            labels=np.asarray(manifest.labels, dtype=np.int64),
            views=segments * crops,
            device=run.device,
            merge=settings.merge,
            names=self.class_names(recipe),
            paths=[manifest.path(index) for index in range(len(manifest))],
            about={"segments": segments, "crops": crops, "merge": settings.merge},
        )

    def _manifest(self, recipe: Recipe, split: str) -> Manifest:
        return open_split(getattr(recipe.data, split), split, recipe.data.root)
