"""`dsvid data resize`: codes the videos of a list anew, smaller and with key frames close together."""

from __future__ import annotations

import argparse
from pathlib import Path

from dsvid.cli.fault_bar import FaultBar

TEXT = "videos of a list -> small H.264 files that are quick to read, and a list of them; resumable: call it again"
EPILOG = """Sound is dropped, frames keep their times, rotated videos are upright. OUT/list.csv has the same labels in
the same order, without the videos of OUT/bad.jsonl. Exit code 1: some videos could not be read.
example: dsvid data resize train.csv small/train --short-side 320"""


def add_arguments(parser: argparse.ArgumentParser, cores: int) -> None:
    """The options of `dsvid data resize`."""
    parser.add_argument("list", metavar="LIST", help="a list file of videos, as data.train takes it")
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder for them; then data.train=OUT/list.csv")
    parser.add_argument("--root", default="", metavar="DIR", help="folder that relative paths of the list start from")
    parser.add_argument("--short-side", type=int, default=320, metavar="N", help="pixels; nothing is enlarged (320)")
    parser.add_argument(
        "--gop",
        type=int,
        default=12,
        metavar="N",
        help="frames from key frame to key frame: fewer, quicker to read, larger (12)",
    )
    parser.add_argument("--crf", type=int, default=20, metavar="Q", help="of H.264, 0 to 51, lower is better (20)")
    parser.add_argument("--fps", type=float, metavar="F", help="keep the frames nearest to the times k/F (all frames)")
    parser.add_argument("--limit", type=float, default=1800.0, metavar="S", help="seconds for one video (1800)")
    parser.add_argument("--workers", type=int, default=cores, metavar="N", help="processes (all cores)")


def run(args: argparse.Namespace) -> int:
    """Code anew, print storage before and after. Returns 1 where some could not be read. Raises DataError, OSError."""
    from dsvid.cli.data_check import check_values
    from dsvid.data.decode import quiet_decoders
    from dsvid.data.manifest import read_list
    from dsvid.data.video_resize import BAD, LIST, ResizeOptions, Resizing

    check_values(args, ("workers",))
    options = ResizeOptions(args.short_side, args.gop, args.crf, args.fps)
    resizing = Resizing(read_list(args.list, args.root), args.out, options)
    quiet_decoders()
    with FaultBar(len(resizing.videos), "video", "not made: ") as bar:
        made = resizing.run(args.workers, args.limit, lambda one: bar.tell(one.error and f"{one.path}: {one.error}"))
    good = [one for one in made if not one.error]
    bad, already = len(made) - len(good), sum(one.already for one in good)
    before, after = sum(one.before for one in good), sum(one.after for one in good)
    print(f"{args.out / LIST}: {len(good)} videos" + (f", {already} of them were there already" if already else "")
          + (f"; {bad} could not be read ({args.out / BAD})" if bad else ""))  # fmt: skip
    print(f"{before / 1e6:.2f} MB before, {after / 1e6:.2f} MB after: {after / max(1, before):.2f} times")
    return 1 if bad else 0
