"""DeepSpeed, and only here: start of the process group, model building under ZeRO, precision, the engine itself."""

from __future__ import annotations

import datetime
import math
import os
from collections.abc import Callable, Collection
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from dsvid.deepspeed_json import OURS_COSINE, get_dotted, precision
from dsvid.errors import RecipeError
from dsvid.optim import CosineSchedule, parameter_groups
from dsvid.runtime import Ranks, log

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
COLLECTIVE_TIMEOUT_S = 1800


def start_distributed(device: torch.device, ranks: Ranks) -> None:
    """Join the process group (nccl on CUDA, gloo on CPU) without compiling anything; once in a process."""
    if torch.distributed.is_initialized():
        return
    _import_deepspeed()
    import deepspeed

    if device.type == "cpu":
        # DeepSpeed would compile its shared-memory all-reduce for 2 silent minutes here; gloo gives the same bits.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    backend = "nccl" if device.type == "cuda" else "gloo"
    deepspeed.init_distributed(
        dist_backend=backend,
        auto_mpi_discovery=False,
        verbose=False,
        timeout=datetime.timedelta(seconds=COLLECTIVE_TIMEOUT_S),
        rank=ranks.rank,
        world_size=ranks.world,
    )


def _import_deepspeed() -> None:
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # read once, when deepspeed is imported
    try:
        import deepspeed  # noqa: F401
    except ImportError as error:
        raise RecipeError("deepspeed cannot be imported", found=str(error), fix="pip install deepspeed") from error


def check_precision(config: dict[str, Any], device: torch.device) -> None:
    """Raise RecipeError where the device cannot do the JSON's precision. Call it before the model is built."""
    if precision(config) == "fp16" and device.type == "cpu":
        _import_deepspeed()
        from deepspeed.accelerator import get_accelerator

        if not get_accelerator().is_fp16_supported():
            raise RecipeError(
                "DeepSpeed JSON: fp16.enabled, but this device does not support fp16",
                found="a CPU without AVX512-FP16",
                expected="bf16, or fp32",
                fix="--ds_config ds_configs/zero2.json",
            )
    native = device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)
    if precision(config) == "bf16" and not native:
        raise RecipeError(
            "DeepSpeed JSON: bf16.enabled, but this GPU does not support bf16",
            found=torch.cuda.get_device_name(device),
            fix="--ds_config ds_configs/zero2_fp16.json",
        )


def build_module(factory: Callable[[], nn.Module], config: dict[str, Any]) -> nn.Module:
    """Run `factory`; at ZeRO-3 under `deepspeed.zero.Init`, so that no rank ever holds the whole model."""
    if get_dotted(config, "zero_optimization.stage") != 3:
        return factory()
    import deepspeed

    with deepspeed.zero.Init(config_dict_or_path=_for_deepspeed(config)):
        return factory()


def fill_parameters(
    module: nn.Module,
    value: Callable[[str, torch.Size], Tensor],
    *,
    from_first: Collection[str] = (),
    device: torch.device | None = None,
) -> None:
    """Set every parameter to `value(name, shape)`, also where ZeRO-3 has partitioned it. A collective.

    zero.Init makes a model's own initialisation act on empty tensors, silently; this sets the real ones. At ZeRO-3 one
    parameter at a time is whole, and only rank 0 computes values. The parameters of `from_first` come from rank 0 at
    every stage: it alone reads the file they are in, and `device` is where they are sent.
    """
    alone = not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1
    first = alone or torch.distributed.get_rank() == 0
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            partitioned = hasattr(parameter, "ds_id")
            shape = getattr(parameter, "ds_shape", parameter.shape)
            sent = name in from_first
            with _gathered(parameter) if partitioned else nullcontext():
                if first or not (partitioned or sent):
                    parameter.data.copy_(value(name, shape))
            if sent and not partitioned and not alone:
                whole = parameter.data.to(device)
                torch.distributed.broadcast(whole, src=0)
                parameter.data.copy_(whole)


def _gathered(parameter: nn.Parameter) -> Any:
    import deepspeed

    return deepspeed.zero.GatheredParameters([parameter], modifier_rank=0)


def count_parameters(module: nn.Module) -> int:
    """Number of parameters, whole ones, also under ZeRO-3."""
    return sum(int(getattr(p, "ds_numel", p.numel())) for p in module.parameters())


def _for_deepspeed(config: dict[str, Any]) -> dict[str, Any]:
    """What DeepSpeed gets: the resolved JSON without the optimizer and scheduler that dsvid builds from it."""
    ours = {"optimizer", "activation_checkpointing"}
    if config["scheduler"]["type"] == OURS_COSINE:
        ours.add("scheduler")
    stripped = {key: value for key, value in config.items() if key not in ours}
    if uses_ds_optimizer(config):
        stripped["optimizer"] = config["optimizer"]
    else:
        stripped["zero_force_ds_cpu_optimizer"] = False
        stripped["zero_allow_untested_optimizer"] = True
    return stripped


def uses_ds_optimizer(config: dict[str, Any]) -> bool:
    """Whether DeepSpeed builds the optimizer: for CPU offload beside a GPU, where its CPUAdam is worth a compile."""
    offload = get_dotted(config, "zero_optimization.offload_optimizer.device") not in (None, "none")
    return offload and torch.cuda.is_available()


def build_engine(
    objective: nn.Module,
    config: dict[str, Any],
    *,
    layer_decay: float,
    depth: int,
    weight_decay_end: float | None = None,
    compiled: bool = False,
) -> Any:
    """Wrap `objective` in a DeepSpeed engine as the resolved JSON says; returns the engine.

    Groups come from `optim.parameter_groups`; AdamW is torch's (fused on CUDA), which needs no compile at start.
    """
    import deepspeed

    params = config["optimizer"]["params"]
    groups = parameter_groups(
        objective.named_parameters(),
        lr=params["lr"],
        weight_decay=params["weight_decay"],
        layer_decay=layer_decay,
        depth=depth,
    )
    group_names = [group.pop("names") for group in groups]
    arguments: dict[str, Any] = {"model": objective, "config": _for_deepspeed(config)}
    if uses_ds_optimizer(config):
        log.info("DeepSpeed compiles its CPU Adam at the first start on a machine: 1 to 3 minutes without output")
        arguments["model_parameters"] = groups
    else:
        arguments["optimizer"] = _torch_adam(groups, config["optimizer"])
    if config["scheduler"]["type"] == OURS_COSINE:
        arguments["lr_scheduler"] = _cosine(config["scheduler"]["params"], weight_decay_end)
    engine, *_ = deepspeed.initialize(**arguments)
    engine.group_names = group_names
    if get_dotted(config, "zero_optimization.stage") in (None, 0):
        _undo_constructor_step(engine)
    if compiled:
        engine.compile()
    return engine


def _undo_constructor_step(engine: Any) -> None:
    """Undo the optimizer step that DeepSpeed 0.19's half-precision wrapper takes in its constructor at stage 0.

    It steps with zero gradients to allocate the moments: the step counter starts at 1 and weight decay is applied once
    at the full lr. Stages 1 to 3 do neither.
    """
    wrapper = engine.optimizer
    for masters, copies in zip(getattr(wrapper, "fp32_groups", []), getattr(wrapper, "fp16_groups", []), strict=True):
        for master, copy in zip(masters, copies, strict=True):
            master.data.copy_(copy.data)
            # The moments of a zero gradient are zero; only the counter shows that a step was taken.
            wrapper.optimizer.state[master]["step"].zero_()


def _torch_adam(groups: list[dict[str, Any]], section: dict[str, Any]) -> torch.optim.Optimizer:
    params = section["params"]
    kind = torch.optim.Adam if section["type"] == "Adam" and not params.get("adam_w_mode", True) else torch.optim.AdamW
    return kind(
        groups,
        lr=params["lr"],
        betas=tuple(params["betas"]),
        eps=params["eps"],
        weight_decay=params["weight_decay"],
        fused=torch.cuda.is_available() or None,
    )


def _cosine(params: dict[str, Any], weight_decay_end: float | None) -> Callable[[torch.optim.Optimizer], Any]:
    return lambda optimizer: CosineSchedule(
        optimizer,
        total=params["total_num_steps"],
        warmup=params["warmup_num_steps"],
        min_ratio=params["cos_min_ratio"],
        weight_decay_end=weight_decay_end,
    )


def checkpointing_function(config: dict[str, Any]) -> Callable[..., Any] | None:
    """How to run a block under activation checkpointing, or None where the JSON has no such section.

    torch's non-reentrant checkpoint: the one that DeepSpeed's stages 0 to 3 all run correctly (measured), and cheaper
    than DeepSpeed's own. `cpu_checkpointing` moves the saved inputs to the host.
    """
    section = config.get("activation_checkpointing")
    if section is None:
        return None
    from torch.utils.checkpoint import checkpoint

    offload = bool(section.get("cpu_checkpointing"))

    def run(block: Callable[..., Tensor], *inputs: Any) -> Any:
        with torch.autograd.graph.save_on_cpu(pin_memory=False) if offload else nullcontext():
            # Blocks draw no random numbers of their own (see models), so no generator state is kept.
            return checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False)

    return run


def before_step(engine: Any) -> tuple[float, Tensor | None]:
    """What `engine.step` changes or clears: the highest group's lr, and the gradient norm where DeepSpeed keeps none.

    It keeps none at stage 0 in fp32; elsewhere the second value is None and `gradient_norm` asks the engine.
    """
    lr = max(float(group["lr"]) for group in engine.optimizer.param_groups)
    if hasattr(engine.optimizer, "_global_grad_norm") or not engine.is_gradient_accumulation_boundary():
        return lr, None
    return lr, torch.nn.utils.get_total_norm([p.grad for p in engine.module.parameters() if p.grad is not None])


def gradient_norm(engine: Any, before: Tensor | None) -> float:
    """Global gradient norm of the last step before clipping; NaN where there is none."""
    norm = engine.get_global_grad_norm()
    if norm is None:
        norm = before
    return math.nan if norm is None else float(norm)


# ---- the master weights --------------------------------------------------------------------------------------------


def masters(engine: Any) -> list[list[Tensor]]:
    """This rank's fp32 master weights, by optimizer group: whole tensors at stage 0, flat parts of the group above.

    Changing them in place changes what the optimizer steps from; `refresh_weights` then brings the model after them.
    """
    optimizer = engine.optimizer
    for name in ("single_partition_of_fp32_groups", "fp32_partitioned_groups_flat"):  # stages 1 and 2; stage 3
        if hasattr(optimizer, name):
            return [[part] for part in getattr(optimizer, name)]
    if hasattr(optimizer, "fp32_groups"):  # stage 0 in half precision
        return [list(group) for group in optimizer.fp32_groups]
    return [list(group["params"]) for group in optimizer.param_groups]


@torch.no_grad()
def refresh_weights(engine: Any) -> None:
    """Bring the weights that the model computes with after the masters, as an optimizer step does. A collective."""
    optimizer = engine.optimizer
    if hasattr(optimizer, "fp32_partitioned_groups_flat"):
        for index in range(len(optimizer.fp32_partitioned_groups_flat)):
            optimizer._reassign_or_swap_out_partitioned_parameters(index)
        if optimizer.persistent_parameters:
            optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)
    elif hasattr(optimizer, "update_lp_params"):
        optimizer.update_lp_params()
    else:
        for masters_, copies in zip(
            getattr(optimizer, "fp32_groups", []), getattr(optimizer, "fp16_groups", []), strict=True
        ):
            for master, copy in zip(masters_, copies, strict=True):
                copy.data.copy_(master.data)
