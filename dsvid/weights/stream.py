"""Tensors that are read when they are asked for, and a safetensors file written one tensor after the other.

So a state dict of any size costs the memory of its largest tensor. Knows the file format, no models.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from typing import BinaryIO

import torch
from torch import Tensor

_NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


class LazyState(Mapping[str, Tensor]):
    """A state dict whose tensors `read` makes anew at every access; `entries` says their types and shapes before."""

    def __init__(self, entries: Mapping[str, tuple[torch.dtype, torch.Size]], read: Callable[[str], Tensor]) -> None:
        self.entries = dict(entries)
        self._read = read

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.entries:
            raise KeyError(name)
        return self._read(name)

    def __contains__(self, name: object) -> bool:
        return name in self.entries  # the inherited one would read the tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


def shapes_of(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor, without reading those of a LazyState."""
    return {name: tuple(shape) for name, (_, shape) in _entries(state).items()}


def _entries(state: Mapping[str, Tensor]) -> Mapping[str, tuple[torch.dtype, torch.Size]]:
    if isinstance(state, LazyState):
        return state.entries
    return {name: (tensor.dtype, tensor.shape) for name, tensor in state.items()}


def write_safetensors(out: BinaryIO, state: Mapping[str, Tensor]) -> None:
    """Write `state` as safetensors: the header first, then each tensor, read when its turn comes."""
    entries = _entries(state)
    # Wide numbers first, as the library does: every tensor then starts at a multiple of its numbers' size.
    order = sorted(entries, key=lambda name: -entries[name][0].itemsize)
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in order:
        dtype, shape = entries[name]
        start, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    out.write(len(text).to_bytes(8, "little") + text)
    for name in order:
        tensor = state[name].detach().cpu().contiguous()
        if (tensor.dtype, tensor.shape) != entries[name]:
            raise ValueError(f"{name} changed while it was written")
        if tensor.numel():
            out.write(tensor.reshape(-1).view(torch.uint8).numpy().data)
