"""What one rank holds of the fp32 masters and the optimizer's moments, and how a checkpoint of any topology fills it.

Knows the attributes of DeepSpeed's optimizer classes, which cut parameters up differently at every ZeRO stage; imports
no deepspeed, writes no files. A parameter is named as the engine's module names it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dsvid.errors import CheckpointError
from dsvid.weights.layout import clean
from dsvid.weights.shards import Shards

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Fragment:
    """`count` numbers of the flattened parameter `name`, from its `start` on, lie in a part from `at` on."""

    name: str
    start: int
    at: int
    count: int


@dataclass(frozen=True)
class Part:
    """One fp32 master tensor of this rank and what lies in it; what belongs to no fragment is padding."""

    master: Tensor
    fragments: tuple[Fragment, ...]

    def slots(self, tensor: Tensor) -> Iterator[tuple[Fragment, Tensor]]:
        """Each fragment with its place in `tensor`, which is laid out like the master: a 1-D view."""
        flat = tensor.detach().view(-1)
        for fragment in self.fragments:
            yield fragment, flat[fragment.at : fragment.at + fragment.count]


def masters(engine: Any) -> list[list[Part]]:
    """This rank's fp32 masters: by optimizer group at stages 0 to 2, by sub-group at stage 3.

    Whole parameters at stage 0, the rank's cut of the flattened group above. Changing them in place changes what the
    optimizer steps from; `refresh_weights` then brings the model after them.
    """
    optimizer = engine.optimizer
    names = {id(parameter): clean(name) for parameter, name in engine.param_names.items()}
    if hasattr(optimizer, "fp32_partitioned_groups_flat"):  # stage 3
        return [
            [Part(flat, tuple(_shares(optimizer, group, names)))]
            for flat, group in zip(optimizer.fp32_partitioned_groups_flat, optimizer.fp16_groups, strict=True)
        ]
    for flats, groups in (
        ("single_partition_of_fp32_groups", "bit16_groups"),  # stages 1 and 2
        ("fp32_groups_flat_partition", "bf16_groups"),  # stage 1 with fp32 gradients beside bf16 weights
    ):
        if hasattr(optimizer, flats):
            return [
                [Part(flat, tuple(_cuts(group, names)))]
                for flat, group in zip(getattr(optimizer, flats), getattr(optimizer, groups), strict=True)
            ]
    if hasattr(optimizer, "fp32_groups_flat"):  # stage 0 in half precision, with one of DeepSpeed's own optimizers
        return [
            [Part(flat, tuple(_in_a_row(group, names)))]
            for flat, group in zip(optimizer.fp32_groups_flat, optimizer.fp16_groups, strict=True)
        ]
    held = [group["params"] for group in optimizer.param_groups]  # stage 0: the parameters themselves in fp32
    copies = getattr(optimizer, "fp16_groups", held)
    return [
        [Part(master, (Fragment(names[id(own)], 0, 0, own.numel()),)) for master, own in zip(*pair, strict=True)]
        for pair in zip(getattr(optimizer, "fp32_groups", held), copies, strict=True)
    ]


def _cuts(group: list[nn.Parameter], names: Mapping[int, str]) -> Iterator[Fragment]:
    for parameter in group:
        mapping = getattr(parameter, "_hp_mapping", None)  # None: nothing of it lies on this rank
        if mapping is not None:
            own, flat = mapping.lp_fragment_address, mapping.hp_fragment_address
            yield Fragment(names[id(parameter)], own.start, flat.start, own.numel)


def _in_a_row(group: list[nn.Parameter], names: Mapping[int, str]) -> Iterator[Fragment]:
    at = 0
    for parameter in group:
        yield Fragment(names[id(parameter)], 0, at, parameter.numel())
        at += parameter.numel()


def _shares(optimizer: Any, group: list[Any], names: Mapping[int, str]) -> Iterator[Fragment]:
    rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
    for parameter in group:
        _, at, share = optimizer.grad_position[optimizer.get_param_id(parameter)]
        start = rank * share  # every rank has as much, and the last one may have less of it, or nothing
        count = min(share, parameter.ds_numel - start)
        if count > 0:
            yield Fragment(names[id(parameter)], start, at, count)


@torch.no_grad()
def refresh_weights(engine: Any, *, gather: bool = True) -> None:
    """Bring the weights that the model computes with after the masters, as an optimizer step does. A collective.

    Without `gather` the small parameters that stage 3 keeps whole are left to be fetched at their first use.
    """
    optimizer = engine.optimizer
    if hasattr(optimizer, "fp32_partitioned_groups_flat"):
        for index in range(len(optimizer.fp32_partitioned_groups_flat)):
            optimizer._reassign_or_swap_out_partitioned_parameters(index)
        if optimizer.persistent_parameters and gather:
            optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)
    elif hasattr(optimizer, "update_lp_params"):
        optimizer.update_lp_params()
    elif hasattr(optimizer, "fp16_groups"):  # stage 0 in half precision
        parameters = named_parameters(engine)
        for part in (part for group in masters(engine) for part in group):
            for fragment, slot in part.slots(part.master):
                parameters[fragment.name].data.view(-1).copy_(slot)


# ---- filling an engine from a checkpoint ---------------------------------------------------------------------------


@torch.no_grad()
def read(engine: Any, shards: Shards) -> None:
    """Give `engine`, fresh or running, the state in `shards`, whatever ranks and stage wrote it; `settle` must follow.

    Every rank reads its own fragments straight into place: masters, moments, step counters, frozen parameters, buffers.
    No collective: a rank that fails here can tell the others. Raises CheckpointError where it is another model's.
    """
    check_same_parameters(engine, shards)
    if hasattr(engine.optimizer, "checkpoint_event_prologue"):
        engine.optimizer.checkpoint_event_prologue()
    parts = [part for group in masters(engine) for part in group]
    steps = {name: shards.step_of(name) or 0.0 for name in shards.shapes}
    for part in parts:
        for fragment, slot in part.slots(part.master):
            shards.read("master", fragment.name, fragment.start, slot)
        if all(shards.has(kind) for kind in MOMENTS):
            _fill_moments(_inner(engine), part, shards, steps)
    _fill_frozen(engine, shards)


@torch.no_grad()
def settle(engine: Any, shards: Shards, *, accumulation: int) -> None:
    """Behind `read`: weights after the masters, lr by parameter name, schedule, counters, loss scale. A collective.

    Raises CheckpointError where DeepSpeed's map of the parts is not what its weights say.
    """
    # DeepSpeed's own gather behind a load makes stage 3 in fp16 fail at its first overflow ("tracing error").
    refresh_weights(engine, gather=False)
    check_layout(engine, [part for group in masters(engine) for part in group])
    _fill_schedule(engine, shards)
    state = shards.module_state
    engine.global_steps = int(state["global_steps"])
    engine.global_samples = int(state["global_samples"])
    engine.skipped_steps = int(state["skipped_steps"])
    engine.micro_steps = engine.global_steps * accumulation
    _fill_scaler(engine, state.get("loss_scaler"))


def _inner(engine: Any) -> Any:
    """The optimizer that holds the moments, inside DeepSpeed's wrapper where there is one."""
    return getattr(engine.optimizer, "optimizer", engine.optimizer)


def named_parameters(engine: Any) -> dict[str, nn.Parameter]:
    """The parameters by the names that checkpoints use, whole or cut."""
    return {clean(name): parameter for parameter, name in engine.param_names.items()}


def check_same_parameters(engine: Any, shards: Shards) -> None:
    """Raise CheckpointError where names, shapes or what rests differ between the engine and the files."""
    ours: dict[bool, dict[str, tuple[int, ...]]] = {True: {}, False: {}}
    for name, parameter in named_parameters(engine).items():
        ours[parameter.requires_grad][name] = tuple(getattr(parameter, "ds_shape", parameter.shape))
    for mine, theirs, kind in ((ours[True], shards.shapes, "trained"), (ours[False], shards.frozen, "resting")):
        held = {name: tuple(shape) for name, shape in theirs.items()}
        wrong = sorted(name for name in mine.keys() | held.keys() if mine.get(name) != held.get(name))
        if wrong:
            raise CheckpointError(
                f"the checkpoint holds other {kind} parameters than this model",
                found=", ".join(f"{name} {held.get(name, 'missing')}" for name in wrong[:3]),
                expected=", ".join(f"{name} {mine.get(name, 'no such parameter')}" for name in wrong[:3]),
                fix="the recipe that the run was started with",
            )


def _fill_moments(optimizer: Any, part: Part, shards: Shards, steps: Mapping[str, float]) -> None:
    # After deepspeed.initialize the state is empty, except at stage 0 in half precision.
    state = optimizer.state[part.master]
    for kind in MOMENTS:
        if kind not in state:
            state[kind] = torch.zeros_like(part.master, requires_grad=False)
        for fragment, slot in part.slots(state[kind]):
            shards.read(kind, fragment.name, fragment.start, slot)
    counts = {steps[fragment.name]: fragment.name for fragment in part.fragments}
    if len(counts) > 1:
        raise CheckpointError(
            "parameters of one optimizer group were stepped differently often",
            found=", ".join(f"{name} {count:.0f} times" for count, name in sorted(counts.items())),
            fix="the ZeRO stage that the run was started with",
        )
    # A part of padding alone is stepped like the others: files whose counters differ would look like mixed ones.
    count = next(iter(counts), max(steps.values(), default=0.0))
    if not type(optimizer).__module__.startswith("torch."):  # DeepSpeed's CPU Adam counts in an int
        state["step"] = int(count)
    elif isinstance(state.get("step"), Tensor):
        state["step"].fill_(count)
    else:
        fused = any(group.get("fused") or group.get("capturable") for group in optimizer.param_groups)
        state["step"] = torch.tensor(float(count), device=part.master.device if fused else "cpu")


def _fill_frozen(engine: Any, shards: Shards) -> None:
    parameters: dict[str, Any] = named_parameters(engine)
    rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
    for name in shards.frozen:
        parameter = parameters[name]
        if not hasattr(parameter, "ds_tensor"):
            shards.read_frozen(name, 0, parameter.data.view(-1))
            continue
        share = parameter.ds_tensor.numel()
        count = min(share, parameter.ds_numel - rank * share)
        if count > 0:
            shards.read_frozen(name, rank * share, parameter.ds_tensor.data.view(-1)[:count])
    buffers = {clean(name): buffer for name, buffer in engine.module.named_buffers()}
    for name, saved in shards.buffers.items():
        if name not in buffers or buffers[name].shape != saved.shape:
            raise CheckpointError("the checkpoint holds a buffer that this model has not", found=name)
        buffers[name].copy_(saved)


def check_layout(engine: Any, parts: list[Part]) -> None:
    """Raise CheckpointError where the weights that the model computes with are not the masters at the mapped places."""
    parameters = named_parameters(engine)
    rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
    for part in parts:
        for fragment, slot in part.slots(part.master):
            parameter = parameters[fragment.name]
            own, start = parameter.data.view(-1), fragment.start
            if hasattr(parameter, "ds_tensor"):
                own, start = parameter.ds_tensor.data.view(-1), fragment.start - rank * parameter.ds_tensor.numel()
            if not torch.equal(own[start : start + fragment.count], slot.to(own.device, own.dtype)):
                raise CheckpointError(
                    f"DeepSpeed keeps the state of {fragment.name} at another place than it says",
                    found=type(engine.optimizer).__name__,
                    fix="drop unusual zero_optimization keys of the DeepSpeed JSON, or report it with that JSON",
                )


def _fill_schedule(engine: Any, shards: Shards) -> None:
    rates = {name: group["lr"] for names, group in zip(shards.groups, shards.hypers, strict=True) for name in names}
    saved = shards.module_state.get("lr_scheduler")
    if engine.lr_scheduler is not None and saved is not None:
        engine.lr_scheduler.load_state_dict(saved)
    # DeepSpeed's schedulers restore their position and not the rates: the next step would use those of step 0.
    for group, names in zip(engine.optimizer.param_groups, engine.group_names, strict=True):
        group["lr"] = rates[clean(names[0])]


def _fill_scaler(engine: Any, saved: Mapping[str, Any] | None) -> None:
    scaler = getattr(engine.optimizer, "loss_scaler", None) or getattr(engine.optimizer, "loss_scale_config", None)
    if scaler is None or not saved:
        return
    for name in ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis"):
        if name in saved and hasattr(scaler, name):
            setattr(scaler, name, saved[name])
