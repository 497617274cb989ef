"""Files of features, one a video: where each lies, how it is written and read back. Knows no model and no windows."""

from __future__ import annotations

import itertools
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from dsvid.data.manifest import VIDEO_SUFFIXES, Entry, Manifest
from dsvid.errors import DataError
from dsvid.publish import publish_file

KEYS = ("features", "start_frame", "end_frame", "start_s", "end_s", "padded")
Arrays = dict[str, NDArray[Any]]


def output_names(manifest: Manifest, suffix: str) -> list[str]:
    """Where each video's file goes below --out: its path, from the list's folder on, with another suffix.

    Videos that would share a name keep their own suffix, parts of a video their frames; the rest gets a number.
    """
    entries = [manifest[number] for number in range(len(manifest))]
    short = [_place(entry, manifest.base) for entry in entries]
    bare = [name.with_suffix("") if name.suffix.lower() in VIDEO_SUFFIXES else name for name in short]
    often = Counter([str(name) for name in bare])
    names = [str(own if often[str(plain)] > 1 else plain) for own, plain in zip(short, bare, strict=True)]
    often = Counter(names)
    parts = [
        f"{name}.{entry.start}-{entry.start + entry.total}" if often[name] > 1 and entry.total > 0 else name
        for name, entry in zip(names, entries, strict=True)
    ]
    taken, seen = set(parts), set[str]()  # a number gives no video the name that another one has from its path
    for at, name in enumerate(parts):
        if name in seen:
            free = next(f"{name}.{n}" for n in itertools.count(2) if f"{name}.{n}" not in taken)
            parts[at] = free
            taken.add(free)
        seen.add(name)
    return [name + suffix for name in parts]


def _place(entry: Entry, base: Path) -> Path:
    path = Path(os.path.normpath(entry.path))
    try:
        return path.relative_to(os.path.normpath(base))
    except ValueError:
        return Path(*path.parts[1:]) if path.is_absolute() else path


def write_arrays(path: Path, arrays: Arrays, facts: dict[str, Any]) -> None:
    """One `.npz` (with `facts` as JSON text) or `.safetensors` (with `facts` as metadata); appears whole or not."""

    def write(out: BinaryIO) -> None:
        if path.suffix == ".npz":
            stored: dict[str, Any] = {**arrays, "facts": np.asarray(json.dumps(facts))}
            np.savez(out, **stored)
        else:
            from safetensors.numpy import save

            out.write(save(arrays, metadata={"facts": json.dumps(facts)}))

    publish_file(path, write)


def read_arrays(path: Path) -> tuple[Arrays, dict[str, Any]]:
    """What `write_arrays` wrote. Raises DataError for a file that is damaged or something else."""
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as stored:
                arrays: Arrays = {key: stored[key] for key in KEYS}
                return arrays, json.loads(str(stored["facts"]))
        from safetensors import safe_open

        with safe_open(path, framework="np") as opened:
            return {key: opened.get_tensor(key) for key in KEYS}, json.loads(opened.metadata()["facts"])
    except Exception as error:  # zipfile, numpy, safetensors and json raise a class of their own each
        raise DataError(f"{path} is no feature file", found=f"{type(error).__name__}: {error}") from error
