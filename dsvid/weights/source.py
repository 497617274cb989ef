"""Opens weight files and folders of any layout as named tensors that are mapped, not read; executes nothing in them.

Knows file formats, no families. Values are read tensor by tensor, and their pages given back: a 5 GB file costs the
memory of its largest tensor.
"""

from __future__ import annotations

import argparse
import ctypes
import mmap
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from dsvid.documents import read_json
from dsvid.errors import CheckpointError
from dsvid.weights.folder import FORMAT, read_config
from dsvid.weights.pickles import load_pickle

# Where the originals put the state dict; a file without any of these is one itself.
_TOP_LEVEL = ("model", "module", "model_state", "state_dict")
_MADV_DONTNEED = 4


@dataclass
class WeightFile:
    """The tensors of a file by their names there, their values still on the disk.

    `hf` is transformers' `config.json` beside it, `own` dsvid's description of the model, where there is one.
    """

    path: Path
    tensors: dict[str, Tensor]
    hf: Mapping[str, Any] | None = None
    own: Mapping[str, Any] | None = None
    _mapped: list[tuple[int, int]] = field(default_factory=list)

    def release(self, name: str) -> None:
        """Give the pages of a tensor back; reading it again takes them from the disk again."""
        tensor = self.tensors[name]
        start = tensor.data_ptr()
        end = start + tensor.numel() * tensor.element_size()
        if not tensor.is_contiguous() or not any(low <= start and end <= high for low, high in self._mapped):
            return
        first, last = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE, end // mmap.PAGESIZE * mmap.PAGESIZE
        if last > first:
            _libc().madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), _MADV_DONTNEED)


def _libc() -> Any:
    return ctypes.CDLL(None, use_errno=True)


def _mapped_ranges(path: Path) -> list[tuple[int, int]]:
    """Where this process has mapped `path`: memory that can be given back without loss (Linux; elsewhere nowhere)."""
    try:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    ranges, real = [], str(path.resolve())
    for line in maps.splitlines():
        parts = line.split(maxsplit=5)
        if len(parts) == 6 and parts[5] == real:
            start, _, end = parts[0].partition("-")
            ranges.append((int(start, 16), int(end, 16)))
    return ranges


def open_weights(path: Path) -> WeightFile:
    """Open a weight file or a folder: a dsvid weight or run folder, a Hugging Face folder.

    Raises CheckpointError for what is missing, damaged, holds other objects, or no tensors.
    """
    if path.is_dir():
        return _open_folder(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such weight file", fix="give the path of a weight file or folder")
    config = _neighbour(path)
    file = _open_safetensors(path) if path.suffix == ".safetensors" else _open_torch(path)
    if config.get("format") == FORMAT and path.name == "model.safetensors":
        own = read_config(path.parent).get("model")
        file.own = own if isinstance(own, Mapping) else {}  # which own_spec refuses
    elif "model_type" in config:
        file.hf = config
    return file


def _neighbour(path: Path) -> dict[str, Any]:
    """The `config.json` beside a file, or nothing."""
    try:
        config = read_json(path.parent / "config.json")
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def _open_folder(folder: Path) -> WeightFile:
    if not (folder / "config.json").exists() and (folder / "weights" / "config.json").is_file():
        folder = folder / "weights"  # a run folder
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            if name == "model.safetensors" and "model_type" not in _neighbour(folder / name):
                read_config(folder)  # says what is wrong with it
            return open_weights(folder / name)
    names = sorted(p.name for p in folder.iterdir())
    fix = None
    if any(name.endswith(".index.json") for name in names):
        fix = "join the shards first: transformers' save_pretrained with a larger max_shard_size"
    elif any("model_states.pt" in name for name in names) or "checkpoints" in names:
        fix = f"dsvid consolidate {folder} DST"
    raise CheckpointError(
        f"{folder} holds no weights",
        found=", ".join(names[:6]) or "nothing",
        expected="model.safetensors and config.json (dsvid, Hugging Face), or pytorch_model.bin",
        fix=fix,
    )


def _open_safetensors(path: Path) -> WeightFile:
    try:
        with safe_open(str(path), framework="pt", device="cpu") as handle:
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118  it is no dict
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read", found=_first_line(error), fix="copy the file again") from error
    if not tensors:
        raise CheckpointError(f"{path}: holds no weights", expected="tensors")
    return WeightFile(path, tensors, _mapped=_mapped_ranges(path))


def _open_torch(path: Path) -> WeightFile:
    # The originals store their command line in the file; no other class is let in.
    content, own = load_pickle(path, [argparse.Namespace], beside=" and argparse.Namespace"), None
    if isinstance(content, Mapping):
        described = content.get("dsvid")
        own = described.get("model") if isinstance(described, Mapping) else None
        for key in _TOP_LEVEL:
            if isinstance(content.get(key), Mapping):
                content = content[key]
                break
    tensors = {}
    if isinstance(content, Mapping):
        tensors = {str(name): value.detach() for name, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        found = sorted(map(str, content))[:5] if isinstance(content, Mapping) else type(content).__name__
        raise CheckpointError(f"{path}: holds no weights", found=found, expected="a state dict, or one under 'model'")
    if all(tensor.numel() == 0 for tensor in tensors.values()):
        raise CheckpointError(
            f"{path}: holds the names of its weights only",
            found="empty tensors, as DeepSpeed's ZeRO-3 leaves them beside its shards",
            expected="whole weights",
            fix=f"dsvid consolidate {path.parent} DST",
        )
    return WeightFile(path, tensors, own=own, _mapped=_mapped_ranges(path))


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
