"""The conversions that the originals share: batch, learning rate, optimizer, length of a run, names of models.

Every function fills a `Converted` from the values of an original's options; none knows a script or a recipe file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dsvid.deepspeed_json import CHECKPOINTING_ON
from dsvid.errors import RecipeError
from dsvid.migrate.options import Converted
from dsvid.migrate.shell_words import UNKNOWN
from dsvid.recipe import nearest

Args = Mapping[str, Any]
LR_BATCH = 256  # lr and min_lr are scaled by videos per step / 256 in all of the originals
# Blocks of the released decoders, which model.decoder_depth=0 stands for.
RELEASED_DECODER: Mapping[str, Mapping[str, int]] = {
    "videomae": {"vit_small": 4, "vit_base": 4, "vit_large": 12, "vit_huge": 12},
    "videomaev2": dict.fromkeys(("vit_small", "vit_base", "vit_large", "vit_huge", "vit_giant"), 4),
}
UNDER_DEEPSPEED = {"opt": "AdamW", "opt_eps": "1e-8", "opt_betas": "0.9 0.999", "clip_grad": "no clipping"}


def arch(args: Args, out: Converted) -> str:
    """Our name of --model. Raises RecipeError for a name that the project does not have."""
    models, name = out.program.models, args["model"]
    if name not in models:
        near = nearest(name, list(models))
        raise RecipeError(
            f"{out.program.file} of {out.program.title} has no model {name}",
            expected="one of " + ", ".join(models),
            fix=f"--model {near}" if near else None,
        )
    return models[name]


def batch(out: Converted, videos: int, *, views: int = 1, accumulate: int = 1, micro: int | None = None) -> None:
    """Clips of a step from `videos` per GPU: x GPUs x accumulation x views of each; the lr rule counts videos.

    `micro` is the videos a GPU takes at once, where that is not `videos`.
    """
    if min(videos, views, accumulate) < 1:
        raise RecipeError("a batch of nothing", found=f"{videos} videos x {accumulate} x {views}", expected="1 or more")
    out.values |= {
        "batch.total": videos * out.world * accumulate * views,
        "batch.micro_limit": (micro or videos) * views,
        "optim.lr_scale_batch": LR_BATCH * views,
    }
    if views > 1:
        out.values["data.num_sample"] = views
    counted = [str(videos), f"{out.world} GPUs"]
    counted += [f"--update_freq {accumulate}"] if accumulate > 1 else []
    counted += [f"--num_sample {views}"] if views > 1 else []
    text = " × ".join(counted) + f" = {out.values['batch.total']}"
    for name in ("batch_size", "batch_size1"):
        out.notes[name] = text


def optimizer(args: Args, out: Converted) -> None:
    """Learning rates, warm-up, weight decay, betas, eps, clipping. The rates stay as written: the rule is the same."""
    ignored = out.program.under_deepspeed if args.get("enable_deepspeed") else ()
    for name in ignored:
        out.no_effect(name, f"with --enable_deepspeed always {UNDER_DEEPSPEED[name]}: the original writes its own JSON")
    betas = args["opt_betas"] if args["opt_betas"] and "opt_betas" not in ignored else (0.9, 0.999)
    if len(betas) != 2:
        raise RecipeError("--opt_betas", found=betas, expected="two numbers")
    clip = args["clip_grad"] if "clip_grad" not in ignored else None
    end = args["weight_decay_end"]
    out.values |= {
        "optim.base_lr": args["lr"],
        "optim.min_lr": args["min_lr"],
        "optim.warmup_epochs": args["warmup_epochs"],
        "optim.weight_decay": args["weight_decay"],
        "optim.weight_decay_end": None if end == args["weight_decay"] else end,
        "optim.betas": list(betas),
        "optim.eps": 1e-8 if "opt_eps" in ignored else args["opt_eps"],
        "optim.clip_grad": clip or 0.0,
    }
    if args["warmup_steps"] > 0:
        out.values["optim.warmup_steps"] = args["warmup_steps"]
        out.no_effect("warmup_epochs", "--warmup_steps wins, here too")
    else:
        out.no_effect("warmup_steps", "counts where it is above 0")
    scaled = args["lr"] * out.values["batch.total"] / out.values["optim.lr_scale_batch"]
    out.notes["lr"] = (
        f"lr × {out.values['batch.total']} / {out.values['optim.lr_scale_batch']} = {scaled:.4g}, there as here"
    )


def run(args: Args, out: Converted) -> None:
    """Epochs, seed, loader processes, run folder, resuming, activation checkpointing, the weights to start from."""
    out.values |= {
        "run.epochs": args["epochs"],
        "run.seed": args["seed"],
        "data.num_workers": args["num_workers"],
        "data.num_frames": args["num_frames"],
        "data.input_size": args["input_size"],
    }
    out.out = args["output_dir"]
    out.resume = "auto" if args["auto_resume"] else "never"
    if args.get("use_checkpoint") or args.get("with_checkpoint"):
        out.settings[CHECKPOINTING_ON] = False
    if args.get("save_ckpt") is False:
        out.values["run.save_every"] = 0
    start = args.get("finetune") or args.get("from_ckpt") or ""
    out.values["model.init"] = start
    if start.startswith("http"):
        out.notes["finetune" if args.get("finetune") else "from_ckpt"] = "download it first: model.init is a file"
    out.test_only = bool(args.get("eval") or args.get("validation"))


def inside(folder: str, name: str) -> str:
    """Path of a file of a folder that the script names."""
    return f"{folder.rstrip('/')}/{name}" if folder else name


def unknown_parts(text: str) -> bool:
    """Whether a text holds what only a run of the script would tell."""
    return UNKNOWN.search(text) is not None
