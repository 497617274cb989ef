"""`dsvid report RUN`: a run as one HTML page, also while it runs, and where its folder is damaged."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the subcommand."""
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder: the --out of a training")
    parser.add_argument("-o", "--out", type=Path, default=None, metavar="FILE.html", help="default: RUN/report.html")
    parser.epilog = "example: dsvid report runs/k400 -o k400.html"


def run(args: argparse.Namespace) -> None:
    """Read, judge, write; the verdict is printed too. Raises CheckpointError where RUN is no run folder."""
    from dsvid.report.page import report_page
    from dsvid.report.reading import read_run
    from dsvid.report.verdict import verdict
    from dsvid.report.words import plain
    from dsvid.report.writing import publish_page

    found = read_run(args.run)
    page = report_page(found)
    out = publish_page(args.out or args.run / "report.html", page)
    for sentence in verdict(found):
        print(plain(sentence.text))
    for one in found.damage:
        print(plain(f"not read: {one.file} {one.what}"))
    print(f"\n{out}: {len(page) / 1e6:.2f} MB, one file that needs no other")
