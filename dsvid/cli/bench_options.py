"""The options of `dsvid bench …`, apart from the benchmarks: `--help` imports no torch."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

ARCHS = ("vit_micro", "vit_tiny", "vit_small", "vit_base", "vit_large", "vit_huge", "vit_giant")
DTYPES = ("bf16", "fp32")
ATTENTION = ("auto", "flash_attn", "sdpa", "math")


def _mask(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--batch", type=int, default=8, help="clips per call (8)")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--size", type=int, default=224, help="pixels of a side (224)")
    parser.add_argument("--patch", type=int, default=16)
    parser.add_argument("--ratio", type=float, default=0.9, help="share of the sites that are masked (0.9)")
    parser.add_argument("--repeats", type=int, default=30, help="turns of the fast arms (30)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch; the op itself uses one (1)")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32", help="of patches and targets")


def _step(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--task", default="pretrain", choices=("pretrain", "classify"))
    parser.add_argument("--arch", default="vit_small", choices=ARCHS)
    parser.add_argument("--dtype", default="fp32", choices=DTYPES)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--attention", default="auto", choices=ATTENTION, help="our backend")
    parser.add_argument("--mask-ratio", type=float, default=0.9)
    dual = "share of the masked tokens that the decoder leaves out: 0.5 = VideoMAE V2's dual masking (0)"
    parser.add_argument("--decoder-mask-ratio", type=float, default=0.0, help=dual)
    parser.add_argument(
        "--compile",
        action="store_true",
        help="one more arm: ours under torch.compile, in bf16 with bf16 weights (minutes)",
    )
    parser.add_argument("--alone", action="store_true", help="ours only: for models of which theirs does not fit")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--seed", type=int, default=0)


def _loader(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("videos", nargs="*", type=Path, help="video files (default: four generated ones, 340 x 256)")
    parser.add_argument("--workers", type=int, default=2, help="processes that read (2)")
    parser.add_argument("--clips", type=int, default=128, help="clips of every turn (128)")
    parser.add_argument("--repeats", type=int, default=5, help="turns of every arm (5)")
    parser.add_argument("--memory", type=int, default=2000, help="clips of the memory run; 0 = none (2000)")


def _scaling(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--arch", default="vit_small", help="architecture (vit_small)")
    parser.add_argument("--stage", type=int, default=2, choices=range(4), help="ZeRO stage (2)")
    parser.add_argument("--dtype", default="bf16", choices=DTYPES)
    parser.add_argument("--ranks", default="1,2,4", help="numbers of ranks (1,2,4)")
    parser.add_argument("--batch", type=int, default=2, help="clips of a rank (2)")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--size", type=int, default=224, help="pixels of a side (224)")
    parser.add_argument("--repeats", type=int, default=5, help="steps that are timed (5)")
    model = parser.add_argument_group("the model of many devices; give what you measured on yours")
    compute = "seconds of compute of a step on one device (default: measured here on one rank)"
    model.add_argument("--device-s", type=float, default=None, metavar="S", help=compute)
    model.add_argument("--device-gbs", type=float, default=300.0, help="GB/s of a device inside its node (300)")
    model.add_argument("--node-gbs", type=float, default=40.0, help="GB/s of a node to the others (40)")
    model.add_argument("--devices-a-node", type=int, default=8)
    model.add_argument("--overlap", type=float, default=0.8, help="share of the sending behind the backward (0.8)")


def _load(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--arch", default="vit_large", help="architecture (vit_large)")
    parser.add_argument("--classes", type=int, default=400)
    parser.add_argument("--scratch", type=Path, default=None, help="folder for the files that are loaded (temporary)")


def _checkpoint(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--arch", default="vit_small", help="architecture (vit_small)")
    parser.add_argument("--stage", type=int, default=2, choices=range(4), help="ZeRO stage (2)")
    parser.add_argument("--dtype", default="bf16", choices=DTYPES)
    parser.add_argument("--repeats", type=int, default=5)
    where = "folder on the disk to measure; all ranks must see it (default: the temporary folder)"
    parser.add_argument("--scratch", type=Path, default=None, help=where)


def _compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("old", type=Path, help="JSON of the same benchmark, from before")
    parser.add_argument("new", type=Path, help="and from now")
    parser.add_argument("--by", type=float, default=0.1, help="share by which a number may be worse (0.1)")
    parser.add_argument("--all", action="store_true", help="seconds and rates too: results of one machine")


def _ava(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--images", type=int, default=200, help="key frames (200)")
    parser.add_argument("--people", type=int, default=10, help="detected people in each, with every class (10)")
    parser.add_argument("--classes", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=5, help="turns of each arm (5)")


OPTIONS: dict[str, Callable[[argparse.ArgumentParser], None]] = {
    "mask": _mask,
    "step": _step,
    "loader": _loader,
    "scaling": _scaling,
    "load": _load,
    "checkpoint": _checkpoint,
    "compare": _compare,
    "ava": _ava,
}
