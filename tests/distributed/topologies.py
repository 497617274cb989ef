"""One rank of the topology tests: train, save, load into another topology, go on. A job a line of a JSON list.

The model has what makes resuming hard: several optimizer groups with their own lr and decay, parameters smaller than
the number of ranks, a tied weight, frozen tensors that are not at their initial values, float, integer and
non-persistent buffers.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dsvid import checkpoint, partition
from dsvid import engine as ds
from dsvid.averaging import MovingAverage
from dsvid.runfolder import RunFolder
from dsvid.runtime import agree_sum, pick_device, read_ranks, start_log

BATCH, DIM, DEPTH = 8, 12, 3
CPU = torch.device("cpu")


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(DIM)
        self.fc = nn.Linear(DIM, DIM)
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale.to(x.dtype) * torch.tanh(self.fc(self.norm1(x)))


class Lone(nn.Module):
    """A parameter that is an optimizer group of its own, smaller than the ranks: some of them hold padding alone."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale.to(x.dtype)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = nn.Linear(5, DIM)
        self.rest = nn.Linear(DIM, DIM)  # frozen
        self.blocks = nn.ModuleList([*(Block() for _ in range(DEPTH - 1)), Lone()])
        self.three = nn.Parameter(torch.ones(3))
        self.aux = nn.Linear(DIM, 5)
        self.head = nn.Linear(DIM, 5)
        self.head.weight = self.aux.weight
        self.register_buffer("running", torch.zeros(DIM))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("scratch", torch.zeros(4), persistent=False)
        for parameter in self.rest.parameters():
            parameter.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.rest(self.patch_embed(x))
        for block in self.blocks:
            hidden = block(hidden)
        if self.count < 4:  # buffers that went on with every forward would depend on the micro-batch
            self.count += 1
            self.running.copy_((self.count.float() * 0.125).expand(DIM))
        hidden = hidden + self.running.to(hidden.dtype) * 0.01
        return (self.head(hidden) * self.three.sum() + self.aux(hidden)).float()


def value(name: str, shape: torch.Size, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed * 1000 + sum(map(ord, name)))
    return torch.randn(shape, generator=generator) * 0.3 + (1.0 if name.endswith(("scale", "three")) else 0.0)


def clips(first: int, count: int) -> tuple[Tensor, Tensor]:
    rows = [torch.randn(5, generator=torch.Generator().manual_seed(first + i)) for i in range(count)]
    x = torch.stack(rows)
    return x, torch.sin(3 * x).roll(1, dims=1)


def settings(job: dict[str, Any], world: int) -> dict[str, Any]:
    micro = job.get("micro", BATCH // world)
    return {
        "train_batch_size": BATCH,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": BATCH // world // micro,
        "gradient_clipping": 1.0,
        "steps_per_print": 1 << 30,
        "zero_optimization": {"stage": job["stage"], **job.get("zero", {})},
        "bf16": {"enabled": job.get("bf16", False)},
        "optimizer": {"type": "AdamW", "params": {"lr": 0.02, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1}},
        "scheduler": {
            "type": "VideoMAECosine",
            "params": {"total_num_steps": 20, "warmup_num_steps": 3, "cos_min_ratio": 0.01},
        },
        **job.get("json", {}),
    }


def build(job: dict[str, Any], world: int) -> Any:
    config = settings(job, world)
    module = ds.build_module(Net, config)
    seed = job.get("seed", 1)
    ds.fill_parameters(module, lambda name, shape: value(name, shape, seed))
    return ds.build_engine(module, config, layer_decay=0.7, depth=DEPTH, weight_decay_end=0.2)


def train(engine: Any, start: int, steps: int, rank: int, world: int, average: MovingAverage | None) -> list[float]:
    losses = []
    micro, accumulation = engine.train_micro_batch_size_per_gpu(), engine.gradient_accumulation_steps()
    for step in range(start, start + steps):
        own = 0.0
        for turn in range(accumulation):
            x, y = clips(step * BATCH + (turn * world + rank) * micro, micro)
            loss = (engine(x.to(next(engine.module.parameters()).dtype)) - y).square().mean()
            engine.backward(loss)
            own += float(loss.detach())
            ds.step(engine)
        losses.append(agree_sum([own / accumulation], CPU)[0] / world)
        if average is not None:
            average.update()
    return losses


def spoil(engine: Any, how: str) -> None:
    """The negative controls: one small thing that a resume might lose."""
    inner = getattr(engine.optimizer, "optimizer", engine.optimizer)
    parts = [part for group in partition.masters(engine) for part in group]
    for part in parts:
        state = inner.state[part.master]
        if how in ("exp_avg", "exp_avg_sq"):
            state[how].zero_()
        elif how == "step":
            state["step"] += 1
        elif how == "one moment":
            for kind in partition.MOMENTS:
                for fragment, slot in part.slots(state[kind]):
                    if fragment.name == "blocks.0.scale":
                        slot.zero_()
    if how == "one lr":
        engine.optimizer.param_groups[0]["lr"] *= 1.001
    elif how == "schedule":
        engine.lr_scheduler.step()
    elif how == "decay":
        for group in engine.optimizer.param_groups:
            group["weight_decay"] = 0.1
    elif how == "group lr":
        for group in engine.optimizer.param_groups:
            group["lr"] = engine.optimizer.param_groups[0]["lr"]


def run(job: dict[str, Any], ranks: Any) -> dict[str, Any]:
    folder = RunFolder(Path(job["out"]))
    folder.checkpoints.mkdir(parents=True, exist_ok=True)
    engine = build(job, ranks.world)
    average = MovingAverage(engine, 0.9) if job.get("average", True) else None
    facts = {"stage": job["stage"], "precision": "bf16" if job.get("bf16") else "fp32", "train_list": "x"}

    def save(step: int) -> None:
        contents = average.contents(ranks) if average is not None else None
        extras = [checkpoint.Extra(*contents)] if contents is not None else []
        checkpoint.save(
            engine, folder, step=step, ranks=ranks, keep=9, extras=extras,
            facts={**facts, "samples": step * BATCH, "groups": engine.group_names},
        )  # fmt: skip

    start, result = 0, {}
    if "load" in job:
        found = checkpoint.find(RunFolder(Path(job["load"])), "must", ranks)
        assert found is not None
        accumulation = engine.gradient_accumulation_steps()
        more = average.fill if average is not None else None
        checkpoint.load(engine, found, ranks=ranks, accumulation=accumulation, more=more)
        start = found.step
        if "spoil" in job:
            spoil(engine, job["spoil"])
        result["scratch"] = float(engine.module.scratch.sum())
        if job.get("save", True):
            save(start)  # what was loaded, written again: the two folders must hold the same numbers
    if "steps" in job:
        train(engine, start, job["steps"], ranks.rank, ranks.world, average)
        start += job["steps"]
        save(start)
    result["losses"] = train(engine, start, job.get("more", 3), ranks.rank, ranks.world, None)
    result["lrs"] = [group["lr"] for group in engine.optimizer.param_groups]
    result["decays"] = [group["weight_decay"] for group in engine.optimizer.param_groups]
    engine.destroy()
    return result


def main() -> None:
    ranks = read_ranks()
    start_log(ranks)
    torch.set_num_threads(1)
    ds.start_distributed(pick_device(ranks), ranks)
    results = [run(job, ranks) for job in json.loads(Path(sys.argv[1]).read_text())]
    if ranks.first:
        Path(sys.argv[2]).write_text(json.dumps(results))


if __name__ == "__main__":
    main()
    torch.distributed.destroy_process_group()  # else its threads may outlive the interpreter: an abort now and then
