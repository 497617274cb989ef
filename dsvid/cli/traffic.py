"""`dsvid traffic`: prepares DoTA, DADA-2000, CAP-DATA and unlabelled footage; `generate` makes a small driving set."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dsvid.data.zip_packing import Checked

SHOWN_FAULTS = 50
LAYOUTS = ("dota", "dada", "capdata", "bdd100k", "kinetics", "videos")  # here, so that --help imports no decoder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """One sub-subcommand per tool."""
    tools = parser.add_subparsers(dest="tool", metavar="|".join(TOOLS), required=True)
    for name, (text, add, _) in TOOLS.items():
        add(tools.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".", allow_abbrev=False))
    parser.epilog = "example: dsvid traffic generate drives"


def run(args: argparse.Namespace) -> None:
    """Do what was asked for. Raises DataError."""
    from dsvid.errors import DataError

    try:
        TOOLS[args.tool][2](args)
    except OSError as error:
        raise DataError("a file cannot be written", found=str(error), fix="another place") from error


def _labelled(parser: argparse.ArgumentParser, split: bool = True) -> None:
    parser.add_argument("layout", choices=("dota", "dada"))
    parser.add_argument("root", type=Path, metavar="DIR", help="the data set's folder")
    if split:
        parser.add_argument(
            "--split", required=True, metavar="NAME", help="its list, as train_split.txt or training.txt"
        )


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _jobs(parser: argparse.ArgumentParser, limited: bool = True) -> None:
    parser.add_argument("--jobs", type=int, default=_cores(), metavar="N", help="processes (all cores)")
    if limited:
        parser.add_argument("--limit", type=float, default=600.0, metavar="S", help="seconds for one clip (600)")


# ---- lists ---------------------------------------------------------------------------------------------------------


def _add_split(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("layout", choices=("dota", "dada", "capdata"))
    parser.add_argument("root", type=Path, metavar="DIR", help="the data set's folder")
    parser.add_argument("--val", type=float, metavar="SHARE",
                        help="validation's share of each category; without it DoTA's own split, else 0")  # fmt: skip
    parser.add_argument("--force", action="store_true", help="replace lists that name other clips")
    parser.add_argument("--seed", type=int, default=0)


def _split(args: argparse.Namespace) -> None:
    from dsvid.data.traffic_lists import make_split, write_lists

    lists = make_split(args.layout, args.root, val_share=args.val, seed=args.seed)
    write_lists(lists, replace=args.force)
    for path, names in lists.items():
        print(f"{path}: {len(names)} clips" + ("" if names else ", not written"))


def _add_half(parser: argparse.ArgumentParser) -> None:
    _labelled(parser)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="as half_train_split.txt")


def _half(args: argparse.Namespace) -> None:
    from dsvid.data.traffic import open_labels
    from dsvid.data.traffic_lists import halve_split, write_list

    names = halve_split(args.layout, args.root, args.split, seed=args.seed)
    write_list(args.output, names)
    print(f"{args.output}: {len(names)} of {len(open_labels(args.layout, args.root, args.split)[0])} clips")


def _add_table(parser: argparse.ArgumentParser) -> None:
    _labelled(parser)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="CSV", help="as frame_level_anno_val.csv")


def _table(args: argparse.Namespace) -> None:
    from dsvid.data.traffic import open_labels
    from dsvid.data.traffic_lists import write_table

    names, read = open_labels(args.layout, args.root, args.split)
    clips, frames = write_table(args.output, map(read, names))
    print(f"{args.output}: {frames} frames of {clips} clips")


# ---- files ---------------------------------------------------------------------------------------------------------


def _add_index(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("layout", choices=LAYOUTS)
    parser.add_argument("root", type=Path, metavar="DIR", help="the data set's folder; videos: also a list file")
    parser.add_argument("--split", default="", metavar="NAME", help="its list, where it is not the training list")
    parser.add_argument("--ignore", type=Path, metavar="FILE", help="ids, names or paths to leave out, one a line")
    parser.add_argument("--fps", type=float, default=0.0, help="rate of the frames instead of the release's")
    parser.add_argument("--exact", action="store_true", help="read videos whole: slow, for containers that lie")
    _jobs(parser)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="CSV")
    parser.add_argument("--list", type=Path, metavar="FILE",
                        help="write the videos that can be read as a list too, for data.train")  # fmt: skip


def _index(args: argparse.Namespace) -> None:
    from dsvid.cli.data_check import check_values
    from dsvid.data.footage import list_footage, measure_footage, read_index, write_video_list

    check_values(args, ("jobs",))
    footage = list_footage(args.layout, args.root, args.split, ignore=args.ignore, fps=args.fps)
    problems = frames = looked = 0
    for found in measure_footage(footage, args.output, jobs=args.jobs, exact=args.exact, limit_s=args.limit):
        looked += 1
        frames += found.frames
        if found.problem:
            problems += 1
            if problems <= SHOWN_FAULTS:
                print(found.problem)
    if args.list:
        print(f"{args.list}: {write_video_list(args.list, read_index(args.output, footage.root))} videos")
    print(f"{args.output}: {len(footage)} clips, {looked} looked at now: {frames} frames, {problems} cannot be read")


def _add_pack(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("root", type=Path, metavar="DIR", help="every folder of pictures below it")
    _jobs(parser, limited=False)


def _pack(args: argparse.Namespace) -> None:
    from dsvid.cli.data_check import check_values
    from dsvid.data.zip_packing import pack_all

    check_values(args, ("jobs",))
    packed = list(pack_all(args.root, args.jobs))
    already = sum(one.already for one in packed)
    print(f"{len(packed) - already} zips written, {already} there already, {sum(one.frames for one in packed)} frames")
    print("the folders were kept: remove them when `dsvid traffic check` finds no fault")


def _add_check(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("layout", choices=LAYOUTS)
    parser.add_argument("root", type=Path, metavar="DIR", help="the data set's folder; videos: also a list file")
    parser.add_argument("--split", default="", metavar="NAME", help="its list, where it is not the training list")
    parser.add_argument("--quick", action="store_true", help="look at the zips' directories only, decode nothing")
    _jobs(parser)


def _check(args: argparse.Namespace) -> None:
    from dsvid.cli.data_check import check_values
    from dsvid.data.footage import SPLITS, check_footage, list_footage
    from dsvid.data.zip_packing import check_clips
    from dsvid.errors import DataError

    check_values(args, ("jobs",))
    split = args.split or SPLITS[args.layout]
    how = {"jobs": args.jobs, "decode": not args.quick, "limit_s": args.limit}
    if args.layout in ("dota", "dada"):
        results = check_clips(args.layout, args.root, split, **how)
    else:
        results = check_footage(list_footage(args.layout, args.root, split), **how)
    clean, faulty = _report(results)
    if faulty:
        raise DataError(
            f"{args.root}, {split or 'all'}",
            found=f"{faulty} of {clean + faulty} clips have faults, named above",
            expected="none",
        )


def _report(results: Iterator[Checked]) -> tuple[int, int]:
    clean = faulty = frames = 0
    for found in results:
        frames += found.frames
        clean, faulty = clean + (not found.faults), faulty + bool(found.faults)
        for fault in found.faults:
            print(fault)
    print(f"{clean + faulty} clips, {frames} frames, {faulty} clips with faults")
    return clean, faulty


def _add_generate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--layout", choices=("dota", "dada"), default="dota")
    parser.add_argument("--train", type=int, default=160, help="clips (160)")
    parser.add_argument("--val", type=int, default=60, help="clips (60)")
    parser.add_argument("--seed", type=int, default=0)


def _generate(args: argparse.Namespace) -> None:
    from dsvid.data.traffic_generated import make_set

    clips = {"train": args.train, "val": args.val}
    for split, path in make_set(args.folder, clips, layout=args.layout, seed=args.seed).items():
        print(f"{split:<6} {path}")


Tool = tuple[str, Callable[[argparse.ArgumentParser], None], Callable[[argparse.Namespace], None]]
TOOLS: dict[str, Tool] = {
    "split": ("split lists of a data set", _add_split, _split),
    "half": ("half of a list, the same share of every category", _add_half, _half),
    "table": ("the table of frames that per-category measures need", _add_table, _table),
    "index": ("frames and rate of every clip of unlabelled footage; resumable", _add_index, _index),
    "pack": ("folders of pictures -> zips that are read in place", _add_pack, _pack),
    "check": ("whether every frame of every clip is there and whole", _add_check, _check),
    "generate": ("a small driving set with anomalies", _add_generate, _generate),
}
