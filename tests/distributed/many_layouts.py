"""One rank: train a small odd model at every ZeRO stage and precision, save DeepSpeed's files, and beside them the fp32
state that the engine itself holds, gathered part by part (`held.pt`): what a reader of the files must find.
"""

import json
import math
import sys
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from torch import Tensor, nn

from dsvid import engine as ds
from dsvid import partition
from dsvid.runtime import pick_device, read_ranks

# name: stage, bf16, more of the JSON
CASES: dict[str, tuple[int, bool, dict[str, Any]]] = {
    **{f"{'bf16' if half else 'fp32'}-z{stage}": (stage, half, {}) for stage in range(4) for half in (False, True)},
    "z3-small": (3, True, {"zero_optimization": {"stage": 3, "sub_group_size": 70}}),
    "z3-kept": (3, False, {"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 100000}}),
    "z2-offload": (2, True, {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}),
    "z3-offload": (
        3,
        True,
        {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"}}},
    ),
    "z1-bf16opt": (1, True, {"data_types": {"grad_accum_dtype": "fp32"}}),
    "z2-robin": (2, True, {"zero_optimization": {"stage": 2, "round_robin_gradients": True}}),
    "z0-flat": (0, True, {}),
    "z2-fresh": (2, True, {}),
}


class Odd(nn.Module):
    """Parameters of one and of three numbers, a tied weight, frozen ones, and buffers of three kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(7, 13)
        self.body = nn.Sequential(nn.Linear(13, 13), nn.GELU(), nn.Linear(13, 13))
        self.still = nn.Linear(13, 13)
        self.scale = nn.Parameter(torch.ones(1))
        self.shift = nn.Parameter(torch.zeros(3))
        self.head = nn.Linear(13, 5, bias=False)
        self.aux = nn.Linear(13, 5, bias=False)
        self.aux.weight = self.head.weight
        self.register_buffer("mean", torch.randn(4))
        self.register_buffer("seen", torch.tensor([1, 2, 3]))
        self.register_buffer("scratch", torch.ones(2), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.still(self.body(self.first(x))) * self.scale
        return (self.head(x) + self.aux(x)).square().mean() + (self.shift * self.shift).sum() + self.shift.sum()


class FlatAdam(deepspeed.ops.adam.FusedAdam):  # type: ignore[misc]
    """What DeepSpeed takes for its FusedAdam, without its compile: gives the flat layout of stage 0."""

    def __init__(self, groups: list[dict[str, Any]], lr: float) -> None:
        torch.optim.Optimizer.__init__(
            self, groups, {"lr": lr, "weight_decay": 0.0, "betas": (0.9, 0.999), "eps": 1e-8}
        )

    @torch.no_grad()
    def step(self, closure: Any = None, grads: Any = None, **_: Any) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state.update(step=0, exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))
                state["step"] += 1
                state["exp_avg"].lerp_(p.grad.float(), 0.1)
                state["exp_avg_sq"].lerp_(p.grad.float().square(), 0.001)
                p.sub_(state["exp_avg"] * group["lr"])


def build(stage: int, config: dict[str, Any]) -> nn.Module:
    def make() -> nn.Module:
        torch.manual_seed(3)
        return Odd()

    if stage < 3:
        model = make()
    else:
        with deepspeed.zero.Init(config_dict_or_path=config):
            model = make()
    for parameter in model.still.parameters():
        parameter.requires_grad_(False)
    return model


def whole(parts: dict[tuple[str, str], list[tuple[int, Tensor]]], shapes: dict[str, list[int]]) -> dict[str, Any]:
    """Every rank's parts of every kind and name, put together on all ranks."""
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, parts)
    out: dict[str, dict[str, Tensor]] = {}
    for rank in gathered:
        for (kind, name), pieces in rank.items():
            flat = out.setdefault(kind, {}).setdefault(name, torch.full((math.prod(shapes[name]),), math.nan))
            for start, piece in pieces:
                flat[start : start + piece.numel()] = piece
    return out


def local_parts(engine: Any, stage: int, groups: list[list[str]]) -> dict[tuple[str, str], list[tuple[int, Tensor]]]:
    """This rank's parts, by the addresses that DeepSpeed's own objects hold."""
    optimizer = engine.optimizer
    inner = getattr(optimizer, "optimizer", optimizer)
    names = {parameter: name for name, parameter in engine.module.named_parameters()}
    parts: dict[tuple[str, str], list[tuple[int, Tensor]]] = {}

    def add(name: str, start: int, offset: int, numel: int, flat: Tensor, key: Tensor) -> None:
        held = {"master": flat, **{k: v for k, v in inner.state.get(key, {}).items() if k.startswith("exp_avg")}}
        for kind, source in held.items():
            piece = source.detach().reshape(-1)[offset : offset + numel].float().clone()
            parts.setdefault((kind, name), []).append((start, piece))

    if stage == 0:
        parameters = dict(engine.module.named_parameters())
        if hasattr(optimizer, "fp32_groups_flat"):
            for group, flat in zip(groups, optimizer.fp32_groups_flat, strict=True):
                offset = 0
                for name in group:
                    add(name, 0, offset, parameters[name].numel(), flat, flat)
                    offset += parameters[name].numel()
            return parts
        for g, group in enumerate(groups):
            for i, name in enumerate(group):
                master = optimizer.fp32_groups[g][i] if hasattr(optimizer, "fp32_groups") else parameters[name]
                add(name, 0, 0, master.numel(), master, master)
    elif stage == 3:
        rank = dist.get_rank()
        for sub_group, members in enumerate(optimizer.fp16_groups):
            flat = optimizer.fp32_partitioned_groups_flat[sub_group]
            for p in members:
                offset, share = optimizer.grad_position[optimizer.get_param_id(p)][1:3]
                numel = max(0, min(share, p.ds_numel - rank * share))
                if numel:
                    add(names[p], rank * share, offset, numel, flat, flat)
    else:
        flats = getattr(optimizer, "fp32_groups_flat_partition", None) or optimizer.single_partition_of_fp32_groups
        listed = getattr(optimizer, "bf16_groups", None) or optimizer.bit16_groups
        for flat, members in zip(flats, listed, strict=True):
            for p in members:
                if p._hp_mapping is not None:
                    here, there = p._hp_mapping.lp_fragment_address, p._hp_mapping.hp_fragment_address
                    add(names[p], here.start, there.start, here.numel, flat, flat)
    return parts


def train(engine: Any, rank: int, steps: int) -> None:
    dtype = next(engine.module.parameters()).dtype
    for step in range(steps):
        torch.manual_seed(100 * step + rank)
        engine.backward(engine(torch.randn(4, 7).to(dtype)))
        engine.step()


def run(name: str, out: Path, rank: int) -> None:
    stage, half, more = CASES[name]
    config = {
        "train_micro_batch_size_per_gpu": 4,
        "zero_optimization": {"stage": stage},
        "bf16": {"enabled": half},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        **more,
    }
    model = build(stage, config)
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    names = [n for n in parameters if n != "scale"]
    groups = [names[:3], names[3:], ["scale"]]
    listed = [
        {"params": [parameters[n] for n in group], "lr": 0.01 * (i + 1), "weight_decay": 0.1 * i}
        for i, group in enumerate(groups)
    ]
    optimizer = FlatAdam(listed, lr=0.01) if name == "z0-flat" else torch.optim.AdamW(listed, lr=0.01)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    engine, *_ = deepspeed.initialize(model=model, config=config, optimizer=optimizer, lr_scheduler=scheduler)
    train(engine, rank, 0 if name == "z2-fresh" else 2)
    engine.save_checkpoint(str(out), tag=name, client_state={"dsvid": {"samples": 8}}, save_latest=False)
    averages = [[part.master.detach().float() + 1 for part in group] for group in partition.masters(engine)]
    torch.save({"groups": averages}, out / name / f"ema_rank_{rank:05d}.pt")
    shapes = {n: list(getattr(p, "ds_shape", p.shape)) for n, p in engine.module.named_parameters()}
    held: dict[str, Any] = whole(local_parts(engine, stage, groups), shapes)
    if name == "z2-robin":  # DeepSpeed's own addresses are wrong here (its `_hp_mapping`); the model's weights are not
        held = {"weights": {n: p.detach().float().reshape(-1).clone() for n, p in parameters.items()}}
    frozen = {}
    for n, p in engine.module.named_parameters():
        if not p.requires_grad:
            with deepspeed.zero.GatheredParameters([p], enabled=stage == 3):
                frozen[n] = p.detach().reshape(-1).clone()
    inner = getattr(engine.optimizer, "optimizer", engine.optimizer)
    if rank == 0:
        (out / name / "manifest.json").write_text(json.dumps({"groups": groups, "world_size": dist.get_world_size()}))
        buffers = {n: b.clone() for n, b in engine.module.named_buffers()}
        hypers = [{k: v for k, v in group.items() if k in ("lr", "weight_decay")} for group in inner.param_groups]
        torch.save(
            {**held, "frozen": frozen, "buffers": buffers, "shapes": shapes, "hypers": hypers, "groups": groups},
            out / name / "held.pt",
        )
    dist.barrier()
    engine.destroy()


def main(out: Path, names: list[str]) -> None:
    ranks = read_ranks()
    ds.start_distributed(pick_device(ranks), ranks)
    for name in names or CASES:
        run(name, out, ranks.rank)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
    torch.distributed.destroy_process_group()  # else its threads may outlive the interpreter: an abort now and then
