"""Roll calls over a real store: who answers, who failed by itself, who is gone."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch.distributed as dist

from dsvid import rollcall
from dsvid.rendezvous import open_store
from dsvid.rollcall import RollCall, cause, is_echo
from dsvid.runtime import Ranks
from tests.distributed.conftest import free_port

HOSTS = ["a", "a", "b"]


@pytest.fixture(autouse=True)
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(free_port()))
    monkeypatch.setattr(rollcall, "HEARD", {})
    monkeypatch.setattr(rollcall, "ANSWER_S", 0.5)
    yield open_store(Ranks(0, 3, 0), time.monotonic() + 20, str)


def roll(rank: int) -> RollCall:
    return RollCall(Ranks(rank, 3, rank), HOSTS)


def test_a_call_is_heard_and_answered() -> None:
    assert not roll(1).called()
    assert set(roll(0).call({"lost": True}, 0)) == {0}
    assert roll(1).called() and set(roll(1).call({"lost": True, "phase": "data"}, 0)) == {0, 1}
    answers = roll(2).call({"lost": True})
    assert set(answers) == {0, 1, 2} and answers[1]["phase"] == "data"


def test_who_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    roll(0).call({"lost": True}, 0)
    assert cause(roll(1), "RuntimeError", lost=True) == "rank 2 on b did not answer: killed, or the machine is gone"
    roll(2).call({"lost": True}, 0)
    assert cause(roll(1), "RuntimeError", lost=True) == ""


def test_who_failed_by_itself_is_named_before_those_that_are_silent() -> None:
    assert cause(roll(0), "ValueError: boom", lost=False) == ""
    rollcall.HEARD.clear()
    assert cause(roll(1), "RuntimeError", lost=True) == "rank 0 on a failed: ValueError: boom"


def test_an_error_that_was_heard_before_its_rank_ended_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    roll(1).hear({2: {"error": "OSError: full", "lost": False}, 0: {"lost": True}})
    monkeypatch.setenv("MASTER_PORT", str(free_port()))  # the store is gone
    assert cause(roll(1), "RuntimeError", lost=True) == "rank 2 on b failed: OSError: full"


def test_without_the_store_rank_0_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_PORT", str(free_port()))
    assert not roll(1).called()
    assert cause(roll(1), "RuntimeError", lost=True).startswith("rank 0 on a did not answer: the process, which held")


def test_a_rank_alone_calls_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MASTER_PORT")
    alone = RollCall(Ranks(0, 1, 0), ["a"])
    assert not alone.called() and alone.call({"x": 1}) == {0: {"x": 1}} and cause(alone, "E", lost=True) == ""


def test_echoes() -> None:
    assert is_echo(RuntimeError("[gloo/pair.cc:545] Connection reset by peer"))
    assert is_echo(RuntimeError("saving failed on rank 1; see its message")) and is_echo(dist.DistBackendError("x"))
    assert not is_echo(ValueError("gloo")) and not is_echo(RuntimeError("CUDA out of memory"))
