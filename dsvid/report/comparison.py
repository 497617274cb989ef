"""Runs side by side: settings that differ, numbers at equal places, the first difference of the losses, speed.

Every run is compared with the first one. Knows runs; prints and draws nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from dsvid.documents import dotted
from dsvid.errors import DsvidError
from dsvid.report.lines import number
from dsvid.report.reading import Run
from dsvid.report.run_charts import validations
from dsvid.report.series import equal_steps, known, median
from dsvid.report.settings import ABSENT, recipe_keys
from dsvid.report.verdict import SCORES

LETTERS = "ABCDEF"
Axis = Literal["step", "samples"]


@dataclass(frozen=True)
class FirstDifference:
    """Where the losses of two runs part. `equal`: common lines before it that agree to the last bit, `last_equal` the
    last of them; `at` is None where no common line differs.
    """

    equal: int
    last_equal: int | None
    at: int | None = None
    ours: float | None = None
    theirs: float | None = None


@dataclass(frozen=True)
class Comparison:
    """Runs with their letters; places (steps, or samples where the batches differ) that all of them have."""

    runs: Sequence[Run]
    axis: Axis
    settings: list[tuple[str, list[Any]]]
    columns: list[dict[int, dict[str, float | None]]]
    common: list[int]

    @property
    def letters(self) -> str:
        return LETTERS[: len(self.runs)]

    def values(self, name: str, at: int) -> list[float | None]:
        """The number of every run at a common place."""
        return [column[at][name] for column in self.columns]

    def shown_places(self, most: int = 8) -> list[int]:
        return equal_steps(self.common, most)


def compare(runs: Sequence[Run]) -> Comparison:
    """Set runs side by side. Raises DsvidError for fewer than two, or more than there are letters for."""
    if not 2 <= len(runs) <= len(LETTERS):
        raise DsvidError("dsvid compare", found=f"{len(runs)} run folders", expected=f"2 to {len(LETTERS)}")
    axis = _axis(runs)
    columns = [_by_place(run, axis) for run in runs]
    common = sorted(set.intersection(*(set(column) for column in columns)))
    return Comparison(runs, axis, setting_differences(runs), columns, common)


def _axis(runs: Sequence[Run]) -> Axis:
    """Samples, where a step is not equally many clips in all runs."""
    sizes = {_clips_of_step(run) for run in runs} - {None}
    return "samples" if len(sizes) > 1 else "step"


def _clips_of_step(run: Run) -> int | None:
    samples = run.training["samples"][-1:] or [None]
    return round(samples[0] / run.training.steps[-1]) if samples[0] and run.training.steps[-1] else None


def _by_place(run: Run, axis: Axis) -> dict[int, dict[str, float | None]]:
    rows = run.training
    places = rows.steps if axis == "step" else [int(value or 0) for value in rows["samples"]]
    return {place: {name: column[at] for name, column in rows.columns.items()} for at, place in enumerate(places)}


def setting_differences(runs: Sequence[Run]) -> list[tuple[str, list[Any]]]:
    """(dotted key, the value of every run) for each key that is not the same everywhere."""
    trees = [_settings(run) for run in runs]
    keys = list(dict.fromkeys(key for tree in trees for key in tree))
    rows = [(key, [tree.get(key, ABSENT) for tree in trees]) for key in keys]
    return [(key, values) for key, values in rows if any(value != values[0] for value in values)]


def _settings(run: Run) -> dict[str, Any]:
    found = recipe_keys(run.recipe) if run.recipe is not None else {}
    found |= {f"ds.{key}": value for key, value in dotted(run.config).items()} if run.config else {}
    if run.starts:
        last = run.starts[-1]
        found |= {"ranks": last.world, "host": last.host, "code": last.commit[:12] or ABSENT}
        found |= {f"version of {name}": value for name, value in last.versions.items()}
    return found


def first_difference(comparison: Comparison, other: int, name: str = "loss") -> FirstDifference:
    """Where a number of run `other` parts from the first run's, over the places that these two have in common."""
    ours, theirs = comparison.columns[0], comparison.columns[other]
    equal, last = 0, None
    for at in sorted(set(ours) & set(theirs)):
        if ours[at][name] != theirs[at][name]:
            return FirstDifference(equal, last, at, ours[at][name], theirs[at][name])
        equal, last = equal + 1, at
    return FirstDifference(equal, last)


def speed_ratio(comparison: Comparison, other: int) -> tuple[float, float, float] | None:
    """(ratio to the first run, its median clips/s, the first run's); None where one of them tells none."""
    ours, theirs = (median(known(comparison.runs[at].training["clips_per_s"])) for at in (0, other))
    return (theirs / ours, theirs, ours) if ours and theirs else None


def scores(comparison: Comparison) -> list[tuple[str, str, list[float | None]]]:
    """(score, where, the number of every run): validations at steps that all have, the last few, and final tests."""
    found: list[tuple[str, str, list[float | None]]] = []
    for name, (title, unit) in SCORES.items():
        words = f"{title}, {unit}" if unit else title
        tables = [
            {int(one["step"]): value for one in validations(run) if (value := number(one.get(name))) is not None}
            for run in comparison.runs
        ]
        steps = sorted(set.intersection(*(set(table) for table in tables)))
        found += [(words, f"validation, step {step:,}", [one.get(step) for one in tables]) for step in steps[-4:]]
        finals = [_final(run, name) for run in comparison.runs]
        if any(value is not None for value in finals):
            found.append((words, "final test", finals))
    return found


def _final(run: Run, name: str) -> float | None:
    rows = [one for one in run.evaluations if one.get("final")]
    return number(rows[-1].get(name)) if rows else None
