"""A run folder as typed data: settings, starts, training lines, evaluations, faults, checkpoints, pictures.

Whatever is missing or damaged is left out and told in `damage`. Judges nothing, and writes nothing.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

from dsvid.checkpoint_files import MANIFEST, step_of, steps, verify
from dsvid.errors import CheckpointError, RecipeError
from dsvid.recipe import Recipe, build_recipe
from dsvid.report.ending import Ending, Holder, ending_of, holder_of
from dsvid.report.lines import Damage, Lines, Row, document, number, whole
from dsvid.strict_yaml import load_yaml

MARKERS = ("recipe.yaml", "run.json", "metrics.jsonl", "ds_config.json", "events.jsonl")
NUMBERS = ("epoch", "samples", "loss", "lr", "grad_norm", "clips_per_s", "step_s", "data_s", "mfu", "mem_gb")
MOST_EVENTS = 100_000
MOST_FILES = 1000  # unreadable files that are told apart


@dataclass(frozen=True)
class Start:
    """One start of the run, as run.json keeps it; `step` is the one it went on from, 0 for a fresh start."""

    time: str
    step: int
    host: str
    world: int
    argv: tuple[str, ...]
    commit: str
    versions: dict[str, str]


@dataclass(frozen=True)
class Saved:
    """A published checkpoint: `fault` is empty where its manifest and the sizes (or, if read, the SHA-256) agree."""

    name: str
    step: int
    saved_at: float
    size_bytes: int
    fault: str


@dataclass
class Training:
    """The training lines, as columns of equal length; `steps` ascend. A number that is not finite is None."""

    steps: list[int] = field(default_factory=list)
    columns: dict[str, list[float | None]] = field(default_factory=lambda: {name: [] for name in NUMBERS})

    def __getitem__(self, name: str) -> list[float | None]:
        return self.columns[name]

    def last(self, name: str) -> float | None:
        """The last number of a column that there is."""
        return next((value for value in reversed(self.columns[name]) if value is not None), None)

    def add(self, step: int, row: Row) -> None:
        """Add a line; lines at or behind its step, which an older start wrote, go."""
        while self.steps and self.steps[-1] >= step:
            self.steps.pop()
            for column in self.columns.values():
                column.pop()
        self.steps.append(step)
        for name, column in self.columns.items():
            column.append(number(row.get(name)))


@dataclass
class BadClips:
    """Clips that could not be read: how many lines tell of them, and for each file how often and why."""

    lines: int = 0
    files: dict[str, tuple[int, str]] = field(default_factory=dict)


@dataclass
class Run:
    """A run folder, read at `now` (seconds since 1970). `cut_off`: only the last training lines were read."""

    folder: Path
    now: float
    holder: Holder
    ending: Ending
    damage: list[Damage] = field(default_factory=list)
    recipe: Recipe | None = None
    config: Row = field(default_factory=dict)
    starts: list[Start] = field(default_factory=list)
    training: Training = field(default_factory=Training)
    evaluations: list[Row] = field(default_factory=list)
    events: list[Row] = field(default_factory=list)
    bad_clips: BadClips = field(default_factory=BadClips)
    checkpoints: list[Saved] = field(default_factory=list)
    pictures: list[Path] = field(default_factory=list)
    weights_step: int | None = None
    half_written: bool = False
    cut_off: bool = False
    last_line_at: float | None = None

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def step(self) -> int:
        """The last step that is known: of the training lines, else of the newest checkpoint."""
        return max([*self.training.steps[-1:], *(one.step for one in self.checkpoints[:1]), self.weights_step or 0])

    @property
    def argv(self) -> tuple[str, ...]:
        """The command line of the last start, empty where it is not known."""
        return self.starts[-1].argv if self.starts else ()

    @property
    def newest_good(self) -> Saved | None:
        return next((one for one in self.checkpoints if not one.fault), None)

    @property
    def steps_per_epoch(self) -> int | None:
        """By the scheduler's length in ds_config.json, else by the last training line; None where neither is there."""
        scheduler = self.config.get("scheduler")
        params = scheduler.get("params") if isinstance(scheduler, dict) else None
        total = whole(params.get("total_num_steps")) if isinstance(params, dict) else None
        if total and self.recipe is not None and total % self.recipe.run.epochs == 0:
            return total // self.recipe.run.epochs
        epoch = self.training["epoch"][-1] if self.training.steps else None
        return round(self.training.steps[-1] / epoch) if epoch else None

    @property
    def stop_step(self) -> int | None:
        """The step at which the run ends, by the rule of `schedule.resolve_schedule`; None where it is not known."""
        if self.recipe is None:
            return None
        run, each = self.recipe.run, self.steps_per_epoch
        ends = [run.max_steps] if run.max_steps else []
        ends += [each * (run.stop_epoch or run.epochs)] if each else []
        return min(ends) if each else None

    def event_steps(self, kind: str) -> list[int]:
        """The steps of the events of a kind."""
        return [step for one in self.events if one.get("kind") == kind and (step := whole(one.get("step"))) is not None]


def read_run(folder: Path, *, tail: bool = False, verify_contents: bool = False) -> Run:
    """Everything that a run folder tells. Raises CheckpointError where `folder` is none.

    With `tail` only the last lines of metrics.jsonl are read; with `verify_contents` the newest checkpoint's files
    are read and compared with their SHA-256, else their sizes alone.
    """
    check_is_run(folder)
    now = time.time()
    run = Run(folder, now, holder_of(folder, now), ending_of(folder))
    _read_settings(run)
    _read_metrics(run, tail)
    _read_faults(run)
    run.checkpoints = _checkpoints(folder / "checkpoints", verify_contents)
    run.pictures = _pictures(folder)
    trained = document(folder / "weights" / "config.json", run.damage).get("trained")
    run.weights_step = whole(trained.get("steps")) if isinstance(trained, dict) else None
    return run


def check_is_run(folder: Path) -> None:
    """Raise CheckpointError where `folder` is no run folder."""
    if not folder.is_dir():
        found = "a file" if folder.exists() else "nothing there"
        raise CheckpointError(f"{folder} is no run folder", found=found, expected="the --out of a training")
    if any((folder / name).exists() for name in MARKERS) or any((folder / "checkpoints").glob("step-*")):
        return
    inside = sorted(path.name for path in folder.iterdir())
    runs = [name for name in inside if (folder / name / "recipe.yaml").is_file()]
    above = (folder.resolve().parent / "recipe.yaml").is_file()
    raise CheckpointError(
        f"{folder} is no run folder",
        found=", ".join(inside[:5]) + (", …" if len(inside) > 5 else "") or "an empty folder",
        expected=f"the --out of a training: one of {', '.join(MARKERS)}, checkpoints/step-*",
        fix=str(folder / runs[0]) if runs else str(folder.resolve().parent) if above else None,
    )


def _read_settings(run: Run) -> None:
    folder = run.folder
    if (folder / "recipe.yaml").exists():
        try:
            run.recipe = build_recipe(load_yaml(folder / "recipe.yaml"))
        except RecipeError as error:
            run.damage.append(Damage("recipe.yaml", "cannot be read: " + " ".join(str(error).split())))
    else:
        run.damage.append(Damage("recipe.yaml", "is not there"))
    run.config = document(folder / "ds_config.json", run.damage)
    about = document(folder / "run.json", run.damage)
    starts = about.get("starts")
    found = [_start(one) for one in starts if isinstance(one, dict)] if isinstance(starts, list) else []
    run.starts = found or ([_start(about)] if about else [])


def _start(row: Row) -> Start:
    argv, versions = row.get("argv"), row.get("versions")
    return Start(
        time=str(row.get("time") or "time not known"),
        step=whole(row.get("resumed_step")) or 0,
        host=str(row.get("host") or "not known"),
        world=whole(row.get("world_size")) or 0,
        argv=tuple(map(str, argv)) if isinstance(argv, list) else (),
        commit=str(row.get("git_commit") or ""),
        versions={str(k): str(v) for k, v in versions.items()} if isinstance(versions, dict) else {},
    )


def _read_metrics(run: Run, tail: bool) -> None:
    path = run.folder / "metrics.jsonl"
    lines = Lines(path, tail=tail)
    for row in lines:
        step = whole(row.get("step"))
        if step is None:
            continue
        if row.get("kind") == "train":
            run.training.add(step, row)
        elif row.get("kind") == "eval":
            run.evaluations = [*(one for one in run.evaluations if not _same_evaluation(one, row)), row]
    run.damage += lines.damage()
    run.half_written, run.cut_off = lines.half_written, lines.skipped
    if path.is_file():
        run.last_line_at = path.stat().st_mtime


def _same_evaluation(one: Row, other: Row) -> bool:
    return all(one.get(key) == other.get(key) for key in ("step", "split", "final"))


def _read_faults(run: Run) -> None:
    events = Lines(run.folder / "events.jsonl")
    run.events = [row for row, _ in zip(events, range(MOST_EVENTS), strict=False)]
    bad = Lines(run.folder / "bad_clips.jsonl")
    for row in bad:
        _count_bad(run.bad_clips, row)
    run.damage += [*events.damage(), *bad.damage()]


def _count_bad(bad: BadClips, row: Row) -> None:
    bad.lines += 1
    path = str(row.get("path"))
    count, error = bad.files.get(path, (0, str(row.get("error"))))
    if path in bad.files or len(bad.files) < MOST_FILES:
        bad.files[path] = (count + 1, error)


def _checkpoints(folder: Path, contents: bool) -> list[Saved]:
    if not folder.is_dir():
        return []
    found: list[Saved] = []
    for path in steps(folder):
        found.append(_saved(path, contents and all(one.fault for one in found)))
    return found


def _saved(folder: Path, contents: bool) -> Saved:
    fault, saved_at, size = "", 0.0, 0
    try:
        saved_at = (folder / MANIFEST).stat().st_mtime
        manifest = verify(folder, contents=contents)
        size = sum(int(entry["bytes"]) for entry in manifest["files"].values())
    except (CheckpointError, OSError) as error:
        fault = str(error).partition("\n")[0]
    return Saved(folder.name, step_of(folder), saved_at, size, fault)


def _pictures(folder: Path) -> list[Path]:
    """The pictures of a run, the newest reconstruction first, then those of the test."""
    found = sorted((folder / "pictures").glob("*.png"), key=lambda path: path.name, reverse=True)
    return [*found, *sorted((folder / "test").glob("*.png"))]
