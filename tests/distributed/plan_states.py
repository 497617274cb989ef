"""One rank: for each case an engine as the trainer builds it, two micro-batches and a step; what it holds, in bytes,
and what its checkpoint weighs. Tensors are found from the engine's parameters and its optimizer's own attributes.
"""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import torch

from dsvid import deepspeed_json, job
from dsvid import engine as ds
from dsvid.averaging import MovingAverage
from dsvid.models.spec import build_model
from dsvid.recipe import load_recipe
from dsvid.runtime import pick_device, read_ranks
from dsvid.schedule import resolve_schedule
from dsvid.tasks import task_of

SEEN_NOT = (type, types.ModuleType, types.FunctionType, types.MethodType, torch.nn.Module)


class Holdings:
    """Storages by address: {address: (bytes, where)}."""

    def __init__(self, engine: Any, bucket_bytes: int) -> None:
        self.found: dict[int, tuple[int, str]] = {}
        self.seen: set[int] = set()
        self.bucket_bytes = bucket_bytes
        for parameter in engine.module.parameters():
            self.walk(parameter, "weights", 0)
        self.walk(engine.optimizer, "optimizer", 0)

    def walk(self, thing: Any, where: str, depth: int) -> None:
        if id(thing) in self.seen or depth > 7:
            return
        self.seen.add(id(thing))
        if isinstance(thing, torch.Tensor):
            self.tensor(thing, where, depth)
        elif isinstance(thing, dict):
            for key, value in list(thing.items()):
                self.walk(key, where, depth + 1)
                self.walk(value, where, depth + 1)
        elif isinstance(thing, list | tuple | set):
            for value in thing:
                self.walk(value, where, depth + 1)
        elif hasattr(thing, "__dict__") and not isinstance(thing, SEEN_NOT):
            for value in list(vars(thing).values()):
                self.walk(value, where, depth + 1)

    def tensor(self, tensor: torch.Tensor, where: str, depth: int) -> None:
        storage = tensor.untyped_storage()
        # buffers of the reduction have one size, and are no states
        if storage.data_ptr() and storage.nbytes() != self.bucket_bytes:
            self.found.setdefault(storage.data_ptr(), (storage.nbytes(), where))
        if tensor.is_leaf and tensor.grad is not None:
            self.walk(tensor.grad, "gradients", depth + 1)
        if hasattr(tensor, "ds_tensor"):
            self.walk(tensor.ds_tensor, where, depth + 1)

    def total(self, where: str = "") -> int:
        return sum(size for size, place in self.found.values() if place.startswith(where))


def measure(case: dict[str, Any], ranks: Any, folder: Path) -> dict[str, Any]:
    recipe = load_recipe("demo_pretrain", case["ours"])
    schedule = resolve_schedule(recipe, world=ranks.world, videos=64)
    config = deepspeed_json.resolve(case["tree"], case["theirs"], recipe, schedule)
    spec = job.model_spec(recipe)
    objective = ds.build_module(lambda: task_of(recipe).objective(recipe, build_model(spec, seed=None)), config)
    ds.fill_parameters(objective, lambda name, shape: torch.full(shape, 0.01))
    engine = ds.build_engine(objective, config, layer_decay=1.0, depth=spec.encoder_size.depth)
    average = MovingAverage(engine, 0.9) if recipe.optim.ema_decay else None
    half = deepspeed_json.precision(config) == "bf16"
    bucket = config["zero_optimization"]["reduce_bucket_size"] * (2 if half else 4)
    clip = torch.zeros(recipe.batch.micro, recipe.data.num_frames, *(2 * [recipe.data.input_size]), 3).byte()
    batch = {"clip": clip, "seed": torch.arange(recipe.batch.micro)}
    totals = []
    for _ in range(2 * schedule.accumulation):  # the moments are made in the first step
        engine.backward(engine(batch).loss)
        totals.append(Holdings(engine, bucket).total())
        ds.step(engine)
    after = Holdings(engine, bucket)
    averages = [tensor for group in average.groups for tensor in group] if average is not None else []
    place = folder / str(case["name"])
    place.mkdir(exist_ok=True)
    ds.save_shards(engine, place / "step", {}, lambda path, contents: _save(path, contents))
    torch.distributed.barrier()
    engine.destroy()
    return {
        "backward": max(totals[schedule.accumulation :]),
        "after": after.total(),
        "weights": after.total("weights"),
        "average": sum(tensor.numel() * tensor.element_size() for tensor in averages),
        "checkpoint": sum(path.stat().st_size for path in (place / "step").iterdir()),
    }


def _save(path: Path, contents: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(contents, path)


def main() -> None:
    cases, folder = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    ranks = read_ranks()
    torch.set_num_threads(1)
    ds.start_distributed(pick_device(ranks), ranks)
    results = {case["name"]: measure(case, ranks, folder) for case in cases}
    (folder / f"held-{ranks.rank}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main()
    torch.distributed.destroy_process_group()  # else its threads may outlive the interpreter: an abort now and then
