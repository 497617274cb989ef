"""The run folder (`--out`): its paths, the settings written first, and whose run it is. Knows no engine."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from dsvid import __version__
from dsvid.documents import read_json
from dsvid.errors import CheckpointError, DsvidError
from dsvid.publish import publish_text
from dsvid.recipe import Recipe, build_recipe, dump_yaml
from dsvid.redact import redact
from dsvid.runtime import Ranks, log
from dsvid.strict_yaml import load_yaml

# Keys that may differ between the starts of one run: they change neither the data nor the numbers.
FREE_ON_RESUME = (
    "about.", "eval.", "run.stop_epoch", "run.max_steps", "run.log_every", "run.save_every", "run.keep",
    "run.bad_steps", "run.spike_", "run.max_time", "run.watchdog_s", "run.save_timeout_s",
    "run.images_every", "data.num_workers", "data.prefetch", "data.cache_mb", "data.decoder", "data.val", "data.test",
    "data.max_bad_fraction", "data.bad_grace", "data.labels", "model.attention", "model.compile", "batch.micro",
    "data.root", "detect.clips", "detect.val", "detect.test", "detect.protocol", "detect.person_score",
    "anomaly.eval_rate", "anomaly.padding",
)  # fmt: skip


# Parts of the DeepSpeed JSON that change the numbers; stage and precision are compared with the checkpoint itself.
JSON_FIXED_ON_RESUME = (
    "optimizer", "scheduler", "gradient_clipping", "prescale_gradients", "gradient_predivide_factor", "torch_autocast",
    "data_types", "communication_data_type",
)  # fmt: skip


# What may lie in a run folder before its recipe.yaml, which is written last, and what a kill in that moment leaves.
BEFORE_RECIPE = {".lock", "logs", "stop", "stopped", "checkpoints", "ds_config.json"}
LEFT_OVER = (".ds_config.json-", ".recipe.yaml-")


class RunFolder:
    """Paths of a run (`--out`) and the files written before training starts."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.checkpoints = out / "checkpoints"
        self.metrics = out / "metrics.jsonl"
        self.bad_clips = out / "bad_clips.jsonl"
        self.events = out / "events.jsonl"
        self.tensorboard = out / "tensorboard"
        self.weights = out / "weights"
        self.weights_average = out / "weights_ema"
        self.weights_best = out / "weights_best"

    def has_checkpoints(self) -> bool:
        """Whether a checkpoint, good or bad, is there."""
        return any(self.checkpoints.glob("step-*"))

    def prepare(self, recipe: Recipe, config: dict[str, Any], resume: str) -> None:
        """Check that the folder is writable and this run's own. Raises CheckpointError; writes nothing."""
        if self.out.exists() and not self.out.is_dir():
            raise CheckpointError(f"--out {self.out}", found="a file", expected="a folder", fix="another --out")
        parent = self.out
        while not parent.exists():
            parent = parent.parent
        if not os.access(parent, os.W_OK | os.X_OK):
            raise CheckpointError(f"--out {self.out} is not writable", found=f"no permission in {parent}")
        before = self.out / "recipe.yaml"
        held = [p.name for p in self.checkpoints.glob("step-*")] if self.checkpoints.is_dir() else []
        if resume == "never" and (held or self.metrics.is_file() or self.weights.is_dir()):
            raise CheckpointError(
                f"--resume never, but {self.out} holds a run",
                found=", ".join(sorted(held)[-3:]) or "metrics or weights",
                expected="a folder without a run",
                fix="another --out, or --resume auto to go on with that run",
            )
        if held and not before.is_file():
            raise CheckpointError(f"--out {self.out} holds checkpoints but no recipe.yaml", fix="another --out")
        published = any(f.is_dir() for f in (self.weights, self.weights_average, self.weights_best))
        begun = held or published or (self.metrics.is_file() and self.metrics.stat().st_size > 0)
        if before.is_file() and begun:  # a start that failed before its first line leaves nothing to protect
            self._check_same_run(before, recipe, config)
        there = [p.name for p in self.out.iterdir()] if self.out.is_dir() and not before.is_file() else []
        foreign = {name for name in there if name not in BEFORE_RECIPE and not name.startswith(LEFT_OVER)}
        if foreign:
            raise CheckpointError(
                f"--out {self.out} is not empty and not a run folder",
                found=", ".join(sorted(foreign)[:5]),
                expected="a new or empty folder, or one of this run",
                fix="another --out",
            )

    def _check_same_run(self, path: Path, recipe: Recipe, config: dict[str, Any]) -> None:
        try:
            old = build_recipe(load_yaml(path)).model_dump(mode="json")
            theirs = read_json(self.out / "ds_config.json")
            if not isinstance(theirs, dict):
                raise ValueError("ds_config.json is no JSON object")
        except (DsvidError, OSError, ValueError) as error:
            raise CheckpointError(f"{path} cannot be compared with this run", found=str(error)) from error
        differing = [
            f"{key}: {before!r} there, {now!r} here"
            for key, before, now in _differences(old, recipe.model_dump(mode="json"))
            if not key.startswith(FREE_ON_RESUME)
        ]
        differing += [
            f"ds.{key}: {before!r} there, {now!r} here"
            for section in JSON_FIXED_ON_RESUME
            for key, before, now in _differences(theirs.get(section), config.get(section), section)
        ]
        if differing:
            raise CheckpointError(
                f"--out {self.out} belongs to a different run",
                found="; ".join(differing[:5]),
                expected="the same recipe",
                fix="another --out, or the values of its recipe.yaml",
            )

    def write_settings(self, recipe: Recipe, config: dict[str, Any], ranks: Ranks, extra: dict[str, Any]) -> None:
        """Write recipe.yaml, ds_config.json and run.json (which keeps a line for every start). Rank 0 only."""
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        publish_text(self.out / "ds_config.json", json.dumps(config, indent=2) + "\n")
        publish_text(self.out / "recipe.yaml", dump_yaml(recipe))  # last: the next start compares both where it stands
        path = self.out / "run.json"
        starts = []
        if path.is_file():
            try:
                starts = list(read_json(path).get("starts", []))
            except (OSError, ValueError, AttributeError, TypeError):
                log.warning("%s was not readable and is written anew", path)
        now = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "argv": [redact(word) for word in sys.argv],
            "host": platform.node(),
            "world_size": ranks.world,
            "git_commit": _git_commit(),
            "versions": _versions(),
            **extra,
        }
        publish_text(path, json.dumps({**now, "starts": [*starts, now]}, indent=2) + "\n")


def _differences(old: Any, new: Any, prefix: str = "") -> list[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        rows: list[tuple[str, Any, Any]] = []
        for key in {**old, **new}:
            rows += _differences(old.get(key), new.get(key), f"{prefix}.{key}" if prefix else key)
        return rows
    return [] if old == new else [(prefix, old, new)]


def _git_commit() -> str | None:
    command = ["git", "-C", str(Path(__file__).resolve().parent), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def _versions() -> dict[str, str]:
    import importlib.metadata as metadata

    found = {"dsvid": __version__, "python": platform.python_version(), "torch": torch.__version__}
    for name in ("deepspeed", "decord", "av", "numpy", "flash-attn"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
