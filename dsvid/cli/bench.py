"""`dsvid bench mask|step|loader|scaling|…`: benchmarks, each with the ratio to a named baseline of the same run."""

from __future__ import annotations

import argparse
import importlib
import json
from pathlib import Path

BENCHES = {
    "mask": "the tube-masking op against the textbook chain and the memory floor",
    "step": "forward and backward against transformers' VideoMAEForPreTraining",
    "loader": "clips a second of the loader: loose videos, packed shards, memory over 2000 clips",
    "scaling": "bytes that ranks send against ZeRO's formulas on 1, 2, 4 ranks, and a model of 8 to 512 devices",
    "load": "peak memory of loading a model in bf16, over its weights",
    "checkpoint": "seconds and bytes/s of saving, verifying and loading checkpoints, against the raw disk",
    "ava": "mAP of 120 000 detections against a plain loop over images and classes",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """One sub-subcommand per benchmark."""
    benches = parser.add_subparsers(dest="bench", required=True, metavar="|".join(BENCHES))
    for name, text in BENCHES.items():
        sub = benches.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        importlib.import_module(f"dsvid.cli.bench_{name}").add_arguments(sub)
        sub.add_argument("--json", type=Path, default=None, metavar="FILE", help="write the result here too")


def run(args: argparse.Namespace) -> None:
    """Run the chosen benchmark, which prints; write its numbers where --json says."""
    result = importlib.import_module(f"dsvid.cli.bench_{args.bench}").run(args)
    if args.json and result:  # of many ranks the first has one
        args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
