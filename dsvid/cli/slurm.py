"""`dsvid slurm [train|eval|dapt|array] … RECIPE [a.b=v …]`: the batch script of a job, printed or submitted."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from dsvid.errors import DataError, RecipeError

DEFAULT_CONFIG = "ds_configs/zero2.json"  # of a clone; what the scripts take as well


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the subcommand."""
    parser.usage = (
        "dsvid slurm [train] RECIPE [options] [a.b=v …]\n"
        "       dsvid slurm dapt RECIPE model.init=WEIGHTS [options] [a.b=v …]\n"
        "       dsvid slurm array SWEEP RECIPE [options] [a.b=v …]\n"
        "       dsvid slurm eval WEIGHTS RECIPE [options] [a.b=v …]"
    )
    parser.add_argument("words", nargs="*", metavar="RECIPE", help="kind of job, its files, its recipe, a.b=v items")
    parser.add_argument("--nodes", type=int, default=1, help="default: 1")
    parser.add_argument("--gpus", type=int, default=0, help="GPUs of each node; 0 (default) = one CPU rank a node")
    parser.add_argument("--cpus-per-task", type=int, default=None, help="cores of each rank")
    parser.add_argument("--mem", default=None, help="memory of a node, like 240G")
    parser.add_argument("--time", default=None, help="like 24h, 90m or 1-12:00:00")
    parser.add_argument("--partition", default=None)
    parser.add_argument("--account", default=None)
    parser.add_argument("--qos", default=None)
    parser.add_argument("--name", default="dsvid-{kind}", help="of the job; its output goes to NAME-JOB.out")
    parser.add_argument("--lead", type=int, default=300, metavar="S",
                        help="seconds before the time limit at which the ranks save (default: 300)")  # fmt: skip
    parser.add_argument("--launcher", choices=("srun", "deepspeed"), default=None,
                        help="a task for each rank (default), or `deepspeed --no_ssh` once a node")  # fmt: skip
    parser.add_argument("--ds_config", type=Path, default=None, help="DeepSpeed JSON (default: ds_configs/zero2.json)")
    parser.add_argument("--out", type=Path, default=None, help="run folder (default: runs/RECIPE)")
    parser.add_argument("--concurrent", type=int, default=None, metavar="N", help="array: so many tasks at a time")
    parser.add_argument("--dry-run", action="store_true", help="print the script, submit nothing")
    parser.add_argument(
        "--generic", action="store_true", help="print the script of scripts/slurm/, which takes arguments"
    )
    parser.epilog = "example: dsvid slurm demo_pretrain --nodes 4 --gpus 8 --time 24h --partition gpu --dry-run"


def run(args: argparse.Namespace) -> int:
    """Check everything that can be checked here, then print or submit the script."""
    from dsvid.slurm import KINDS, Resources, script

    words = list(args.words)
    kind = words.pop(0) if words and words[0] in KINDS else "train"
    if args.generic:
        print(script(kind), end="")
        return 0
    files = {"eval": 1, "array": 1}.get(kind, 0)
    if len(words) <= files:
        wanted = {"eval": "WEIGHTS RECIPE", "array": "SWEEP RECIPE"}.get(kind, "RECIPE")
        raise RecipeError(f"dsvid slurm {kind}", found=" ".join(words) or "no recipe", expected=wanted)
    for word in words:
        if "\n" in word or "\0" in word:
            raise RecipeError(f"the argument {word!r}", found="a line end", expected="one line")
    given, recipe, overrides = words[:files], words[files], words[files + 1 :]
    array = check(kind, given, recipe, overrides, args.ds_config)
    if array and args.concurrent is not None:
        array += f"%{args.concurrent}"
    options = [
        word
        for name, value in (("--ds_config", args.ds_config), ("--out", args.out))
        for word in ((name, str(value)) if value is not None else ())
    ]
    resources = Resources(
        args.name, args.nodes, args.gpus, args.cpus_per_task, args.mem, args.time, args.partition, args.account,
        args.qos, array, args.lead, args.launcher,
    )  # fmt: skip
    text = script(kind, resources, [*given, recipe, *options, *overrides])
    if args.dry_run:
        print(text, end="")
        return 0
    return submit(text)


def check(kind: str, files: Sequence[str], recipe: str, overrides: Sequence[str], config: Path | None) -> str | None:
    """What would fail in the queue, found here; returns the numbers of a job array. Raises DsvidError."""
    from dsvid.deepspeed_json import load_ds_config
    from dsvid.recipe import load_recipe, split_overrides

    lines = [""]
    if kind == "array":
        try:
            lines = Path(files[0]).read_text(encoding="utf-8").removesuffix("\n").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{files[0]} cannot be read", found=str(error)) from error
        for number, line in enumerate(lines, 1):
            if not line.split():
                raise DataError(f"{files[0]}, line {number} is blank", expected="`a.b=v` items of one task a line")
    if kind == "eval":
        if config is not None:
            raise RecipeError("--ds_config", found=config, fix="leave it out: a test needs none")
        if not Path(files[0]).exists():
            raise DataError(f"{files[0]}: no such weights")
    else:
        load_ds_config(config or Path(DEFAULT_CONFIG))
    for line in lines:
        resolved = load_recipe(recipe, split_overrides([*overrides, *line.split()])[0])
        if kind == "dapt" and (resolved.task != "pretrain" or not resolved.model.init):
            raise RecipeError(
                "domain-adaptive pre-training goes on from weights",
                found=f"task: {resolved.task}, model.init: {resolved.model.init or 'none'}",
                expected="a pre-training recipe and model.init=WEIGHTS",
            )
    return f"1-{len(lines)}" if kind == "array" else None


def submit(text: str) -> int:
    """Hand the script to sbatch, which prints the job's number. Raises RecipeError where there is no sbatch."""
    if shutil.which("sbatch") is None:
        raise RecipeError("sbatch is not on PATH", fix="run this on a login node of the cluster, or add --dry-run")
    done = subprocess.run(["sbatch"], input=text, text=True, check=False)
    if done.returncode:
        print(f"sbatch ended with {done.returncode}; nothing was submitted", file=sys.stderr)
    return 1 if done.returncode else 0
