"""Checkpoints that appear complete or not at all: saving, verification, walking back, resuming on any topology.

Every rank hashes its files while it writes them into a temporary folder; the manifest with the size and SHA-256 of each
is written last, then the folder is renamed and the pointer replaced. A checkpoint without a matching manifest is never
loaded. What the files hold and who owns which part of it are `weights.shards`' and `partition`'s business.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import torch

from dsvid import engine as ds
from dsvid import partition
from dsvid.checkpoint_files import MANIFEST, MANIFEST_VERSION, own_hash, step_of, steps, verify
from dsvid.errors import CheckpointError
from dsvid.publish import publish_text, sync_folder
from dsvid.runfolder import RunFolder
from dsvid.runtime import Ranks, agree_error, agree_sum, barrier, gather, log
from dsvid.weights.pickles import load_pickle
from dsvid.weights.shards import Shards, open_shards

SPARE_BYTES = 16 << 20  # what a save needs besides its tensors: the manifest, zip directories, the run's small files


class SaveFailed(CheckpointError):
    """A checkpoint could not be written; nothing of it is left, and the ones before it are as they were."""

    exit_code = 1  # of the machine's making, not the user's: worth another start


@dataclass(frozen=True)
class Found:
    """A verified checkpoint: its folder, the manifest's contents, and the opened files where they were opened."""

    folder: Path
    step: int
    manifest: dict[str, Any]
    shards: Shards | None = None


@dataclass
class Extra:
    """A file that a rank adds to a checkpoint: its name and what is pickled into it (tensors and plain values)."""

    name: str
    contents: Any


# ---- save ----------------------------------------------------------------------------------------------------------


def save(
    engine: Any,
    run: RunFolder,
    *,
    step: int,
    facts: dict[str, Any],
    ranks: Ranks,
    keep: int,
    keep_every: int = 0,
    extras: list[Extra] | None = None,
) -> Path:
    """Publish `checkpoints/step-XXXXXXXX`. A collective. `facts` go into the manifest (samples, stage, …).

    Order: room on the disk, each rank's files into a temporary folder (hashed and synced as they are written), the
    manifest, rename, pointer, old ones removed. `extras` are more files of this rank. Raises SaveFailed on all ranks
    alike, with nothing half-written left behind.
    """
    name = f"step-{step:08d}"
    folder = run.checkpoints / f".tmp-{name}"
    extras = [*(extras or []), Extra(f"rng_rank_{ranks.rank:05d}.pt", generator_states(engine.device))]
    needed = agree_sum([_bytes_to_write(engine, ranks, extras)], engine.device)[0]

    def begin() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        _make_room(run.checkpoints, int(needed) + SPARE_BYTES, keep_every)
        folder.mkdir(parents=True)

    _all_or_none(name, folder, ranks, engine.device, [] if not ranks.first else _trouble(begin))
    writer = Writer()
    ds.save_shards(engine, folder, {"dsvid": facts}, writer.write)
    for extra in extras:
        writer.write(folder / extra.name, extra.contents)
    _all_or_none(name, folder, ranks, engine.device, writer.errors)
    written = {file: entry for one in gather(writer.files) for file, entry in one.items()}

    def publish() -> None:
        _publish(folder, run.checkpoints / name, {"step": step, "world_size": ranks.world, **facts}, written)
        try:
            publish_text(run.checkpoints / "latest", name + "\n")
            _prune(run.checkpoints, keep, keep_every, name)
        except OSError as error:  # the checkpoint itself is there
            log.warning("%s is saved; tidying up behind it failed: %s", name, error)

    _all_or_none(name, folder, ranks, engine.device, [] if not ranks.first else _trouble(publish))
    barrier()
    return run.checkpoints / name


class Writer:
    """Writes this rank's files, hashing on the way. Never raises: inside DeepSpeed's save the other ranks wait."""

    def __init__(self) -> None:
        self.files: dict[str, dict[str, Any]] = {}
        self.errors: list[str] = []

    def write(self, path: Path, contents: Any) -> None:
        """`contents` into `path` by torch.save, synced; its size and SHA-256, or what went wrong, are noted."""
        if self.errors:
            return
        hashed: HashedFile | None = None
        try:
            with path.open("wb") as handle:
                hashed = HashedFile(handle)
                torch.save(contents, cast("BinaryIO", hashed))
                handle.flush()
                os.fsync(handle.fileno())
        except Exception as error:  # whatever it is; torch's zip writer turns a full disk into a RuntimeError
            cause = hashed.error if hashed is not None and hashed.error is not None else error
            self.errors.append(f"{path.name}: {str(cause).splitlines()[0]}")
            return
        self.files[path.name] = {"bytes": hashed.size, "sha256": hashed.digest.hexdigest()}


class HashedFile:
    """A file object that hashes what is written to it. torch.save writes strictly in order."""

    def __init__(self, handle: BinaryIO) -> None:
        self.handle, self.digest, self.size = handle, hashlib.sha256(), 0
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        """Write a block."""
        view = memoryview(data).cast("B")
        try:
            self.handle.write(view)
        except OSError as error:
            self.error = error
            raise
        self.digest.update(view)
        self.size += len(view)
        return len(view)

    def flush(self) -> None:
        """Hand what is buffered to the system."""
        self.handle.flush()


def _trouble(work: Callable[[], None]) -> list[str]:
    """Do it; what went wrong as a list of one line, else nothing."""
    try:
        work()
    except Exception as error:  # whatever it is, the other ranks wait for the word
        return [str(error) or type(error).__name__]
    return []


def _all_or_none(name: str, folder: Path, ranks: Ranks, device: torch.device, errors: list[str]) -> None:
    """Raise SaveFailed on every rank, the temporary folder removed, where one has errors. A collective."""
    told = gather(errors)
    if not any(told):
        return
    if ranks.first:
        shutil.rmtree(folder, ignore_errors=True)
    barrier()
    lines = [f"rank {rank}: {line}" if ranks.world > 1 else line for rank, own in enumerate(told) for line in own]
    raise SaveFailed(f"checkpoint {name} could not be saved", found="\n    ".join(lines[:4]))


def _bytes_to_write(engine: Any, ranks: Ranks, extras: list[Extra]) -> float:
    """What this rank is about to write: masters and two moments, the model's own weights once, `extras`."""
    replicated = not engine.zero_optimization()
    # At stage 0 in fp32 the model's weights are the masters.
    copies = 2 if replicated and not hasattr(engine.optimizer, "fp32_groups") else 3
    own = sum(part.master.numel() for group in partition.masters(engine) for part in group) * 4 * copies
    module = sum(p.numel() * p.element_size() for p in engine.module.parameters())
    shared = module + (own if replicated else 0)
    mine = (0 if replicated else own) + (shared if ranks.first else 0)
    return float(mine + sum(_tensor_bytes(extra.contents) for extra in extras))


def _tensor_bytes(contents: Any) -> int:
    if isinstance(contents, torch.Tensor):
        return contents.numel() * contents.element_size()
    if isinstance(contents, dict):
        return sum(_tensor_bytes(value) for value in contents.values())
    if isinstance(contents, list | tuple):
        return sum(_tensor_bytes(value) for value in contents)
    return 0


def _make_room(checkpoints: Path, needed: int, keep_every: int) -> None:
    """Raise SaveFailed where the disk has no room; before that, older checkpoints go, all but the newest intact one."""
    if shutil.disk_usage(checkpoints).free >= needed:
        return
    found = steps(checkpoints)
    safe = next((place for place, path in enumerate(found) if _is_intact(path)), len(found))
    # From the end: first the damaged ones, which are newer than the first intact one, then the oldest.
    spare = [path for path in found[safe + 1 :] + found[:safe] if not _is_milestone(path, keep_every)]
    spare = spare if safe < len(found) else []
    while (free := shutil.disk_usage(checkpoints).free) < needed:
        if not spare:
            raise SaveFailed(
                f"no room for a checkpoint in {checkpoints}",
                found=f"{free} bytes free",
                expected=f"{needed} bytes: {needed - free} more",
                fix="free space, or lower run.keep",
            )
        gone = spare.pop()
        log.warning("checkpoint %s is removed: the disk has %d bytes, %d are needed", gone.name, free, needed)
        shutil.rmtree(gone)


def _is_intact(folder: Path) -> bool:
    try:
        verify(folder)
    except CheckpointError:
        return False
    return True


def _is_milestone(folder: Path, keep_every: int) -> bool:
    return keep_every > 0 and step_of(folder) % keep_every == 0


def _publish(folder: Path, target: Path, facts: dict[str, Any], written: dict[str, dict[str, Any]]) -> None:
    _check_complete(folder, written)
    manifest = {"format": MANIFEST_VERSION, **facts, "files": dict(sorted(written.items()))}
    manifest["self_sha256"] = own_hash(manifest)
    publish_text(folder / MANIFEST, json.dumps(manifest, indent=2) + "\n")
    if target.exists():  # a step saved again after walking back to an older checkpoint
        shutil.rmtree(target)
    os.replace(folder, target)
    sync_folder(target.parent)


def _check_complete(folder: Path, written: dict[str, dict[str, Any]]) -> None:
    """Raise CheckpointError where files of some ranks are not in `folder`: --out is not shared by all nodes."""
    there = {path.name: path.stat().st_size for path in folder.iterdir()}
    wrong = sorted(name for name, entry in written.items() if there.get(name) != entry["bytes"])
    if wrong:
        raise CheckpointError(
            f"the checkpoint in {folder.parent} is incomplete",
            found=f"{wrong[0]}: {there.get(wrong[0], 'not there')}",
            expected=f"{written[wrong[0]]['bytes']} bytes: every node writes into the same folder",
            fix="--out on a file system that all nodes share",
        )


def _prune(checkpoints: Path, keep: int, keep_every: int, newest: str) -> None:
    # `newest` was just written. A folder with a higher step was walked back over: it is set aside for whoever wants to
    # look, one at a time.
    older = [path for path in reversed(steps(checkpoints)) if path.name != newest]
    good = [path for path in older if path.name < newest]
    gone = good[: max(0, len(good) - keep + 1)]
    if len(gone) == len(good) and gone and not _is_intact(checkpoints / newest):
        # keep=1: read back what was written before the last one that is known to be good goes
        raise CheckpointError(f"{checkpoints / newest} is not on the disk as it was written", fix="check the disk")
    for old in [path for path in gone if not _is_milestone(path, keep_every)]:
        shutil.rmtree(old, ignore_errors=True)
    for bad in [path for path in older if path.name > newest]:
        for aside in checkpoints.glob("damaged-step-*"):
            shutil.rmtree(aside, ignore_errors=True)
        os.replace(bad, checkpoints / f"damaged-{bad.name}")
    remove_scratch(checkpoints)


def remove_scratch(checkpoints: Path) -> None:
    """Remove what a killed save left behind. Rank 0, while nothing is being saved."""
    for left in checkpoints.glob(".tmp-step-*"):
        shutil.rmtree(left, ignore_errors=True)


# ---- find ----------------------------------------------------------------------------------------------------------


def newest_verified(checkpoints: Path) -> Found | None:
    """The newest checkpoint that verifies, read by this process alone; see `find` for the rules."""
    return find_newest(checkpoints, Ranks(0, 1, 0), alone=True)


def find_newest(checkpoints: Path, ranks: Ranks, *, alone: bool = False) -> Found | None:
    """The newest checkpoint that verifies, walking back over damaged ones aloud; None where there is none at all.

    A collective unless `alone`: the ranks share the reading, and use a checkpoint only if none of them found fault.
    Raises CheckpointError where checkpoints exist but none verifies: starting fresh would bury them.
    """

    def of_all(thing: Any) -> list[Any]:
        return [thing] if alone else gather(thing)

    names: list[str] = of_all([path.name for path in steps(checkpoints)])[0]
    for name in names:
        error, manifest, shards = "", {}, None
        try:
            manifest = _verify_patiently(checkpoints / name, ranks)
            shards = None if alone else open_shards(checkpoints / name)
        except (CheckpointError, OSError) as failure:
            error = str(failure).replace("\n", ";")
        told = [text for text in of_all(error) if text]
        if not told:
            if ranks.first:
                _compare_pointer(checkpoints, name)
            return Found(checkpoints / name, int(manifest["step"]), manifest, shards)
        if ranks.first:
            log.warning("checkpoint %s is not used: %s", name, told[0])
    if names:
        raise CheckpointError(
            f"{checkpoints}: none of {len(names)} checkpoints is intact",
            expected="at least one with a matching manifest",
            fix="restore one from a backup, or another --out to start fresh",
        )
    return None


def _verify_patiently(folder: Path, ranks: Ranks) -> dict[str, Any]:
    """`verify`, asked again where the file server, not the file, gave the error."""
    for wait_s in (1.0, 3.0):
        try:
            return verify(folder, ranks.rank, ranks.world)
        except OSError as error:
            log.warning("%s: %s; trying again", folder, error)
            time.sleep(wait_s)
    return verify(folder, ranks.rank, ranks.world)


def _compare_pointer(checkpoints: Path, name: str) -> None:
    """The pointer is for people and other tools: what is resumed is the newest that verifies, whatever it says."""
    path = checkpoints / "latest"
    try:
        named = path.read_bytes()[:100].decode("utf-8", "replace").strip()
    except OSError:
        named = ""
    if named != name:
        log.warning("%s says %r; the newest intact checkpoint is %s", path, named, name)


def find(run: RunFolder, resume: str, ranks: Ranks) -> Found | None:
    """What to resume from: `--resume` auto, must or never. All ranks verify and agree. A collective."""
    if resume == "never":
        return None
    found = find_newest(run.checkpoints, ranks)
    if found is None and resume == "must":
        raise CheckpointError(
            f"--resume must, but {run.checkpoints} holds no checkpoint",
            fix="--resume auto starts fresh where there is none",
        )
    return found


# ---- load ----------------------------------------------------------------------------------------------------------


def check_continues(found: Found, facts: dict[str, Any]) -> None:
    """Raise CheckpointError where a checkpoint belongs to another training list or precision than `facts`.

    Ranks, stage, micro-batch and offload may be others: they change no number but by rounding.
    """
    manifest = found.manifest
    if manifest["train_list"] != facts["train_list"]:
        raise CheckpointError(
            f"data.train is not the list that {found.folder.name} was trained on",
            found=f"SHA-256 {facts['train_list'][:12]}…",
            expected=f"{manifest['train_list'][:12]}…",
            fix="the old list, or another --out with model.init= the old run's weights folder",
        )
    if manifest["precision"] != facts["precision"]:
        raise CheckpointError(
            f"{found.folder.name} was trained in another precision",
            found=facts["precision"],
            expected=manifest["precision"],
            fix="the same precision, or another --out with model.init= the old run's weights folder",
        )


def load(
    engine: Any, found: Found, *, ranks: Ranks, accumulation: int, more: Callable[[Shards], None] | None = None
) -> None:
    """Load a verified checkpoint into an engine, whatever ranks and ZeRO stage wrote it. A collective.

    Each rank reads the parts that it owns from the mapped files. `more` reads something else from them. Fails on all
    ranks if it fails on one.
    """
    what = f"loading {found.folder.name}"
    error: BaseException | None = None
    try:
        shards = found.shards or open_shards(found.folder)
        partition.read(engine, shards)
        if more is not None:
            more(shards)
        _restore_generators(found.folder / f"rng_rank_{ranks.rank:05d}.pt", engine.device)
    except Exception as failure:
        error = failure
    agree_error(error, engine.device, what)  # what follows is a collective
    try:
        partition.settle(engine, shards, accumulation=accumulation)
    except Exception as failure:
        error = failure
    agree_error(error, engine.device, what)
    saved = (found.manifest["world_size"], found.manifest["stage"])
    now = (ranks.world, engine.zero_optimization_stage())
    if saved != now:
        log.info("saved by %d ranks at ZeRO stage %d, loaded by %d at stage %d", *saved, *now)


def generator_states(device: torch.device) -> dict[str, Any]:
    """The states of the global generators. Training draws from none of them; third-party code might."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()
    states: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, gauss),
        "torch": torch.get_rng_state(),
    }
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def _restore_generators(path: Path, device: torch.device) -> None:
    """Set the global generators as they were; a rank that the saved run did not have keeps its seeded ones."""
    if not path.is_file():
        return
    states = load_pickle(path)
    random.setstate(states["python"])
    kind, keys, position, has_gauss, gauss = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    torch.set_rng_state(states["torch"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
