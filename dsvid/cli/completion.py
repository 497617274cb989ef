"""`dsvid completion SHELL`: a script that completes commands, options and files; made by shtab from the parsers."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

from dsvid.errors import DsvidError

SHELLS = ("bash", "zsh", "tcsh")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `dsvid completion`."""
    parser.add_argument("shell", choices=SHELLS)
    parser.epilog = "example: dsvid completion bash > ~/.local/share/bash-completion/completions/dsvid"


def run(args: argparse.Namespace) -> None:
    """Print the script. Raises DsvidError where shtab is not installed."""
    try:
        import shtab
    except ImportError as error:
        raise DsvidError(
            "completion scripts are made by shtab, which cannot be imported",
            found=str(error),
            fix="pip install 'dsvid[completion]'",
        ) from error
    parser = whole_parser()
    for action in _actions(parser):
        if action.type is Path:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
    print(shtab.complete(parser, shell=args.shell))


def whole_parser() -> argparse.ArgumentParser:
    """One parser with every command and its options."""
    from dsvid.cli import COMMANDS

    parser = argparse.ArgumentParser(prog="dsvid")
    commands = parser.add_subparsers(dest="command")
    for name, (module, text) in COMMANDS.items():
        importlib.import_module(f"dsvid.cli.{module}").add_arguments(commands.add_parser(name, help=text))
    return parser


def _actions(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """The options of a parser and of all below it."""
    found = list(parser._actions)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            found += [inner for below in action.choices.values() for inner in _actions(below)]
    return found
