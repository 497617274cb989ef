"""`dsvid data`: looks at lists of videos and prepares them; `pack` writes shards that hold JPEGs or small mp4s."""

from __future__ import annotations

import argparse
import errno
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from dsvid.cli import data_bench, data_check, data_pack, data_resize
from dsvid.cli.fault_bar import without_a_reader


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """One sub-subcommand per tool."""
    tools = parser.add_subparsers(dest="tool", metavar="|".join(TOOLS), required=True)
    shape = argparse.RawDescriptionHelpFormatter
    for name, (text, epilog, add, _) in TOOLS.items():
        about = f"{text[0].upper()}{text[1:]}."
        tool = tools.add_parser(
            name, help=text, description=about, epilog=epilog, allow_abbrev=False, formatter_class=shape
        )
        add(tool, _cores())
    parser.epilog = "example: dsvid data check train.csv; dsvid data pack train.csv packed/train --short-side 256"


def run(args: argparse.Namespace) -> int:
    """Do what was asked for. Raises DataError."""
    from dsvid.errors import DataError

    try:
        with without_a_reader():
            return TOOLS[args.tool][3](args) or 0
    except OSError as error:
        raise DataError(_what_failed(error, args), found=str(error), fix="see its rights and its disk") from error
    except KeyboardInterrupt:
        print("stopped; the same call goes on where it can", file=sys.stderr)
        return 128 + signal.SIGINT


def _what_failed(error: OSError, args: argparse.Namespace) -> str:
    """Which file cannot be written or read, as far as the system tells."""
    outputs = [Path(path) for name in ("out", "output", "json") if (path := getattr(args, name, None))]
    path = Path(os.fsdecode(error.filename)) if isinstance(error.filename, (str, bytes)) else None
    if path is None:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
        return f"{outputs[0] if full and outputs else 'a file'} cannot be {'' if full else 'read or '}written"
    for output in outputs if path != Path(args.list) else ():
        # scratch files and those beside it begin with its name; folders above it are made
        beside = path.parent == output.parent and path.name.lstrip(".").startswith(output.name)
        if beside or path.is_relative_to(output) or output.is_relative_to(path):
            return f"{output} cannot be written"
    return f"{path} cannot be read"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


Tool = tuple[str, str, Callable[[argparse.ArgumentParser, int], None], Callable[[argparse.Namespace], int | None]]
TOOLS: dict[str, Tool] = {
    "check": (data_check.TEXT, data_check.EPILOG, data_check.add_arguments, data_check.run),
    "bench": (data_bench.TEXT, data_bench.EPILOG, data_bench.add_arguments, data_bench.run),
    "resize": (data_resize.TEXT, data_resize.EPILOG, data_resize.add_arguments, data_resize.run),
    "pack": (data_pack.TEXT, data_pack.EPILOG, data_pack.add_arguments, data_pack.run),
}
