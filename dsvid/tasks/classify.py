"""Clip classification: lists with labels, top-1 and top-5 over views."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dsvid.data.builtin import CLASSES
from dsvid.data.loader import eval_batches
from dsvid.data.manifest import Manifest, open_split
from dsvid.data.reader import ClipReader, Reader
from dsvid.documents import read_text
from dsvid.errors import DataError
from dsvid.evaluate import Evaluation, evaluate, write_result
from dsvid.objectives import ClassifyObjective
from dsvid.recipe import Recipe
from dsvid.tasks.pretrain import open_clip_list
from dsvid.tasks.task import Ranked
from dsvid.weights.card import Card


class ClassifyTask:
    """task: classify."""

    scored = "top1"

    def open(self, recipe: Recipe, split: str, say: Callable[[str], None] | None = None) -> Manifest:
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

    def check_weights(self, recipe: Recipe, path: Path, card: Card) -> None:
        """The number of classes is all there is to compare."""

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

    def eval_clip_bytes(self, recipe: Recipe) -> int:
        """A square view."""
        return recipe.data.num_frames * recipe.data.input_size**2 * 3

    def evaluate(
        self, recipe: Recipe, objective: Any, split: str, where: Ranked, *, final: bool, play: str = "forwards"
    ) -> Evaluation:
        """One view a video as a validation, eval.segments x eval.crops views as the test."""
        settings = recipe.eval
        segments, crops = (settings.segments, settings.crops) if final else (1, 1)
        views = eval_batches(
            recipe.data, split, segments=segments, crops=crops, rank=where.rank, world=where.world,
            batch=settings.batch, reverse=play == "backwards", freeze=play == "still", device_type=where.device.type,
        )  # fmt: skip
        return evaluate(
            objective,
            where.watched(views),
            labels=np.asarray(self._manifest(recipe, split).labels, dtype=np.int64),
            views=segments * crops,
            device=where.device,
            merge=settings.merge,
        )

    def write(
        self, recipe: Recipe, result: Any, split: str, folder: Path, extra: Mapping[str, Any],
        names: list[str] | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """result.json, predictions.csv and confusion.png."""
        manifest = self._manifest(recipe, split)
        paths = [manifest.path(index) for index in range(len(manifest))]
        settings = recipe.eval
        about = {"split": split, "segments": settings.segments, "crops": settings.crops, "merge": settings.merge}
        shown = self.class_names(recipe) if names is None else names
        return write_result(folder, result, shown, paths, extra={**about, **extra})

    def _manifest(self, recipe: Recipe, split: str) -> Manifest:
        return open_split(getattr(recipe.data, split), split, recipe.data.root)
