"""`dsvid data pack`: writes the videos of a list as shards that hold JPEGs or small mp4s."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from dsvid.cli.fault_bar import FaultBar

if TYPE_CHECKING:
    from dsvid.data.shard_packing import Packing

TEXT = "videos of a list -> packed shards (WebDataset's layout and an index); resumable: call it again"
EPILOG = "example: dsvid data pack train.csv packed/train --short-side 256"


def add_arguments(parser: argparse.ArgumentParser, cores: int) -> None:
    """The options of `dsvid data pack`."""
    parser.add_argument("list", metavar="LIST", help="a list file, as data.train takes it")
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder for the shards; then data.train=OUT")
    parser.add_argument("--root", default="", metavar="DIR", help="folder that relative paths of the list start from")
    parser.add_argument("--short-side", type=int, default=256, metavar="N", help="pixels; nothing is enlarged (256)")
    parser.add_argument("--fps", type=float, metavar="F", help="keep the frames nearest to the times k/F (all frames)")
    parser.add_argument("--codec", choices=("jpeg", "h264"), default="jpeg", help="a picture a frame, or an mp4 (jpeg)")
    parser.add_argument("--quality", type=int, metavar="N", help="of JPEG, 1 to 100 (90)")
    parser.add_argument(
        "--shard-mb", type=int, default=512, metavar="N", help="a shard is closed from this size on (512)"
    )
    parser.add_argument("--jobs", type=int, default=cores, metavar="N", help="processes (all cores)")
    parser.add_argument("--limit", type=float, default=1800.0, metavar="S", help="seconds for one video (1800)")
    parser.add_argument("--decoder", choices=("auto", "decord", "pyav", "torchcodec"), default="auto")
    parser.add_argument("--frame-name", default="img_{:05}.jpg", metavar="NAME", help="of frame folders' pictures")
    parser.add_argument("--frame-start", type=int, default=1, metavar="N", help="number of their first picture")


def run(args: argparse.Namespace) -> None:
    """Pack what is missing, print storage and speed. Raises DataError, OSError."""
    import torch

    from dsvid.cli.data_check import check_values
    from dsvid.data.manifest import open_split
    from dsvid.data.shard_packing import Packing
    from dsvid.data.shard_samples import PackOptions
    from dsvid.data.shard_speed import measure_speed
    from dsvid.errors import DataError

    torch.set_num_threads(1)  # one process a core
    options = PackOptions(args.short_side, args.fps, args.codec, args.quality, args.shard_mb, args.decoder,
                          args.frame_name, args.frame_start)  # fmt: skip
    check_values(args, ("jobs",))
    manifest = open_split(args.list, "train", args.root)
    packing = Packing(manifest, args.out, options)
    if packing.finished:
        print(f"{args.out}: packed already")
    else:
        _announce(packing, args.limit)
        with FaultBar(len(manifest), "video", "not packed: ", initial=packing.done) as bar:
            packing.run(args.jobs, lambda sample: bar.tell(sample.error), limit_s=args.limit)
    _summarise(args.out)
    try:
        loose, packed = measure_speed(args.list, args.root, args.out, options)
    except DataError as error:  # the videos may have been removed since
        print(f"speed not compared: {error.what}")
    else:
        print(f"clips of 16 frames a second, one thread, a few clips only: {loose:.3g} loose, {packed:.3g} packed, "
              f"{packed / loose:.1f} times as many")  # fmt: skip


def _announce(packing: Packing, limit_s: float) -> None:
    total = len(packing.manifest)
    if packing.done:
        print(f"{packing.folder}: {packing.done} of {total} videos are packed already, going on")
    needed = packing.estimate_bytes(limit_s)
    free = packing.check_room(needed)
    about = f"about {_bytes(needed)}" if needed else "unknown room (none of the first looked at can be read)"
    print(f"{total - packing.done} videos to pack: {about}, {_bytes(free)} are free", flush=True)


def _bytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.2f} MB"


def _summarise(out: Path) -> None:
    from dsvid.data.shards import BAD, open_shards

    about = open_shards(out).about
    counts, size = about["counts"], about["bytes"]
    bad = f", {counts['bad']} could not be read ({out / BAD})" if counts["bad"] else ""
    remarks = f", {counts['remarks']} with a remark in their json" if counts["remarks"] else ""
    shards = f"{len(about['shards'])} shard{'s' * (len(about['shards']) != 1)}"
    print(f"{out}: {counts['samples'] - counts['bad']} videos in {shards}{bad}{remarks}")
    print(f"{counts['frames']} of {counts['source_frames']} frames kept, {_bytes(size['before'])} before, "
          f"{_bytes(size['after'])} after: {size['after'] / max(1, size['before']):.2f} times")  # fmt: skip
