"""Run folders as a training leaves them, made without one: small, or with everything that can go wrong in them."""

from __future__ import annotations

import hashlib
import json
import math
import struct
import zlib
from pathlib import Path
from typing import Any

from dsvid.checkpoint_files import MANIFEST, own_hash
from dsvid.recipe import dump_yaml, load_recipe

STEPS_PER_EPOCH = 100  # of 1600 built-in clips in batches of 16


def make_settings(folder: Path, name: str = "demo_pretrain", *words: str, **changes: Any) -> Path:
    """recipe.yaml, ds_config.json and run.json of one start; `changes` are recipe keys with `__` for dots."""
    folder.mkdir(parents=True, exist_ok=True)
    dotted = {key.replace("__", "."): value for key, value in changes.items()}
    recipe = load_recipe(name, dotted)
    (folder / "recipe.yaml").write_text(dump_yaml(recipe))
    scheduler = {"type": "VideoMAECosine", "params": {"total_num_steps": STEPS_PER_EPOCH * recipe.run.epochs}}
    config = {"zero_optimization": {"stage": 2}, "bf16": {"enabled": True}, "scheduler": scheduler}
    (folder / "ds_config.json").write_text(json.dumps(config))
    argv = ["dsvid/train.py", "--ds_config", "ds_configs/zero2.json", "--recipe", name, "--out", str(folder), *words]
    make_starts(folder, argv, [0])
    return folder


def make_starts(folder: Path, argv: list[str], steps: list[int], **more: Any) -> None:
    """run.json of as many starts as there are steps to go on from."""
    starts = [
        {"time": f"2026-11-{20 + at:02}T10:00:00+0000", "argv": argv, "host": "node1", "world_size": 2,
         "git_commit": "0123456789abcdef", "versions": {"torch": "2.14.1"}, "resumed_step": step, **more}
        for at, step in enumerate(steps)
    ]  # fmt: skip
    (folder / "run.json").write_text(json.dumps({**starts[-1], "starts": starts}))


def train_row(step: int, **changes: Any) -> dict[str, Any]:
    loss = 0.8 + 0.5 * math.exp(-step / 300) + 0.01 * math.sin(7.3 * step)
    return {"kind": "train", "step": step, "epoch": step / STEPS_PER_EPOCH, "samples": 16 * step, "loss": loss,
            "lr": 6e-4, "grad_norm": 0.3, "clips_per_s": 64.0, "step_s": 0.25, "data_s": 0.002, "mfu": None,
            "mem_gb": 1.5, **changes}  # fmt: skip


def write_rows(path: Path, rows: list[dict[str, Any]], end: str = "") -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + end)


def make_trained(folder: Path, steps: range = range(10, 401, 10), **changes: Any) -> Path:
    """A run with training lines, of demo_pretrain."""
    make_settings(folder)
    write_rows(folder / "metrics.jsonl", [train_row(step, **changes) for step in steps])
    return folder


def make_weights(folder: Path, step: int) -> None:
    (folder / "weights").mkdir()
    (folder / "weights" / "config.json").write_text(json.dumps({"trained": {"steps": step}}))


def make_checkpoint(folder: Path, step: int, content: bytes = b"shard") -> Path:
    target = folder / "checkpoints" / f"step-{step:08d}"
    target.mkdir(parents=True)
    (target / "model.pt").write_bytes(content)
    entry = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    manifest: dict[str, Any] = {"format": 1, "step": step, "files": {"model.pt": entry}}
    (target / MANIFEST).write_text(json.dumps({**manifest, "self_sha256": own_hash(manifest)}))
    return target


def make_log(folder: Path, *records: str) -> None:
    (folder / "logs").mkdir(exist_ok=True)
    text = "".join(f"2026-11-27 05:16:28,388 {record}\n" for record in records)
    (folder / "logs" / "rank-00000.log").write_text(text)


def png(width: int = 8, height: int = 4) -> bytes:
    """A grey PNG."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = zlib.compress((b"\0" + b"\x80" * width) * height)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def make_picture(folder: Path, step: int) -> Path:
    path = folder / "pictures" / f"reconstruction-{step:08d}.png"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(png())
    return path


EVIL = '<script>alert("x")</script>\x1b[31m&amp;"onload="'


def make_eventful(folder: Path) -> Path:
    """A fine-tuning of thousands of lines in which everything happened that a run folder can tell of."""
    make_settings(folder, "demo_finetune", "ds.bf16.enabled=false", "run.epochs=300", run__epochs=300)
    argv = json.loads((folder / "run.json").read_text())["argv"]
    make_starts(folder, argv, [0, 7000, 15000, 15400], host=EVIL, versions={"torch": EVIL})
    rows: list[dict[str, Any]] = []
    for step in range(20, 20001, 20):
        loss = 0.6 + 1.6 * math.exp(-step / 4000) + 0.2 * math.sin(step * 12.9898) ** 3
        spiked = {"loss": 40.0} if step == 9000 else {"loss": math.nan, "grad_norm": math.nan} if step == 9500 else {}
        wait = 0.12 if step > 16000 else 0.004
        rows.append(
            train_row(step, **{"loss": loss, "data_s": wait, "grad_norm": 2 + math.sin(step), "mfu": 0.38, **spiked})
        )
        if step % 2000 == 0:
            top1 = 12.5 + 80 * (1 - math.exp(-step / 5000))
            rows.append(
                {"kind": "eval", "split": "val", "step": step, "top1": top1, "ema_top1": top1 + 1, "videos": 200}
            )
    rows.append({"kind": "eval", "final": True, "split": EVIL, "step": 20000, "top1": 91.25, "videos": 400})
    write_rows(folder / "metrics.jsonl", rows, end='{"kind": "train", "step": 200')
    events = [{"kind": "skipped step", "step": step, "time": 1.0, "grad_norm": "nan", "in_a_row": 1,
               "ranks": [{"rank": 1, "host": "node2", "losses": ["nan"], "clips": [[EVIL, "b.mp4"]]}]}
              for step in (9500, 9505, 9510)]  # fmt: skip
    events += [{"kind": "loss jumped", "step": 9000, "loss": 40.0, "usual": 1.0},
               {"kind": "went back", "step": 9512, "to": 9400, "steps_of_clips_left_out": 112},
               {"kind": "save failed", "step": 12000, "error": f"no room {EVIL}"},
               {"kind": EVIL, "step": 13000}]  # fmt: skip
    write_rows(folder / "events.jsonl", events)
    bad = [{"path": f"/data/{EVIL}/{at % 30}.mp4", "index": at, "frames": None, "error": f"cut off {EVIL}", "rank": 0}
           for at in range(60)]  # fmt: skip
    write_rows(folder / "bad_clips.jsonl", bad)
    make_checkpoint(folder, 20000)
    make_picture(folder, 20000)
    make_log(folder, "INFO    step 20000/30000 epoch 1 loss 1", f"ERROR   RuntimeError: {EVIL}")
    return folder
