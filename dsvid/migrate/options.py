"""What an option of an original program is, and how a command's words become its values: argparse's rules.

Knows no option by name; those stand in one module for each original project.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from dsvid.errors import RecipeError
from dsvid.migrate.shell_words import UNKNOWN
from dsvid.recipe import nearest

Fate = Literal["becomes", "automatic", "no effect there", "no counterpart"]
Kind = Literal["int", "float", "text", "flag", "floats", "truth"]
_NUMBER = re.compile(r"-\d+$|-\d*\.\d+$")


@dataclass(frozen=True)
class Option:
    """One option: its default, what becomes of it, the keys that it decides (`becomes`), and why or what to do.

    Keys are recipe keys, `ds.…` keys of the DeepSpeed JSON, or options of our command line (`--out`). A flag stores
    `stores` in `dest`. With `no counterpart`, the default is harmless and other values are not.
    """

    name: str
    kind: Kind
    default: Any
    fate: Fate
    keys: tuple[str, ...] = ()
    why: str = ""
    choices: tuple[str, ...] = ()
    dest: str = ""
    stores: Any = True

    @property
    def place(self) -> str:
        """Name of the value that it sets."""
        return self.dest or self.name


def becomes(name: str, kind: Kind, default: Any, keys: str, why: str = "", **more: Any) -> Option:
    """An option that decides `keys`, separated by blanks."""
    return Option(name, kind, default, "becomes", tuple(keys.split()), why, **more)


def automatic(name: str, kind: Kind, default: Any, why: str, **more: Any) -> Option:
    """An option that needs no word here."""
    return Option(name, kind, default, "automatic", (), why, **more)


def idle(name: str, kind: Kind, default: Any, why: str, **more: Any) -> Option:
    """An option that the original takes and does not use."""
    return Option(name, kind, default, "no effect there", (), why, **more)


def missing(name: str, kind: Kind, default: Any, why: str, **more: Any) -> Option:
    """An option without a counterpart here; `why` says what to do."""
    return Option(name, kind, default, "no counterpart", (), why, **more)


@dataclass(frozen=True)
class Program:
    """One program of an original project.

    `marks` are words of its path that set it apart from another program of the same file name, `launchers` those of its
    scripts, `recipes` a pattern of the shipped recipes that stem from them. `under_deepspeed` are the options that it
    does not look at with --enable_deepspeed, which also lets it take `extra` options. `traits` are keys that it fixes.
    """

    project: str
    file: str
    title: str
    task: Literal["pretrain", "classify", "detect", "anomaly"]
    options: tuple[Option, ...]
    convert: Callable[[Mapping[str, Any], Converted], None]
    recipes: str
    marks: tuple[str, ...] = ()
    launchers: tuple[str, ...] = ()
    models: Mapping[str, str] = field(default_factory=dict)
    under_deepspeed: tuple[str, ...] = ()
    extra: tuple[Option, ...] = ()
    traits: Mapping[str, Any] = field(default_factory=dict)

    def option(self, name: str) -> Option | None:
        """The option `name`, or the only one that begins with it, as argparse has it."""
        known = {option.name: option for option in (*self.options, *self.extra)}
        if name in known:
            return known[name]
        begun = [option for full, option in known.items() if full.startswith(name)]
        return begun[0] if name and len(begun) == 1 else None


@dataclass
class Converted:
    """What a program's values become, filled in step by step.

    `values` holds recipe keys, `settings` keys of the DeepSpeed JSON. `fates` overrules an option's fate in this
    script; `notes` takes the place of its explanation. `before` are commands that have to be run once.
    """

    program: Program
    world: int
    values: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    fates: dict[str, tuple[Fate, str]] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    before: list[list[str]] = field(default_factory=list)
    resume: str = "auto"
    out: str = ""
    test_only: bool = False

    def no_effect(self, names: str, why: str) -> None:
        """These options, separated by blanks, were not looked at in this script."""
        for name in names.split():
            self.fates[name] = ("no effect there", why)


@dataclass(frozen=True)
class Given:
    """An option as the command has it, with the text of its value."""

    option: Option
    text: str


def changed(
    options: Sequence[Option],
    *,
    without: str = "",
    defaults: Mapping[str, Any] | None = None,
    add: Sequence[Option] = (),
) -> tuple[Option, ...]:
    """Options of a program that is made after another: some gone, other defaults, and those of `add` in their place or
    behind them.
    """
    gone, new = set(without.split()), {option.name: option for option in add}
    kept = [new.pop(option.name, option) for option in options if option.name not in gone]
    given = defaults or {}
    return tuple(
        replace(option, default=given[option.name]) if option.name in given else option
        for option in (*kept, *new.values())
    )


# ---- words -> values -----------------------------------------------------------------------------------------------


def unknown_options(program: Program, words: Sequence[str]) -> list[str]:
    """Names in `words` that the program does not know."""
    names = [word[2:].partition("=")[0] for word in words if word.startswith("--") and len(word) > 2]
    return [name for name in names if program.option(name) is None]


def read_values(program: Program, words: Sequence[str]) -> tuple[dict[str, Any], list[Given]]:
    """(values of all options by place, what was given in order). Raises RecipeError for what argparse would refuse."""
    values = {option.place: option.default for option in program.options if not option.dest}
    given: list[Given] = []
    place = 0
    while place < len(words):
        name, equals, text = words[place].partition("=")
        place += 1
        option = program.option(name.removeprefix("--")) if name.startswith("--") else None
        if option is None:
            raise _unknown(program, name)
        if option.kind == "flag":
            if equals:
                raise RecipeError(f"--{option.name} takes no value", found=text, fix=f"--{option.name}")
            values[option.place] = option.stores
            given.append(Given(option, ""))
            continue
        texts = [text] if equals else []
        while not equals and place < len(words) and not _is_option(words[place]):
            texts.append(words[place])
            place += 1
            if option.kind != "floats":
                break
        if not texts:
            raise RecipeError(f"--{option.name} has no value", expected="a value", fix=f"--{option.name} VALUE")
        values[option.place] = _value(option, texts)
        given.append(Given(option, " ".join(texts)))
    return values, given


def _is_option(word: str) -> bool:
    return word.startswith("-") and len(word) > 1 and not _NUMBER.match(word)


def _unknown(program: Program, name: str) -> RecipeError:
    if not name.startswith("-"):
        return RecipeError(
            f"{name!r} in the command of {program.file} belongs to no option",
            expected="--option value",
            fix="quotes around a value with blanks",
        )
    near = nearest(name.lstrip("-"), [option.name for option in program.options])
    return RecipeError(
        f"{program.file} of {program.title} has no option {name}",
        expected="an option of that program, or another project with --from",
        fix=f"--{near}" if near else None,
    )


def _value(option: Option, texts: Sequence[str]) -> Any:
    """The typed value. Raises RecipeError where it is none, or a variable that the script does not set."""
    if option.kind == "truth":  # argparse's type=bool
        return bool(texts[0])
    if option.kind == "text":
        if option.choices and texts[0] not in option.choices:
            near = nearest(texts[0], list(option.choices))
            _wrong(option, texts[0], "one of " + ", ".join(option.choices), f"--{option.name} {near}" if near else None)
        return texts[0]
    made = int if option.kind == "int" else float
    try:
        numbers = [made(text) for text in texts]
    except ValueError:
        _wrong(option, " ".join(texts), "a whole number" if option.kind == "int" else "a number", None)
    return tuple(numbers) if option.kind == "floats" else numbers[0]


def _wrong(option: Option, text: str, expected: str, fix: str | None) -> None:
    found = UNKNOWN.search(text)
    if found:
        name = re.sub(r"\W", "", text[found.start() :].split("}")[0]) or "NAME"
        expected += ", which only a run of the script would tell"
        fix = f"--var {name}=VALUE" if text[found.start() + 1 : found.start() + 2] != "(" else "write the value down"
    raise RecipeError(f"--{option.name} has a wrong value", found=text, expected=expected, fix=fix)
