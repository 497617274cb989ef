"""A rank that keeps dsvid's promises about signals and files and computes nothing: real launchers start it in no time.

`train.py --out DIR [steps=N] [save_s=S] [deaf=1] [child=1] [die=RANK:STEP [saves=1]]`
Ranks agree through files in DIR, where a training would all-reduce.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
words = sys.argv[1:]
out = Path(words[words.index("--out") + 1])
options = dict(word.split("=", 1) for word in words if "=" in word and not word.startswith("--"))
steps, save_s = int(options.get("steps", "100000")), float(options.get("save_s", "0"))
checkpoints, stop_at = out / "checkpoints", out / ".stop_at"
notes = []


def note(number: int, _frame: object) -> None:
    notes.append(signal.Signals(number).name)
    with (out / f"signals-{rank}").open("a") as signals:
        signals.write(signal.Signals(number).name + "\n")


def save(step: int) -> None:
    """Each rank its part; rank 0 publishes when all are there."""
    time.sleep(save_s)
    (out / f".part-{step}-{rank}").write_text("part")
    while len(list(out.glob(f".part-{step}-*"))) < world:
        time.sleep(0.01)
    folder = checkpoints / f"step-{step:08d}"
    if rank == 0:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "manifest.json").write_text(json.dumps({"step": step}))
    while not (folder / "manifest.json").is_file():
        time.sleep(0.01)


out.mkdir(parents=True, exist_ok=True)
if options.get("child"):  # as a loader worker: the rank's environment, and no answer to signals
    child = subprocess.Popen(["bash", "-c", "trap '' USR1 TERM INT; sleep 1000"])
    (out / f"pid-child-{rank}").write_text(str(child.pid))
(out / f"environment-{rank}.json").write_text(json.dumps(dict(os.environ)))
(out / f"arguments-{rank}.json").write_text(
    json.dumps([word for word in words if not word.startswith("--local_rank=")])
)
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
    signal.signal(number, signal.SIG_IGN if options.get("deaf") else note)
(out / f"pid-{rank}").write_text(str(os.getpid()))
if rank == 0:
    stop_at.unlink(missing_ok=True)
    (out / "recipe.yaml").write_text("task: pretrain\n")
step = max((int(path.name[5:]) for path in checkpoints.glob("step-*")), default=0)
while step < steps:
    step += 1
    time.sleep(0.05)
    if rank == 0:
        with (out / "metrics.jsonl").open("a") as metrics:
            metrics.write(json.dumps({"kind": "train", "step": step}) + "\n")
        if len(list(out.glob("pid-[0-9]*"))) >= world:  # all have their handlers
            (out / "ready").touch()
    if notes:
        (out / f".asked-{rank}").touch()
    if rank == 0 and (list(out.glob(".asked-*")) or ((out / "stop").exists() and not options.get("deaf"))):
        (out / "stop").unlink(missing_ok=True)
        stop_at.write_text(str(step))
    if stop_at.exists() and stop_at.read_text():
        save(int(stop_at.read_text()))
        for path in out.glob(f".asked-{rank}"):
            path.unlink()
        sys.exit(75)
    if options.get("die") == f"{rank}:{step}":
        if options.get("saves"):
            options.pop("saves")
            (checkpoints / f"step-{step:08d}").mkdir(parents=True)
            (checkpoints / f"step-{step:08d}" / "manifest.json").write_text("{}")
        os.kill(os.getpid(), signal.SIGKILL)
if rank == 0:
    (out / "done").touch()
