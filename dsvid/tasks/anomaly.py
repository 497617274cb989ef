"""Traffic anomaly detection: windows of driving clips, judged at their last frame."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dsvid.anomaly import AnomalyResult, detect_anomalies
from dsvid.data.loader import eval_batches
from dsvid.data.reader import Reader
from dsvid.data.traffic_reader import TrafficReader
from dsvid.data.traffic_split import TrafficSplit, open_traffic, prepare, remarks
from dsvid.errors import RecipeError
from dsvid.objectives import AnomalyObjective
from dsvid.recipe import Recipe
from dsvid.tasks.task import Ranked
from dsvid.weights.card import Card


class AnomalyTask:
    """task: anomaly."""

    scored = "auroc"

    def open(self, recipe: Recipe, split: str, say: Callable[[str], None] | None = None) -> TrafficSplit:
        """Clips and windows of a split list."""
        if getattr(recipe.data, split) == "builtin":
            prepare(say)
        return open_traffic(recipe.data, recipe.anomaly, split)

    def remarks(self, recipe: Recipe, split: str) -> list[str]:
        """How many windows there are, how many anomalies, how many clips are too short."""
        return remarks(split, self.open(recipe, split))

    def class_names(self, recipe: Recipe) -> list[str]:
        """The two classes."""
        return ["safe", "anomaly"]

    def check_weights(self, recipe: Recipe, path: Path, card: Card) -> None:
        """The number of classes is all there is to compare."""

    def objective(self, recipe: Recipe, model: Any) -> AnomalyObjective:
        """The recipe's loss on two logits."""
        return AnomalyObjective(
            model,
            model.grid,
            loss=recipe.anomaly.loss,
            class_weights=recipe.anomaly.class_weights,
            mean=recipe.data.mean,
            std=recipe.data.std,
        )

    def reader(self, recipe: Recipe, split: str) -> Reader:
        """Windows out of zips."""
        return TrafficReader(recipe.data, recipe.anomaly, self.open(recipe, split))

    def eval_clip_bytes(self, recipe: Recipe) -> int:
        """A square window."""
        return recipe.data.num_frames * recipe.data.input_size**2 * 3

    def evaluate(
        self, recipe: Recipe, objective: Any, split: str, where: Ranked, *, final: bool, play: str = "forwards"
    ) -> AnomalyResult:
        """Every window once, the same as a validation and as the test."""
        if play != "forwards":
            raise RecipeError("--play is for classification", found=f"--play {play}", fix="leave it out")
        batches = eval_batches(
            recipe.data, split, rank=where.rank, world=where.world, batch=recipe.eval.batch,
            device_type=where.device.type, reader=self.reader(recipe, split),
        )  # fmt: skip
        return detect_anomalies(objective, where.watched(batches), self.open(recipe, split), device=where.device)

    def write(
        self, recipe: Recipe, result: Any, split: str, folder: Path, extra: Mapping[str, Any],
        names: list[str] | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """predictions.csv, stats.txt, result.json, groups.csv, roc.png, pr.png and mcc.png."""
        found: dict[str, Any] = result.write(folder, {"split": split, **extra})
        return found
