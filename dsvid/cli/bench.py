"""`dsvid bench mask|step|loader|scaling|…`: benchmarks, each with the ratio to a named baseline of the same run."""

from __future__ import annotations

import argparse
import importlib
import json
from pathlib import Path
from typing import Any

from dsvid.cli.bench_options import OPTIONS

BENCHES = {
    "mask": "the tube-masking op against the textbook chain and the memory floor",
    "step": "forward and backward against transformers' VideoMAEForPreTraining",
    "loader": "clips a second of the loader: loose videos, packed shards, memory over 2000 clips",
    "scaling": "bytes that ranks send against ZeRO's formulas on 1, 2, 4 ranks, and a model of 8 to 512 devices",
    "load": "peak memory of loading a model in bf16, over its weights",
    "checkpoint": "seconds and bytes/s of saving, verifying and loading checkpoints, against the raw disk",
    "compare": "two results of one benchmark: what became slower is an error",
    "ava": "mAP of 120 000 detections against a plain loop over images and classes",
}


# benchmark -> the numbers that its picture shows, and what they are
PICTURES = {
    "mask": ("ms_per_clip", "", "ms a clip"),
    "step": ("arms", "wall_s", "seconds a step"),
    "loader": ("clips_per_s", "", "clips a second"),
    "scaling": ("model", "efficiency", "modelled efficiency by number of devices"),
    "checkpoint": ("seconds", "", "seconds"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """One sub-subcommand per benchmark."""
    benches = parser.add_subparsers(dest="bench", required=True, metavar="|".join(BENCHES))
    for name, text in BENCHES.items():
        sub = benches.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        OPTIONS[name](sub)
        sub.add_argument("--json", type=Path, default=None, metavar="FILE", help="write the result here too")
        if name in PICTURES:
            sub.add_argument("--png", type=Path, default=None, metavar="FILE", help=f"bars: {PICTURES[name][2]}")


def run(args: argparse.Namespace) -> None:
    """Run the chosen benchmark, which prints; write its numbers where --json and --png say."""
    result = importlib.import_module(f"dsvid.cli.bench_{args.bench}").run(args)
    if args.json and result:  # of many ranks the first has one
        args.json.write_text(json.dumps(result, indent=1, default=str) + "\n", encoding="utf-8")
    if getattr(args, "png", None) and result:
        _draw(args.bench, result, args.png)


def _draw(bench: str, result: dict[str, Any], path: Path) -> None:
    from dsvid.pictures import bar_picture, save_png

    key, inner, what = PICTURES[bench]
    rows = result[key]
    if isinstance(rows, list):
        rows = {str(row["devices"]): row for row in rows}
    values = {name: float(row[inner] if inner else row) for name, row in rows.items()}
    save_png(bar_picture(values, title=f"dsvid bench {bench}: {what}", largest=max(values.values())), path)
