"""`dsvid metrics`: numbers from files alone. `views FILES…` is here, the others have files of their own."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from dsvid.cli import metrics_anomaly, metrics_ava


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the subcommand."""
    kinds = parser.add_subparsers(dest="metric", metavar="METRIC", required=True)
    views = kinds.add_parser(
        "views",
        help="top-1 and top-5 of the merged views of each video",
        description="Merge score files (a line: name [logit, …] label chunk crop) and print the accuracy.",
        allow_abbrev=False,
    )
    views.add_argument("files", nargs="+", type=Path, metavar="FILES", help="score files, or their folder")
    views.add_argument("--merge", choices=("prob", "score"), default="prob",
                       help="average probabilities (default) or logits")  # fmt: skip
    views.add_argument("--json", type=Path, default=None, metavar="FILE", help="write the result here too")
    views.epilog = "example: dsvid metrics views 0.txt 1.txt --merge prob"
    ava = kinds.add_parser(
        "ava",
        help="frame mAP at IoU 0.5 of AVA's csv files",
        description="Score detections against ground truth by the rules of the original scripts.",
        allow_abbrev=False,
    )
    metrics_ava.add_arguments(ava)
    anomaly = kinds.add_parser(
        "anomaly",
        help="AUROC, AP and MCC of frames, per category, with curves per clip",
        description="Measure the predictions of an evaluation of traffic anomaly detection, dsvid's or simple-tad's.",
        allow_abbrev=False,
    )
    metrics_anomaly.add_arguments(anomaly)


def run(args: argparse.Namespace) -> None:
    """The metric that was asked for."""
    {"views": _run_views, "ava": metrics_ava.run, "anomaly": metrics_anomaly.run}[args.metric](args)


def _run_views(args: argparse.Namespace) -> None:
    from dsvid.errors import DataError
    from dsvid.metrics.views import merge_files, score_files

    paths = [path for given in args.files for path in (score_files(given) if given.is_dir() else [given])]
    try:
        merged = merge_files(paths, args.merge)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError("a score file cannot be read", found=str(error), expected="the text files of a test") from error
    classes = merged.scores.shape[1]
    for name, label in zip(merged.names, merged.labels, strict=True):
        if not 0 <= label < classes:
            raise DataError(
                f"video {name!r} has a label that is no class",
                found=f"label {label}, {classes} scores a view",
                expected=f"0 to {classes - 1}",
                fix="score files of the test of this model, with its lists",
            )
    top1, top5 = merged.accuracy()
    short = int((merged.missing > 0).sum())
    result = {
        "videos": len(merged.names), "top1": top1, "top5": top5, "merge": args.merge,
        "videos_with_missing_views": short, "repeated_views": merged.repeated,
    }  # fmt: skip
    print(f"top1 {top1:.2f} top5 {top5:.2f} over {len(merged.names)} videos, {args.merge} of the views averaged")
    if short or merged.repeated:
        print(f"{short} videos lack views; {merged.repeated} views came twice and were counted once")
    if args.json:
        write_json(args.json, result)


def write_json(path: Path, result: dict[str, Any]) -> None:
    """Write `result`, the folder too where it is missing. Raises DataError where that cannot be."""
    from dsvid.errors import DataError
    from dsvid.publish import publish_json

    try:
        publish_json(path, result)
    except OSError as error:
        raise DataError(f"--json {path} cannot be written", found=str(error), fix="another file") from error
