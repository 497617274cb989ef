"""Ranks that meet over a real store, as threads of one process: what they are told where they do not fit together."""

from __future__ import annotations

import os
import platform
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from dsvid import rendezvous
from dsvid.errors import DataError, RecipeError
from dsvid.rendezvous import StartError, meet
from dsvid.runtime import Ranks
from dsvid.stopping import Stopped
from tests.distributed.conftest import free_port

FACTS = {"recipe": {"run": {"seed": 0}}, "version of": {"torch": "2.15"}}
HOST = platform.node()


@pytest.fixture(autouse=True)
def address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(free_port()))
    monkeypatch.setenv(rendezvous.LIMIT_VARIABLE, "2")
    monkeypatch.setattr(rendezvous, "HOSTS", [])


def run(*ranks: dict[str, Any], world: int = 0) -> list[Any]:
    """Each rank's facts, error, local rank and request to stop -> what `meet` gave or raised on it."""

    def one(rank: int) -> Any:
        told = {"facts": FACTS, "error": None, "local": rank, "asked": "", "rank": rank, **ranks[rank]}
        who = Ranks(told["rank"], world or len(ranks), told["local"])
        try:
            return meet(who, told["facts"], told["error"], lambda: str(told["asked"]))
        except Exception as error:
            return error

    with ThreadPoolExecutor(len(ranks)) as pool:
        return list(pool.map(one, range(len(ranks))))


def test_ranks_that_fit_together_get_a_store() -> None:
    first, second = run({}, {})
    assert first.hosts == second.hosts == [HOST, HOST]
    first.store.set("key", "value")
    assert second.store.get("key") == b"value"


def test_a_rank_alone_meets_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MASTER_PORT")
    assert meet(Ranks(0, 1, 0), {}, None, str).store is None
    with pytest.raises(DataError):
        meet(Ranks(0, 1, 0), {}, DataError("no list"), str)


def test_a_fact_that_differs_names_rank_host_key_and_values() -> None:
    other = {"recipe": {"run": {"seed": 7}}, "version of": {"torch": "2.15", "av": "14"}}
    for error in run({}, {"facts": other}, {}):
        assert isinstance(error, StartError) and error.exit_code == 2
        assert f"recipe.run.seed: 7 on rank 1 on {HOST}, 0 on rank 0 on {HOST}" in str(error)
        assert f"version of.av: '14' on rank 1 on {HOST}, None on rank 0" in str(error)


@pytest.mark.parametrize("failing", [0, 1])
def test_an_error_of_one_rank_ends_all_at_once_with_its_code(failing: int) -> None:
    mistake = DataError("data.train=/list.csv: nothing there")
    start = time.monotonic()
    ended = run({"error": mistake} if failing == 0 else {}, {"error": mistake} if failing == 1 else {})
    assert time.monotonic() - start < 8
    assert ended[failing] is mistake
    other = ended[1 - failing]
    assert isinstance(other, StartError) and other.exit_code == 2
    assert f"rank {failing} on {HOST}: DataError: data.train=/list.csv: nothing there" in str(other)


def test_a_crash_of_one_rank_is_nobody_s_mistake() -> None:
    _, other = run({"error": ValueError("boom")}, {})
    assert isinstance(other, StartError) and other.exit_code == 1 and "ValueError: boom" in str(other)


def test_an_error_that_all_share_is_each_rank_s_own_and_takes_no_time() -> None:
    start = time.monotonic()
    ended = run(*[{"error": RecipeError("data.num_frames=7")} for _ in range(3)])
    assert time.monotonic() - start < 1.5
    assert [type(error) for error in ended] == [RecipeError] * 3


def test_missing_ranks_are_named() -> None:
    for error in run({}, {}, world=4):
        assert isinstance(error, StartError) and error.exit_code == 1
        assert "2 of 4 ranks have not come within 2 s" in str(error)
        assert "missing:  rank 2, 3" in str(error) and f"there:    {HOST} (2)" in str(error)


def test_without_rank_0_the_address_is_named() -> None:
    (error,) = run({"rank": 1}, world=2)
    assert isinstance(error, StartError) and "nobody answers at 127.0.0.1:" in str(error)


def test_a_port_that_another_run_uses() -> None:
    with socket.socket() as other:
        other.bind(("0.0.0.0", int(os.environ["MASTER_PORT"])))
        other.listen()
        (error,) = run({}, world=2)
    assert isinstance(error, StartError) and error.exit_code == 2 and "--master_port" in str(error)


def test_two_ranks_of_one_place_are_refused() -> None:
    for error in run({"local": 0}, {"local": 0}):
        assert isinstance(error, StartError)
        assert f"ranks 0, 1 on {HOST}: all local rank 0" in str(error) and "slots" in str(error)


@pytest.mark.parametrize("asked", [0, 1])
def test_a_request_to_stop_ends_all(asked: int) -> None:
    ranks: list[dict[str, Any]] = [{}, {}]
    ranks[asked]["asked"] = "SIGTERM"
    for error in run(*ranks):
        assert isinstance(error, Stopped) and "SIGTERM, noticed by rank" in str(error)


def test_a_request_to_stop_ends_the_wait_for_the_others() -> None:
    ended = run({"asked": "SIGTERM"}, world=2)
    assert isinstance(ended[0], Stopped)


def test_the_limit_must_be_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(rendezvous.LIMIT_VARIABLE, "soon")
    with pytest.raises(RecipeError, match=rendezvous.LIMIT_VARIABLE):
        rendezvous.start_limit_s()


def test_the_interface_towards_rank_0_is_found() -> None:
    assert rendezvous.interface_to("127.0.0.1") == "lo"
    assert rendezvous.interface_to("no.such.host.invalid") is None


def test_gloo_gets_an_interface_where_the_host_s_name_leads_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "")
    monkeypatch.delenv("GLOO_SOCKET_IFNAME")
    for hosts, own, expected in (
        (["a", "a"], "127.0.1.1", None),
        (["a", "b"], "10.0.0.1", None),
        (["a", "b"], "127.0.1.1", "lo"),
    ):
        monkeypatch.setattr(socket, "gethostbyname", lambda _, own=own: own)
        rendezvous.choose_interface(hosts)
        assert os.environ.get("GLOO_SOCKET_IFNAME") == expected
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth7")
    rendezvous.choose_interface(["a", "b"])
    assert os.environ["GLOO_SOCKET_IFNAME"] == "eth7"
