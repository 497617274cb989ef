"""VideoMAE-Action-Detection (MCG-NJU, commit 15615db): the options of its program, and what they become."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dsvid.migrate import conversion, videomae
from dsvid.migrate.options import Converted, Option, Program, automatic, becomes, changed, idle, missing

# Where the original looks, whatever its options say.
ROOT = "data/AVA"
_FIXED = "always AVA: 16 frames at a distance of 4, crops of 224 from a short side of 256"
_CLASSIFICATION = (
    "fc_drop_rate num_sample aa smoothing train_interpolation crop_pct short_side_size test_num_segment test_num_crop "
    "reprob remode recount resplit mixup cutmix cutmix_minmax mixup_prob mixup_switch_prob mixup_mode data_path "
    "eval_data_path"
)

FINETUNE: tuple[Option, ...] = changed(
    videomae.FINETUNE,
    without=_CLASSIFICATION,
    defaults={"nb_classes": 80},
    add=(
        becomes("batch_size", "int", 64, "batch.total batch.micro_limit detect.loss_clips eval.batch",
                "clips per GPU there; its loss grows with their boxes: detect.loss_clips"),
        becomes("update_freq", "int", 1, "batch.total",
                "scales lr there, but steps after every batch and leaves out the rest of the epoch; here accumulation"),
        becomes("val_freq", "int", 2, "eval.every_epochs"),
        becomes("nb_classes", "int", 80, "model.num_classes", "only 80 works there"),
        idle("input_size", "int", 224, _FIXED),
        idle("num_frames", "int", 16, _FIXED),
        idle("sampling_rate", "int", 4, _FIXED),
        idle("data_set", "text", "Kinetics-400", _FIXED,
             choices=("Kinetics-400", "SSV2", "UCF101", "HMDB51", "image_folder", "ava")),
        idle("color_jitter", "float", 0.4, "not used: its own colour jitter is always on; detect.colour"),
        becomes("lr", "float", 1e-3, "optim.base_lr", "actual lr = lr × clips per step / 256"),
        idle("disable_eval_during_finetuning", "flag", False, "not used"),
        idle("model_ema", "flag", False, "not used: no average is kept; optim.ema_decay"),
        idle("model_ema_decay", "float", 0.9999, "not used: no average is kept"),
        idle("model_ema_force_cpu", "flag", False, "not used: no average is kept"),
        becomes("finetune", "text", "", "model.init", "a file or folder of any known family"),
        automatic("use_mean_pooling", "flag", True, "the mean over time of every place's tokens, always"),
        missing("use_cls", "flag", None, "no class token in these models", dest="use_mean_pooling", stores=False),
        automatic("dist_eval", "flag", False,
                  "tests run on all ranks; there it gives boxes to the wrong clips, and rank 0 alone tests without it"),
        idle("enable_deepspeed", "flag", False, "fails there (no loss scaler); always DeepSpeed here"),
        becomes("eval", "flag", False, "dsvid-eval", "the command is `dsvid eval --split val` then"),
    ),
)  # fmt: skip


def convert_finetune(args: Mapping[str, Any], out: Converted) -> None:
    """run_class_finetuning.py -> recipe keys."""
    conversion.batch(out, args["batch_size"], accumulate=args["update_freq"])
    conversion.optimizer(args, out)
    conversion.run(args, out)
    out.values |= {
        "task": "detect",
        "model.arch": conversion.arch(args, out),
        "model.num_classes": args["nb_classes"],
        "model.final_norm": "ava",
        "model.tubelet": args["tubelet_size"],
        "model.drop_path": args["drop_path"],
        "model.head_init_scale": args["init_scale"],
        "data.root": ROOT,
        "data.train": "annotations/ava_train_v2.2_min.json",
        "data.val": "annotations/ava_val_v2.2_min.json",
        "data.num_frames": 16,
        "data.sampling_rate": 4,
        "data.input_size": 224,
        "data.short_side": 256,
        "data.crop": "random",
        "data.flip": 0.5,
        "data.mean": [0.48145765, 0.45469216, 0.40384353],
        "data.std": [0.225, 0.225, 0.225],
        "detect.loss_clips": args["batch_size"],
        "detect.val.truth": "annotations/ava_val_v2.2.csv",
        "detect.val.people": "boxes/ava_val_det_person_bbox.json",
        "detect.val.excluded": "annotations/ava_val_excluded_timestamps_v2.2.csv",
        "optim.layer_decay": min(args["layer_decay"], 1.0),
        "eval.every_epochs": args["val_freq"],
        "eval.batch": int(1.5 * args["batch_size"]),
    }


PROGRAMS = (
    Program(
        "action-detection", "run_class_finetuning.py", "VideoMAE-Action-Detection", "detect", FINETUNE,
        convert_finetune, r"ava_vit_.*", launchers=("torch.distributed.launch",), models=videomae.MODELS,
    ),
)  # fmt: skip
