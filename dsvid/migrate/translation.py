"""A command of an original -> a recipe, a command of ours, and what became of every option."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dsvid.errors import DataError
from dsvid.migrate import conversion
from dsvid.migrate.comparison import Match, best_match, flat
from dsvid.migrate.launcher import Launch, find_launch, slurm_words
from dsvid.migrate.options import Converted, Fate, Given, Option, Program, read_values
from dsvid.migrate.programs import FILES, Recognised, recognise
from dsvid.migrate.shell_words import Command, read_commands
from dsvid.recipe import Recipe, build_recipe, set_dotted

_HOSTFILES = {(1, 8), (2, 8), (4, 8), (8, 8)}  # hostfiles/<nodes>x<slots>


@dataclass(frozen=True)
class Row:
    """What became of one option: `text` is its value in the script or its default, `result` the keys that it set."""

    option: str
    text: str
    fate: Fate
    result: str
    why: str
    default: bool = False


@dataclass(frozen=True)
class Translation:
    """A translated command. `others` are the other programs that it fits, each with the keys that would differ."""

    launch: Launch
    recognised: Recognised
    converted: Converted
    recipe: Recipe
    match: Match
    rows: tuple[Row, ...]
    others: tuple[tuple[Program, Mapping[str, Any]], ...]
    unknown: tuple[str, ...]


def launches(text: str, variables: Mapping[str, str] | None = None) -> list[Launch]:
    """The programs that a script starts. Raises DataError where it starts none that is known."""
    slurm = slurm_words(text)
    return [found for each in read_commands(text, variables) if (found := find_launch(each, FILES, slurm))]


def launch_of_words(words: Sequence[str]) -> list[Launch]:
    """The same for one command that the shell has split already."""
    found = find_launch(Command(tuple(words), {}, 1), FILES)
    return [found] if found else []


def translate(launch: Launch, *, project: str | None = None, world: int | None = None) -> Translation:
    """Recipe, nearest shipped recipe and table of a command. Raises RecipeError or DataError for what cannot be."""
    recognised = recognise(launch, project)
    processes = world or launch.world
    if processes is None:
        raise DataError(
            "the number of GPUs is not known: the batch of a step counts all of them",
            found=f"{launch.launcher}: {launch.how}", expected="--world N, the processes of the original run",
            fix="--world 8",
        )  # fmt: skip
    args, given = read_values(recognised.program, launch.arguments)
    converted, recipe = _converted(recognised.program, args, processes)
    hint = " ".join(each.text for each in given).lower()
    others = []
    for program in recognised.others:
        there = flat(_converted(program, read_values(program, launch.arguments)[0], processes)[1])
        here = flat(recipe)
        differs = {key: value for key, value in there.items() if value != here[key] and not key.startswith("about.")}
        others.append((program, differs))
    return Translation(
        launch, recognised, converted, recipe, best_match(recipe, recognised.program, hint),
        tuple(_rows(recognised.program, converted, recipe, args, given)), tuple(others),
        tuple(f"--{each.option.name} {each.text}" for each in given if conversion.unknown_parts(each.text)),
    )  # fmt: skip


def _converted(program: Program, args: Mapping[str, Any], world: int) -> tuple[Converted, Recipe]:
    converted = Converted(program, world)
    program.convert(args, converted)
    return converted, build_recipe(recipe_tree(converted))


def recipe_tree(converted: Converted) -> dict[str, Any]:
    """The translated keys as the tree of a recipe file."""
    source = f"{converted.program.file} of {converted.program.title}, translated by dsvid migrate"
    tree: dict[str, Any] = {"about": {"source": source, "gpus": converted.world}}
    sections: dict[str, dict[str, Any]] = {}
    for key, value in converted.values.items():
        set_dotted(sections, key, value)
    order = [name for name in Recipe.model_fields if name in sections]
    return tree | {name: sections[name] for name in order}


def recipe_yaml(converted: Converted) -> str:
    """The text of a recipe file: what the original says, and nothing that is our default because it is empty."""

    def filled(tree: dict[str, Any]) -> dict[str, Any]:
        kept = {key: filled(value) if isinstance(value, dict) else value for key, value in tree.items()}
        return {key: value for key, value in kept.items() if value not in ("", None, {})}

    return yaml.safe_dump(filled(recipe_tree(converted)), sort_keys=False, allow_unicode=True, width=120)


# ---- the table -----------------------------------------------------------------------------------------------------


def _rows(
    program: Program, out: Converted, recipe: Recipe, args: Mapping[str, Any], given: Sequence[Given]
) -> Iterable[Row]:
    values, plain = flat(recipe), flat(Recipe())
    last = {each.option.place: number for number, each in enumerate(given)}
    for number, each in enumerate(given):
        option = each.option
        if last[option.place] != number:
            yield Row(option.name, each.text, "no effect there", "", "given again later: the last one counts")
        else:
            yield _row(option, each.text, out, values, harmless=args[option.place] == option.default)
    said = {each.option.place for each in given}
    for option in program.options:
        fate = out.fates.get(option.name, (option.fate, ""))[0]
        decides = any(values.get(key) != plain.get(key) for key in option.keys)
        if option.place in said or option.dest or option.kind == "flag" or fate != "becomes" or not decides:
            continue
        text = "none" if option.default is None else str(option.default)
        row = _row(option, text, out, values, harmless=True)
        yield Row(row.option, row.text, row.fate, row.result, row.why, default=True)


def _row(option: Option, text: str, out: Converted, values: Mapping[str, Any], *, harmless: bool) -> Row:
    fate, why = out.fates.get(option.name, (option.fate, option.why))
    note = out.notes.get(option.name, "")
    if fate == "no counterpart" and harmless:
        return Row(option.name, text, "automatic", "", "as here")
    if fate != "becomes":
        return Row(option.name, text, fate, "", why)
    result = " ".join(word for key in option.keys if (word := _result(key, out, values)))
    return Row(option.name, text, fate, result, note or why)


def _result(key: str, out: Converted, values: Mapping[str, Any]) -> str:
    if key == "--out":
        return f"--out {shlex.quote(out.out)}" if out.out else "no --out: no run folder is kept"
    if key == "--resume":
        return f"--resume {out.resume}"
    if key == "dsvid-eval":
        return "dsvid eval"
    if key.startswith("ds."):
        return f"{key}={written(out.settings[key[3:]])}" if key[3:] in out.settings else ""
    return f"{key}={written(values[key])}" if key in out.values else ""


# ---- the command ---------------------------------------------------------------------------------------------------


def written(value: Any) -> str:
    """A value as an override has it: read back as YAML it is the same."""
    if isinstance(value, bool) or value is None:
        return "null" if value is None else str(value).lower()
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(written(each) for each in value) + "]"
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)


def command_words(done: Translation, recipe_file: Path | None = None, ds_config: str = "") -> list[str]:
    """The words of the command that trains (or tests) the same with dsvid; the shell's quotes are not in them."""
    out = done.converted
    overrides = {} if recipe_file else dict(done.match.differences)
    name = str(recipe_file) if recipe_file else done.match.name
    if out.test_only:
        weights = done.recipe.model.init or "WEIGHTS"
        overrides.pop("model.init", None)
        words = ["dsvid", "eval", "--weights", weights, "--recipe", name]
        if done.recipe.task != "classify" or "validation" in [row.option for row in done.rows]:
            words += ["--split", "val"]
        settings: Mapping[str, Any] = {}
    else:
        words = ["deepspeed", *_machines(done), "dsvid/train.py", "--ds_config", ds_config, "--recipe", name]
        words += ["--resume", out.resume] if out.resume != "auto" else []
        settings = out.settings
    words += ["--out", out.out] if out.out else []
    words += [f"{key}={written(value)}" for key, value in overrides.items()]
    return words + [f"ds.{key}={written(value)}" for key, value in settings.items()]


def _machines(done: Translation) -> list[str]:
    world, nodes = done.converted.world, done.launch.nodes
    if nodes is None:
        nodes = 1 if world <= 8 else 0
    if nodes == 1 or world == 1:
        return ["--num_gpus", str(world)]
    if nodes and world % nodes == 0 and (nodes, world // nodes) in _HOSTFILES:
        return ["--hostfile", f"hostfiles/{nodes}x{world // nodes}"]
    return ["--hostfile", "HOSTFILE"]


def shell_line(words: Sequence[str]) -> str:
    """The command for a terminal: an option and its value stand on one line."""
    groups: list[str] = []
    for word in words:
        if groups and groups[-1].startswith("--") and " " not in groups[-1] and not word.startswith("--"):
            groups[-1] += " " + shlex.quote(word)
        else:
            groups.append(shlex.quote(word))
    lines = [""]
    for group in groups:
        if lines[-1] and len(lines[-1]) + len(group) > 110:
            lines.append("   ")
        lines[-1] += (" " if lines[-1] else "") + group
    return " \\\n".join(lines)
