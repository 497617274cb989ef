"""Which objects of DeepSpeed's files come in, as every Python writes them, and what else does not."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Any

import pytest
import torch

from dsvid.errors import CheckpointError
from dsvid.weights.shards import load_file


class AsPython311(enum.Enum):
    """A stage as Python 3.11.0 to 3.11.3 pickles it: by `getattr(class, name)`; all others do it by the value."""

    gradients = 2

    def __reduce_ex__(self, _: Any) -> Any:
        return getattr, (type(self), self.name)


class ByValue(enum.Enum):
    gradients = 2

    def __reduce_ex__(self, _: Any) -> Any:
        return type(self), (self.value,)


def as_deepspeed(monkeypatch: pytest.MonkeyPatch, kind: type[enum.Enum]) -> None:
    """Pickle finds the class under DeepSpeed's name."""
    import deepspeed.runtime.zero.config as config

    monkeypatch.setattr(config, "ZeroStageEnum", kind)
    kind.__module__, kind.__qualname__ = config.__name__, "ZeroStageEnum"


@pytest.mark.parametrize("kind", [AsPython311, ByValue])
def test_the_stage_of_a_shard_is_read_however_python_wrote_it(
    kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_deepspeed(monkeypatch, kind)
    torch.save({"zero_stage": kind.gradients, "step": 3}, tmp_path / "shard.pt")
    loaded = load_file(tmp_path / "shard.pt")
    assert loaded["zero_stage"].value == 2 and loaded["step"] == 3


class Taken:
    """Pickled as `getattr(owner, name)`."""

    def __init__(self, owner: Any, name: str) -> None:
        self.taken = (owner, name)

    def __reduce_ex__(self, _: Any) -> Any:
        return getattr, self.taken


@pytest.mark.parametrize("name", ["__class__", "mro", "__init__", "nothing", "gradients.__class__"])
def test_no_other_attribute_is_fetched(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    as_deepspeed(monkeypatch, ByValue)
    torch.save({"zero_stage": Taken(ByValue, name)}, tmp_path / "shard.pt")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_file(tmp_path / "shard.pt")


def test_no_attribute_of_anything_else_is_fetched(tmp_path: Path) -> None:
    torch.save({"zero_stage": Taken(torch.zeros(2), "tolist")}, tmp_path / "shard.pt")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_file(tmp_path / "shard.pt")
