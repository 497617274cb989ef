"""The DeepSpeed settings that benchmarks of engines share. No benchmark itself."""

from __future__ import annotations

from typing import Any


def engine_config(stage: int, dtype: str, batch: int, *, overlap: bool = False) -> dict[str, Any]:
    """A resolved JSON for `batch` clips a rank, with AdamW and the cosine schedule; `dtype` is fp32 or bf16."""
    from dsvid.deepspeed_json import OURS_COSINE

    return {
        "train_micro_batch_size_per_gpu": batch,
        "zero_optimization": {"stage": stage, "overlap_comm": overlap},
        "bf16": {"enabled": dtype == "bf16"},
        "optimizer": {
            "type": "AdamW",
            "params": {"lr": 1e-4, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.05},
        },
        "scheduler": {
            "type": OURS_COSINE,
            "params": {"total_num_steps": 1000, "warmup_num_steps": 0, "cos_min_ratio": 0.0},
        },
    }
