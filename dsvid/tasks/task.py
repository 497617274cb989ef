"""What a task is: its samples, its objective, its evaluation. One module a task; the loop knows none of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from dsvid.data.reader import Reader
from dsvid.errors import DataError
from dsvid.models.spec import Model
from dsvid.recipe import Recipe
from dsvid.weights.card import Card

Batches = Iterator[dict[str, Any]]


class Samples(Protocol):
    """A split that was opened."""

    @property
    def sha256(self) -> str:
        """Of all that decides which samples there are, so that ranks and restarts can compare."""

    def __len__(self) -> int: ...

    def path(self, index: int) -> str:
        """The file of a sample, for messages."""


class Result(Protocol):
    """An evaluation of a split; the same on all ranks."""

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


@dataclass(frozen=True)
class Ranked:
    """Where an evaluation runs; `watched` wraps the batches, so that a stop and a stall are noticed."""

    rank: int
    world: int
    device: torch.device
    watched: Callable[[Batches], Batches] = iter


class Task(Protocol):
    """One task. Methods that take `split` are for "train", "val" and "test".

    `scored` is the number by which the best weights of a run are chosen, "" for a task that has no evaluation.
    """

    @property
    def scored(self) -> str: ...

    def open(self, recipe: Recipe, split: str, say: Callable[[str], None] | None = None) -> Samples:
        """Open and check a split; `say` hears what takes long. Raises DataError."""

    def remarks(self, recipe: Recipe, split: str) -> list[str]:
        """What the log says of a split at the start. Raises DataError for what makes no sense to begin with."""

    def class_names(self, recipe: Recipe) -> list[str]:
        """A name for each column of the head ("" for one that does not count), or none at all. Raises DataError."""

    def check_weights(self, recipe: Recipe, path: Path, card: Card) -> None:
        """Raise CheckpointError for weights whose shapes fit the recipe's model, but whose head means other classes."""

    def objective(self, recipe: Recipe, model: Model) -> nn.Module:
        """Batch -> loss around `model`. Raises RecipeError where the recipe does not suit the grid."""

    def reader(self, recipe: Recipe, split: str) -> Reader:
        """How the loader reads a split."""

    def eval_clip_bytes(self, recipe: Recipe) -> int:
        """Bytes of a clip on its way to an evaluation; 0 for a task that has none."""

    def evaluate(
        self, recipe: Recipe, objective: Any, split: str, where: Ranked, *, final: bool, play: str = "forwards"
    ) -> Result:
        """Evaluate a split on all ranks: as a validation, or `final`, as the recipe's test. A collective.

        `play` other than forwards is for tasks that look at motion as a whole. Raises RecipeError for others.
        """

    def write(
        self, recipe: Recipe, result: Any, split: str, folder: Path, extra: Mapping[str, Any],
        names: list[str] | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """Write the result's files, `extra` into result.json; returns what that holds. Raises DataError.

        `names` are those of the classes, if not the recipe's own.
        """


def unreadable_split(split: str, result: Result) -> DataError:
    """The error of a split of which nothing could be read."""
    return DataError(
        f"no video of data.{split} could be read",
        found="; ".join(record["error"] for record in result.unreadable[:2]),
        fix="data.root says where relative paths start (and detect.clips, where clips of AVA lie)",
    )
