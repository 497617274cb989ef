"""Settings as dotted keys, and where two sets of them differ. Knows recipes; judges no value."""

from __future__ import annotations

from typing import Any

from dsvid.documents import dotted
from dsvid.errors import RecipeError
from dsvid.recipe import DEFAULT_RECIPE, Recipe, load_recipe, recipe_names

Difference = tuple[str, Any, Any]
ABSENT = "–"


def differences(ours: dict[str, Any], theirs: dict[str, Any]) -> list[Difference]:
    """(key, ours, theirs) for every key whose values differ; a key that one side has not is ABSENT there."""
    return [
        (key, ours.get(key, ABSENT), theirs.get(key, ABSENT))
        for key in {**ours, **theirs}
        if ours.get(key, ABSENT) != theirs.get(key, ABSENT)
    ]


def recipe_keys(recipe: Recipe) -> dict[str, Any]:
    """A recipe's dotted keys without what it says about itself."""
    return {k: v for k, v in dotted(recipe.model_dump(mode="json")).items() if not k.startswith("about.")}


def option(argv: tuple[str, ...], name: str) -> str | None:
    """The value of an option on a command line, as `--name value` or `--name=value`."""
    for place, word in enumerate(argv):
        if word == name and place + 1 < len(argv):
            return argv[place + 1]
        if word.startswith(f"{name}="):
            return word.partition("=")[2]
    return None


def recipe_name(argv: tuple[str, ...]) -> str | None:
    """The recipe that a training's command line names; None where the command line is not known."""
    return (option(argv, "--recipe") or DEFAULT_RECIPE) if argv else None


def shipped(argv: tuple[str, ...]) -> Recipe | None:
    """The shipped recipe that a command line names, None where it names none."""
    name = recipe_name(argv)
    if name not in recipe_names():
        return None
    try:
        return load_recipe(name)
    except RecipeError:
        return None
