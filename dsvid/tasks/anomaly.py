"""Traffic anomaly detection: windows of driving clips, judged at their last frame."""

from __future__ import annotations

from typing import Any

from dsvid.data.reader import Reader
from dsvid.data.traffic_reader import TrafficReader
from dsvid.data.traffic_split import TrafficSplit, open_traffic, prepare, remarks
from dsvid.evaluate.anomaly import AnomalyResult, detect_anomalies
from dsvid.objectives import AnomalyObjective
from dsvid.objectives.anomaly import CLASSES
from dsvid.recipe import Recipe
from dsvid.tasks.task import EvalRun, Say, Task


class AnomalyTask(Task):
    """task: anomaly."""

    scored = "auroc"

    def open(self, recipe: Recipe, split: str, say: Say | None = None) -> TrafficSplit:
        """Clips and windows of a split list."""
        if getattr(recipe.data, split) == "builtin":
            prepare(say)
        return open_traffic(recipe.data, recipe.anomaly, split)

    def remarks(self, recipe: Recipe, split: str) -> list[str]:
        """How many windows there are, how many anomalies, how many clips are too short."""
        return remarks(split, self.open(recipe, split))

    def class_names(self, recipe: Recipe) -> list[str]:
        """The two classes."""
        return list(CLASSES)

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

    def evaluate(
        self, recipe: Recipe, objective: Any, split: str, run: EvalRun, *, final: bool, play: str = "forwards"
    ) -> AnomalyResult:
        """Every window once, the same as a validation and as the test."""
        batches = self.each_sample_once(recipe, split, run, play)
        return detect_anomalies(objective, batches, self.open(recipe, split), device=run.device)
