"""All the programs that are known, and which of them a command starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dsvid.errors import DataError
from dsvid.migrate import action_detection, simple_tad, videomae, videomaev2
from dsvid.migrate.launcher import Launch
from dsvid.migrate.options import Program, unknown_options

PROGRAMS: tuple[Program, ...] = (
    *videomae.PROGRAMS, *videomaev2.PROGRAMS, *action_detection.PROGRAMS, *simple_tad.PROGRAMS,
)  # fmt: skip
PROJECTS: tuple[str, ...] = tuple(dict.fromkeys(program.project for program in PROGRAMS))
FILES = frozenset(program.file for program in PROGRAMS)


@dataclass(frozen=True)
class Recognised:
    """The program, the reason, and the other programs that the same words would fit."""

    program: Program
    why: str
    others: tuple[Program, ...] = ()


def recognise(launch: Launch, project: str | None = None) -> Recognised:
    """The program that a command starts; `project` forces it. Raises DataError where a forced project has none such."""
    file = launch.program.rsplit("/", 1)[-1]
    named = [program for program in PROGRAMS if program.file == file]
    if project is not None:
        forced = [program for program in named if program.project == project]
        if not forced:
            raise DataError(
                f"{project} has no program {file}", expected="one of " + ", ".join(each.project for each in named),
                fix=f"--from {named[0].project}",
            )  # fmt: skip
        return Recognised(forced[0], "--from")
    marked = [program for program in named if set(program.marks) & set(launch.program.split("/"))]
    if marked:
        return Recognised(marked[0], f"{file} below a folder {marked[0].marks[0]}")
    unmarked = [program for program in named if not program.marks]
    # An internal copy is recognised by a model that only it has, too.
    fitting = [program for program in named if _fits(program, launch.arguments)]
    fitting = [program for program in fitting if not program.marks] or fitting
    if not fitting:
        nearest = min(unmarked or named, key=lambda program: len(unknown_options(program, launch.arguments)))
        return Recognised(nearest, f"{file}, and no other program knows more of its options")
    if len(fitting) == 1:
        return Recognised(fitting[0], _alone(fitting[0], named, launch.arguments))
    launched = [program for program in fitting if launch.launcher in program.launchers]
    first = (launched or fitting)[0]
    why = f"started by {launch.launcher}, as in its scripts" if launched else "the first of those that fit"
    return Recognised(first, f"{file}, {why}", tuple(program for program in fitting if program is not first))


def _fits(program: Program, words: Sequence[str]) -> bool:
    """Whether a program knows every option, its choices and its model."""
    if unknown_options(program, words):
        return False
    for place, word in enumerate(words):
        name, equals, value = word.partition("=")
        option = program.option(name[2:]) if name.startswith("--") else None
        text = value if equals else next(iter(words[place + 1 : place + 2]), "")
        if option is None:
            continue
        if option.choices and text not in option.choices and "$" not in text:
            return False
        if option.name == "model" and text not in program.models:
            return False
    return True


def _alone(program: Program, named: Sequence[Program], words: Sequence[str]) -> str:
    """What only this program of that file name takes."""
    if len(named) == 1:
        return f"no other project has a {program.file}"
    others = [other for other in named if other is not program and not other.marks]
    for other_lacks in (word for word in words if word.startswith("--")):
        name = other_lacks[2:].partition("=")[0]
        if others and all(other.option(name) is None for other in others):
            return f"{program.file} with --{name}, which only it has"
    return f"{program.file}, and only it takes these options and values"
