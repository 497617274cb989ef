"""The DeepSpeed JSON: strict reading, unknown keys, `"auto"` values and combinations that go wrong silently.

Imports neither torch nor deepspeed: a wrong file is found before either is loaded. DeepSpeed itself ignores unknown
top-level keys; the tables below are compared with the installed DeepSpeed by a test.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any, NoReturn

from dsvid.errors import RecipeError
from dsvid.recipe import Recipe, nearest, set_dotted
from dsvid.schedule import Schedule

MAX_JSON_BYTES = 1 << 20
OURS_COSINE = "VideoMAECosine"
# These overwrite every group's lr with one value, which would silently undo layer-wise lr decay.
ERASING_SCHEDULERS = ("WarmupLR", "WarmupDecayLR", "OneCycle", "LRRangeTest")

_ADAM = ["lr", "betas", "eps", "weight_decay", "adam_w_mode"]  # only what has an effect: AdamW is torch's
OPTIMIZERS: dict[str, list[str]] = {"AdamW": _ADAM, "Adam": _ADAM}
SCHEDULERS: dict[str, list[str]] = {
    OURS_COSINE: ["total_num_steps", "warmup_num_steps", "cos_min_ratio"],
    "WarmupCosineLR": ["total_num_steps", "warmup_num_steps", "warmup_min_ratio", "cos_min_ratio", "warmup_type"],
    "WarmupLR": ["warmup_min_lr", "warmup_max_lr", "warmup_num_steps", "warmup_type"],
    "WarmupDecayLR": ["total_num_steps", "warmup_min_lr", "warmup_max_lr", "warmup_num_steps", "warmup_type"],
    "OneCycle": [
        "cycle_min_lr", "cycle_max_lr", "decay_lr_rate", "cycle_first_step_size", "cycle_second_step_size",
        "cycle_first_stair_count", "cycle_second_stair_count", "decay_step_size", "cycle_momentum", "cycle_min_mom",
        "cycle_max_mom", "decay_mom_rate",
    ],
    "LRRangeTest": [
        "lr_range_test_min_lr", "lr_range_test_step_size", "lr_range_test_step_rate", "lr_range_test_staircase",
    ],
}  # fmt: skip

_MONITOR_FILE = ["enabled", "output_path", "job_name"]
SECTIONS: dict[str, list[str]] = {
    "optimizer": ["type", "params"],
    "scheduler": ["type", "params"],
    "bf16": [
        "enabled", "immediate_grad_update", "check_grad_overflow", "bf16_master_weights_and_grads",
        "bf16_optimizer_states",
    ],
    "fp16": [
        "enabled", "auto_cast", "loss_scale", "initial_scale_power", "loss_scale_window", "hysteresis",
        "consecutive_hysteresis", "min_loss_scale", "fp16_master_weights_and_grads",
    ],
    "zero_optimization": [
        "stage", "contiguous_gradients", "reduce_scatter", "reduce_bucket_size", "use_multi_rank_bucket_allreduce",
        "allgather_partitions", "allgather_bucket_size", "overlap_comm", "compute_grad_norm", "load_from_fp32_weights",
        "elastic_checkpoint", "offload_param", "offload_optimizer", "sub_group_size", "stage3_prefetch_bucket_size",
        "stage3_param_persistence_threshold", "stage3_model_persistence_threshold", "stage3_max_live_parameters",
        "stage3_max_reuse_distance", "stage3_gather_16bit_weights_on_model_save", "stage3_module_granularity_threshold",
        "stage3_use_all_reduce_for_fetch_params", "stage3_allgather_sequential", "ignore_unused_parameters",
        "legacy_stage1", "round_robin_gradients", "parameter_alignment", "zero_hpz_partition_size",
        "zero_quantized_weights", "zero_quantized_nontrainable_weights", "zero_quantized_gradients",
        "memory_efficient_linear", "pipeline_loading_checkpoint", "override_module_apply", "log_trace_cache_warnings",
        "enable_sanity_checks", "leaf_module",
    ],
    "zero_optimization.offload_param": [
        "device", "nvme_path", "buffer_count", "buffer_size", "max_in_cpu", "pin_memory",
    ],
    "zero_optimization.offload_optimizer": [
        "device", "nvme_path", "buffer_count", "pin_memory", "pipeline_read", "pipeline_write", "fast_init", "ratio",
        "super_offload", "cpuadam_cores_perc",
    ],
    "activation_checkpointing": [
        "partition_activations", "number_checkpoints", "contiguous_memory_optimization",
        "synchronize_checkpoint_boundary", "profile", "cpu_checkpointing",
    ],
    "aio": ["block_size", "queue_depth", "intra_op_parallelism", "single_submit", "overlap_events", "use_gds"],
    "flops_profiler": [
        "enabled", "recompute_fwd_factor", "profile_step", "module_depth", "top_modules", "detailed", "output_file",
    ],
    "comms_logger": ["enabled", "prof_all", "prof_ops", "verbose", "debug"],
    "tensorboard": _MONITOR_FILE,
    "csv_monitor": _MONITOR_FILE,
    "wandb": ["enabled", "group", "team", "project"],
    "torch_autocast": ["enabled", "dtype", "lower_precision_safe_modules"],
    "data_types": ["grad_accum_dtype"],
    "checkpoint": ["tag_validation", "use_node_local_storage", "parallel_write"],
}  # fmt: skip
TOP_LEVEL = [
    "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping",
    "steps_per_print", "wall_clock_breakdown", "memory_breakdown", "dump_state", "prescale_gradients",
    "gradient_predivide_factor", "communication_data_type", "disable_allgather", "disable_python_gc",
    "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer", "log_level",
    *(name for name in SECTIONS if "." not in name),
]  # fmt: skip

# Any key of the section switches activation checkpointing on: this one, false, changes nothing else.
CHECKPOINTING_ON = "activation_checkpointing.cpu_checkpointing"
NUMBERS = ("gradient_clipping", *(f"zero_optimization.{name}" for name in (
    "reduce_bucket_size", "allgather_bucket_size", "sub_group_size", "stage3_prefetch_bucket_size",
    "stage3_param_persistence_threshold", "stage3_model_persistence_threshold", "stage3_max_live_parameters",
    "stage3_max_reuse_distance",
)))  # fmt: skip

# Where `"auto"` may stand, and what it becomes (`resolve`).
AUTO = {
    "train_batch_size": "batch.total",
    "train_micro_batch_size_per_gpu": "batch.micro",
    "gradient_accumulation_steps": "batch.total / (ranks * batch.micro)",
    "gradient_clipping": "optim.clip_grad",
    "optimizer.params.lr": "optim.base_lr * batch.total / optim.lr_scale_batch",
    "optimizer.params.betas": "optim.betas",
    "optimizer.params.eps": "optim.eps",
    "optimizer.params.weight_decay": "optim.weight_decay",
    "scheduler.params.total_num_steps": "run.epochs in steps",
    "scheduler.params.warmup_num_steps": "optim.warmup_epochs in steps",
    "scheduler.params.cos_min_ratio": "optim.min_lr / optim.base_lr",
}


def load_ds_config(path: Path) -> dict[str, Any]:
    """Read a DeepSpeed JSON as strict JSON and check its keys. Raises RecipeError."""
    if not path.is_file():
        found = "nothing there" if not path.exists() else "a folder"
        raise RecipeError(f"--ds_config {path}", found=found, expected="a JSON file", fix="ds_configs/zero2.json")
    if path.stat().st_size > MAX_JSON_BYTES:
        raise RecipeError(f"--ds_config {path}", found=f"{path.stat().st_size} bytes", expected="at most 1 MB")
    try:
        tree = json.loads(
            path.read_text(encoding="utf-8"), object_pairs_hook=_no_duplicates, parse_constant=_no_constant
        )
    except json.JSONDecodeError as error:
        raise RecipeError(
            f"--ds_config {path}: not strict JSON",
            found=f"line {error.lineno}, column {error.colno}: {error.msg}",
            expected='JSON without comments or trailing commas, keys in "double quotes"',
        ) from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"--ds_config {path}", found=f"not text ({error.reason})", expected="a JSON file") from error
    except RecursionError as error:
        raise RecipeError(f"--ds_config {path}", found="nested too deeply", expected="a DeepSpeed JSON") from error
    except (ValueError, OSError) as error:  # a whole number of thousands of digits; no permission
        raise RecipeError(f"--ds_config {path} cannot be read", found=str(error).partition(";")[0]) from error
    if not isinstance(tree, dict):
        raise RecipeError(f"--ds_config {path}", found=type(tree).__name__, expected="a JSON object {…}")
    check_keys(tree)
    return tree


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in pairs:
        if key in tree:
            raise RecipeError(f"--ds_config: key {key!r} given twice", fix="delete one of them")
        tree[key] = value
    return tree


def _no_constant(name: str) -> NoReturn:
    raise RecipeError(f"--ds_config: {name} is not strict JSON", expected="a finite number")


def check_keys(tree: dict[str, Any]) -> None:
    """Raise RecipeError for the first key that DeepSpeed (or dsvid) does not know, at any level."""
    _check_level(tree, "", TOP_LEVEL)
    for section, known in SECTIONS.items():
        node: Any = tree
        for part in section.split("."):
            node = node.get(part) if isinstance(node, dict) else None
        if node is None:
            continue
        if not isinstance(node, dict):
            raise RecipeError(f"DeepSpeed JSON key {section!r}", found=repr(node), expected="a JSON object {…}")
        _check_level(node, section + ".", known)
    for section, kinds in (("optimizer", OPTIMIZERS), ("scheduler", SCHEDULERS)):
        _check_kind(tree, section, kinds)
    _check_auto(tree, "")


def _check_level(node: dict[str, Any], prefix: str, known: list[str]) -> None:
    for key in node:
        if key not in known:
            near = nearest(key, known)
            raise RecipeError(
                f"unknown DeepSpeed JSON key {prefix + key!r}",
                expected=f"one of the keys of {prefix[:-1] or 'the JSON'}",
                fix=f"did you mean {prefix + near!r}?" if near else f"known keys: {', '.join(known)}",
            )


def _check_kind(tree: dict[str, Any], section: str, kinds: dict[str, list[str]]) -> None:
    node = tree.get(section)
    if node is None:
        return
    kind = node.get("type")
    if kind not in kinds:
        near = nearest(str(kind), list(kinds))
        raise RecipeError(
            f"DeepSpeed JSON: {section}.type is not supported",
            found=repr(kind),
            expected=f"one of {', '.join(kinds)}",
            fix=f"did you mean {near!r}?" if near else None,
        )
    params = node.get("params", {})
    if not isinstance(params, dict):
        raise RecipeError(f"DeepSpeed JSON key '{section}.params'", found=repr(params), expected="a JSON object {…}")
    _check_level(params, f"{section}.params.", kinds[kind])


def _check_auto(node: Any, prefix: str) -> None:
    if isinstance(node, dict):
        for key, value in node.items():
            _check_auto(value, f"{prefix}.{key}" if prefix else key)
    elif node == "auto" and prefix not in AUTO:
        raise RecipeError(
            f'DeepSpeed JSON: {prefix} cannot be "auto"',
            expected=f'a value; "auto" may stand at {", ".join(AUTO)}',
        )


def resolve(tree: dict[str, Any], overrides: dict[str, Any], recipe: Recipe, schedule: Schedule) -> dict[str, Any]:
    """The JSON with overrides and every `"auto"` filled in; raises RecipeError for combinations that go wrong.

    The result has an optimizer, a scheduler and the three batch keys, whatever the file left out.
    """
    config = copy.deepcopy(tree)
    for section, kind in (("optimizer", "AdamW"), ("scheduler", OURS_COSINE)):
        config.setdefault(section, {"type": kind, "params": {}})  # so that an override of one of its values finds it
    for key, value in overrides.items():
        set_dotted(config, key, value)
    if "scheduler.type" in overrides:
        # The file's autos belong to the file's scheduler; values that somebody chose stay, and are checked.
        known, params = SCHEDULERS.get(config["scheduler"]["type"], []), config["scheduler"].get("params", {})
        config["scheduler"]["params"] = {k: v for k, v in params.items() if v != "auto" or k in known}
    check_keys(config)
    _fill_defaults(config)
    ratio = recipe.optim.min_lr / recipe.optim.base_lr
    values: dict[str, Any] = {
        "train_batch_size": schedule.batch_total,
        "train_micro_batch_size_per_gpu": schedule.batch_micro,
        "gradient_accumulation_steps": schedule.accumulation,
        "gradient_clipping": recipe.optim.clip_grad,
        "optimizer.params.lr": schedule.lr,
        "optimizer.params.betas": list(recipe.optim.betas),
        "optimizer.params.eps": recipe.optim.eps,
        "optimizer.params.weight_decay": recipe.optim.weight_decay,
        "scheduler.params.total_num_steps": schedule.total_steps,
        "scheduler.params.warmup_num_steps": schedule.warmup_steps,
        "scheduler.params.cos_min_ratio": ratio,
    }
    for key, value in values.items():
        if get_dotted(config, key) == "auto":
            set_dotted(config, key, value)
    _check_batch(config, schedule)
    _check_combinations(config, recipe)
    return config


def get_dotted(tree: dict[str, Any], key: str) -> Any:
    """The value at `a.b.c`, or None where it is absent."""
    node: Any = tree
    for part in key.split("."):
        node = node.get(part) if isinstance(node, dict) else None
    return node


def _fill_defaults(config: dict[str, Any]) -> None:
    for key in ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"):
        config.setdefault(key, "auto")
    config.setdefault("gradient_clipping", "auto")
    optimizer, scheduler = config["optimizer"], config["scheduler"]
    for key in ("lr", "betas", "eps", "weight_decay"):
        optimizer.setdefault("params", {}).setdefault(key, "auto")
    if scheduler["type"] in (OURS_COSINE, "WarmupCosineLR"):
        for key in ("total_num_steps", "warmup_num_steps", "cos_min_ratio"):
            scheduler.setdefault("params", {}).setdefault(key, "auto")
    config.setdefault("steps_per_print", 1 << 30)  # DeepSpeed's own prints would break the progress bar


def _check_batch(config: dict[str, Any], schedule: Schedule) -> None:
    for key, recipe_key, value in (
        ("train_batch_size", "batch.total", schedule.batch_total),
        ("train_micro_batch_size_per_gpu", "batch.micro", schedule.batch_micro),
        ("gradient_accumulation_steps", "batch.total and batch.micro", schedule.accumulation),
    ):
        if config[key] != value:
            raise RecipeError(
                f"DeepSpeed JSON: {key} contradicts the recipe, which owns the batch",
                found=f"{key}={config[key]}, but {recipe_key} on {schedule.world} ranks give {value}",
                expected='"auto" or the same number',
                fix=f'"{key}": "auto"',
            )


def _check_combinations(config: dict[str, Any], recipe: Recipe) -> None:
    stage = get_dotted(config, "zero_optimization.stage") or 0
    if not isinstance(stage, int) or isinstance(stage, bool) or not 0 <= stage <= 3:
        raise RecipeError("DeepSpeed JSON: zero_optimization.stage", found=repr(stage), expected="0, 1, 2 or 3")
    for section in ("fp16", "bf16"):
        enabled = get_dotted(config, f"{section}.enabled")
        if enabled is not None and not isinstance(enabled, bool):
            raise RecipeError(f"DeepSpeed JSON: {section}.enabled", found=repr(enabled), expected="true or false")
    fp16, bf16 = precision(config) == "fp16", bool(get_dotted(config, "bf16.enabled"))
    if fp16 and bf16:
        raise RecipeError("DeepSpeed JSON: fp16 and bf16 are both enabled", fix="ds.fp16.enabled=false")
    if fp16 and stage == 0:
        raise RecipeError(
            "DeepSpeed JSON: fp16 needs ZeRO stage 1, 2 or 3",
            found="stage 0, where DeepSpeed 0.19 divides by a loss scale that it never applied",
            fix="ds.zero_optimization.stage=1",
        )
    if get_dotted(config, "zero_optimization.round_robin_gradients"):
        raise RecipeError(
            "DeepSpeed JSON: zero_optimization.round_robin_gradients is refused",
            found="true, with which DeepSpeed 0.19 maps optimizer state to the wrong parameters when a run resumes",
            fix="ds.zero_optimization.round_robin_gradients=false",
        )
    for key, wrong, why in (
        ("zero_optimization.elastic_checkpoint", True, "its files do not say whose lr and moments they hold"),
        ("zero_optimization.offload_optimizer.device", "nvme", "its state would lie outside the checkpoint's files"),
        ("zero_optimization.offload_param.device", "nvme", "its state would lie outside the checkpoint's files"),
        ("checkpoint.use_node_local_storage", True, "every node would write files of the same name"),
    ):
        if get_dotted(config, key) == wrong:
            raise RecipeError(
                f"DeepSpeed JSON: {key} is refused: no run could be resumed",
                found=f"{json.dumps(wrong)}, with which {why}",
                fix=f"ds.{key}={'false' if wrong is True else 'cpu'}",
            )
    _check_numbers(config)
    bucket = get_dotted(config, "zero_optimization.allgather_bucket_size")
    if isinstance(bucket, int | float) and bucket % 2:
        raise RecipeError(
            "DeepSpeed JSON: zero_optimization.allgather_bucket_size must be even",
            found=f"{bucket}, which DeepSpeed 0.19 refuses at start",
            fix=f"ds.zero_optimization.allgather_bucket_size={int(bucket) + 1}",
        )
    _check_checkpointing(config)
    if get_dotted(config, "activation_checkpointing.partition_activations"):
        raise RecipeError(
            "DeepSpeed JSON: activation_checkpointing.partition_activations needs model parallelism",
            found="true, where dsvid has data parallelism only",
            fix="ds.activation_checkpointing.partition_activations=false",
        )
    kind = config["scheduler"]["type"]
    if recipe.optim.weight_decay_end is not None and kind != OURS_COSINE:
        raise RecipeError(
            f"optim.weight_decay_end has no effect with scheduler {kind}",
            expected=f"{OURS_COSINE}, which also moves the weight decay",
            fix=f"ds.scheduler.type={OURS_COSINE}",
        )
    if recipe.optim.layer_decay < 1 and kind in ERASING_SCHEDULERS:
        raise RecipeError(
            f"DeepSpeed JSON: scheduler {kind} would erase the layer-wise lr decay",
            found=f"scheduler.type={kind} gives every group one lr; optim.layer_decay={recipe.optim.layer_decay}",
            expected=f"{OURS_COSINE} or WarmupCosineLR",
            fix=f"ds.scheduler.type={OURS_COSINE}, or optim.layer_decay=1",
        )


def _check_numbers(config: dict[str, Any]) -> None:
    for key in NUMBERS:
        value = get_dotted(config, key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or value < 0):
            raise RecipeError(f"DeepSpeed JSON: {key}", found=repr(value), expected="a number, 0 or more")


def _check_checkpointing(config: dict[str, Any]) -> None:
    count = get_dotted(config, "activation_checkpointing.number_checkpoints")
    if count is not None and (not isinstance(count, int) or isinstance(count, bool) or count < 1):
        raise RecipeError(
            "DeepSpeed JSON: activation_checkpointing.number_checkpoints",
            found=repr(count),
            expected="how many blocks of the encoder, and of the decoder, are computed twice: 1 or more, null = all",
        )
    for key in ("contiguous_memory_optimization", "synchronize_checkpoint_boundary", "profile"):
        if get_dotted(config, f"activation_checkpointing.{key}"):
            raise RecipeError(
                f"DeepSpeed JSON: activation_checkpointing.{key} has no effect here",
                found="true; blocks run under torch's checkpoint",
                fix=f"ds.activation_checkpointing.{key}=false",
            )


def checkpointed_blocks(config: dict[str, Any]) -> int:
    """How many blocks of each stack are computed twice where activation checkpointing is on; 0 = all."""
    return int(get_dotted(config, "activation_checkpointing.number_checkpoints") or 0)


def precision(config: dict[str, Any]) -> str:
    """The working precision of a resolved JSON: "fp32", "bf16" or "fp16"."""
    for name in ("fp16", "bf16"):
        if get_dotted(config, f"{name}.enabled"):
            return name
    return "fp32"
