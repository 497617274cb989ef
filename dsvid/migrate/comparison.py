"""Which shipped recipe trains the same: recipes compared key by key, in meaning."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dsvid.documents import dotted
from dsvid.migrate.conversion import RELEASED_DECODER
from dsvid.migrate.options import Program
from dsvid.recipe import Recipe, load_recipe, recipe_names

# Where files lie and how many processes read them: a user's own, which say nothing of the training.
PLACES = re.compile(r"data\.(train|val|test|root|num_workers)|model\.init|footage\.\w+\.(root|index)|run\.seed")
# What an original has no word for, or another unit: memory of a device, pictures, when to save.
_OURS = re.compile(r"about\..*|batch\.micro(_limit)?|eval\.batch|run\.(save_every|images_every)")
# These decide what is trained, although they look like places.
_KINDS = ("builtin", "footage")


@dataclass(frozen=True)
class Match:
    """A shipped recipe, the keys in which the wanted one differs from it (key: wanted value), and recipes like it."""

    name: str
    differences: Mapping[str, Any]
    alike: tuple[str, ...] = ()

    @property
    def same(self) -> bool:
        """Whether only places differ."""
        return not any(differs_in_meaning(key, value) for key, value in self.differences.items())


def differs_in_meaning(key: str, value: Any) -> bool:
    """Whether a difference in `key` is one of the training, not of the user's files."""
    return not PLACES.fullmatch(key) or value in _KINDS


def flat(recipe: Recipe) -> dict[str, Any]:
    """{dotted key: value}, as YAML has it."""
    return dotted(recipe.model_dump(mode="json"))


def meaning(recipe: Recipe) -> dict[str, Any]:
    """`flat`, with values of equal meaning made equal."""
    values = flat(recipe)
    own = RELEASED_DECODER.get(recipe.model.decoder, {}).get(recipe.model.arch)
    if recipe.task == "pretrain" and values["model.decoder_depth"] == own:
        values["model.decoder_depth"] = 0
    values["anomaly.eval_rate"] = values["anomaly.eval_rate"] or 1
    return values


@functools.cache
def _shipped(name: str) -> tuple[Recipe, dict[str, Any]]:
    recipe = load_recipe(name)
    return recipe, meaning(recipe)


def best_match(recipe: Recipe, program: Program, hint: str) -> Match:
    """The shipped recipe nearest to `recipe` among those of its program (any of its task where there are none).

    `hint` is text of the script, which chooses among recipes of equal values: they differ in their weights.
    """
    wanted = meaning(recipe)
    names = [name for name in recipe_names() if not name.startswith("demo_")]
    candidates = [name for name in names if re.fullmatch(program.recipes, name)]
    ranked = []
    for name in candidates or names:
        shipped, there = _shipped(name)
        if shipped.task != recipe.task:
            continue
        differences = {key: wanted[key] for key in wanted if wanted[key] != there[key] and not _OURS.fullmatch(key)}
        if "batch.total" in differences:
            differences |= {"batch.micro": recipe.batch.micro, "batch.micro_limit": recipe.batch.micro_limit}
        own = re.search(r"no (job|script)", shipped.about.note) is None
        count = sum(differs_in_meaning(key, value) for key, value in differences.items())
        ranked.append(((count, not own, -_hinted(name, hint), len(differences), name), name, differences))
    ranked.sort(key=lambda row: row[0])
    (best, name, differences), *rest = ranked
    alike = tuple(other for key, other, _ in rest if key[0] == best[0] == 0)
    return Match(name, differences, alike)


def _hinted(name: str, hint: str) -> int:
    """Words of a recipe's name that the script has too."""
    words = {"finetuned": "finetune" in hint, "pretrained": "finetune" not in hint}
    return sum(words.get(word, word in hint) for word in name.split("_"))
