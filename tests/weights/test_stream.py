"""A safetensors file written tensor by tensor is what the library reads, and asks for each tensor once."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, load_file, save
from torch import Tensor

from dsvid.weights.folder import write_folder
from dsvid.weights.stream import LazyState, shapes_of, write_safetensors

STATE = {
    "odd": torch.arange(7, dtype=torch.uint8),
    "half": torch.randn(3, 5).bfloat16(),
    "flag": torch.tensor(True),
    "one": torch.tensor(3.5),
    "counts": torch.tensor([1, -2, 3]),
    "view": torch.randn(6, 4).t()[1:3],
    "none": torch.empty(0, 4),
    "fp16": torch.randn(2).half(),
    "double": torch.randn(2, dtype=torch.float64),
    "ünï": torch.randn(2),
}


def test_the_library_reads_what_is_written() -> None:
    out = io.BytesIO()
    write_safetensors(out, STATE)
    back = load(out.getvalue())
    assert back.keys() == STATE.keys()
    for name, tensor in STATE.items():
        assert back[name].dtype == tensor.dtype and torch.equal(back[name], tensor), name


def test_every_tensor_starts_where_its_numbers_are_aligned() -> None:
    out = io.BytesIO()
    write_safetensors(out, STATE)
    length = int.from_bytes(out.getvalue()[:8], "little")
    header = json.loads(out.getvalue()[8 : 8 + length])
    assert length % 8 == 0 and header.pop("__metadata__") == {"format": "pt"}
    for name, entry in header.items():
        assert entry["data_offsets"][0] % STATE[name].itemsize == 0, name
    contiguous = {name: tensor.contiguous() for name, tensor in STATE.items()}
    assert len(out.getvalue()) - 8 - length == sum(t.numel() * t.itemsize for t in STATE.values())
    assert len(save(contiguous)) >= len(out.getvalue()) - 64


def test_a_lazy_state_is_read_once_a_tensor_and_only_then(tmp_path: Path) -> None:
    asked: list[str] = []

    def read(name: str) -> Tensor:
        asked.append(name)
        return STATE[name]

    state = LazyState({name: (tensor.dtype, tensor.shape) for name, tensor in STATE.items()}, read)
    assert shapes_of(state) == {name: tuple(tensor.shape) for name, tensor in STATE.items()}
    assert set(state) == set(STATE) and len(state) == len(STATE) and "odd" in state
    assert state.keys() == STATE.keys() and "other" not in state
    assert asked == []
    write_folder(tmp_path / "w", state, {})
    assert sorted(asked) == sorted(STATE)
    assert torch.equal(load_file(tmp_path / "w" / "model.safetensors")["half"], STATE["half"])
    with pytest.raises(KeyError):
        state["other"]


def test_a_tensor_that_is_not_what_was_announced_is_an_error(tmp_path: Path) -> None:
    state = LazyState({"a": (torch.float32, torch.Size([3]))}, lambda _: torch.zeros(4))
    with pytest.raises(ValueError, match="a changed"):
        write_folder(tmp_path / "w", state, {})
    assert list(tmp_path.iterdir()) == []
