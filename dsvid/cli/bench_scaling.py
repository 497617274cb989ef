"""`dsvid bench scaling`: steps of masked pre-training on 1, 2 and 4 ranks of this machine, what they send, and a model.

The bytes of every collective are counted where torch is called, and set against the formulas of ZeRO. Ranks that share
cores say nothing of speed: the seconds of many devices come from a model of measured parts, and are printed as such.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dsvid.errors import DsvidError, RecipeError

TASK = "DSVID_BENCH_SCALING"  # in a rank's environment: what it does and where it writes
VALUE_BYTES = {"fp32": 4, "bf16": 2}
MODEL_DEVICES = (8, 16, 32, 64, 128, 256, 512)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure, print and return the numbers. Raises DsvidError where a rank fails."""
    task = os.environ.get(TASK)
    if task:
        measure_rank(args, Path(task))
        return {}
    worlds = _worlds(args)
    results = {}
    for world in worlds:
        with tempfile.TemporaryDirectory(prefix="dsvid-bench-") as folder:
            results[world] = start_ranks(args, world, Path(folder))
    return report(args, results)


def _worlds(args: argparse.Namespace) -> list[int]:
    """Numbers of ranks, ascending. Raises RecipeError for options that make no sense."""
    try:
        worlds = sorted({int(part) for part in args.ranks.split(",")})
    except ValueError:
        worlds = [0]
    if worlds[0] < 1:
        raise RecipeError("--ranks", found=args.ranks, expected="numbers of ranks, as 1,2,4")
    if args.device_s is None and worlds[0] != 1:
        raise RecipeError("--ranks", found=args.ranks, expected="1 among them, whose seconds the model starts from",
                          fix="--ranks 1,2,4, or --device-s")  # fmt: skip
    for name, value, least in (("repeats", args.repeats, 1), ("batch", args.batch, 1),
                               ("devices-a-node", args.devices_a_node, 1)):  # fmt: skip
        if value < least:
            raise RecipeError(f"--{name}", found=value, expected=f"at least {least}")
    for name in ("device_s", "device_gbs", "node_gbs"):
        value = getattr(args, name)
        if value is not None and not value > 0:
            raise RecipeError(f"--{name.replace('_', '-')}", found=value, expected="more than 0")
    if not 0 <= args.overlap <= 1:
        raise RecipeError("--overlap", found=args.overlap, expected="a share from 0 to 1")
    return worlds


# ---- the ranks -----------------------------------------------------------------------------------------------------


def start_ranks(args: argparse.Namespace, world: int, folder: Path) -> dict[str, Any]:
    """Run `world` ranks on this machine; returns what rank 0 measured."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [sys.executable, "-m", "dsvid", "bench", "scaling"]
    for name in ("arch", "stage", "dtype", "batch", "frames", "size", "repeats"):
        words += [f"--{name}", str(getattr(args, name))]
    shared = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world),
              "LOCAL_SIZE": str(world), "OMP_NUM_THREADS": "1", TASK: str(folder)}  # fmt: skip
    logs = [folder / f"rank-{rank}.log" for rank in range(world)]
    ranks: list[subprocess.Popen[bytes]] = []
    try:
        for rank, path in enumerate(logs):
            with path.open("wb") as out:
                own = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
                ranks.append(subprocess.Popen(words, env=own, stdout=out, stderr=subprocess.STDOUT))
        codes = [rank.poll() for rank in ranks]
        while None in codes and not any(codes):
            time.sleep(0.1)
            codes = [rank.poll() for rank in ranks]
        failed = next((number for number, code in enumerate(codes) if code), None)
    finally:
        for process in ranks:  # the others would wait for one that failed
            process.kill()
            process.wait()
    if failed is not None:
        last = logs[failed].read_text(encoding="utf-8", errors="replace").strip().splitlines()[-8:]
        raise DsvidError(f"rank {failed} of {world} failed", found="\n".join(last))
    result: dict[str, Any] = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    return result


def measure_rank(args: argparse.Namespace, folder: Path) -> None:
    """What one rank does: build the engine, step, count; rank 0 writes what it saw."""
    import torch

    from dsvid import engine as ds
    from dsvid.runtime import barrier, pick_device, read_ranks, start_log

    sent = count_collectives()  # first of all: DeepSpeed keeps torch's functions from its start on
    ranks = read_ranks()
    start_log(ranks)
    device = pick_device(ranks)
    ds.start_distributed(device, ranks)
    engine, batch = make_engine(args, device, ranks.rank)
    seconds = []
    counts: dict[str, int] = {}
    for number in range(args.repeats + 2):
        barrier()
        sent.clear()
        since = time.perf_counter()
        engine.backward(engine(batch).loss)
        ds.step(engine)
        if device.type == "cuda":
            torch.cuda.synchronize()
        counts = dict(sent)  # all steps send the same
        barrier()
        if number >= 2:  # the first steps make buffers
            seconds.append(time.perf_counter() - since)
    if ranks.first:
        parameters = ds.count_parameters(engine.module)
        result = {"parameters": parameters, "seconds": seconds, "sent": counts}
        (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")
    barrier()
    torch.distributed.destroy_process_group()


def make_engine(args: argparse.Namespace, device: Any, rank: int) -> tuple[Any, dict[str, Any]]:
    """An engine for masked pre-training of `--arch`, and a batch of clips without sense."""
    import torch

    from dsvid import engine as ds
    from dsvid.cli.bench_engine import engine_config
    from dsvid.models.sizes import encoder_size
    from dsvid.models.spec import ModelSpec, build_model
    from dsvid.objectives import PretrainObjective

    spec = ModelSpec("pretrain", args.arch, args.frames, args.size)
    config = engine_config(args.stage, args.dtype, args.batch, overlap=device.type == "cuda")

    def build() -> PretrainObjective:
        model = build_model(spec, seed=None)
        return PretrainObjective(model, spec.grid, mask_ratio=0.9)  # type: ignore[arg-type]

    objective = ds.build_module(build, config)
    values = torch.Generator().manual_seed(0)
    ds.fill_parameters(objective, lambda _, shape: torch.randn(shape, generator=values) * 0.02)
    engine = ds.build_engine(objective, config, layer_decay=1.0, depth=encoder_size(args.arch).depth)
    own = torch.Generator().manual_seed(rank)
    shape = (args.batch, args.frames, args.size, args.size, 3)
    clip = torch.randint(0, 256, shape, dtype=torch.uint8, generator=own)
    seeds = torch.arange(args.batch) + rank * args.batch
    return engine, {"clip": clip.to(device), "seed": seeds.to(device)}


# ---- counting ------------------------------------------------------------------------------------------------------

# torch's function -> the argument that holds the whole: what is gathered, scattered, summed
_WHOLE: dict[str, Callable[..., Any]] = {
    "all_reduce": lambda tensor, *_, **__: tensor,
    "reduce": lambda tensor, *_, **__: tensor,
    "broadcast": lambda tensor, *_, **__: tensor,
    "all_gather_into_tensor": lambda output_tensor, *_, **__: output_tensor,
    "_all_gather_base": lambda output_tensor, *_, **__: output_tensor,
    "_reduce_scatter_base": lambda output, input, *_, **__: input,
    "reduce_scatter_tensor": lambda output, input, *_, **__: input,
    "all_gather": lambda tensor_list, *_, **__: tensor_list,
    "reduce_scatter": lambda output, input_list, *_, **__: input_list,
    "all_to_all_single": lambda output, *_, **__: output,
}


def count_collectives() -> dict[str, int]:
    """From now on the bytes of torch's collectives by name: of the whole tensor that each gathers, scatters or sums."""
    import torch

    counted: dict[str, int] = defaultdict(int)
    inside = False

    def counting(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal inside
            if not inside:  # one of them may be made of others
                whole = _WHOLE[name](*args, **kwargs)
                parts = whole if isinstance(whole, list | tuple) else [whole]
                counted[name] += sum(part.numel() * part.element_size() for part in parts)
            outermost, inside = not inside, True
            try:
                return real(*args, **kwargs)
            finally:
                inside = not outermost

        return call

    for name in _WHOLE:
        if hasattr(torch.distributed, name):
            setattr(torch.distributed, name, counting(name, getattr(torch.distributed, name)))
    return counted


def gathered_bytes(sent: dict[str, int]) -> int:
    """Bytes in units of one gathering or scattering: a sum over all ranks is one of each."""
    return sum(size * (2 if name == "all_reduce" else 1) for name, size in sent.items())


# ---- the report ----------------------------------------------------------------------------------------------------


def report(args: argparse.Namespace, results: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """Print two tables and return their numbers."""
    parameters = next(iter(results.values()))["parameters"]
    rows = [measured_row(args, world, result) for world, result in results.items()]
    print(f"{args.arch}, ZeRO-{args.stage} {args.dtype}, {args.batch} clips a rank; ranks share this machine's cores")
    print(" ranks  s a step  clips/s  in collectives     formula   ratio  sent a rank")
    for row in rows:
        ratio = f"{row['ratio']:.3f}" if row["ratio"] else "–"
        print(
            f"{row['ranks']:>6}{row['seconds']:>10.3f}{row['clips_per_s']:>9.2f}{row['bytes'] / 1e6:>13.2f} MB"
            f"{row['formula_bytes'] / 1e6:>9.2f} MB{ratio:>8}{row['sent_bytes'] / 1e6:>10.2f} MB"
        )
    first, volume = rows[0]["seconds"], rows[-1]["bytes"] or rows[-1]["formula_bytes"]
    sent = f"sent as counted on {rows[-1]['ranks']} ranks" if rows[-1]["bytes"] else "sent as the formula says"
    model = modelled_rows(args, volume, args.device_s or first)
    source = "given" if args.device_s else "measured here on one rank"
    print(
        f"\nA model, not a measurement: {args.device_s or first:.4f} s of compute a step ({source}), "
        f"{args.device_gbs:g} GB/s a device,\n{args.node_gbs:g} GB/s a node of {args.devices_a_node}, "
        f"{sent}, {args.overlap:.0%} of it behind the backward"
    )
    print(" devices  sending, s  s a step    clips/s  efficiency")
    for row in model:
        print(
            f"{row['devices']:>8}{row['communication_s']:>12.4f}{row['seconds']:>10.4f}{row['clips_per_s']:>11.0f}"
            f"{row['efficiency']:>12.1%}"
        )
    return {"arch": args.arch, "stage": args.stage, "dtype": args.dtype, "parameters": parameters,
            "measured": rows, "model": model}  # fmt: skip


def measured_row(args: argparse.Namespace, world: int, result: dict[str, Any]) -> dict[str, Any]:
    """A number of ranks: its median second, and what went through collectives against the formula."""
    from dsvid.communication import ring_share, values_in_collectives

    seconds, size = statistics.median(result["seconds"]), VALUE_BYTES[args.dtype]
    formula = values_in_collectives(args.stage, result["parameters"]) * size
    measured = gathered_bytes(result["sent"]) if world > 1 else 0
    return {
        "ranks": world,
        "seconds": seconds,
        "clips_per_s": world * args.batch / seconds,
        "bytes": measured,
        "formula_bytes": formula,
        "ratio": measured / formula if world > 1 else None,
        "sent_bytes": ring_share(world) * measured,
        "collectives": result["sent"],
        "repeats": result["seconds"],
    }


def modelled_rows(args: argparse.Namespace, volume: int, compute_s: float) -> list[dict[str, Any]]:
    """Many devices, by `dsvid.communication`, each with `volume` bytes in its collectives."""
    from dsvid.communication import Links, communication_s, step_s

    links = Links(args.device_gbs * 1e9, args.node_gbs * 1e9, args.devices_a_node)
    rows = []
    for devices in MODEL_DEVICES:
        sending = communication_s(volume, devices, links)
        seconds = step_s(compute_s, sending, args.overlap)
        rows.append({"devices": devices, "communication_s": sending, "seconds": seconds,
                     "clips_per_s": devices * args.batch / seconds, "efficiency": compute_s / seconds})  # fmt: skip
    return rows
