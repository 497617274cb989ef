"""The run folder: what is written first, checkpoints that appear complete or not at all, verification, resume.

DeepSpeed writes its shards into a temporary folder; a manifest with the size and SHA-256 of every file is written last,
then the folder is renamed and the pointer replaced. A checkpoint without a matching manifest is never loaded.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from dsvid import __version__
from dsvid.errors import CheckpointError, DsvidError
from dsvid.recipe import Recipe, build_recipe, dump_yaml
from dsvid.runtime import Ranks, agree_error, barrier, log, share

MANIFEST = "manifest.json"
MANIFEST_VERSION = 1
# Keys that may differ between the starts of one run: they change neither the data nor the numbers.
FREE_ON_RESUME = (
    "about.", "eval.", "run.stop_epoch", "run.max_steps", "run.log_every", "run.save_every", "run.keep",
    "run.images_every", "data.num_workers", "data.prefetch", "data.cache_mb", "data.decoder", "data.val", "data.test",
    "data.max_bad_fraction", "data.bad_grace", "data.labels", "model.attention", "model.compile", "batch.micro",
)  # fmt: skip


# Parts of the DeepSpeed JSON that change the numbers; stage and precision are compared with the checkpoint itself.
JSON_FIXED_ON_RESUME = (
    "optimizer", "scheduler", "gradient_clipping", "prescale_gradients", "gradient_predivide_factor", "torch_autocast",
    "data_types", "communication_data_type",
)  # fmt: skip


@dataclass(frozen=True)
class Found:
    """A verified checkpoint: its folder and the manifest's contents."""

    folder: Path
    step: int
    manifest: dict[str, Any]


class RunFolder:
    """Paths of a run (`--out`) and the files written before training starts."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.checkpoints = out / "checkpoints"
        self.metrics = out / "metrics.jsonl"
        self.bad_clips = out / "bad_clips.jsonl"
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
        foreign = [p.name for p in self.out.iterdir()] if self.out.is_dir() and not before.is_file() else []
        if foreign:
            raise CheckpointError(
                f"--out {self.out} is not empty and not a run folder",
                found=", ".join(sorted(foreign)[:5]),
                expected="a new or empty folder, or one of this run",
                fix="another --out",
            )

    def _check_same_run(self, path: Path, recipe: Recipe, config: dict[str, Any]) -> None:
        try:
            old = build_recipe(yaml.safe_load(path.read_text(encoding="utf-8"))).model_dump(mode="json")
            theirs = json.loads((self.out / "ds_config.json").read_text(encoding="utf-8"))
        except (DsvidError, yaml.YAMLError, OSError, ValueError) as error:
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
        replace_text(self.out / "ds_config.json", json.dumps(config, indent=2) + "\n")
        replace_text(self.out / "recipe.yaml", dump_yaml(recipe))  # last: the next start compares both where it stands
        path = self.out / "run.json"
        starts = []
        if path.is_file():
            try:
                starts = json.loads(path.read_text(encoding="utf-8")).get("starts", [])
            except ValueError:
                log.warning("%s was not readable and is written anew", path)
        now = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "argv": sys.argv,
            "host": platform.node(),
            "world_size": ranks.world,
            "git_commit": _git_commit(),
            "versions": _versions(),
            **extra,
        }
        replace_text(path, json.dumps({**now, "starts": [*starts, now]}, indent=2) + "\n")


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


def replace_text(path: Path, text: str) -> None:
    """Write a small file so that a reader sees the old or the new one, never half of it."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    with scratch.open("w", encoding="utf-8") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())
    os.replace(scratch, path)


# ---- save ----------------------------------------------------------------------------------------------------------


def save(
    engine: Any,
    run: RunFolder,
    *,
    step: int,
    facts: dict[str, Any],
    ranks: Ranks,
    keep: int,
    beside: Callable[[Path, Ranks], None] | None = None,
) -> Path:
    """Publish `checkpoints/step-XXXXXXXX`. A collective. `facts` go into the manifest (samples, stage, groups, …).

    Order: shards into a temporary folder, barrier, fsync and hashes, manifest, rename, pointer, old ones removed.
    `beside` writes more files of this rank into the folder.
    """
    name = f"step-{step:08d}"
    scratch = f".tmp-{name}"
    if ranks.first:
        shutil.rmtree(run.checkpoints / scratch, ignore_errors=True)
    barrier()
    engine.save_checkpoint(str(run.checkpoints), tag=scratch, client_state={"dsvid": facts}, save_latest=False)
    error: BaseException | None = None
    try:
        if beside is not None:
            beside(run.checkpoints / scratch, ranks)
    except Exception as failure:
        error = failure
    agree_error(error, engine.device, f"saving {name}")
    barrier()
    groups = engine.group_names
    if ranks.first:
        try:
            _publish(
                run.checkpoints, scratch, name, {"step": step, "world_size": ranks.world, "groups": groups, **facts}
            )
            _prune(run.checkpoints, keep, name)
        except Exception as failure:  # whatever it is, the other ranks wait for the word
            error = failure
    agree_error(error, engine.device, f"saving {name}")
    return run.checkpoints / name


def _publish(checkpoints: Path, scratch: str, name: str, facts: dict[str, Any]) -> None:
    folder = checkpoints / scratch
    _check_complete(folder, int(facts.get("stage", 0)), int(facts["world_size"]))
    files = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        digest, size = _hash(path, sync=True)
        files[str(path.relative_to(folder))] = {"bytes": size, "sha256": digest}
    replace_text(folder / MANIFEST, json.dumps({"format": MANIFEST_VERSION, **facts, "files": files}, indent=2) + "\n")
    target = checkpoints / name
    if target.exists():  # a step saved again after walking back to an older checkpoint
        shutil.rmtree(target)
    os.replace(folder, target)
    _sync_folder(checkpoints)
    replace_text(checkpoints / "latest", name + "\n")
    for script in ("zero_to_fp32.py", "zero_to_torch.py"):
        # DeepSpeed drops these beside the checkpoints; they unpickle whatever they find. `dsvid consolidate` does not.
        (checkpoints / script).unlink(missing_ok=True)


def _check_complete(folder: Path, stage: int, world: int) -> None:
    """Raise CheckpointError where shards of some ranks are not in `folder`: --out is not shared by all nodes."""
    shards = len(list(folder.glob("*_optim_states.pt")))
    if stage and shards != world:
        raise CheckpointError(
            f"the checkpoint in {folder.parent} is incomplete",
            found=f"optimizer shards of {shards} ranks",
            expected=f"{world}: every node writes into the same folder",
            fix="--out on a file system that all nodes share",
        )


def _hash(path: Path, *, sync: bool = False) -> tuple[str, int]:
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as handle:
        if sync:
            os.fsync(handle.fileno())
        while block := handle.read(1 << 22):
            digest.update(block)
            size += len(block)
    return digest.hexdigest(), size


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _prune(checkpoints: Path, keep: int, newest: str) -> None:
    # `newest` was just written. A folder with a higher step was walked back over: it is damaged, and goes first.
    older = sorted((path for path in checkpoints.glob("step-*") if path.name != newest), key=lambda p: p.name)
    good = [path for path in older if path.name < newest]
    for old in [path for path in older if path.name > newest] + good[: max(0, len(good) - keep + 1)]:
        shutil.rmtree(old, ignore_errors=True)
    for left in checkpoints.glob(".tmp-step-*"):
        shutil.rmtree(left, ignore_errors=True)


# ---- find and load -------------------------------------------------------------------------------------------------


def verify(folder: Path) -> dict[str, Any]:
    """The manifest of a checkpoint whose every file has the recorded size and SHA-256. Raises CheckpointError."""
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        files = manifest["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"checkpoint {folder}: no readable {MANIFEST}", found=str(error)) from error
    if manifest.get("format") != MANIFEST_VERSION:
        raise CheckpointError(
            f"{path}: unknown format", found=manifest.get("format"), expected=MANIFEST_VERSION, fix="a newer dsvid"
        )
    for name, entry in files.items():
        file = folder / name
        if not file.is_file():
            raise CheckpointError(f"checkpoint file {file} is missing", expected=f"{entry['bytes']} bytes")
        if file.stat().st_size != entry["bytes"]:
            raise CheckpointError(
                f"checkpoint file {file} has the wrong size",
                found=f"{file.stat().st_size} bytes",
                expected=f"{entry['bytes']} bytes",
            )
        if _hash(file)[0] != entry["sha256"]:
            raise CheckpointError(f"checkpoint file {file} is damaged: its SHA-256 is not the manifest's")
    return dict(manifest)


def newest_verified(checkpoints: Path) -> Found | None:
    """The newest checkpoint that verifies, walking back over damaged ones aloud; None where there is none at all.

    Raises CheckpointError where checkpoints exist but none verifies: starting fresh would bury them.
    """
    folders = sorted((p for p in checkpoints.glob("step-*") if p.is_dir()), reverse=True)
    for folder in folders:
        try:
            manifest = verify(folder)
        except CheckpointError as error:
            log.warning("checkpoint %s is not used: %s", folder.name, str(error).replace("\n", ";"))
            continue
        return Found(folder, int(manifest["step"]), manifest)
    if folders:
        raise CheckpointError(
            f"{checkpoints}: none of {len(folders)} checkpoints is intact",
            expected="at least one with a matching manifest",
            fix="restore one from a backup, or another --out to start fresh",
        )
    return None


def find(run: RunFolder, resume: str, ranks: Ranks, device: torch.device) -> Found | None:
    """What to resume from: `--resume` auto, must or never. Rank 0 verifies; all ranks agree. A collective."""
    found: Found | None = None
    error: BaseException | None = None
    if ranks.first and resume != "never":
        try:
            found = newest_verified(run.checkpoints)
            if found is None and resume == "must":
                raise CheckpointError(
                    f"--resume must, but {run.checkpoints} holds no checkpoint",
                    fix="--resume auto starts fresh where there is none",
                )
        except DsvidError as failure:
            error = failure
    agree_error(error, device, "looking for a checkpoint")
    return share(found, device)


def load(engine: Any, found: Found, *, facts: dict[str, Any], ranks: Ranks) -> None:
    """Load a verified checkpoint into a fresh engine. A collective; fails on all ranks if it fails on one.

    Raises CheckpointError where the checkpoint belongs to another training list or topology than `facts` and `ranks`.
    """
    manifest = found.manifest
    if manifest["train_list"] != facts["train_list"]:
        raise CheckpointError(
            f"data.train is not the list that {found.folder.name} was trained on",
            found=f"SHA-256 {facts['train_list'][:12]}…",
            expected=f"{manifest['train_list'][:12]}…",
            fix="the old list, or another --out with model.init= the old run's weights folder",
        )
    saved = (manifest["world_size"], manifest["stage"], manifest["precision"])
    now = (ranks.world, facts["stage"], facts["precision"])
    if saved != now:
        raise CheckpointError(
            f"checkpoint {found.folder} was saved on another topology; resuming across them is not built yet",
            found="{} ranks, ZeRO stage {}, {}".format(*now),
            expected="{} ranks, ZeRO stage {}, {}".format(*saved),
            fix="the saved topology, or a new run with model.init= a folder made by `dsvid consolidate`",
        )
    error: BaseException | None = None
    try:
        path, _ = engine.load_checkpoint(str(found.folder.parent), tag=found.folder.name)
        if path is None:
            raise CheckpointError(f"DeepSpeed did not load {found.folder}")
    except Exception as failure:
        error = failure
    agree_error(error, engine.device, f"loading {found.folder.name}")
