"""A translation as text for a terminal, and the tables of options as Markdown for docs/migration.md."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path

from dsvid.errors import RecipeError
from dsvid.migrate.comparison import differs_in_meaning
from dsvid.migrate.options import Option, Program
from dsvid.migrate.programs import PROGRAMS, PROJECTS
from dsvid.migrate.translation import Row, Translation, command_words, shell_line, written
from dsvid.recipe import load_recipe

_WIDTH = 118
# The page shows one project's tables in full, of the others what differs from it.
_FIRST = "videomae"


def report(done: Translation, recipe_file: Path | None, ds_config: str) -> str:
    """What is printed of one translated command."""
    words = command_words(done, recipe_file, ds_config)
    parts = [*_head(done), "", *_verdict(done, recipe_file), ""]
    parts += [f"{shell_line(each)}   # once, before it" for each in done.converted.before]
    parts += [shell_line(words), *_under_slurm(done, words)]
    for title, rows in (
        ("options of the script", [row for row in done.rows if not row.default]),
        ("defaults of the original that differ from dsvid's", [row for row in done.rows if row.default]),
    ):
        if rows:
            parts += ["", title, *_table(rows)]
    return "\n".join([*parts, "", *_foot(done)])


def _head(done: Translation) -> Iterable[str]:
    launch, program = done.launch, done.recognised.program
    yield f"{launch.program} (line {launch.line}): {program.file} of {program.title}"
    yield f"recognised by: {done.recognised.why}"
    for other, differs in done.others:
        said = ", ".join(f"{key}={written(value)}" for key, value in differs.items()) or "the same recipe"
        yield from _wrapped(f"it fits {other.title} too (--from {other.project}), which would give: {said}", "  ")
    how = launch.how if launch.world == done.converted.world else "--world"
    processes = "1 process" if done.converted.world == 1 else f"{done.converted.world} processes"
    yield f"{processes} ({launch.launcher}: {how})"
    if launch.environment:
        names = " ".join(f"{name}={value}" for name, value in launch.environment.items())
        yield f"set for the command, and no part of a recipe: {names}"


def _verdict(done: Translation, recipe_file: Path | None) -> Iterable[str]:
    match = done.match
    other = {key: value for key, value in match.differences.items() if differs_in_meaning(key, value)}
    about = load_recipe(match.name).about
    if match.same:
        what = "only places differ, and the JSON gets" if done.converted.settings else "only places differ"
        what += " activation checkpointing" if done.converted.settings else ""
        lost = sum(row.fate == "no counterpart" for row in done.rows)
        what += f"; NOT converted: {lost} options, named at the end" if lost else ""
        yield from _wrapped(f"It is the shipped recipe {match.name} ({what}). Published: {about.published}", "  ")
        if match.alike:
            yield from _wrapped("Equal in every value, for other weights: " + ", ".join(match.alike), "  ")
    else:
        yield f"No shipped recipe is the same; the nearest is {match.name}, with {len(other)} other values."
    if recipe_file:
        yield f"The whole recipe is in {recipe_file}."
    elif not match.same:
        yield "-o FILE.yaml writes the whole recipe."


def _under_slurm(done: Translation, words: Sequence[str]) -> Iterable[str]:
    """The same as a batch job, where the original was one."""
    launch, world = done.launch, done.converted.world
    if launch.launcher != "srun" or not launch.nodes or done.converted.test_only or world % launch.nodes:
        return
    each = world // launch.nodes
    recipe = words.index("--recipe") + 1
    rest = [word for place, word in enumerate(words) if place > recipe]
    job = [f"--nodes={launch.nodes}", f"--ntasks-per-node={each}", f"--gpus-per-node={each}"]
    config = words[words.index("--ds_config") : words.index("--ds_config") + 2]
    yield "# or as a Slurm job:"
    yield shell_line(["sbatch", *job, "scripts/slurm/train.sh", words[recipe], *config, *rest])


def _table(rows: Sequence[Row]) -> Iterable[str]:
    """Three columns; long texts go on below themselves."""
    left = min(40, max(len(_option(row)) for row in rows)) + 2
    for row in rows:
        result = "--out, as in the command" if row.option == "output_dir" and row.result else row.result
        text = " · ".join(part for part in (result, row.why) if part)
        head, fate = _option(row), f"{row.fate:16}"
        if len(head) > left - 2:
            yield "  " + head
            head = ""
        begin = f"  {head:{left}}{fate} "
        yield from textwrap.wrap(
            text or "", _WIDTH, initial_indent=begin, subsequent_indent=" " * len(begin),
            break_long_words=False, break_on_hyphens=False,
        ) or [begin.rstrip()]  # fmt: skip


def _option(row: Row) -> str:
    """The option with its value; of a long path the end, since the command above has it whole."""
    text = row.text if len(row.text) <= 40 else "…" + row.text[-39:]
    return f"--{row.option} {text}".rstrip()


def _foot(done: Translation) -> Iterable[str]:
    lost = [row for row in done.rows if row.fate == "no counterpart"]
    for row in lost:
        yield from _wrapped(f"NOT THE SAME TRAINING: --{row.option} {row.text} has no counterpart. {row.why}", "  ")
    for text in done.unknown:
        yield from _wrapped(f"the script alone does not tell what this is: {text} (--var NAME=VALUE)", "  ")
    if not lost:
        yield "Every option has a counterpart, or needs none."


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


# ---- the tables of docs/migration.md -------------------------------------------------------------------------------


def project_tables(project: str, *, whole: bool = True) -> str:
    """The options of every program of a project as Markdown; not `whole`: those that differ from VideoMAE's.

    Raises RecipeError for an unknown project.
    """
    programs = [program for program in PROGRAMS if program.project == project]
    if not programs:
        raise RecipeError(f"unknown project {project!r}", expected=", ".join(PROJECTS), fix=f"--table {PROJECTS[0]}")
    return "\n\n".join(_program_table(program, whole=whole) for program in programs)


def _program_table(program: Program, *, whole: bool) -> str:
    before = None if whole or program.project == _FIRST else _model_of(program)
    known = {option.name: option for option in before.options} if before else {}
    shown = [option for option in program.options if known.get(option.name) != option]
    gone = [name for name in known if program.option(name) is None]
    title = f"**`{program.file}` of {program.title}**, {len(program.options)} options"
    if before is not None:
        title += f": as {before.title}'s `{before.file}`, except"
        shown_gone = ", ".join(f"`--{name}`" for name in gone)
        title += f" (it has no {shown_gone})" if gone else ""
    rows = ["| option | default | | here |", "|---|---|---|---|", *map(_markdown_row, shown)]
    return f"{title}\n\n" + "\n".join(rows)


def _model_of(program: Program) -> Program:
    """The program that a program is told apart from: simple-tad's copies from its own, all others from VideoMAE's."""
    own = [other for other in PROGRAMS if other.project == "simple-tad" and other.task == program.task]
    if own and program.project != "simple-tad" and program.project.startswith("simple-tad"):
        return own[0]
    kind = "pretrain" if program.task == "pretrain" else "classify"
    return next(other for other in PROGRAMS if other.project == _FIRST and other.task == kind)


def _markdown_row(option: Option) -> str:
    default = "" if option.dest or option.kind == "flag" else "none" if option.default in (None, "") else option.default
    keys = " ".join(f"`{key.replace('dsvid-eval', 'dsvid eval')}`" for key in option.keys)
    here = f"{keys}: {option.why}" if keys and option.why else keys or option.why
    spared = option.fate == "no counterpart" and option.kind != "flag"
    cells = [f"`--{option.name}`", str(default), option.fate + (", save the default" if spared else ""), here]
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |".replace("|  |", "| |")
