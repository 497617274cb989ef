"""`dsvid status RUN`: where a run stands, in a dozen lines or as JSON, once or again and again."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the subcommand."""
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder: the --out of a training")
    parser.add_argument(
        "--watch", type=float, metavar="S", help="look again every S seconds, until the run has ended or Ctrl-C"
    )
    parser.add_argument(
        "--verify", action="store_true", help="compare the newest checkpoint's SHA-256; without it, its sizes alone"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a look")
    parser.epilog = "example: dsvid status runs/k400 --watch 10"


def run(args: argparse.Namespace) -> None:
    """Look and print. Raises CheckpointError where RUN is no run folder."""
    from dsvid.errors import DsvidError
    from dsvid.report.standing import standing

    if args.watch is not None and not (math.isfinite(args.watch) and args.watch >= 0.1):
        raise DsvidError("--watch", found=args.watch, expected="seconds, 0.1 or more", fix="--watch 10")
    try:
        while True:
            facts = standing(args.run, verify=args.verify)
            _show(facts, args)
            if args.watch is None or facts["state"] != "running":
                return
            _wait(args.watch)
    except KeyboardInterrupt:
        return


def _wait(seconds: float) -> None:
    import time

    time.sleep(seconds)


def _show(facts: dict[str, Any], args: argparse.Namespace) -> None:
    import json
    import sys

    from dsvid.report.standing import standing_lines

    if args.json:
        print(json.dumps(facts), flush=True)
        return
    if args.watch is not None and sys.stdout.isatty():
        print("\x1b[H\x1b[2J", end="")  # one picture that changes, not a roll of them
    print("\n".join(standing_lines(facts)), flush=True)
    if args.watch is not None and facts["state"] == "running":
        print(f"\nagain in {args.watch:g} s; Ctrl-C ends the looking, not the run", flush=True)
