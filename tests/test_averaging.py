"""The moving average on one process; every ZeRO stage and change of ranks is in tests/distributed."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from dsvid import partition
from dsvid.averaging import MovingAverage
from dsvid.errors import CheckpointError
from dsvid.runtime import Ranks


def engine_of(parameter: nn.Parameter) -> SimpleNamespace:
    return SimpleNamespace(
        optimizer=torch.optim.AdamW([parameter]), param_names={parameter: "weight"}, zero_optimization=lambda: False
    )


def test_the_average_takes_the_place_of_the_weights_and_gives_it_back() -> None:
    weight = nn.Parameter(torch.tensor([1.0, 3.0]))
    average = MovingAverage(engine_of(weight), 0.75)
    weight.data += 4.0
    average.update()
    with average.in_place():
        assert weight.tolist() == [2.0, 4.0]
    assert weight.tolist() == [5.0, 7.0]
    with average.in_place():
        assert weight.tolist() == [2.0, 4.0]


def test_a_rank_that_fails_inside_does_not_wait_for_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(partition, "refresh_weights", calls.append)
    average = MovingAverage(engine_of(nn.Parameter(torch.ones(2))), 0.5)
    with pytest.raises(ValueError, match="lost"), average.in_place():
        raise ValueError("lost")
    assert len(calls) == 1, "giving the weights back is a collective, and the other ranks are elsewhere"


def test_stage_0_writes_the_average_once() -> None:
    average = MovingAverage(engine_of(nn.Parameter(torch.ones(2))), 0.5)
    assert average.contents(Ranks(1, 2, 1)) is None
    name, contents = average.contents(Ranks(0, 2, 0)) or ("", {})
    assert name == "ema_rank_00000.pt" and contents["groups"][0][0].tolist() == [1.0, 1.0]


def test_a_checkpoint_without_an_average_is_refused() -> None:
    average = MovingAverage(engine_of(nn.Parameter(torch.ones(2))), 0.5)
    with pytest.raises(CheckpointError, match="no moving average"):
        average.fill(SimpleNamespace(has=lambda kind: False))  # type: ignore[arg-type]
