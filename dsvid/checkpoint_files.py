"""What a published checkpoint's folder has to hold: its manifest, sizes, SHA-256. Knows no torch and no DeepSpeed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path, PurePosixPath
from typing import Any

from dsvid.documents import read_json
from dsvid.errors import CheckpointError

MANIFEST = "manifest.json"
MANIFEST_VERSION = 1


def steps(checkpoints: Path) -> list[Path]:
    """The published checkpoints, good or bad, the newest first: by step, since clocks of file servers jump."""
    folders = [path for path in checkpoints.glob("step-*") if path.is_dir() and step_of(path) >= 0]
    return sorted(folders, key=step_of, reverse=True)


def step_of(folder: Path) -> int:
    """The step in a checkpoint folder's name; -1 where there is none."""
    digits = folder.name.removeprefix("step-")
    return int(digits) if digits.isascii() and digits.isdigit() else -1


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a checkpoint. Raises CheckpointError where it cannot be read or names files outside."""
    path = folder / MANIFEST
    try:
        manifest = read_json(path)
        files = {str(name): (int(entry["bytes"]), str(entry["sha256"])) for name, entry in manifest["files"].items()}
        if not files:
            raise ValueError("no files")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"checkpoint {folder}: no readable {MANIFEST}", found=str(error)) from error
    if manifest.get("format") != MANIFEST_VERSION:
        raise CheckpointError(
            f"{path}: unknown format", found=manifest.get("format"), expected=MANIFEST_VERSION, fix="a newer dsvid"
        )
    if manifest.get("self_sha256") != own_hash(manifest):
        raise CheckpointError(f"{path} is damaged: it does not say what was written")
    for name in files:
        if PurePosixPath(name).name != name or name in (".", "..") or "\\" in name:
            raise CheckpointError(f"{path} names a file outside its folder", found=name)
    return dict(manifest)


def verify(folder: Path, part: int = 0, of: int = 1, *, contents: bool = True) -> dict[str, Any]:
    """The manifest of a checkpoint whose every file has the recorded size and SHA-256. Raises CheckpointError.

    With `of` parts, sizes are compared for all files and hashes for every `of`-th: the ranks share the reading.
    Without `contents` sizes alone are compared, and nothing large is read.
    """
    manifest = read_manifest(folder)
    listed = manifest["files"]
    strange = sorted(path.name for path in folder.iterdir() if path.name not in {*listed, MANIFEST})
    if strange:
        raise CheckpointError(
            f"checkpoint {folder} holds files that its manifest does not list", found=", ".join(strange[:4])
        )
    for number, (name, entry) in enumerate(sorted(listed.items())):
        file = folder / name
        if file.is_symlink() or not file.is_file():
            raise CheckpointError(f"checkpoint file {file} is missing", expected=f"{entry['bytes']} bytes")
        if file.stat().st_size != entry["bytes"]:
            raise CheckpointError(
                f"checkpoint file {file} has the wrong size",
                found=f"{file.stat().st_size} bytes",
                expected=f"{entry['bytes']} bytes",
            )
        if contents and number % of == part and _hash(file) != entry["sha256"]:
            raise CheckpointError(f"checkpoint file {file} is damaged: its SHA-256 is not the manifest's")
    return manifest


def _hash(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while block := handle.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def own_hash(manifest: dict[str, Any]) -> str:
    """SHA-256 of what the manifest says, besides this."""
    said = {key: value for key, value in manifest.items() if key != "self_sha256"}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
