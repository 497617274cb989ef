"""DeepSpeed, and only here: start of the process group, model building under ZeRO, precision, the engine itself."""

from __future__ import annotations

import datetime
import importlib.util
import math
import os
import warnings
from collections.abc import Callable, Collection
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dsvid.deepspeed_json import OURS_COSINE, get_dotted, precision
from dsvid.errors import RecipeError
from dsvid.optim import CosineSchedule, parameter_groups
from dsvid.runtime import Ranks, log

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
COLLECTIVE_TIMEOUT_S = 1800
_timeout = datetime.timedelta(seconds=COLLECTIVE_TIMEOUT_S)  # of this process's groups; set by start_distributed


def start_distributed(
    device: torch.device, ranks: Ranks, *, store: Any = None, timeout_s: float = COLLECTIVE_TIMEOUT_S
) -> None:
    """Join the process group (nccl on CUDA, gloo on CPU) without compiling anything; once in a process.

    `store`: the one in which the ranks have met (see rendezvous); else torch's own from the environment.
    """
    if torch.distributed.is_initialized():
        return
    _import_deepspeed()
    import deepspeed

    if device.type == "cpu":
        # DeepSpeed would compile its shared-memory all-reduce for 2 silent minutes here; gloo gives the same bits.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    backend = "nccl" if device.type == "cuda" else "gloo"
    global _timeout
    _timeout = timeout = datetime.timedelta(seconds=timeout_s)
    if store is not None:  # DeepSpeed then takes the group that is there
        torch.distributed.init_process_group(
            backend,
            store=store,
            rank=ranks.rank,
            world_size=ranks.world,
            timeout=timeout,
            device_id=device if device.type == "cuda" and not _binding_hangs() else None,
        )
    deepspeed.init_distributed(
        dist_backend=backend,
        auto_mpi_discovery=False,
        verbose=False,
        timeout=timeout,
        rank=ranks.rank,
        world_size=ranks.world,
    )


def _binding_hangs() -> bool:
    """Whether binding the group to its device hangs (pytorch issue 153960); elsewhere DeepSpeed wants it bound."""
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:3] if part.isdigit())
    return (2, 6, 0) < version < (2, 7, 1)


def _import_deepspeed() -> None:
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # read once, when deepspeed is imported
    # DeepSpeed 0.19 calls torch by names that newer torch warns of: nothing that a user could mend
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
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


def check_reporters(config: dict[str, Any]) -> None:
    """Raise RecipeError where the JSON sends numbers to what is not installed. Call it before the model is built."""
    for section, package in (("wandb", "wandb"), ("tensorboard", "tensorboard")):
        if get_dotted(config, f"{section}.enabled") and importlib.util.find_spec(package) is None:
            raise RecipeError(
                f"DeepSpeed JSON: {section}.enabled, but {package} cannot be imported",
                found="no such package",
                fix=f"pip install {package}, or {section}.enabled=false",
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
    compile_mode: str | None = None,
) -> Any:
    """Wrap `objective` in a DeepSpeed engine as the resolved JSON says; returns the engine.

    `compile_mode`: torch.compile's, None = not compiled. Groups come from `optim.parameter_groups`; AdamW is torch's
    (fused on CUDA), which needs no compile at start.
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
    _give_every_group_the_timeout()
    engine.group_names = group_names
    if get_dotted(config, "zero_optimization.stage") in (None, 0):
        _undo_constructor_step(engine)
    if compile_mode is not None:
        # choose_backend: the compiler reads the function through its cache, which is right, and says so on every rank
        warnings.filterwarnings("ignore", message="Dynamo detected a call to a `functools.lru_cache`")
        engine.compile(compile_kwargs={"mode": compile_mode})
    return engine


def _give_every_group_the_timeout() -> None:
    """DeepSpeed makes groups of its own with torch's timeout, 10 minutes on nccl: less than the watchdog waits."""
    if torch.distributed.is_initialized():
        # newer torch has it in public, and warns of the other
        set_timeout = getattr(torch.distributed, "set_timeout", torch.distributed.distributed_c10d._set_pg_timeout)
        for group in list(torch.distributed.distributed_c10d._world.pg_map):
            set_timeout(_timeout, group)


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
    than DeepSpeed's own. `cpu_checkpointing` moves the saved inputs to the host. How many blocks run so is
    `deepspeed_json.checkpointed_blocks`.
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


@dataclass(frozen=True)
class Step:
    """What a call of `step` did: the highest group's lr, the gradient norm before clipping (NaN where DeepSpeed keeps
    none), and whether the weights were changed: a gradient that is not finite changes nothing.
    """

    lr: float
    norm: Tensor | float | None
    applied: bool

    @property
    def grad_norm(self) -> float:
        """The norm as a number; waits for the device."""
        return math.nan if self.norm is None else float(self.norm)


def step(engine: Any) -> Step:
    """Take the optimizer's step, at the end of an accumulation; the schedule moves on whether it is applied or not.

    The gradient is the same on all ranks, so they agree without a word. DeepSpeed skips a step whose gradient is not
    finite, but at stage 0 in fp32, where it has no norm either; that is done here.
    """
    lr = max(float(group["lr"]) for group in engine.optimizer.param_groups)
    if not engine.is_gradient_accumulation_boundary():
        engine.step()
        return Step(lr, None, True)
    if not hasattr(engine.optimizer, "_global_grad_norm"):
        return _bare_step(engine, lr)
    engine.step()
    applied = engine.was_step_applied()
    if not applied and engine.lr_scheduler is not None:
        engine.lr_scheduler.step()
    return Step(lr, engine.get_global_grad_norm(), applied)


def _bare_step(engine: Any, lr: float) -> Step:
    """Stage 0 in fp32: the optimizer is torch's own, which applies whatever it is given."""
    norm = torch.nn.utils.get_total_norm([p.grad for p in engine.module.parameters() if p.grad is not None])
    if math.isfinite(float(norm)):
        engine.step()
        return Step(lr, norm, True)
    clipping = engine._config.gradient_clipping
    engine.zero_grad()  # to None: the optimizer passes over every parameter, and DeepSpeed only counts
    engine._config.gradient_clipping = 0.0  # DeepSpeed's clipping fails where no parameter has a gradient
    engine.step()
    engine._config.gradient_clipping = clipping
    return Step(lr, norm, False)


def save_shards(engine: Any, folder: Path, client_state: dict[str, Any], write: Callable[[Path, Any], None]) -> None:
    """DeepSpeed's checkpoint files of all ranks into `folder`, each through `write(path, contents)`. A collective.

    `write` must not raise: DeepSpeed's save has barriers inside, where the other ranks would wait for ever.
    """
    engine.checkpoint_engine.save = lambda state_dict, path: write(Path(path), state_dict)
    # DeepSpeed drops a script beside the checkpoints that unpickles whatever it finds. `dsvid consolidate` does not.
    engine._copy_recovery_script = lambda save_path: None
    engine.save_checkpoint(str(folder.parent), tag=folder.name, client_state=client_state, save_latest=False)
