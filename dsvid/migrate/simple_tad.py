"""simple-tad (tue-mps/simple-tad, commit dce2c50): the options of its six programs, and what they become."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from dsvid.errors import RecipeError
from dsvid.migrate import conversion, videomae
from dsvid.migrate.options import Converted, Option, Program, automatic, becomes, changed, idle, missing

_IGNORED = "taken and ignored: no mixing, no flip, no smoothing of labels in this program"
_DRIVING = "-tdriving"  # its choice of RandAugment's operations
_FRAME_SETS = ("DoTA", "DoTA_half", "DoTA_amnet", "DADA2K", "DADA2K_half")
_OTHER_SETS = ("Kinetics-400", "SSV2", "UCF101", "HMDB51", "image_folder")
_LOSSES = ("crossentropy", "focal", "focal6x100", "focal2_6", "focal2_2", "smoothap", "exponential1", "2bce")
STOP = 12  # epochs before the published weights; the code ends after one more, whatever --epochs says

# ---- masked pre-training on driving footage ------------------------------------------------------------------------

_AUGMENT = (
    becomes("aa", "text", "rand-m3-n3-mstd0.5-inc1", "data.augment.policy", "with --transforms_finetune_align"),
    becomes("transforms_finetune_align", "flag", False, "footage.aligned data.augment.policy",
            "borders, RandAugment, light crops, as in the fine-tuning"),
)  # fmt: skip
_EPOCHS = becomes(
    "epochs", "int", 800, "run.epochs run.stop_epoch",
    f"the schedule; the code ends after epoch {STOP + 1}, the published weights are of epoch {STOP}",
)  # fmt: skip
_SAMPLES = becomes(
    "nb_samples_per_epoch", "int", 0, "run.samples_per_epoch",
    "0 = all; here no window comes twice before all have come",
)  # fmt: skip
_FROM = becomes("from_ckpt", "text", None, "model.init", "encoder and decoder")
_TUBELET = missing("tubelet_size", "int", 2, "reaches the masks and not the model there: leave it at 2")

PRETRAIN: tuple[Option, ...] = changed(
    videomae.PRETRAIN,
    add=(
        _EPOCHS, _FROM, _TUBELET, *_AUGMENT, _SAMPLES,
        becomes("data_path", "text", "/path/to/list_kinetics-400", "footage.first.root",
                "folder of the set; Kinetics: `dsvid traffic index kinetics FOLDER --list k700.txt` makes data.train"),
        becomes("view_fps", "int", 10, "data.view_fps", "footage only"),
        becomes("data_set", "text", "Kinetics-400", "data.train footage.first.index",
                "footage needs the index that `dsvid traffic index` writes",
                choices=("Kinetics-400", "K700_aligned", "SSV2", "UCF101", "HMDB51", "DoTA", "DADA2K", "BDD100K",
                         "CAP-DATA", "image_folder")),
        becomes("sampling_rate", "int", 4, "footage.first.rate data.sampling_rate",
                "footage: from window to window, in frames of the source; Kinetics: distance of a clip's frames"),
    ),
)  # fmt: skip
_DOUBLE_SETS = ("Kinetics-400", "SSV2", "UCF101", "HMDB51", "DoTA", "DADA2K", "CAP-DATA", "SHIFT", "BDD100K",
                "image_folder")  # fmt: skip


def _pair(number: int, place: str) -> tuple[Option, ...]:
    return (
        becomes(f"batch_size{number}", "int", 64,
                "batch.total batch.micro_limit footage.first.share footage.second.share",
                "clips of this set per GPU there"),
        becomes(f"data_path{number}", "text", "/path/to/list_kinetics-400", f"footage.{place}.root"),
        becomes(f"data_set{number}", "text", "Kinetics-400", f"footage.{place}.index",
                "the index that `dsvid traffic index` writes", choices=_DOUBLE_SETS),
        becomes(f"sampling_rate{number}", "int", 4, f"footage.{place}.rate",
                "from window to window, in frames of the source"),
    )  # fmt: skip


DOUBLE: tuple[Option, ...] = changed(
    PRETRAIN,
    without="batch_size data_path data_set sampling_rate",
    add=(*_pair(1, "first"), *_pair(2, "second"),
         becomes("view_fps", "int", 10, "data.view_fps"),
         becomes("num_workers", "int", 10, "data.num_workers", "half of them for either set")),
)  # fmt: skip
# Data set -> its name in `dsvid traffic index`.
INDEX = {"BDD100K": "bdd100k", "CAP-DATA": "capdata", "DoTA": "dota", "DADA2K": "dada"}


def convert_pretrain(args: Mapping[str, Any], out: Converted) -> None:
    """run_mae_pretraining.py -> recipe keys."""
    _pretrain(args, out)
    conversion.batch(out, args["batch_size"])
    conversion.optimizer(args, out)
    if args["data_set"] == "Kinetics-400":
        out.values |= {"data.train": "k700.txt", "data.sampling_rate": args["sampling_rate"]}
        out.no_effect("view_fps aa transforms_finetune_align", "looked at with driving footage only")
        index = ["dsvid", "traffic", "index", "kinetics", args["data_path"], "-o", "k700.csv", "--list", "k700.txt"]
        out.before.append(index)
        out.fates["data_path"] = ("automatic", "data.train=k700.txt is the list that `dsvid traffic index` makes of it")
    else:
        _footage(args, out, ("first", args["data_set"], args["data_path"], args["sampling_rate"], 1))
    _stop(args, out, kinetics=args["data_set"] == "Kinetics-400")


def convert_double(args: Mapping[str, Any], out: Converted) -> None:
    """run_mae_double_pretraining.py -> recipe keys."""
    _pretrain(args, out)
    one, two = args["batch_size1"], args["batch_size2"]
    conversion.batch(out, one + two)
    conversion.optimizer(args, out)
    shared = math.gcd(one, two)
    _footage(
        args, out,
        ("first", args["data_set1"], args["data_path1"], args["sampling_rate1"], one // shared),
        ("second", args["data_set2"], args["data_path2"], args["sampling_rate2"], two // shared),
    )  # fmt: skip
    _stop(args, out, kinetics=False)


def _pretrain(args: Mapping[str, Any], out: Converted) -> None:
    videomae.pretrain_values(args, out, decoder="videomae")
    conversion.run(args, out)
    if args["nb_samples_per_epoch"]:
        out.values["run.samples_per_epoch"] = args["nb_samples_per_epoch"]


def _footage(args: Mapping[str, Any], out: Converted, *sources: tuple[str, str, str, int, int]) -> None:
    out.values |= {"data.train": "footage", "data.view_fps": args["view_fps"]}
    for place, name, folder, rate, share in sources:
        if name not in INDEX:
            raise RecipeError(
                f"--data_set {name}: driving footage of that name is not known here",
                expected=", ".join(INDEX), fix="dsvid traffic index videos FOLDER -o FILE.csv, and your own recipe",
            )  # fmt: skip
        out.values |= {
            f"footage.{place}.index": f"{INDEX[name]}.csv",
            f"footage.{place}.root": folder,
            f"footage.{place}.rate": rate,
            f"footage.{place}.share": share,
        }
        out.before.append(["dsvid", "traffic", "index", INDEX[name], folder, "-o", f"{INDEX[name]}.csv"])
    if args["transforms_finetune_align"]:
        out.values |= {"footage.aligned": True, "data.augment.policy": args["aa"] + _DRIVING}
    else:
        out.no_effect("aa", "without --transforms_finetune_align")


def _stop(args: Mapping[str, Any], out: Converted, *, kinetics: bool) -> None:
    """The end of training that stands in the code: its authors mean 12 of 20 epochs, on Kinetics 23 of 38."""
    if args["epochs"] <= STOP:
        return
    stop = math.ceil(args["epochs"] * STOP / 20) if kinetics else STOP
    out.values["run.stop_epoch"] = stop
    out.notes["epochs"] = (
        f"stop after {stop}: the authors' 12 of 20, here by share; the code ends after {STOP + 1}"
        if kinetics
        else f"the code ends after {STOP + 1}; the authors publish the weights after {STOP}"
    )


# ---- fine-tuning on labelled frames --------------------------------------------------------------------------------

_MIXING = "mixup cutmix cutmix_minmax mixup_prob mixup_switch_prob mixup_mode smoothing"


def _ignored(options: tuple[Option, ...], names: str, why: str) -> tuple[Option, ...]:
    known = {option.name: option for option in options}
    return tuple(idle(name, known[name].kind, known[name].default, why) for name in names.split())


FRAMES: tuple[Option, ...] = changed(
    videomae.FINETUNE,
    without="use_mean_pooling use_cls",
    defaults={"test_num_segment": 1, "test_num_crop": 1, "num_workers": 8},
    add=(
        *_ignored(videomae.FINETUNE, _MIXING, _IGNORED),
        *_ignored(videomae.FINETUNE, "test_num_segment test_num_crop", "every frame is judged once, in one view"),
        *_ignored(videomae.FINETUNE, "train_interpolation color_jitter num_segments", "not used"),
        _SAMPLES,
        automatic("short_side_size", "int", 224, "frames are squashed to --input_size, whatever their shape"),
        becomes("aa", "text", "rand-m6-n3-mstd0.5-inc1", "data.augment.policy", f"and {_DRIVING}: its ten operations"),
        becomes("reprob", "float", 0.25, "data.augment.erase_prob", "boxes up to 0.1 of the frame (DoTA), 1/3 (DADA)"),
        becomes("num_sample", "int", 2,
                "data.num_sample batch.total batch.micro_limit optim.lr_scale_batch run.samples_per_epoch",
                "clips of one window; not counted in lr and in --nb_samples_per_epoch"),
        becomes("lr", "float", 1e-3, "optim.base_lr optim.lr_scale_batch",
                "actual lr = lr × windows per step / 256; --num_sample is not counted"),
        automatic("no_flash_attn", "flag", False, "model.attention: by what is there; the numbers are the same"),
        becomes("loss", "text", "crossentropy", "anomaly.loss", "2bce and exponential1 fail there, and work here",
                choices=_LOSSES),
        missing("final_reduction", "text", "fc_norm", "the mean of all tokens and a norm only",
                choices=("fc_norm", "cls", "none")),
        becomes("freeze_layers", "text", None, "model.freeze_blocks",
                "`first N blocks;K`: the patch embedding and the first K blocks, save their norms"),
        becomes("data_path", "text", "/path/to/list_kinetics-400", "data.root", "folder of the set"),
        automatic("nb_classes", "int", 400, "two: safe and anomaly; any other number fails there"),
        becomes("batch_size", "int", 64, "batch.total batch.micro_limit eval.batch",
                "windows per GPU there; batch.total = windows × GPUs × --update_freq × --num_sample"),
        becomes("sampling_rate", "int", 1, "data.sampling_rate anomaly.eval_rate",
                "from one judged frame to the next, in frames of the source: not VideoMAE's meaning"),
        becomes("sampling_rate_val", "int", -1, "anomaly.eval_rate",
                "below 1: as --sampling_rate; DoTA's test judges every frame there whatever it says"),
        becomes("view_fps", "int", 10, "data.view_fps"),
        becomes("data_set", "text", "Kinetics-400", "anomaly.layout data.train data.val data.augment.erase_area",
                "only the DoTA and DADA2K sets work", choices=(*_OTHER_SETS, *_FRAME_SETS)),
        becomes("auto_resume", "flag", True, "--resume",
                "--resume auto: the newest checkpoint that verifies; there it fails in an empty folder"),
        automatic("dist_eval", "flag", False, "each frame is judged once over all ranks"),
        automatic("enable_deepspeed", "flag", False,
                  "always DeepSpeed here, with your --ds_config; the original writes fp16, ZeRO-2, offload"),
        idle("eval_option", "text", "", "not used"),
        becomes("eval", "flag", False, "dsvid-eval", "the command is `dsvid eval` then"),
    ),
)  # fmt: skip
MVD: tuple[Option, ...] = changed(
    FRAMES,
    add=(
        missing("use_cls", "flag", None, "no class token in these models", dest="use_mean_pooling", stores=False),
        missing("remove_pos_emb", "flag", False, "position tables are always added"),
        missing("use_cls_token", "flag", False, "no class token in these models"),
        idle("data_root", "text", None, "not used: --data_path is the folder"),
        automatic("resume_best", "flag", False, "the best weights stay in weights_best/"),
        automatic("no_save_best_ckpt", "flag", False, "the best weights stay in weights_best/"),
        automatic("merge_test", "flag", False, "tests are merged over all ranks"),
        automatic("eval_log_name", "text", "log_eval", "dsvid eval --out DIR"),
    ),
)  # fmt: skip
_OF_WEIGHTS = "the weights say it"
INTERNVIDEO2: tuple[Option, ...] = changed(
    FRAMES,
    without="no_flash_attn",
    defaults={"tubelet_size": 1, "aa": "rand-m3-n3-mstd0.5-inc1", "smoothing": 0.0, "mixup": 0.0, "cutmix": 0.0},
    add=(
        becomes("data_set", "text", "Kinetics-400", "anomaly.layout data.train data.val data.augment.erase_area",
                "only the DoTA and DADA2K sets work",
                choices=(*_OTHER_SETS, "DoTA", "DoTA_half", "DADA2K", "DADA2K_half")),
        missing("layer_scale_init_value", "float", 1e-5, "1e-5, of the weights"),
        automatic("layerscale_no_force_fp32", "flag", False, "the residual stream is fp32 in every precision"),
        automatic("sep_pos_embed", "flag", False, _OF_WEIGHTS),
        automatic("center_init", "flag", False, _OF_WEIGHTS),
        automatic("no_cls_in_ckpt", "flag", False, _OF_WEIGHTS),
        automatic("qkv_bias", "flag", False, _OF_WEIGHTS),
        idle("head_drop_path", "float", 0.0, "has no effect there"),
        automatic("delete_head", "flag", False, "a head of other classes is left out, and named"),
        missing("checkpoint_num", "int", 0, "activation checkpointing holds for every block: --use_checkpoint"),
        automatic("use_mean_pooling", "flag", True, _OF_WEIGHTS),
        missing("use_cls", "flag", None, "the pooling of the weights", dest="use_mean_pooling", stores=False),
        idle("prefix", "text", "", "not used with zips of frames"),
        idle("split", "text", " ", "not used with zips of frames"),
        idle("filename_tmpl", "text", "img_{:05}.jpg", "not used with zips of frames"),
        automatic("use_decord", "flag", False, "zips of frames are read as they are"),
        automatic("no_use_decord", "flag", None, "zips of frames are read as they are", dest="use_decord",
                  stores=False),
        automatic("test_best", "flag", False, "dsvid eval --weights RUN/weights_best"),
        automatic("bf16", "flag", False, "ds_configs/zero2.json is bf16, zero2_fp16.json fp16, as there without it"),
        automatic("zero_stage", "int", 0, "ds.zero_optimization.stage: every stage trains alike"),
        automatic("steps_per_print", "int", 1, "run.log_every"),
        automatic("use_ceph_checkpoint", "flag", False, "files are files"),
        automatic("ceph_checkpoint_prefix", "text", "", "files are files"),
        automatic("ckpt_path_split", "text", "/exp/", "files are files"),
    ),
)  # fmt: skip


def convert_frames(args: Mapping[str, Any], out: Converted) -> None:
    """run_frame_finetuning.py and its copies for other models -> recipe keys."""
    if args["data_set"] not in _FRAME_SETS:
        raise RecipeError(
            f"{out.program.file} has no data set {args['data_set']}",
            expected=", ".join(_FRAME_SETS), fix="--data_set DoTA",
        )  # fmt: skip
    dota, views = args["data_set"].startswith("DoTA"), args["num_sample"]
    conversion.batch(out, args["batch_size"], views=views, accumulate=args["update_freq"])
    conversion.optimizer(args, out)
    conversion.run(args, out)
    out.values |= {
        "task": "anomaly",
        "model.arch": conversion.arch(args, out),
        "model.num_classes": 2,
        "model.tubelet": args["tubelet_size"],
        "model.final_norm": "simple_tad",
        "model.drop_path": args["drop_path"],
        "model.head_drop": args["fc_drop_rate"],
        "model.head_init_scale": args["init_scale"],
        "model.freeze_blocks": _frozen(args["freeze_layers"]),
        "data.root": args["data_path"],
        "data.train": _train_list(args["data_set"]),
        "data.val": "val_split.txt" if dota else "validation.txt",
        "data.view_fps": args["view_fps"],
        "data.sampling_rate": args["sampling_rate"],
        "data.crop": "center",
        "data.augment.policy": args["aa"] + _DRIVING,
        "data.augment.erase_prob": args["reprob"],
        "data.augment.erase_count": args["recount"],
        "data.augment.erase_area": [0.02, 0.1 if dota else 0.3333],
        "data.augment.erase_aspect": 0.01,
        "anomaly.layout": "dota" if dota else "dada",
        "anomaly.loss": args["loss"],
        "anomaly.eval_rate": _eval_rate(args),
        "optim.layer_decay": min(args["layer_decay"], 1.0),
        "optim.ema_decay": args["model_ema_decay"] if args["model_ema"] else 0.0,
        "eval.every_epochs": 0 if args["disable_eval_during_finetuning"] else 1,
        "eval.batch": 2 * args["batch_size"],
        "run.samples_per_epoch": args["nb_samples_per_epoch"] * views,
    } | dict(out.program.traits)
    videomae.remarks(args, out)
    out.fates.pop("short_side_size", None)


def _train_list(data_set: str) -> str:
    lists = {"DoTA": "train_split.txt", "DoTA_half": "half_train_split.txt", "DoTA_amnet": "amnet_train_split300.txt",
             "DADA2K": "training.txt", "DADA2K_half": "half_training.txt"}  # fmt: skip
    return lists[data_set]


def _eval_rate(args: Mapping[str, Any]) -> int:
    """0 = every frame."""
    rate = args["sampling_rate_val"] if args["sampling_rate_val"] > 0 else args["sampling_rate"]
    return 0 if rate == 1 else int(rate)


def _frozen(text: str | None) -> int:
    if not text:
        return 0
    found = re.fullmatch(r"\s*first N blocks\s*;\s*(\d+)\s*", text)
    if found is None:
        raise RecipeError("--freeze_layers", found=text, expected="first N blocks;K", fix="'first N blocks;4'")
    return int(found.group(1))


_PRE = {f"pretrain_videomae_{size}_patch16_224": f"vit_{size}" for size in ("small", "base", "large", "huge")}
_MVD_MODELS = {f"mvd_vit_{size}_patch16_224": f"vit_{size}" for size in ("small", "base", "large", "huge")}
_JSON = ("opt", "opt_eps", "opt_betas", "clip_grad")
_FRAME = "run_frame_finetuning.py"

PROGRAMS = (
    Program("simple-tad", "run_mae_pretraining.py", "simple-tad", "pretrain", PRETRAIN, convert_pretrain,
            r"pretrain_dapt_(bdd|k700)_[a-z]+",
            models=_PRE),
    Program("simple-tad", "run_mae_double_pretraining.py", "simple-tad", "pretrain", DOUBLE, convert_double,
            r"pretrain_dapt_bdd_capdata_.*",
            models=_PRE),
    Program("simple-tad", _FRAME, "simple-tad", "anomaly", FRAMES, convert_frames,
            r"traffic_.*_(dapt|videomae|videomaev2)_\w+",
            models=videomae.MODELS, under_deepspeed=_JSON, extra=videomae.DEEPSPEED),
    Program("simple-tad-mvd", _FRAME, "simple-tad, MVD", "anomaly", MVD, convert_frames, r"traffic_.*_mvd_\w+",
            marks=("MVD",),
            models=_MVD_MODELS, under_deepspeed=_JSON, extra=videomae.DEEPSPEED,
            traits={"model.positions": "sincos_separable"}),
    Program("simple-tad-umt", _FRAME, "simple-tad, UMT", "anomaly", FRAMES, convert_frames, r"traffic_.*_umt_\w+",
            marks=("UMT",),
            models=videomae.MODELS, under_deepspeed=_JSON, extra=videomae.DEEPSPEED,
            traits={"model.positions": "sincos_umt"}),
    Program("simple-tad-internvideo2", "iv2_sm_run_frame_finetuning.py", "simple-tad, InternVideo2", "anomaly",
            INTERNVIDEO2, convert_frames, r"traffic_.*_internvideo2_\w+",
            extra=videomae.DEEPSPEED,
            models={f"internvideo2_{size}_patch14_224": f"internvideo2_{size}" for size in ("small", "base", "large")}),
)  # fmt: skip
