"""The released run scripts as tables: what their launch lines and flags say, one row a script.

Values are those of the originals at the commits that the recipes name; paths are ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

TORCH, TORCHRUN, SRUN = "torch.distributed.launch", "torchrun", "srun"


@dataclass(frozen=True)
class Released:
    """A released script: the recipe that stems from it, its project, program, launcher, GPUs and flags."""

    recipe: str
    project: str
    program: str
    launcher: str
    gpus: int
    flags: Mapping[str, Any]
    lr: float
    videos: int = field(default=0)

    @property
    def text(self) -> str:
        """A script as the project writes them."""
        flags = [f"    --{name} {value}".rstrip() for name, value in self.flags.items()]
        nodes, each = max(1, self.gpus // 8), min(8, self.gpus)
        start = {
            TORCH: f"OMP_NUM_THREADS=1 python -m torch.distributed.launch --nproc_per_node={each} \\\n"
            f"    --master_port 12320 --nnodes={nodes} --node_rank=$1 --master_addr=$2",
            TORCHRUN: f"torchrun --nproc_per_node={self.gpus} --master_port 12459",
            SRUN: "srun -p $PARTITION --job-name=${JOB_NAME} --gres=gpu:${GPUS_PER_NODE} --ntasks=${GPUS} \\\n"
            "    --ntasks-per-node=${GPUS_PER_NODE} ${SRUN_ARGS} \\\n    python -u",
        }[self.launcher]
        setting = (
            f"JOB_NAME=$1\nPARTITION=${{PARTITION:-\"video\"}}\nGPUS=${{GPUS:-{self.gpus}}}\n"
            f"GPUS_PER_NODE=${{GPUS_PER_NODE:-{each}}}\nSRUN_ARGS=${{SRUN_ARGS:-\"\"}}\nPY_ARGS=${{@:2}}\n"
            if self.launcher == SRUN
            else ""
        )  # fmt: skip
        end = " \\\n    ${PY_ARGS}\n" if self.launcher == SRUN else " \n"
        return (
            "#!/bin/bash\n# where to save\nOUTPUT_DIR='runs/out'\nDATA_PATH='/data/set'  # lists\n"
            'MODEL_PATH="/weights/start.pth"\n'
            f"{setting}{start} \\\n    {self.program} \\\n" + " \\\n".join(flags) + end
        )


def _pretrain(
    recipe: str, size: str, gpus: int, bs: int, rate: int, epochs: int, depth: int = 4, **more: Any
) -> Released:
    flags = {
        "data_path": "${DATA_PATH}", "mask_type": "tube", "mask_ratio": 0.9,
        "model": f"pretrain_videomae_{size}_patch16_224", "decoder_depth": depth, "batch_size": bs, "num_frames": 16,
        "sampling_rate": rate, "opt": "adamw", "opt_betas": "0.9 0.95", "warmup_epochs": 40, "save_ckpt_freq": 20,
        "epochs": epochs, "log_dir": "${OUTPUT_DIR}", "output_dir": "${OUTPUT_DIR}",
    } | more  # fmt: skip
    lr = float(flags.get("lr", 1.5e-4)) * gpus * bs / 256
    return Released(recipe, "videomae", "run_mae_pretraining.py", TORCH, gpus, flags, lr)


def _finetune(recipe: str, size: str, gpus: int, bs: int, epochs: int, **more: Any) -> Released:
    flags = {
        "model": f"vit_{size}_patch16_224", "data_set": "Kinetics-400", "nb_classes": 400, "data_path": "${DATA_PATH}",
        "finetune": "${MODEL_PATH}", "log_dir": "${OUTPUT_DIR}", "output_dir": "${OUTPUT_DIR}", "batch_size": bs,
        "num_sample": 2, "input_size": 224, "short_side_size": 224, "save_ckpt_freq": 10, "num_frames": 16,
        "sampling_rate": 4, "opt": "adamw", "lr": "1e-3", "opt_betas": "0.9 0.999", "weight_decay": 0.05,
        "epochs": epochs, "test_num_segment": 5, "test_num_crop": 3, "dist_eval": "", "enable_deepspeed": "",
    } | more  # fmt: skip
    lr = float(flags["lr"]) * gpus * bs / 256
    return Released(recipe, "videomae", "run_class_finetuning.py", TORCH, gpus, flags, lr)


_SSV2 = {"data_set": "SSV2", "nb_classes": 174, "test_num_segment": 2}
VIDEOMAE = (
    _pretrain("pretrain_videomae_small_k400", "small", 32, 32, 4, 1601),
    _pretrain("pretrain_videomae_small_ssv2", "small", 64, 32, 2, 2401),
    _pretrain("pretrain_videomae_base_k400_800e", "base", 64, 32, 4, 801),
    _pretrain("pretrain_videomae_base_k400", "base", 64, 32, 4, 1601),
    _pretrain("pretrain_videomae_base_ssv2_800e", "base", 64, 32, 2, 801),
    _pretrain("pretrain_videomae_base_ssv2", "base", 64, 32, 2, 2401),
    _pretrain("pretrain_videomae_large_k400", "large", 64, 8, 4, 1601, 12),
    _pretrain("pretrain_videomae_huge_k400", "huge", 64, 16, 4, 1601, 12, use_checkpoint=""),
    _pretrain("pretrain_videomae_base_ucf101", "base", 8, 24, 4, 3201, mask_ratio=0.75, lr="3e-4"),
    _finetune("finetune_videomae_small_k400", "small", 32, 12, 150, lr="5e-4"),
    _finetune("finetune_videomae_base_k400_800e", "base", 64, 8, 100, num_sample=1),
    _finetune("finetune_videomae_base_k400", "base", 64, 6, 75, lr="5e-4"),
    _finetune("finetune_videomae_large_k400", "large", 64, 2, 35, lr="2e-3"),
    _finetune("finetune_videomae_huge_k400", "huge", 64, 8, 50, min_lr="1e-5", drop_path=0.2, fc_drop_rate=0.5,
              layer_decay=0.75, warmup_lr="1e-8", use_checkpoint=""),
    _finetune("finetune_videomae_small_ssv2", "small", 32, 12, 40, layer_decay=0.7, **_SSV2),
    _finetune("finetune_videomae_base_ssv2_800e", "base", 64, 8, 50, lr="5e-4", num_sample=1, **_SSV2),
    _finetune("finetune_videomae_base_ssv2", "base", 64, 6, 30, lr="5e-4", **_SSV2),
    _finetune("finetune_videomae_base_ucf101", "base", 8, 16, 100, lr="5e-4", min_lr="1e-5", data_set="UCF101",
              nb_classes=101, warmup_lr="1e-8", layer_decay=0.7, fc_drop_rate=0.5, drop_path=0.2, use_checkpoint=""),
)  # fmt: skip


def _pretrain_v2(size: str, patch: int, gpus: int, warmup: int, epochs: int, lr: str, **more: Any) -> Released:
    flags = {
        "data_path": "${DATA_PATH}", "mask_type": "tube", "mask_ratio": 0.9, "decoder_mask_type": "run_cell",
        "decoder_mask_ratio": 0.5, "model": f"pretrain_videomae_{size}_patch{patch}_224", "decoder_depth": 4,
        "batch_size": 32, "num_sample": 4, "num_frames": 16, "sampling_rate": 4, "num_workers": 10, "opt": "adamw",
        "lr": lr, "opt_betas": "0.9 0.95", "warmup_epochs": warmup, "save_ckpt_freq": 20, "epochs": epochs,
        "log_dir": "${OUTPUT_DIR}", "output_dir": "${OUTPUT_DIR}",
    } | more  # fmt: skip
    return Released(f"pretrain_videomaev2_{size}", "videomaev2", "run_mae_pretraining.py", SRUN, gpus, flags,
                    float(lr) * gpus * 32 / 256)  # fmt: skip


def _finetune_v2(
    recipe: str, size: str, gpus: int, bs: int, lr: str, decay: float, epochs: int, drop_path: float = 0.1, **more: Any
) -> Released:
    patch = 14 if size == "giant" else 16
    flags = {
        "model": f"vit_{size}_patch{patch}_224", "data_set": "Kinetics-400", "nb_classes": 400,
        "data_path": "${DATA_PATH}", "finetune": "${MODEL_PATH}", "log_dir": "${OUTPUT_DIR}",
        "output_dir": "${OUTPUT_DIR}", "batch_size": bs, "input_size": 224, "short_side_size": 224,
        "save_ckpt_freq": 10, "num_frames": 16, "sampling_rate": 4, "num_sample": 2, "num_workers": 10, "opt": "adamw",
        "lr": lr, "drop_path": drop_path, "layer_decay": decay, "opt_betas": "0.9 0.999", "weight_decay": 0.05,
        "epochs": epochs, "test_num_segment": 5, "test_num_crop": 3, "dist_eval": "", "enable_deepspeed": "",
    } | more  # fmt: skip
    return Released(f"finetune_videomaev2_{recipe}", "videomaev2", "run_class_finetuning.py", SRUN, gpus, flags,
                    float(lr) * gpus * bs / 256)  # fmt: skip


_K600 = {"data_set": "Kinetics-600", "nb_classes": 600}
_K710 = {"data_set": "Kinetics-710", "nb_classes": 710}
_GIANT = {"with_checkpoint": "", "weight_decay": 0.1}
VIDEOMAEV2 = (
    _pretrain_v2("base", 16, 32, 20, 200, "1e-3"),
    _pretrain_v2("large", 16, 48, 30, 300, "1e-3"),
    _pretrain_v2("huge", 16, 64, 30, 300, "1e-3", with_checkpoint=""),
    _pretrain_v2("giant", 14, 64, 30, 300, "6e-4", with_checkpoint="", clip_grad=0.02),
    _finetune_v2("base_k400", "base", 32, 16, "7e-4", 0.75, 90),
    _finetune_v2("base_k710", "base", 32, 16, "7e-4", 0.75, 90, **_K710),
    _finetune_v2("base_ssv2", "base", 16, 16, "2e-3", 0.65, 25, **_SSV2),
    _finetune_v2("large_k400", "large", 32, 6, "2e-3", 0.75, 35, 0.2),
    _finetune_v2("large_ssv2", "large", 32, 6, "5e-4", 0.75, 20, 0.2, **_SSV2),
    _finetune_v2("huge_k400", "huge", 32, 4, "1e-3", 0.8, 40, 0.2, head_drop_rate=0.5),
    _finetune_v2("huge_k600", "huge", 32, 4, "1e-3", 0.8, 40, 0.2, head_drop_rate=0.5, **_K600),
    _finetune_v2("huge_k710", "huge", 32, 4, "1e-3", 0.8, 40, 0.2, head_drop_rate=0.5, **_K710),
    _finetune_v2("huge_ssv2", "huge", 32, 4, "5e-4", 0.8, 20, 0.2, **_SSV2),
    _finetune_v2("giant_k400", "giant", 64, 3, "1e-3", 0.9, 30, 0.2, **_GIANT),
    _finetune_v2("giant_k710", "giant", 32, 3, "1e-3", 0.9, 35, 0.3, clip_grad=5.0, **_GIANT, **_K710),
    _finetune_v2("giant_k710_k400", "giant", 32, 3, "1e-5", 0.9, 3, 0.25, warmup_epochs=1, **_GIANT),
    _finetune_v2("giant_k710_k600", "giant", 32, 3, "1e-5", 0.9, 3, 0.25, warmup_epochs=1, **_GIANT, **_K600),
    _finetune_v2("giant_ssv2", "giant", 32, 3, "3e-4", 0.9, 20, 0.25, with_checkpoint="", **_SSV2),
    _finetune_v2("giant_k710_ucf101", "giant", 8, 3, "1e-3", 0.9, 50, 0.35, head_drop_rate=0.5, with_checkpoint="",
                 data_set="UCF101", nb_classes=101),
    _finetune_v2("giant_k710_hmdb51", "giant", 8, 3, "5e-4", 0.9, 15, 0.35, head_drop_rate=0.5, with_checkpoint="",
                 data_set="HMDB51", nb_classes=51, sampling_rate=2),
)  # fmt: skip


def _ava(recipe: str, gpus: int, bs: int, lr: str, decay: float, epochs: int, **more: Any) -> Released:
    size, _, kind = recipe.partition("_k400_")
    flags = {
        "model": f"vit_{size}_patch16_224", "finetune": "${MODEL_PATH}", "log_dir": "${OUTPUT_DIR}",
        "output_dir": "runs/ava_" + ("pretrain+finetune" if kind == "finetuned" else "pretrain"), "batch_size": bs,
        "input_size": 224, "save_ckpt_freq": 10, "num_frames": 16, "sampling_rate": 4, "opt": "adamw", "lr": lr,
        "layer_decay": decay, "opt_betas": "0.9 0.999", "weight_decay": 0.05, "epochs": epochs, "data_set": '"ava"',
        "drop_path": 0.2, "val_freq": 10,
    } | more  # fmt: skip
    return Released(f"ava_vit_{recipe}", "action-detection", "run_class_finetuning.py", TORCH, gpus, flags,
                    float(lr) * gpus * bs / 256)  # fmt: skip


ACTION_DETECTION = (
    _ava("small_k400_pretrained", 16, 8, "1e-3", 0.6, 30),
    _ava("small_k400_finetuned", 16, 8, "5e-4", 0.6, 30),
    _ava("base_k400_pretrained", 32, 4, "2.5e-4", 0.75, 30),
    _ava("base_k400_finetuned", 32, 4, "5e-4", 0.75, 30),
    _ava("large_k400_pretrained", 32, 4, "2.5e-4", 0.75, 30, use_checkpoint=""),
    _ava("large_k400_finetuned", 32, 4, "5e-4", 0.8, 20, use_checkpoint=""),
    _ava("huge_k400_pretrained", 64, 2, "5e-4", 0.8, 20, use_checkpoint=""),
    _ava("huge_k400_finetuned", 64, 2, "5e-4", 0.8, 20, use_checkpoint=""),
)


def _dapt(recipe: str, size: str, gpus: int, parts: Mapping[str, Any], **more: Any) -> Released:
    double = "batch_size2" in parts
    program = "run_mae_double_pretraining.py" if double else "run_mae_pretraining.py"
    flags = {
        **parts, "mask_type": "tube", "mask_ratio": 0.75, "model": f"pretrain_videomae_{size}_patch16_224",
        "from_ckpt": "${MODEL_PATH}", "decoder_depth": 4, "num_frames": 16, "opt": "adamw", "opt_betas": "0.9 0.95",
        "warmup_epochs": 1, "epochs": 20, "save_ckpt_freq": 1, "log_dir": "${OUTPUT_DIR}",
        "output_dir": "${OUTPUT_DIR}", "lr": "3e-4", "min_lr": "3e-5",
    } | more  # fmt: skip
    return Released(f"pretrain_dapt_{recipe}", "simple-tad", program, TORCHRUN, gpus, flags, 3e-4 * 800 / 256)


def _two(one: int, two: int) -> dict[str, Any]:
    return {
        "data_set1": "BDD100K", "data_path1": "${DATA_PATH}", "sampling_rate1": 16, "data_set2": "CAP-DATA",
        "data_path2": '"/data/CAP-DATA"', "sampling_rate2": 1, "tubelet_size": 2, "batch_size1": one,
        "batch_size2": two,
    }  # fmt: skip


_ALIGNED = {"transforms_finetune_align": "", "nb_samples_per_epoch": 1000000}
_BDD = {"data_set": "BDD100K", "data_path": "${DATA_PATH}", "batch_size": 200, "sampling_rate": 16}
_K700 = {"data_path": "${DATA_PATH}", "batch_size": 200, "sampling_rate": 4}


def _frames(recipe: str, model: str, lr: str, data_set: str, *, folder: str = "", **more: Any) -> Released:
    program = folder + ("iv2_sm_run_frame_finetuning.py" if "InternVideo2" in folder else "run_frame_finetuning.py")
    flags = {
        "model": model, "data_set": data_set, "loss": "crossentropy", "nb_classes": 2, "tubelet_size": 2,
        "data_path": "${DATA_PATH}", "finetune": "${MODEL_PATH}", "log_dir": "${OUTPUT_DIR}",
        "output_dir": "${OUTPUT_DIR}", "batch_size": 56, "num_sample": 1, "input_size": 224, "short_side_size": 224,
        "save_ckpt_freq": 1, "num_frames": 16, "sampling_rate": 1, "sampling_rate_val": 1,
        "nb_samples_per_epoch": 50000, "num_workers": 8, "opt": "adamw", "lr": lr, "min_lr": "1e-6",
        "warmup_lr": "1e-6", "warmup_epochs": 5, "opt_betas": "0.9 0.999", "weight_decay": 0.05, "drop_path": 0.2,
        "layer_decay": 0.6, "aa": "rand-m6-n3-mstd0.5-inc1", "epochs": 50, "test_num_segment": 1, "test_num_crop": 1,
        "dist_eval": "", "enable_deepspeed": "", "seed": 42,
    } | more  # fmt: skip
    parts = recipe.split("_")
    kind = next((each for each in ("mvd", "umt", "internvideo2") if each in parts), "")
    return Released(f"traffic_{recipe}", f"simple-tad-{kind}" if kind else "simple-tad", program, TORCHRUN, 1, flags,
                    float(lr) * int(flags["batch_size"]) / 256)  # fmt: skip


_HALF = {"batch_size": 28, "num_sample": 2}
_SHORT = {"tubelet_size": 1, "num_frames": 8, "view_fps": 5}
_D2K = {"sampling_rate_val": 3}
SIMPLE_TAD = (
    _dapt("bdd_small", "small", 4, _BDD, **_ALIGNED),
    _dapt("bdd_capdata_small", "small", 2, _two(240, 160), **_ALIGNED),
    _dapt("bdd_capdata_base", "base", 4, _two(120, 80), **_ALIGNED),
    _dapt("bdd_capdata_large", "large", 8, _two(60, 40), decoder_depth=12, num_workers=14, **_ALIGNED),
    _dapt("k700_small", "small", 4, _K700, mask_ratio=0.9, epochs=38),
    _frames("dota_videomae_small", "vit_small_patch16_224", "1e-3", "DoTA"),
    _frames("dota_videomae_base", "vit_base_patch16_224", "5e-4", "DoTA"),
    _frames("dada_videomae_large", "vit_large_patch16_224", "5e-4", "DADA2K", **_D2K),
    _frames("dota_half_videomae_small", "vit_small_patch16_224", "5e-4", "DoTA_half", nb_samples_per_epoch=25000,
            **_HALF),
    _frames("dada_half_videomae_large", "vit_large_patch16_224", "5e-4", "DADA2K_half", **_D2K, **_HALF),
    _frames("dota_mvd_base", "mvd_vit_base_patch16_224", "5e-4", "DoTA", folder="other_models/MVD/"),
    _frames("dota_umt_base", "vit_base_patch16_224", "5e-4", "DoTA", folder="other_models/UMT/", **_SHORT,
            num_workers=16),
    _frames("dada_umt_base", "vit_base_patch16_224", "5e-4", "DADA2K", folder="models/UMT/", **_SHORT, **_D2K),
    _frames("dota_internvideo2_small", "internvideo2_small_patch14_224", "1e-3", "DoTA",
            folder="other_models/InternVideo2_single_modality/", no_cls_in_ckpt="", no_use_decord="",
            head_drop_path=0.1, zero_stage=0, **_SHORT),
)  # fmt: skip

RELEASED = (*VIDEOMAE, *VIDEOMAEV2, *ACTION_DETECTION, *SIMPLE_TAD)
