"""`dsvid plan`: what a run will need in memory, time, disk and loader cores, before any GPU is taken."""

from __future__ import annotations

import argparse
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING

from dsvid.errors import RecipeError

if TYPE_CHECKING:
    from dsvid.plan.compute import Rate
    from dsvid.plan.estimate import Question

EXAMPLE = """example:
  dsvid plan --recipe pretrain_videomaev2_giant --ds_config ds_configs/zero2.json --hostfile hostfiles/8x8 \\
      --gpu-mem 80 --gpu A100
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the subcommand."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLE
    parser.add_argument("--recipe", required=True, help="a shipped name or a YAML file")
    parser.add_argument("--ds_config", required=True, type=Path, help="the DeepSpeed JSON")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("-H", "--hostfile", type=Path, help="hosts and their slots, as the launcher reads it")
    where.add_argument("--gpus", type=int, metavar="N", help="number of GPUs, eight a node")
    parser.add_argument("--gpu-mem", type=float, metavar="GB", help="memory of a GPU in GiB: says whether it fits")
    parser.add_argument("--reserve-gb", type=float, default=2.0, metavar="GB",
                        help="of it for CUDA's context, NCCL and the allocator (2: an assumption)")  # fmt: skip
    rate = parser.add_mutually_exclusive_group()
    rate.add_argument("--gpu", metavar="NAME", help="a GPU whose peak is known, as H100: gives days and GPU hours")
    rate.add_argument("--tflops", type=float, metavar="T", help="peak of a GPU; with --mfu 1, what it reaches")
    parser.add_argument("--mfu", type=float, metavar="SHARE", help="share of the peak that is reached (0.3: assumed)")
    parser.add_argument("--device-gbs", type=float, metavar="G", help="GB/s of a GPU inside its node (300: assumed)")
    parser.add_argument("--node-gbs", type=float, metavar="G", help="GB/s of a node to the others (40: assumed)")
    parser.add_argument("--videos", type=int, default=0, metavar="N", help="length of data.train, if it is not here")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every number here too")
    parser.add_argument("overrides", nargs="*", metavar="a.b=v", help="values laid over recipe and JSON (ds.a.b=v)")


def run(args: argparse.Namespace) -> None:
    """Print the plan. Raises DsvidError where the trainer would refuse to start."""
    check(args)
    from dsvid.plan.advice import cheapest, others
    from dsvid.plan.estimate import estimate
    from dsvid.plan.report import as_json, table

    plan = estimate(question(args))
    change = cheapest(plan)
    alone = others(plan, change)
    print(table(plan, change, alone))
    if args.json is not None:
        write(args.json, as_json(plan, change, alone))


def check(args: argparse.Namespace) -> None:
    """Raise RecipeError for numbers that make no sense, before anything is imported."""
    for name, value, least in (
        ("gpus", args.gpus, 1), ("gpu-mem", args.gpu_mem, None), ("tflops", args.tflops, None),
        ("device-gbs", args.device_gbs, None), ("node-gbs", args.node_gbs, None), ("videos", args.videos, 0),
        ("reserve-gb", args.reserve_gb, 0),
    ):  # fmt: skip
        if value is None:
            continue
        if not math.isfinite(value) or (value <= 0 if least is None else value < least):
            expected = "more than 0" if least is None else f"at least {least}"
            raise RecipeError(f"--{name}", found=value, expected=expected)
    if args.mfu is not None and not 0 < args.mfu <= 1:
        raise RecipeError("--mfu", found=args.mfu, expected="a share above 0, at most 1", fix="--mfu 0.3")
    if args.mfu is not None and args.gpu is None and args.tflops is None:
        raise RecipeError("--mfu is a share of a peak that is not given", fix="--gpu NAME, or --tflops T")
    if args.json is not None and args.json.is_dir():
        raise RecipeError(f"--json {args.json}", found="a folder", expected="a file")


def question(args: argparse.Namespace) -> Question:
    """The command line as a question. Raises RecipeError."""
    from dataclasses import replace

    from dsvid.deepspeed_json import load_ds_config
    from dsvid.launching import read_hostfile
    from dsvid.plan.compute import ASSUMED_LINKS
    from dsvid.plan.estimate import GIB, Question
    from dsvid.recipe import split_overrides

    ours, theirs = split_overrides(args.overrides)
    slots = list(read_hostfile(args.hostfile).values()) if args.hostfile is not None else []
    links = replace(
        ASSUMED_LINKS,
        device=args.device_gbs * 1e9 if args.device_gbs else ASSUMED_LINKS.device,
        node=args.node_gbs * 1e9 if args.node_gbs else ASSUMED_LINKS.node,
    )
    return Question(
        recipe=args.recipe,
        tree=load_ds_config(args.ds_config),
        gpus=sum(slots) or args.gpus,
        gpus_a_node=max(slots, default=min(8, args.gpus or 8)),
        ours=ours,
        theirs=theirs,
        memory=None if args.gpu_mem is None else int(args.gpu_mem * GIB),
        rate=read_rate(args),
        links=links,
        reserve=int(args.reserve_gb * GIB),
        videos=args.videos,
    )


def read_rate(args: argparse.Namespace) -> Rate | None:
    """The rate of a GPU, or None. Raises RecipeError for a GPU whose peak is not listed."""
    from dsvid.models.flops import PEAK_TFLOPS
    from dsvid.plan.compute import ASSUMED_MFU, Rate
    from dsvid.recipe import nearest

    share = ASSUMED_MFU if args.mfu is None else args.mfu
    if args.tflops is not None:
        return Rate(args.tflops * 1e12, share, f"{args.tflops:g} TFLOP/s, given")
    if args.gpu is None:
        return None
    # as its short name, or as the driver writes it: NVIDIA A100-SXM4-80GB, NVIDIA GeForce RTX 4090
    named = [name for name in PEAK_TFLOPS if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", args.gpu, re.IGNORECASE)]
    peak = PEAK_TFLOPS[max(named, key=len)] * 1e12 if named else None
    if peak is None:
        near = nearest(args.gpu.upper(), list(PEAK_TFLOPS))
        raise RecipeError(f"--gpu {args.gpu}: its peak is not listed", expected=f"one of {', '.join(PEAK_TFLOPS)}",
                          fix=f"--gpu {near}" if near else "--tflops T")  # fmt: skip
    return Rate(peak, share, f"{args.gpu}: {peak / 1e12:g} TFLOP/s, dense bf16, of its data sheet")


def write(path: Path, numbers: dict[str, object]) -> None:
    """Write the JSON whole or not at all. Raises RecipeError where the place cannot be written."""
    from dsvid.publish import publish_json

    try:
        publish_json(path, numbers)
    except OSError as error:
        raise RecipeError(f"--json {path} cannot be written", found=error.strerror or str(error)) from error
