"""VideoMAE (MCG-NJU/VideoMAE, commit 14ef8d8): the options of its two programs, and what they become."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dsvid.deepspeed_json import CHECKPOINTING_ON
from dsvid.errors import RecipeError
from dsvid.migrate import conversion
from dsvid.migrate.options import Converted, Option, Program, automatic, becomes, changed, idle, missing

LAUNCHER = "the launcher tells every rank its number"
_OPTIMIZER: tuple[Option, ...] = (
    missing("opt", "text", "adamw", "AdamW here; another optimizer is set in the DeepSpeed JSON (optimizer.type)"),
    becomes("opt_eps", "float", 1e-8, "optim.eps"),
    becomes("opt_betas", "floats", None, "optim.betas", "without it AdamW's own 0.9 0.999"),
    becomes("clip_grad", "float", None, "optim.clip_grad", "none = 0"),
    idle("momentum", "float", 0.9, "for SGD only"),
    becomes("weight_decay", "float", 0.05, "optim.weight_decay", "none on biases and norms, as there"),
    becomes("weight_decay_end", "float", None, "optim.weight_decay_end", "half a cosine to it; none = constant"),
)
_WARMUP: tuple[Option, ...] = (
    idle("warmup_lr", "float", 1e-6, "scaled and printed, never passed on: the warm-up begins at 0, here too"),
    becomes("min_lr", "float", 1e-5, "optim.min_lr", "scaled like lr"),
    becomes("warmup_epochs", "int", 40, "optim.warmup_epochs", "where --warmup_steps is not above 0"),
    becomes("warmup_steps", "int", -1, "optim.warmup_steps", "above 0: instead of --warmup_epochs"),
)
_MACHINE: tuple[Option, ...] = (
    automatic("world_size", "int", 1, LAUNCHER),
    automatic("local_rank", "int", -1, LAUNCHER),
    automatic("dist_on_itp", "flag", False, LAUNCHER + "; variables of MPI, Slurm and torchrun are read"),
    automatic("dist_url", "text", "env://", LAUNCHER),
)
_FOLDERS: tuple[Option, ...] = (
    becomes("output_dir", "text", "", "--out"),
    automatic("log_dir", "text", None, "TensorBoard's files are in OUT/tensorboard"),
    automatic("device", "text", "cuda", "a GPU where there is one, else the CPU"),
    becomes("seed", "int", 0, "run.seed", "the numbers drawn are others: a function of (seed, epoch, sample)"),
    missing(
        "resume", "text", "", "the optimizer's state of an original is not read; model.init=FILE takes its weights"
    ),
    becomes("auto_resume", "flag", True, "--resume", "--resume auto: the newest checkpoint that verifies"),
    becomes("no_auto_resume", "flag", None, "--resume", "--resume never", dest="auto_resume", stores=False),
)
_LOADER: tuple[Option, ...] = (
    missing("start_epoch", "int", 0, "the position is in the checkpoint that --resume finds"),
    becomes("num_workers", "int", 10, "data.num_workers", "loader processes per rank; speed only"),
    automatic("pin_mem", "flag", True, "batches lie in memory that both processes map"),
    automatic("no_pin_mem", "flag", None, "as --pin_mem", dest="pin_mem", stores=False),
)

PRETRAIN: tuple[Option, ...] = (
    becomes("batch_size", "int", 64, "batch.total batch.micro_limit",
            "clips per GPU there; batch.total counts those of all GPUs and stays, whatever GPUs you have"),
    becomes("epochs", "int", 800, "run.epochs",
            "801, 1601, … of the release are there to reach the end of 800, 1600, …, whose weights are published"),
    automatic("save_ckpt_freq", "int", 50, "epochs there; here run.save_every, in steps, and the newest run.keep stay"),
    becomes("model", "text", "pretrain_videomae_base_patch16_224", "model.arch model.decoder_depth"),
    becomes("decoder_depth", "int", 4, "model.decoder_depth", "0 = the released decoder of the size: S, B 4, L, H 12"),
    missing("mask_type", "text", "tube", "tube masks only; the original cannot build others either",
            choices=("random", "tube")),
    becomes("mask_ratio", "float", 0.75, "pretrain.mask_ratio"),
    becomes("input_size", "int", 224, "data.input_size"),
    becomes("drop_path", "float", 0.0, "model.drop_path"),
    becomes("normlize_target", "truth", True, "pretrain.norm_pix",
            "read by bool(): every text is true, `False` too; raw pixels: pretrain.norm_pix=false"),
    *_OPTIMIZER,
    becomes("lr", "float", 1.5e-4, "optim.base_lr optim.lr_scale_batch", "actual lr = lr × clips per step / 256"),
    *_WARMUP,
    becomes("use_checkpoint", "flag", False, f"ds.{CHECKPOINTING_ON}",
            "an activation_checkpointing section in the DeepSpeed JSON"),
    idle("color_jitter", "float", 0.0, "not used: multi-scale crops only"),
    idle("train_interpolation", "text", "bicubic", "not used: crops are bilinear"),
    becomes("data_path", "text", "/path/to/list_kinetics-400", "data.train", "the list file"),
    automatic("imagenet_default_mean_and_std", "flag", True, "always on; data.mean, data.std"),
    becomes("num_frames", "int", 16, "data.num_frames"),
    becomes("sampling_rate", "int", 4, "data.sampling_rate", "distance of the frames of a clip"),
    *_FOLDERS,
    *_LOADER,
    *_MACHINE,
)  # fmt: skip

_MIX: tuple[Option, ...] = (
    becomes("mixup", "float", 0.8, "data.augment.mixup"),
    becomes("cutmix", "float", 1.0, "data.augment.cutmix"),
    becomes("cutmix_minmax", "floats", None, "data.augment.cutmix_minmax", "none = --cutmix"),
    becomes("mixup_prob", "float", 1.0, "data.augment.mix_prob"),
    becomes("mixup_switch_prob", "float", 0.5, "data.augment.cutmix_share"),
    automatic("mixup_mode", "text", "batch", "each pair of videos has its own draw, from the same law"),
)
_ERASING: tuple[Option, ...] = (
    becomes("reprob", "float", 0.25, "data.augment.erase_prob"),
    missing("remode", "text", "pixel", "noise for each pixel only"),
    becomes("recount", "int", 1, "data.augment.erase_count"),
    idle("resplit", "flag", False, "not used"),
)
_DROPS: tuple[Option, ...] = (
    missing("drop", "float", 0.0, "no dropout inside of blocks: leave it at 0; model.drop_path, model.head_drop"),
    missing("attn_drop_rate", "float", 0.0, "no dropout of attention: leave it at 0"),
    becomes("drop_path", "float", 0.1, "model.drop_path"),
)
_AVERAGE: tuple[Option, ...] = (
    becomes("disable_eval_during_finetuning", "flag", False, "eval.every_epochs", "0 = never"),
    becomes("model_ema", "flag", False, "optim.ema_decay", "the original keeps the average and never evaluates it"),
    becomes("model_ema_decay", "float", 0.9999, "optim.ema_decay", "with --model_ema"),
    automatic("model_ema_force_cpu", "flag", False, "each rank keeps its part of the average beside its weights"),
)
_START: tuple[Option, ...] = (
    becomes("finetune", "text", "", "model.init", "a file or folder of any known family"),
    automatic("model_key", "text", "model|module", "the weights are found by their names"),
    automatic("model_prefix", "text", "", "the weights are found by their names"),
    becomes("init_scale", "float", 0.001, "model.head_init_scale"),
    becomes("use_checkpoint", "flag", False, f"ds.{CHECKPOINTING_ON}",
            "an activation_checkpointing section in the DeepSpeed JSON"),
    automatic("use_mean_pooling", "flag", True, "the mean of all tokens, always"),
    missing("use_cls", "flag", None, "no class token in these models: the mean of all tokens",
            dest="use_mean_pooling", stores=False),
)  # fmt: skip
_SAVING: tuple[Option, ...] = (
    automatic("save_ckpt", "flag", True, "on"),
    becomes("no_save_ckpt", "flag", None, "run.save_every", "0: at the end only", dest="save_ckpt", stores=False),
    missing("start_epoch", "int", 0, "the position is in the checkpoint that --resume finds"),
    becomes("eval", "flag", False, "dsvid-eval", "the command is `dsvid eval` then"),
    automatic("dist_eval", "flag", False, "tests run on all ranks; each video counts once"),
)
DEEPSPEED: tuple[Option, ...] = (
    idle("deepspeed", "flag", False, "the program starts DeepSpeed by --enable_deepspeed alone"),
    idle("deepspeed_config", "text", "", "written over by the original's own JSON; here --ds_config FILE"),
)

FINETUNE: tuple[Option, ...] = (
    becomes("batch_size", "int", 64, "batch.total batch.micro_limit",
            "videos per GPU there; batch.total = videos × GPUs × --update_freq × --num_sample"),
    becomes("epochs", "int", 30, "run.epochs"),
    becomes("update_freq", "int", 1, "batch.total", "accumulation; here batch.total / (GPUs × micro-batch)"),
    automatic("save_ckpt_freq", "int", 100, "epochs there; here run.save_every, in steps"),
    becomes("model", "text", "vit_base_patch16_224", "model.arch"),
    becomes("tubelet_size", "int", 2, "model.tubelet"),
    becomes("input_size", "int", 224, "data.input_size"),
    becomes("fc_drop_rate", "float", 0.0, "model.head_drop"),
    *_DROPS,
    *_AVERAGE,
    *_OPTIMIZER,
    becomes("lr", "float", 1e-3, "optim.base_lr optim.lr_scale_batch",
            "actual lr = lr × videos per step / 256; --num_sample is not counted: optim.lr_scale_batch = 256 × it"),
    becomes("layer_decay", "float", 0.75, "optim.layer_decay", "1 and more = none"),
    *changed(_WARMUP, defaults={"min_lr": 1e-6, "warmup_epochs": 5}),
    idle("color_jitter", "float", 0.4, "not used: --aa is given"),
    becomes("num_sample", "int", 2, "data.num_sample batch.total batch.micro_limit optim.lr_scale_batch",
            "clips of one decoded video; an epoch shows every video that often"),
    becomes("aa", "text", "rand-m7-n4-mstd0.5-inc1", "data.augment.policy"),
    becomes("smoothing", "float", 0.1, "classify.label_smoothing"),
    missing("train_interpolation", "text", "bicubic", "RandAugment turns and shears bicubically here"),
    idle("crop_pct", "float", None, "not used"),
    missing("short_side_size", "int", 224, "as --input_size: automatic; another size fails in the original's test"),
    becomes("test_num_segment", "int", 5, "eval.segments"),
    becomes("test_num_crop", "int", 3, "eval.crops"),
    *_ERASING,
    *_MIX,
    *_START,
    becomes("data_path", "text", "/path/to/list_kinetics-400", "data.train data.val data.test",
            "the folder of train.csv, val.csv, test.csv"),
    idle("eval_data_path", "text", None, "not used: --data_path holds all lists"),
    becomes("nb_classes", "int", 400, "model.num_classes", "has to be the data set's own number there"),
    automatic("imagenet_default_mean_and_std", "flag", True, "always on; data.mean, data.std"),
    missing("num_segments", "int", 1, "only multiplies the frames that the model expects: leave it at 1"),
    becomes("num_frames", "int", 16, "data.num_frames"),
    becomes("sampling_rate", "int", 4, "data.sampling_rate", "distance of the frames of a clip; unused with SSV2"),
    becomes("data_set", "text", "Kinetics-400", "data.sampling data.flip",
            "SSV2: a frame from each segment, no flip; others: one stretch, flip 0.5",
            choices=("Kinetics-400", "SSV2", "UCF101", "HMDB51", "image_folder")),
    *_FOLDERS,
    *_SAVING,
    *(option for option in _LOADER if option.name != "start_epoch"),
    *_MACHINE,
    automatic("enable_deepspeed", "flag", False,
              "always DeepSpeed here, with your --ds_config; the original writes fp16 without ZeRO"),
)  # fmt: skip


@dataclass(frozen=True)
class DataSet:
    """Classes of a data set, and the rule by which the originals sample its clips."""

    classes: int
    sampling: str = "dense"
    flip: float = 0.5


DATA_SETS: Mapping[str, DataSet] = {
    "Kinetics-400": DataSet(400),
    "SSV2": DataSet(174, "segment", 0.0),
    "UCF101": DataSet(101),
    "HMDB51": DataSet(51),
    "Kinetics-600": DataSet(600),
    "Kinetics-700": DataSet(700),
    "Kinetics-710": DataSet(710),
    "Diving48": DataSet(48),
    "MIT": DataSet(339),
}


def released_epochs(epochs: int) -> int:
    """Epochs that are meant: the release's 801, 1601, 2401, 3201 reach the end of one epoch less."""
    return epochs - 1 if epochs > 100 and epochs % 100 == 1 else epochs


def convert_pretrain(args: Mapping[str, Any], out: Converted) -> None:
    """run_mae_pretraining.py -> recipe keys."""
    pretrain_values(args, out, decoder="videomae")
    out.values |= {"data.train": args["data_path"], "data.sampling_rate": args["sampling_rate"]}
    conversion.batch(out, args["batch_size"])
    conversion.optimizer(args, out)
    conversion.run(args, out)
    out.values["run.epochs"] = released_epochs(args["epochs"])
    if out.values["run.epochs"] != args["epochs"]:
        out.notes["epochs"] = f"the cosine of {out.values['run.epochs']} epochs, whose end the original never steps on"


def pretrain_values(args: Mapping[str, Any], out: Converted, *, decoder: str) -> None:
    """What all the masked pre-trainings share."""
    size = conversion.arch(args, out)
    depth = args["decoder_depth"]
    out.values |= {
        "task": "pretrain",
        "model.arch": size,
        "model.decoder": decoder,
        "model.decoder_depth": 0 if depth == conversion.RELEASED_DECODER[decoder][size] else depth,
        "model.drop_path": args["drop_path"],
        "data.crop": "multi_scale",
        "pretrain.mask_ratio": args["mask_ratio"],
        "pretrain.norm_pix": args["normlize_target"],
    }


def convert_finetune(args: Mapping[str, Any], out: Converted) -> None:
    """run_class_finetuning.py -> recipe keys."""
    classify_values(args, out, head_drop=args["fc_drop_rate"], test_list="test.csv")


def classify_values(args: Mapping[str, Any], out: Converted, *, head_drop: float, test_list: str) -> None:
    """Clip classification of VideoMAE and VideoMAE V2."""
    if args["data_set"] not in DATA_SETS:
        raise RecipeError(
            f"--data_set {args['data_set']} is not implemented in the original",
            expected=", ".join(DATA_SETS), fix="--data_set Kinetics-400",
        )  # fmt: skip
    data = DATA_SETS[args["data_set"]]
    conversion.batch(out, args["batch_size"], views=args["num_sample"], accumulate=args["update_freq"])
    conversion.optimizer(args, out)
    conversion.run(args, out)
    out.values |= {
        "task": "classify",
        "model.arch": conversion.arch(args, out),
        "model.num_classes": args["nb_classes"],
        "model.tubelet": args["tubelet_size"],
        "model.drop_path": args["drop_path"],
        "model.head_drop": head_drop,
        "model.head_init_scale": args["init_scale"],
        "data.train": conversion.inside(args["data_path"], "train.csv"),
        "data.val": conversion.inside(args["data_path"], "val.csv"),
        "data.test": conversion.inside(args["data_path"], test_list),
        "data.sampling": data.sampling,
        "data.flip": data.flip,
        "data.crop": "random_resized",
        "classify.label_smoothing": args["smoothing"],
        "optim.layer_decay": min(args["layer_decay"], 1.0),
        "optim.ema_decay": args["model_ema_decay"] if args["model_ema"] else 0.0,
        "eval.every_epochs": 0 if args["disable_eval_during_finetuning"] else 1,
        "eval.segments": args["test_num_segment"],
        "eval.crops": args["test_num_crop"],
    } | _augment(args)
    if data.sampling == "segment":
        out.no_effect("sampling_rate", "a frame from each of num_frames segments: no distance is used")
    else:
        out.values["data.sampling_rate"] = args["sampling_rate"]
    if args["nb_classes"] != data.classes:
        out.notes["nb_classes"] = f"the original insists on {data.classes} for {args['data_set']}"
    remarks(args, out)


def _augment(args: Mapping[str, Any]) -> dict[str, Any]:
    sides = args["cutmix_minmax"]
    return {
        "data.augment.policy": args["aa"],
        "data.augment.erase_prob": args["reprob"],
        "data.augment.erase_count": args["recount"],
        "data.augment.mixup": args["mixup"],
        "data.augment.cutmix": args["cutmix"],
        "data.augment.cutmix_minmax": list(sides) if sides else None,
        "data.augment.mix_prob": args["mixup_prob"],
        "data.augment.cutmix_share": args["mixup_switch_prob"],
    }


def remarks(args: Mapping[str, Any], out: Converted) -> None:
    """Fates that depend on other options."""
    if not args["model_ema"]:
        out.no_effect("model_ema_decay", "without --model_ema")
    if args.get("short_side_size") == args["input_size"]:
        out.fates["short_side_size"] = ("automatic", "as --input_size")


MODELS = {f"vit_{size}_patch16_224": f"vit_{size}" for size in ("small", "base", "large", "huge")}
_JSON = ("opt", "opt_eps", "opt_betas")
_LAUNCHERS = ("torch.distributed.launch",)

PROGRAMS = (
    Program(
        "videomae", "run_mae_pretraining.py", "VideoMAE", "pretrain", PRETRAIN, convert_pretrain,
        r"pretrain_videomae_.*", launchers=_LAUNCHERS,
        models={f"pretrain_videomae_{size}_patch16_224": f"vit_{size}" for size in
                                      ("small", "base", "large", "huge")},
    ),
    Program(
        "videomae", "run_class_finetuning.py", "VideoMAE", "classify", FINETUNE, convert_finetune,
        r"finetune_videomae_.*", launchers=_LAUNCHERS,
        models=MODELS, under_deepspeed=(*_JSON, "clip_grad"), extra=DEEPSPEED,
    ),
)  # fmt: skip
