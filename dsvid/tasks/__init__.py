"""The tasks by name: what the loop, the start and the evaluation ask of each."""

from __future__ import annotations

from dsvid.recipe import Recipe
from dsvid.tasks.anomaly import AnomalyTask
from dsvid.tasks.classify import ClassifyTask
from dsvid.tasks.detect import DetectTask
from dsvid.tasks.pretrain import PretrainTask
from dsvid.tasks.task import EvalRun, Result, Samples, Task, unreadable_split

TASKS: dict[str, Task] = {
    "pretrain": PretrainTask(),
    "classify": ClassifyTask(),
    "detect": DetectTask(),
    "anomaly": AnomalyTask(),
}

__all__ = ["TASKS", "EvalRun", "Result", "Samples", "Task", "task_of", "unreadable_split"]


def task_of(recipe: Recipe) -> Task:
    """The task of a recipe."""
    return TASKS[recipe.task]
