"""One rank of a test with sick numbers: `dsvid.train.main` for each job, in one process, its losses spoilt on purpose.

A job's "sick": [{"rank", "forwards", "do"}]; in the forwards of that number (counted from 1 in the job) the loss
becomes NaN ("nan"), its gradient infinite ("inf gradient"), or both 50 times as large ("jump"). "disk": [forward,
bytes]: at that forward the disk of the run is filled up to so many free bytes; [forward, 0]: it is freed again.
"""

import json
import math
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import torch

from dsvid import checkpoint, partition, train
from dsvid import engine as ds
from dsvid.objectives.pretrain import PretrainObjective
from dsvid.weights.shards import open_shards

RANK = int(os.environ["RANK"])
plain_forward, plain_step, plain_load = PretrainObjective.forward, ds.step, checkpoint.load
job: dict[str, Any] = {}
forwards = 0


def forward(self: PretrainObjective, batch: Any) -> Any:
    global forwards
    out = plain_forward(self, batch)
    forwards += 1
    for sick in job.get("sick", []):
        if sick["rank"] in (RANK, "all") and forwards in sick["forwards"]:
            if sick["do"] == "nan":
                out.loss = out.loss * math.nan
            elif sick["do"] == "jump":
                out.loss = out.loss * 50
            else:
                out.loss.register_hook(lambda gradient: gradient * math.inf)
    for number, free in job.get("disk", []):
        if number == forwards and RANK == 0:
            fill(Path(job["argv"][3]).parent, free)
    return out


def fill(disk: Path, free: int) -> None:
    ballast = disk / "ballast"
    ballast.unlink(missing_ok=True)
    if free:
        ballast.write_bytes(b"x" * (shutil.disk_usage(disk).free - free))


def step(engine: Any) -> Any:
    """The real step; where it was skipped, whether the masters are the same bits as before is printed."""
    if "/checkpoints/step-" in Path("/proc/self/maps").read_text():
        print(f"MAPPED {job['name']}", flush=True)
    before = [part.master.detach().clone() for group in partition.masters(engine) for part in group]
    taken = plain_step(engine)
    after = [part.master.detach() for group in partition.masters(engine) for part in group]
    same = all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    if not taken.applied or same:
        print(f"SKIPPED {job['name']} {'same' if same else 'CHANGED'} {taken.applied}", flush=True)
    return taken


def no_memory(*_: Any) -> None:
    raise torch.OutOfMemoryError("out of memory while the moments are made")


def load(engine: Any, found: Any, **more: Any) -> None:
    """The real load; whether the engine then holds the bits of the files is printed. "fails": not on that rank."""
    if job.get("fails") == RANK:
        partition.read = no_memory  # type: ignore[assignment]
    plain_load(engine, found, **more)
    shards = open_shards(found.folder)
    inner = getattr(engine.optimizer, "optimizer", engine.optimizer)
    same = []
    for part in (part for group in partition.masters(engine) for part in group):
        for kind in ("master", *partition.MOMENTS):
            held = part.master if kind == "master" else inner.state[part.master][kind]
            for fragment, slot in part.slots(held):
                saved = torch.empty_like(slot)
                shards.read(kind, fragment.name, fragment.start, saved)
                same.append(torch.equal(saved, slot) and float(inner.state[part.master]["step"]) == found.step)
    print(f"LOADED {job['name']} {len(same)} {all(same)}", flush=True)


PretrainObjective.forward, ds.step, checkpoint.load = forward, step, load  # type: ignore[method-assign,assignment]
for job in json.loads(Path(sys.argv[1]).read_text()):
    forwards = 0
    print(f"EXIT {job['name']} {train.main(job['argv'])}", flush=True)
