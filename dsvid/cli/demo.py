"""`dsvid demo`: the whole way on generated clips, with the `deepspeed` launcher, and an honest table at its end."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
INTRODUCTION = """\
2200 small videos are generated: a camera moves over a texture left, right, up, down, turns either way, or zooms in or
out. No single frame gives the motion away, so whoever names it has looked at time. 160 labels are too few to learn
that from; 1600 clips without labels are not."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the subcommand."""
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for the runs (default: demo)")
    parser.add_argument("--ranks", type=int, default=0, help="0 = every GPU, or 2 CPU ranks")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--quick", action="store_true", help="a few steps of each part: does it run? (accuracy means nothing)"
    )


def run(args: argparse.Namespace) -> None:
    """Pre-train, fine-tune twice, test four ways, print."""
    start = time.perf_counter()
    demo = _Demo(args)
    pretrain, tuned, scratch = (args.out / name for name in ("pretrain", "finetune", "finetune-from-random"))
    print(f"dsvid demo: {demo.ranks} ranks, everything goes to {args.out}/\n\n{INTRODUCTION}", flush=True)
    demo.train(
        "\n1/4 masked pre-training on 1600 clips without their labels: three quarters of each clip are hidden,\n"
        "    and rebuilt from the rest. The loss rests near 0.99 while only colours are guessed, then falls.",
        "demo_pretrain",
        pretrain,
    )
    demo.train(
        "\n2/4 fine-tuning on 160 labelled clips, 20 of each motion, from those weights",
        "demo_finetune",
        tuned,
        f"model.init={pretrain / 'weights'}",
    )
    demo.train(
        "\n3/4 the same fine-tuning from random weights: the difference is what the pre-training was worth",
        "demo_finetune",
        scratch,
    )
    print(
        "\n4/4 tests on 400 clips that nothing was chosen on; played backwards, left is right and in is out", flush=True
    )
    views = "a few steps" if args.quick else "2 x 3 views"
    rows = [
        (f"pre-trained, then fine-tuned, {views}", _result(tuned)["top1"]),
        (f"fine-tuned from random weights, {views}", _result(scratch)["top1"]),
    ]
    single = demo.test(tuned, "forwards")
    backwards = demo.test(tuned, "backwards")
    still = demo.test(tuned, "still")
    rows += [
        ("pre-trained, then fine-tuned, 1 view", single["top1"]),
        ("  clips played backwards: the true class", backwards["top1"]),
        ("  clips played backwards: the opposite class", backwards["opposite_top1"]),
        ("  one frame repeated (it must guess)", still["top1"]),
        ("chance", 12.5),
    ]
    width = max(len(name) for name, _ in rows)
    table = "\n".join(f"{name:{width}}  {value:6.2f} %" for name, value in rows)
    minutes = (time.perf_counter() - start) / 60
    print(f"\ntop-1 accuracy, 8 motions, 400 test clips, 160 labels\n{table}\n")
    pictures = sorted((pretrain / "pictures").glob("*.png"))
    print(f"pictures   {pictures[-1] if pictures else 'none'}  (rows: original, masked, rebuilt, patch mean only)")
    print(f"weights    {tuned / 'weights' / 'model.safetensors'}")
    print(f"curves     tensorboard --logdir {args.out}")
    print(f"page       dsvid report {pretrain} -o {args.out / 'pretrain.html'}")
    print("your own   deepspeed dsvid/train.py --ds_config ds_configs/zero2.json --recipe pretrain_videomae_base_k400 "
          "--out runs/mine data.train=LIST   (a video a line; `dsvid plan` says what it needs)")  # fmt: skip
    print(f"time       {minutes:.1f} minutes, {demo.training_s / 60:.1f} of them training")
    summary = {"top1": dict(rows), "minutes": minutes, "training_minutes": demo.training_s / 60, "seed": args.seed}
    (args.out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")


class _Demo:
    """Starts the parts as a user would: with the launcher, one process group each."""

    def __init__(self, args: argparse.Namespace) -> None:
        import torch

        from dsvid.runtime import fast_bf16

        self.args = args
        gpus = torch.cuda.device_count()
        # The demo's batch of 16 goes over 1, 2, 4, 8 or 16 ranks; more GPUs than that would sit idle.
        usable = max(count for count in (1, 2, 4, 8, 16) if count <= max(gpus, 1))
        self.ranks = args.ranks or (usable if gpus else 2)
        self.overrides = [f"run.seed={args.seed}"]
        if not gpus and not fast_bf16():
            self.overrides.append("ds.bf16.enabled=false")
        self.training_s = 0.0
        args.out.mkdir(parents=True, exist_ok=True)
        self.config = ROOT / "ds_configs" / "zero2.json"
        if not self.config.is_file():  # installed from a wheel: the clone's files are not there
            self.config = args.out / "zero2.json"
            self.config.write_text('{"bf16": {"enabled": true}, "zero_optimization": {"stage": 2}}\n', encoding="utf-8")

    def train(self, title: str, recipe: str, out: Path, *overrides: str) -> None:
        """One training under the launcher; its lines are shown, all of its output is kept beside the run."""
        print(title, flush=True)
        launcher = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_accelerators", str(self.ranks)]
        script = [
            str(ROOT / "dsvid" / "train.py"),
            "--ds_config",
            str(self.config),
            "--recipe",
            recipe,
            "--out",
            str(out),
        ]
        quick = ["run.max_steps=4", "run.log_every=2", "eval.segments=1", "eval.crops=1"] if self.args.quick else []
        start = time.perf_counter()
        _follow([*launcher, *script, *self.overrides, *quick, *overrides], self.args.out / f"{out.name}.log")
        self.training_s += time.perf_counter() - start

    def test(self, run_folder: Path, play: str) -> dict[str, Any]:
        """One view of each test clip, played `play`."""
        out = run_folder / f"test-{play}"
        words = ["eval", "--weights", str(run_folder / "weights"), "--recipe", "demo_finetune", "--out", str(out)]
        views = ["eval.segments=1", "eval.crops=1", "data.num_workers=1"]
        _follow([sys.executable, "-m", "dsvid", *words, "--play", play, *views], self.args.out / "test.log", show=False)
        numbers: dict[str, Any] = json.loads((out / "result.json").read_text(encoding="utf-8"))
        return numbers


def _result(run_folder: Path) -> dict[str, Any]:
    numbers: dict[str, Any] = json.loads((run_folder / "test" / "result.json").read_text(encoding="utf-8"))
    return numbers


def _follow(command: list[str], log: Path, *, show: bool = True) -> None:
    """Run a command, show its own lines (not the launcher's), keep all; ends the demo with its code where it fails."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    with log.open("a", encoding="utf-8") as kept:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, errors="replace"
        )
        assert process.stdout is not None
        for line in process.stdout:
            kept.write(line)
            if show and not line.startswith("[20"):
                print(f"  {line}", end="", flush=True)
        code = process.wait()
    if code:
        print(f"this part of the demo failed with exit code {code}; its whole output is in {log}", file=sys.stderr)
        sys.exit(code)
