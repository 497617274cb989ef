"""VideoMAE V2 (OpenGVLab/VideoMAEv2, commit 29eab1e): the options of its two programs, and what they become."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dsvid.deepspeed_json import CHECKPOINTING_ON
from dsvid.migrate import conversion, videomae
from dsvid.migrate.options import Converted, Option, Program, becomes, changed, idle, missing

_CHECKPOINT = becomes(
    "with_checkpoint", "flag", False, f"ds.{CHECKPOINTING_ON}",
    "an activation_checkpointing section in the DeepSpeed JSON",
)  # fmt: skip
_FILES = (
    becomes("data_root", "text", "", "data.root", "folder that the paths of the lists start from"),
    becomes("fname_tmpl", "text", "img_{:05}.jpg", "data.frame_name", "names of extracted frames"),
)

PRETRAIN: tuple[Option, ...] = changed(
    videomae.PRETRAIN,
    without="use_checkpoint",
    defaults={"epochs": 300, "mask_ratio": 0.9},
    add=(
        becomes("batch_size", "int", 64, "batch.total batch.micro_limit",
                "videos per GPU there; batch.total = videos × GPUs × --num_sample"),
        becomes("epochs", "int", 300, "run.epochs"),
        becomes("decoder_depth", "int", 4, "model.decoder_depth", "0 = 4, in every size"),
        missing("mask_type", "text", "tube", "tube masks only", choices=("random", "tube")),
        becomes("lr", "float", 1.5e-4, "optim.base_lr optim.lr_scale_batch",
                "actual lr = lr × videos per step / 256; --num_sample is not counted: optim.lr_scale_batch = 256 × it"),
        becomes("data_path", "text", "/your/data/annotation/path", "data.train",
                "the list file: `path start total`, total below 0 for a video file"),
        becomes("sampling_rate", "int", 4, "data.sampling_rate",
                "the original halves it for Something-Something's videos in a mixed list; here one rate for all"),
        becomes("tubelet_size", "int", 2, "model.tubelet"),
        _CHECKPOINT,
        missing("decoder_mask_type", "text", "run_cell", "running cells only", choices=("random", "run_cell")),
        becomes("decoder_mask_ratio", "float", 0.0, "pretrain.decoder_mask_ratio", "0 = the loss on all masked tokens"),
        becomes("finetune", "text", "", "model.init", "encoder and decoder"),
        *_FILES,
        becomes("num_sample", "int", 1, "data.num_sample batch.total batch.micro_limit optim.lr_scale_batch",
                "clips and masks of one decoded video; 4 in the release; an epoch shows every video that often"),
        idle("train_interpolation", "text", "bicubic", "not used: crops are bilinear",
             choices=("random", "bilinear", "bicubic")),
    ),
)  # fmt: skip

FINETUNE: tuple[Option, ...] = changed(
    videomae.FINETUNE,
    without="use_checkpoint fc_drop_rate",
    defaults={"warmup_lr": 1e-8, "test_num_segment": 10},
    add=(
        _CHECKPOINT,
        becomes("head_drop_rate", "float", 0.0, "model.head_drop"),
        becomes("data_path", "text", "/your/data/path/", "data.train data.val data.test",
                "the folder of train.csv and val.csv; the test reads val.csv"),
        *_FILES,
        becomes("start_idx", "int", 1, "data.frame_start", "number of the first extracted frame"),
        becomes("sparse_sample", "flag", False, "data.sampling",
                "a frame from each segment; looked at with Kinetics-400 and MIT"),
        becomes("data_set", "text", "Kinetics-400", "data.sampling data.flip",
                "SSV2: a frame from each segment, no flip; others: one stretch, flip 0.5",
                choices=("Kinetics-400", "Kinetics-600", "Kinetics-700", "SSV2", "UCF101", "HMDB51", "Diving48",
                         "Kinetics-710", "MIT")),
        becomes("validation", "flag", False, "dsvid-eval", "the command is `dsvid eval --split val` then"),
    ),
)  # fmt: skip
_SIZES = {"small_patch16": "small", "base_patch16": "base", "large_patch16": "large", "huge_patch16": "huge",
          "giant_patch14": "giant"}  # fmt: skip


def convert_pretrain(args: Mapping[str, Any], out: Converted) -> None:
    """run_mae_pretraining.py -> recipe keys."""
    videomae.pretrain_values(args, out, decoder="videomaev2")
    conversion.batch(out, args["batch_size"], views=args["num_sample"])
    conversion.optimizer(args, out)
    conversion.run(args, out)
    out.values |= {
        "model.tubelet": args["tubelet_size"],
        "pretrain.decoder_mask_ratio": args["decoder_mask_ratio"],
        "data.train": args["data_path"],
        "data.root": args["data_root"],
        "data.frame_name": args["fname_tmpl"],
        "data.sampling_rate": args["sampling_rate"],
    }


def convert_finetune(args: Mapping[str, Any], out: Converted) -> None:
    """run_class_finetuning.py -> recipe keys."""
    videomae.classify_values(args, out, head_drop=args["head_drop_rate"], test_list="val.csv")
    out.values["data.root"] = args["data_root"]
    if args["data_set"] == "SSV2":
        out.values |= {"data.frame_name": args["fname_tmpl"], "data.frame_start": args["start_idx"]}
    else:
        out.no_effect("fname_tmpl start_idx", "extracted frames are read with SSV2 only")
    if args["sparse_sample"] and args["data_set"] in ("Kinetics-400", "MIT"):
        out.values["data.sampling"] = "segment"
        out.values.pop("data.sampling_rate", None)
        out.no_effect("sampling_rate", "a frame from each of num_frames segments: no distance is used")
    else:
        out.no_effect("sparse_sample", "looked at with Kinetics-400 and MIT only")


PROGRAMS = (
    Program(
        "videomaev2", "run_mae_pretraining.py", "VideoMAE V2", "pretrain", PRETRAIN, convert_pretrain,
        r"pretrain_videomaev2_.*", launchers=("srun",),
        models={f"pretrain_videomae_{name}_224": f"vit_{size}" for name, size in _SIZES.items()},
    ),
    Program(
        "videomaev2", "run_class_finetuning.py", "VideoMAE V2", "classify", FINETUNE, convert_finetune,
        r"finetune_videomaev2_.*", launchers=("srun",),
        models={f"vit_{name}_224": f"vit_{size}" for name, size in _SIZES.items()},
        under_deepspeed=("opt", "opt_eps", "opt_betas"), extra=videomae.DEEPSPEED,
    ),
)  # fmt: skip
