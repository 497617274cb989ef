"""What a task is: its samples, its objective, its evaluation. One module a task; the loop knows none of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from dsvid.data.loader import eval_batches
from dsvid.data.reader import Reader
from dsvid.errors import DataError, RecipeError
from dsvid.recipe import Recipe
from dsvid.runtime import Ranks
from dsvid.weights.card import Card

Batches = Iterator[dict[str, Any]]
Say = Callable[[str], None]


class Samples(Protocol):
    """A split that was opened."""

    @property
    def sha256(self) -> str:
        """Of all that decides which samples there are, so that ranks and restarts can compare."""

    def __len__(self) -> int: ...

    def path(self, index: int) -> str:
        """The file of a sample, for messages."""


class Result(Protocol):
    """An evaluation of a split; the same on all ranks, save what only rank 0 needs for its files."""

    @property
    def unreadable(self) -> list[dict[str, Any]]: ...

    @property
    def short(self) -> list[tuple[int, str]]: ...

    @property
    def any_read(self) -> bool:
        """Whether there is anything to judge."""

    def numbers(self) -> dict[str, Any]:
        """What becomes a line of metrics.jsonl."""

    def line(self) -> str:
        """The result in a line, for people."""

    def write(self, folder: Path, extra: Mapping[str, Any]) -> dict[str, Any]:
        """Write the files, on rank 0, `extra` into result.json; returns what that holds. Raises DataError."""


@dataclass(frozen=True)
class EvalRun:
    """Where an evaluation runs; `watched` wraps the batches, so that a stop and a stall are noticed."""

    ranks: Ranks
    device: torch.device
    watched: Callable[[Batches], Batches] = iter


class Task(ABC):
    """One task. Methods that take `split` are for "train", "val" and "test".

    `scored` is the number by which the best weights of a run are chosen, "" for a task that has no evaluation.
    """

    scored = ""

    @abstractmethod
    def open(self, recipe: Recipe, split: str, say: Say | None = None) -> Samples:
        """Open and check a split; `say` hears what takes long. Raises DataError."""

    @abstractmethod
    def objective(self, recipe: Recipe, model: Any) -> nn.Module:
        """Batch -> loss around `model`. Raises RecipeError where the recipe does not suit the grid."""

    @abstractmethod
    def reader(self, recipe: Recipe, split: str) -> Reader:
        """How the loader reads a split."""

    def remarks(self, recipe: Recipe, split: str) -> list[str]:
        """What the log says of a split at the start. Raises DataError for what makes no sense to begin with."""
        return []

    def class_names(self, recipe: Recipe) -> list[str]:
        """A name for each column of the head ("" for one that does not count), or none at all. Raises DataError."""
        return []

    def check_weights(self, recipe: Recipe, path: Path, card: Card) -> None:  # noqa: B027 - a task may have no more to ask
        """Raise CheckpointError for weights whose shapes fit the recipe's model, but whose head means other classes."""

    def evaluate(
        self, recipe: Recipe, objective: Any, split: str, run: EvalRun, *, final: bool, play: str = "forwards"
    ) -> Result:
        """Evaluate a split on all ranks: as a validation, or `final`, as the recipe's test. A collective.

        `play` other than forwards is for classification. Raises RecipeError for other tasks.
        """
        raise RecipeError(f"task {recipe.task} has no evaluation")

    def each_sample_once(self, recipe: Recipe, split: str, run: EvalRun, play: str) -> Batches:
        """This rank's batches of a split whose samples have one view each."""
        if play != "forwards":
            raise RecipeError("--play is for classification", found=f"--play {play}", fix="leave it out")
        return run.watched(
            eval_batches(
                recipe.data,
                split,
                rank=run.ranks.rank,
                world=run.ranks.world,
                batch=recipe.eval.batch,
                device=run.device,
                reader=self.reader(recipe, split),
            )
        )


def unreadable_split(split: str, result: Result) -> DataError:
    """The error of a split of which nothing could be read."""
    return DataError(
        f"no video of data.{split} could be read",
        found="; ".join(record["error"] for record in result.unreadable[:2]),
        fix="data.root says where relative paths start (and detect.clips, where clips of AVA lie)",
    )
