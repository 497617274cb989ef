"""`dsvid recipes [NAME]`: the shipped recipes, or one with every key resolved."""

from __future__ import annotations

import argparse

from dsvid.recipe import dump_yaml, load_recipe, recipe_names, split_overrides


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the subcommand."""
    parser.add_argument("name", nargs="?", help="a shipped name or a YAML file; none lists the names")
    parser.add_argument("overrides", nargs="*", metavar="a.b=v", help="values laid over the recipe")


def run(args: argparse.Namespace) -> None:
    """Print."""
    if args.name is not None:
        ours, _ = split_overrides(args.overrides)
        print(dump_yaml(load_recipe(args.name, ours)), end="")
        return
    width = max(len(name) for name in recipe_names())
    for name in recipe_names():
        about = load_recipe(name).about
        print(f"{name:{width}}  {about.source}\n{'':{width}}  published: {about.published}")
