"""`dsvid ava`: prepares AVA's files: `json` and `boxes` from csv, `generate` a small set."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """One sub-subcommand per tool."""
    tools = parser.add_subparsers(dest="tool", metavar="json|boxes|generate", required=True)
    made = tools.add_parser(
        "json",
        help="COCO-style annotations from a ground-truth csv",
        description="Write what AlphAction's converter makes of a csv: images, and people with their actions.",
        allow_abbrev=False,
    )
    made.add_argument("--gt", type=Path, required=True, metavar="CSV", help="as ava_train_v2.2.csv")
    made.add_argument("--videos", type=Path, required=True, metavar="FILE",
                      help="names of all videos, one a line: ava_file_names_trainval_v2.1.txt")  # fmt: skip
    made.add_argument("--clips", type=Path, required=True, metavar="DIR",
                      help="the videos, whole or in seconds: their sizes are read")  # fmt: skip
    made.add_argument("--seconds", default="902-1798", metavar="A-B", help="key frames of every video (902-1798)")
    made.add_argument("-o", "--output", type=Path, required=True, metavar="JSON")
    boxes = tools.add_parser(
        "boxes",
        help="person boxes from a csv of shares of the frame",
        description="Write the json of person boxes from a detector's csv, or from a ground truth in seven columns.",
        allow_abbrev=False,
    )
    boxes.add_argument("--csv", type=Path, required=True, metavar="CSV",
                       help="video,second,x1,y1,x2,y2,class[,score]")  # fmt: skip
    boxes.add_argument("--annotations", type=Path, required=True, metavar="JSON", help="whose image ids are used")
    boxes.add_argument("-o", "--output", type=Path, required=True, metavar="JSON")
    generated = tools.add_parser(
        "generate",
        help="a small set of moving figures in AVA's format",
        description="Write videos, ground truth, annotations and person boxes of moving figures.",
        allow_abbrev=False,
    )
    generated.add_argument("folder", type=Path, metavar="DIR")
    generated.add_argument("--train", type=int, default=100, help="videos (100)")
    generated.add_argument("--val", type=int, default=30, help="videos (30)")
    generated.add_argument("--seconds", type=int, default=5, help="of each video (5)")
    generated.add_argument("--whole", action="store_true", help="one file a video instead of one a second")
    generated.add_argument("--seed", type=int, default=0)
    parser.epilog = "example: dsvid ava generate figures"


def run(args: argparse.Namespace) -> None:
    """Make the file or the set that was asked for. Raises DataError."""
    from dsvid.errors import DataError

    try:
        {"json": _json, "boxes": _boxes, "generate": _generate}[args.tool](args)
    except OSError as error:
        raise DataError("a file cannot be written", found=str(error), fix="another place") from error


def _json(args: argparse.Namespace) -> None:
    from dsvid.data import ava_annotations
    from dsvid.data.ava_clips import video_size
    from dsvid.data.ava_files import ImageNumbers, read_boxes, read_video_list
    from dsvid.data.ava_split import seconds_of
    from dsvid.data.decode import quiet_decoders

    quiet_decoders()
    seconds = seconds_of(args.seconds)
    numbers = ImageNumbers()
    read_boxes(args.gt, numbers)
    sizes = {video: video_size(args.clips, video) for video in sorted({video for video, _ in numbers.keys})}
    videos = read_video_list(args.videos)
    annotations = ava_annotations.annotations_from_csv(args.gt, videos, sizes, seconds=seconds)
    ava_annotations.write_json(args.output, ava_annotations.annotations_json(annotations))
    print(f"{args.output}: {len(annotations.images)} images of {len(sizes)} videos, {len(annotations.people)} people")


def _boxes(args: argparse.Namespace) -> None:
    from dsvid.data import ava_annotations

    annotations = ava_annotations.read_annotations(args.annotations)
    entries = ava_annotations.person_boxes_from_csv(args.csv, annotations)
    ava_annotations.write_json(args.output, entries)
    print(f"{args.output}: {len(entries)} boxes in {len({entry['image_id'] for entry in entries})} images")


def _generate(args: argparse.Namespace) -> None:
    from dsvid.data.ava_generated import make_set

    paths = make_set(
        args.folder, {"train": args.train, "val": args.val}, seconds=args.seconds, whole=args.whole, seed=args.seed
    )
    for name, path in paths.items():
        print(f"{name:<18} {path}")
