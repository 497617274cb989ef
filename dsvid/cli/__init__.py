"""The `dsvid` command: one small module per subcommand, imported only when it is the one that is called."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import traceback

from dsvid import __version__
from dsvid.errors import DsvidError

# name -> (module, one line of help); the line stands here so that `dsvid --help` imports nothing.
COMMANDS = {
    "recipes": ("recipes", "list the shipped recipes, or print one resolved"),
    "migrate": ("migrate", "a run script of VideoMAE, VideoMAE V2, its action detection or simple-tad -> our command"),
    "env": ("env", "versions, devices, backends; what is missing and its cure"),
    "demo": ("demo", "pre-train, fine-tune and test on generated clips, in minutes on two cores"),
    "plan": ("plan", "memory, FLOPs, days, disk and loader cores of a run, before any GPU is taken; what makes it fit"),
    "launch": ("launch", "start deepspeed or torchrun under a supervisor: hosts checked first, saved at every signal"),
    "slurm": ("slurm", "print or submit a Slurm batch script: train, eval, dapt, array"),
    "status": ("status", "where a run stands: step, loss, speed, checkpoint, faults; in a terminal"),
    "report": ("report", "a run as one HTML page: verdict, curves, faults, samples, settings, next steps"),
    "compare": ("compare", "two runs or more: which settings differ, from which step the losses do, how fast each is"),
    "eval": ("eval", "multi-view test of a weight folder"),
    "predict": ("predict", "what a model says of a video: classes over time, or people's boxes with actions"),
    "reconstruct": ("reconstruct", "original, masked and rebuilt by pre-training weights: PNG, MP4, HTML page, JSON"),
    "features": ("features", "one file of sliding-window features for each video of a list; many ranks, resumable"),
    "convert": ("convert", "weights of any known family -> a dsvid, Hugging Face or VideoMAE layout"),
    "consolidate": ("consolidate", "ZeRO shards of a run or checkpoint -> one fp32 weight folder"),
    "ava": ("ava", "AVA's files: json from the csv, person boxes from a csv, a small generated set"),
    "data": ("data", "lists of videos: checked, timed, coded anew, packed into shards"),
    "traffic": ("traffic", "traffic data: split lists, zips of frames, their check, footage, a small generated set"),
    "metrics": (
        "metrics",
        "metrics from files alone: views of videos, ava (boxes with actions), anomaly (risk of frames)",
    ),
    "completion": ("completion", "a script for your shell that completes commands, options and files"),
    "bench": (
        "bench",
        "benchmarks: mask (the tube op), step (forward, backward), load (memory), checkpoint (disk), ava",
    ),
}


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 done, 2 the user's mistake."""
    words = sys.argv[1:] if argv is None else argv
    # The deepspeed launcher puts this before the arguments; the rank is in the environment too.
    words = [word for word in words if not word.startswith("--local_rank=")]
    name, args = parse(words)
    try:
        return int(importlib.import_module(f"dsvid.cli.{COMMANDS[name][0]}").run(args) or 0)
    except DsvidError as error:
        if os.environ.get("DSVID_DEBUG") == "1":
            traceback.print_exc()
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        # `dsvid recipes | head`: the reader has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def parse(words: list[str]) -> tuple[str, argparse.Namespace]:
    """The command and its arguments; options may stand before, between or after `a.b=v` items. Exits on `--help`."""
    if not words or words[0] not in COMMANDS:
        _list_of_commands().parse_args(words)  # --help, --version, or an error that lists the commands
        raise SystemExit(2)
    name, *rest = words
    module, text = COMMANDS[name]
    # A parser of its own, because argparse cannot mix options and positionals below a subparser.
    parser = argparse.ArgumentParser(
        prog=f"dsvid {name}", description=text[0].upper() + text[1:] + ".", allow_abbrev=False
    )
    command = importlib.import_module(f"dsvid.cli.{module}")
    command.add_arguments(parser)
    behind: list[str] = []
    if getattr(command, "COMMAND_BEHIND_DASHES", False) and "--" in rest:
        # argparse would look for the options of that other command in ours.
        rest, behind = rest[: rest.index("--")], rest[rest.index("--") + 1 :]
    try:
        args = parser.parse_intermixed_args(rest)
    except TypeError:  # the command has subcommands of its own
        args = parser.parse_args(rest)
    args.command, args.behind = name, behind
    return name, args


def _list_of_commands() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dsvid", description="Large video transformers with DeepSpeed.")
    parser.add_argument("--version", action="version", version=f"dsvid {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (_, text) in COMMANDS.items():
        commands.add_parser(name, help=text)
    return parser
