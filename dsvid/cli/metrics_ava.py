"""`dsvid metrics ava`: mAP from AVA's csv files, by three protocols, without a model."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dsvid.metrics.ava import AvaScores

PROTOCOLS = ("seed", "official", "mmaction2")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `dsvid metrics ava`."""
    parser.add_argument("--gt", type=Path, required=True, metavar="CSV", help="ground truth, as ava_val_v2.2.csv")
    parser.add_argument("--detections", type=Path, required=True, metavar="CSV",
                        help="video,second,x1,y1,x2,y2,class,score; video,second alone: none there")  # fmt: skip
    parser.add_argument("--labels", type=Path, required=True, metavar="PBTXT", help="label map: the classes that count")
    parser.add_argument(
        "--exclusions", type=Path, default=None, metavar="CSV", help="video,second of images to leave out"
    )
    parser.add_argument(
        "--protocol", choices=PROTOCOLS, default="seed", help="whose rules (docs/ava.md); default: seed"
    )
    parser.add_argument("--cap", type=int, default=None, metavar="N",
                        help="best detections kept of an image; 0 = all; default: the protocol's")  # fmt: skip
    parser.add_argument("--out", type=Path, default=None, metavar="DIR",
                        help="write result.json, classes.csv, classes.png and inference/result.log here")  # fmt: skip
    parser.add_argument("--json", type=Path, default=None, metavar="FILE", help="write the content of result.json here")
    parser.epilog = (
        "example: dsvid metrics ava --gt ava_val_v2.2.csv --detections inference/result.csv"
        " --labels ava_action_list_v2.2_for_activitynet_2019.pbtxt --exclusions ava_val_excluded_timestamps_v2.2.csv"
    )


def run(args: argparse.Namespace) -> None:
    """Read, score, print, write. Raises DataError."""
    from dsvid.cli.metrics import write_json
    from dsvid.data.ava_files import ImageNumbers, read_boxes, read_exclusions, read_label_map
    from dsvid.evaluate.detect_report import write_report
    from dsvid.metrics import ava, ava_report

    names = read_label_map(args.labels)
    numbers = ImageNumbers()
    truth, found = read_boxes(args.gt, numbers), read_boxes(args.detections, numbers)
    excluded = None if args.exclusions is None else read_exclusions(args.exclusions, numbers)
    protocol = ava.PROTOCOLS[args.protocol]
    if args.cap is not None:
        protocol = protocol.with_cap(args.cap if args.cap > 0 else None)
    scores = ava.score_detections(truth.rows, found.rows, list(names), protocol, listed=truth.images, excluded=excluded)
    _print(scores, names)
    if args.out:
        write_report(args.out, scores, names)
    if args.json:
        write_json(args.json, ava_report.result_json(scores, names))


def _print(scores: AvaScores, names: dict[int, str]) -> None:
    import numpy as np

    counted = ~np.isnan(scores.ap)
    low, high = scores.mean_range
    groups = ", ".join(f"{name} {100 * value:.2f}" for name, value in scores.group_means().items() if value == value)
    cap = f", best {scores.protocol.cap} of an image" if scores.protocol.cap else ""
    print(f"mAP {100 * scores.mean:.2f} at IoU 0.5, {scores.protocol.name} protocol{cap}")
    print(f"{groups or 'no group'}; {counted.sum()} of {len(names)} classes count")
    print(f"{scores.detections.sum()} detections, {scores.truths.sum()} boxes, {scores.images} key frames")
    if high > low:
        print(f"equal scores leave the order open: mAP lies between {100 * low:.4f} and {100 * high:.4f}")
    if not counted.any():
        print("no class counts: no box of a class of the label map is left", file=sys.stderr)
