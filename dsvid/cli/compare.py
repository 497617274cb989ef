"""`dsvid compare RUN RUN…`: settings, losses and speed of runs side by side, in the terminal and as a page."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the subcommand."""
    parser.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN", help="run folders, 2 to 6; the first is compared with"
    )
    parser.add_argument("-o", "--out", type=Path, default=None, metavar="FILE.html", help="a page with the curves too")
    parser.epilog = "example: dsvid compare runs/k400 runs/k400_lr2 -o compare.html"


def run(args: argparse.Namespace) -> None:
    """Compare and print. Raises CheckpointError where one is no run folder, DsvidError for one folder alone."""
    from dsvid.report.comparison import compare
    from dsvid.report.comparison_page import comparison_lines, comparison_page
    from dsvid.report.reading import read_run
    from dsvid.report.words import plain
    from dsvid.report.writing import publish_page

    found = compare([read_run(folder) for folder in args.runs])
    page = comparison_page(found) if args.out is not None else ""
    out = publish_page(args.out, page) if args.out is not None else None  # first: a reader may close the pipe early
    print("\n".join(comparison_lines(found)))
    for letter, one in zip(found.letters, found.runs, strict=True):
        for damaged in one.damage:
            print(plain(f"not read in {letter}: {damaged.file} {damaged.what}"))
    if out is not None:
        print(f"\n{out}: {len(page) / 1e6:.2f} MB, one file that needs no other")
