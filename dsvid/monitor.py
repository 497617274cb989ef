"""What a run tells: metrics.jsonl, TensorBoard, a bar on a terminal or plain lines, and where the time went."""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from dsvid.documents import DocumentError, parse_json
from dsvid.runtime import log, note, tolerated

WAITING_SHARE = 0.05  # as docs/performance.md and `dsvid report` say
MAX_LINE = 1 << 20  # letters of a line of metrics.jsonl


class Monitor:
    """Rank 0 writes; the other ranks only keep time. Times are wall seconds of this rank.

    `retest`: the final test of `start_step` is about to be written anew.

    `flops_per_clip` and `peak_flops` (per device, FLOP/s; None on CPU) give MFU = clips/s * flops / (peak * world).
    """

    def __init__(
        self,
        *,
        metrics: Path,
        tensorboard: Path,
        first: bool,
        world: int,
        start_step: int,
        stop_step: int,
        steps_per_epoch: int,
        clips_per_step: int,
        flops_per_clip: float,
        peak_flops: float | None,
        retest: bool = False,
    ) -> None:
        self.first, self.world, self.stop_step = first, world, stop_step
        self.steps_per_epoch, self.clips_per_step = steps_per_epoch, clips_per_step
        self.flops_per_clip, self.peak_flops = flops_per_clip, peak_flops
        self._data_s = 0.0
        self._since = time.perf_counter()
        self._since_step = start_step
        self._file = self._board = self._bar = None
        if first:
            trim_metrics(metrics, start_step, retest=retest)
            self._file = metrics.open("a", encoding="utf-8")
            self._board = open_tensorboard(tensorboard, start_step)
            self._bar = _progress_bar(start_step, stop_step)

    @contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Count the time inside as waiting for data."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._data_s += time.perf_counter() - start

    def restart_clock(self, step: int) -> None:
        """Start a new window behind `step`: a save or an evaluation is not counted as training time."""
        self._data_s, self._since, self._since_step = 0.0, time.perf_counter(), step

    def train(self, step: int, *, loss: float, lr: float, grad_norm: float, device: torch.device) -> dict[str, Any]:
        """Log one training line for the window since the last; `step` counts finished optimizer steps."""
        now = time.perf_counter()
        steps = max(1, step - self._since_step)
        step_s = (now - self._since) / steps
        rate = self.clips_per_step / step_s
        mfu = None if self.peak_flops is None else rate * self.flops_per_clip / (self.peak_flops * self.world)
        row = {
            "kind": "train",
            "step": step,
            "epoch": step / self.steps_per_epoch,
            "samples": step * self.clips_per_step,
            "loss": loss,
            "lr": lr,
            "grad_norm": grad_norm,
            "clips_per_s": rate,
            "step_s": step_s,
            "data_s": self._data_s / steps,
            "mfu": mfu,
            "mem_gb": memory_gb(device),
        }
        self.write(row)
        self._print_train(row)
        self._data_s, self._since, self._since_step = 0.0, now, step
        return row

    def write(self, row: dict[str, Any]) -> None:
        """Append one line to metrics.jsonl (flushed), its numbers to TensorBoard and to an open run of W&B."""
        if self._file is None:
            return
        with tolerated("metrics.jsonl"):
            self._file.write(json.dumps({k: _json_number(v) for k, v in row.items()}) + "\n")
            self._file.flush()
        numbers = {f"{row['kind']}/{k}": v for k, v in row.items() if isinstance(v, int | float) and k != "step"}
        if self._board is not None:
            with tolerated("tensorboard/"):
                for key, value in numbers.items():
                    self._board.add_scalar(key, value, row["step"])
        run = wandb_run()
        if run is not None:
            with tolerated("W&B"):  # DeepSpeed's own values there go by clips, too
                run.log(numbers | {"step": row["step"]}, step=row["step"] * self.clips_per_step)

    def picture(self, name: str, picture: NDArray[Any], step: int) -> None:
        """Add a picture [h, w, 3] to TensorBoard."""
        if self._board is not None:
            with tolerated("tensorboard/"):
                self._board.add_image(name, picture, step, dataformats="HWC")

    def advance(self, step: int) -> None:
        """Move the progress bar."""
        if self._bar is not None:
            self._bar.update(step - self._bar.n)

    def say(self, text: str) -> None:
        """Print a line on rank 0 without breaking the bar."""
        if not self.first:
            return
        if self._bar is not None:
            self._bar.write(text)
            note("%s", text)
        else:
            log.info(text)

    def close(self) -> None:
        """Flush and close everything."""
        for thing in (self._bar, self._file, self._board):
            if thing is not None:
                with tolerated("metrics.jsonl or tensorboard/"):
                    thing.close()

    def _print_train(self, row: dict[str, Any]) -> None:
        if not self.first:
            return
        share = row["data_s"] / row["step_s"] if row["step_s"] else 0.0
        left = (self.stop_step - row["step"]) * row["step_s"]
        mfu = "" if row["mfu"] is None else f" mfu {row['mfu']:.1%}"
        text = (
            f"step {row['step']}/{self.stop_step} epoch {row['epoch']:.2f} loss {row['loss']:.4f} "
            f"lr {row['lr']:.2e} grad {row['grad_norm']:.3f} {row['clips_per_s']:.1f} clips/s "
            f"step {row['step_s'] * 1e3:.0f} ms{mfu} data wait {share:.0%}{verdict(share)} "
            f"mem {row['mem_gb']:.2f} GB left {duration(left)}"
        )
        self.say(text)


def verdict(share: float) -> str:
    """A plain word on the share of time that a step waits for data."""
    return " (the loader is the bottleneck: more data.num_workers)" if share > WAITING_SHARE else ""


def duration(seconds: float) -> str:
    """Seconds as 1d02h, 3h04m, 5m06s or 7s."""
    whole = int(seconds)
    if whole >= 86400:
        return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"
    if whole >= 3600:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 60}m{whole % 60:02d}s" if whole >= 60 else f"{whole}s"


def memory_gb(device: torch.device) -> float:
    """Peak memory of this rank so far: allocated on the GPU, or resident on the CPU. In GB (1e9 bytes)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def trim_metrics(path: Path, step: int, *, retest: bool = False) -> None:
    """Drop the lines behind `step`: a resumed run writes them again. A half-written last line is dropped too.

    `retest`: the final test is done once more, and its line at `step` is dropped as well.
    """
    if not path.is_file():
        return
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    with path.open(encoding="utf-8", errors="replace") as lines, scratch.open("w", encoding="utf-8") as kept:
        long = False
        while line := lines.readline(MAX_LINE):
            ended = line.endswith("\n")
            if long or (not ended and len(line) == MAX_LINE):  # a piece of a line that no run has written
                long = not ended
                continue
            try:
                row = parse_json(line)
            except DocumentError:
                continue
            if not isinstance(row, dict):
                continue
            repeated = retest and row.get("final") and row.get("step") == step
            number = row.get("step", 0)
            if isinstance(number, int) and number <= step and not repeated:
                kept.write(line.rstrip("\n") + "\n")
    os.replace(scratch, path)


def _json_number(value: Any) -> Any:
    """JSON has no NaN: a number that is not finite is written as null."""
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value


def open_tensorboard(folder: Path, start_step: int) -> Any:
    """A TensorBoard writer, or None (said once) where tensorboard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        log.warning("no TensorBoard files: %s (pip install tensorboard)", error)
        return None
    return SummaryWriter(str(folder), purge_step=start_step + 1 if start_step else None)


def wandb_run() -> Any:
    """The run that DeepSpeed has opened where the JSON's section `wandb` is enabled, or None."""
    return getattr(sys.modules.get("wandb"), "run", None)


def _progress_bar(start: int, stop: int) -> Any:
    if not sys.stdout.isatty():
        return None
    from tqdm import tqdm

    return tqdm(total=stop, initial=start, unit="step", dynamic_ncols=True, file=sys.stdout, smoothing=0.05)
