"""`dsvid metrics anomaly`: the measures of a predictions.csv, per group of clips too, and curves per clip."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SHOWN = ("auroc", "ap", "auc_mcc", "mcc_max", "mcc_05", "f1")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `dsvid metrics anomaly`."""
    parser.add_argument("predictions", type=Path, metavar="CSV",
                        help="predictions.csv: clip, filename, logits_safe, logits_risk, label")  # fmt: skip
    parser.add_argument("--table", type=Path, default=None, metavar="CSV",
                        help="frame annotations (`dsvid traffic table`): per category, ego, non-ego too")  # fmt: skip
    parser.add_argument("--max-unmatched", type=float, default=0.3, metavar="SHARE",
                        help="more frames without a row in the table are an error; default: 0.3")  # fmt: skip
    parser.add_argument("--out", type=Path, default=None, metavar="DIR",
                        help="write result.json, stats.txt, groups.csv, roc.png, pr.png and mcc.png here")  # fmt: skip
    parser.add_argument("--curves", type=Path, default=None, metavar="DIR",
                        help="draw the risk of each clip, with its anomaly, as DIR/CLIP.png")  # fmt: skip
    parser.add_argument("--clip", action="append", default=[], metavar="NAME",
                        help="only this clip's curve; may be given again")  # fmt: skip
    parser.add_argument("--threshold", type=float, default=0.5, metavar="P", help="line in the curves; default: 0.5")
    parser.epilog = "example: dsvid metrics anomaly runs/dota/test/predictions.csv --table anno.csv --curves curves"


def run(args: argparse.Namespace) -> None:
    """Read, measure, print, write. Raises DataError."""
    from dsvid.errors import DataError
    from dsvid.evaluate.anomaly_report import binned, measured, named, write_curves, write_report
    from dsvid.metrics.anomaly_groups import clip_groups, join_annotations, read_predictions

    if args.clip and not args.curves:
        raise DataError("--clip has no effect", expected="--curves DIR with it")
    for name in ("threshold", "max_unmatched"):
        value = getattr(args, name)
        if not 0 <= value <= 1:
            raise DataError(f"--{name.replace('_', '-')}", found=value, expected="0 to 1")
    frames = read_predictions(args.predictions)
    numbers = {
        **measured(frames.score, frames.label), "anomalies": int(frames.label.sum()),
        "clips": len(set(frames.clip.tolist())), **binned(frames.score, frames.label),
    }  # fmt: skip
    groups = {"total": {"clips": numbers["clips"], **measured(frames.score, frames.label)}}
    if frames.repeated:
        print(f"{frames.repeated} rows are of frames that had come before, and are left out")
    print(f"{numbers['frames']} frames, {numbers['anomalies']} anomalies, {numbers['clips']} clips")
    if args.table:
        joined = join_annotations(frames, args.table, max_unmatched=args.max_unmatched)
        groups = {name: {"clips": group.clips, **named(group.scores)} for name, group in clip_groups(joined).items()}
        if joined.unmatched:
            print(f"{joined.unmatched:.1%} of the frames have no row in {args.table}: not in the groups")
        numbers["unmatched"] = joined.unmatched
    _print(groups)
    if numbers["auroc_binned"] is not None:
        shown = [_percent(numbers[name]) for name in ("auroc_binned", "ap_binned")]
        print(f"binned on 101 thresholds: AUROC {shown[0]} AP {shown[1]}")
    if args.out:
        write_report(args.out, frames.score, frames.label, numbers, groups)
    if args.curves:
        count = write_curves(args.curves, frames, args.clip, threshold=args.threshold)
        print(f"{count} curves in {args.curves}")


def _print(groups: Mapping[str, Mapping[str, Any]]) -> None:
    print(f"{'':12} {'clips':>6} {'frames':>8} " + " ".join(f"{name:>8}" for name in SHOWN))
    for name, values in groups.items():
        row = " ".join(f"{_percent(values[key]):>8}" for key in SHOWN)
        print(f"{name:12} {values['clips']:6} {values['frames']:8} {row}")


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.2f}"
