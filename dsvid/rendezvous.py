"""The start of the ranks: each tells its facts or its error, rank 0 compares, and all go on or all end together.

Uses a key-value store that rank 0 (or torchrun's agent) holds, before there is a process group; the group then uses the
same store, and so does the roll call when a rank was lost. Knows no recipe: facts are plain trees.
"""

from __future__ import annotations

import datetime
import fcntl
import json
import os
import platform
import socket
import struct
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import TCPStore  # type: ignore[attr-defined]

from dsvid.documents import dotted
from dsvid.errors import DsvidError, RecipeError
from dsvid.runtime import Ranks, log
from dsvid.stopping import EXIT_STOPPED, Stopped

LIMIT_VARIABLE, LIMIT_S = "DSVID_START_TIMEOUT_S", 600.0
POLL_S = 0.1
MORE_ERRORS_S = 2.0  # how long further errors are collected behind the first
SIOCGIFADDR = 0x8915  # Linux: the address of an interface
HOSTS: list[str] = []  # of each rank, once all have met
FAREWELL_S = 20.0  # how long rank 0 holds the store of a start that failed, for ranks that come late
SLOW_S, PROBE_BYTES = 0.5, 4_000_000  # an all-reduce of this size that takes longer is warned of


class StartError(DsvidError):
    """The ranks do not fit together, or one of them could not start; `exit_code` is the cause's."""

    def __init__(self, what: str, *, exit_code: int = 2, **more: Any) -> None:
        super().__init__(what, **more)
        self.exit_code = exit_code


@dataclass(frozen=True)
class Met:
    """All ranks, once they have met: the store they share (None for a rank alone) and the host of each."""

    store: Any
    hosts: list[str]


def meet(ranks: Ranks, facts: dict[str, Any], error: Exception | None, asked: Callable[[], str]) -> Met:
    """Wait for all ranks and compare their `facts`, or end together. `error`: why this rank cannot go on, or None.

    Raises `error` itself on the rank that has it, StartError on the others; StartError on all where facts differ or
    ranks are missing, and Stopped where one was `asked` to stop meanwhile. A rank alone meets nobody.
    """
    if ranks.world == 1 or dist.is_initialized():  # the group, and so this, comes once in a process
        if error is not None:
            raise error
        return Met(None, HOSTS or [platform.node()])
    limit_s = start_limit_s()
    deadline = time.monotonic() + limit_s
    try:
        store = open_store(ranks, deadline, asked)
    except Exception as failure:
        raise error or failure from None
    if error is None and asked():
        error = Stopped(f"{asked()}, noticed by rank {ranks.rank} at the start")
    own = {"host": platform.node(), "place": place(ranks), "facts": facts, "error": _told(error)}
    store.set(f"facts/{ranks.rank}", json.dumps(own))
    if ranks.first:
        verdict = judge(store, ranks, deadline, asked)
        store.set("verdict", json.dumps(verdict))
    else:
        verdict = await_verdict(store, ranks, deadline, limit_s, error)
    _take_leave(store, ranks, verdict)
    if error is not None:
        raise error
    if verdict["error"] is not None:
        raise _raised(verdict["error"])
    HOSTS[:] = verdict["hosts"]
    choose_interface(HOSTS)
    return Met(store, HOSTS)


def start_limit_s() -> float:
    """Seconds that a rank waits for the others at the start. Raises RecipeError for a variable that is no number."""
    text = os.environ.get(LIMIT_VARIABLE, "")
    try:
        return float(text) if text else LIMIT_S
    except ValueError as error:
        raise RecipeError(f"{LIMIT_VARIABLE} is not a number", found=text, expected="seconds") from error


def place(ranks: Ranks) -> list[Any]:
    """What two ranks may not share: the machine and the rank on it, or the CUDA device itself."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    machine = [platform.node(), boot.read_text().strip() if boot.is_file() else ""]
    if torch.cuda.is_available() and ranks.local < torch.cuda.device_count():
        return [str(getattr(torch.cuda.get_device_properties(ranks.local), "uuid", ranks.local)), *machine]
    return [f"local rank {ranks.local}", *machine]


# ---- the store -----------------------------------------------------------------------------------------------------


def open_store(ranks: Ranks, deadline: float, asked: Callable[[], str]) -> Any:
    """Rank 0's store, or torchrun's. Raises StartError where nobody holds it in time, Stopped when asked to stop."""
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    held_by_agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    holds = ranks.first and not held_by_agent
    if not holds:
        _await_host(host, port, deadline, asked)
    try:
        store = _connect(host, port, holds=holds, timeout_s=60)
    except (dist.DistNetworkError, dist.DistStoreError) as error:
        raise StartError(
            f"rank {ranks.rank} on {platform.node()}: no rendezvous at MASTER_ADDR:MASTER_PORT",
            found=f"{host}:{port}: {str(error).splitlines()[0]}",
            expected="a port that nobody else uses" if holds else "rank 0",
            fix="deepspeed --master_port 29501, or another MASTER_PORT",
            exit_code=2 if holds else 1,
        ) from error
    return PrefixStore(_prefix(), store)


def _connect(host: str, port: int, *, holds: bool, timeout_s: float) -> Any:
    timeout = datetime.timedelta(seconds=timeout_s)
    # wait_for_workers would block in native code without naming who is missing
    return TCPStore(host, port, None, holds, timeout=timeout, wait_for_workers=False, multi_tenant=True)


def reconnect(name: str, timeout_s: float) -> Any:
    """A second connection to the store, for other threads and for when the process group is broken."""
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    socket.create_connection((host, port), timeout=timeout_s).close()  # fails at once where nobody is left
    return PrefixStore(f"{_prefix()}/{name}", _connect(host, port, holds=False, timeout_s=timeout_s))


def _prefix() -> str:
    return f"dsvid/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"  # torchrun's store outlives a restart


def _await_host(host: str, port: int, deadline: float, asked: Callable[[], str]) -> None:
    last = "no answer"
    while time.monotonic() < deadline:
        if asked():  # a last moment for rank 0 to appear and hear of it
            deadline = min(deadline, time.monotonic() + MORE_ERRORS_S)
        try:
            socket.create_connection((host, port), timeout=2).close()
            return
        except OSError as error:
            last = str(error)
            time.sleep(POLL_S)
    if asked():
        raise Stopped(f"{asked()}, noticed on {platform.node()} at the start")
    raise StartError(
        f"rank 0 has not come: nobody answers at {host}:{port} (MASTER_ADDR:MASTER_PORT)",
        found=last,
        expected=f"rank 0 within {start_limit_s():g} s ({LIMIT_VARIABLE})",
        fix="see the log of the first node; its name must resolve, and the port be open, on every node",
        exit_code=1,
    )


# ---- the verdict ---------------------------------------------------------------------------------------------------


def judge(store: Any, ranks: Ranks, deadline: float, asked: Callable[[], str]) -> dict[str, Any]:
    """Rank 0's part: gather what all ranks tell, until all have come, one has an error, or the time is up."""
    told: dict[int, dict[str, Any]] = {}
    while len(told) < ranks.world and time.monotonic() < deadline:
        for rank in sorted(set(range(ranks.world)) - told.keys()):
            if store.check([f"facts/{rank}"]):
                told[rank] = json.loads(store.get(f"facts/{rank}"))
                if told[rank]["error"] is not None:
                    deadline = min(deadline, time.monotonic() + MORE_ERRORS_S)
        if asked() and not any(entry["error"] for entry in told.values()):
            told[0]["error"] = _told(Stopped(f"{asked()}, noticed by rank 0 at the start"))
            break
        if len(told) < ranks.world:
            time.sleep(POLL_S)
    hosts = [told[rank]["host"] if rank in told else "?" for rank in range(ranks.world)]
    return {"hosts": hosts, "error": first_error(told, ranks.world)}


def first_error(told: dict[int, dict[str, Any]], world: int) -> dict[str, Any] | None:
    """What keeps these ranks from starting together: {"text", "code"}, or None; a rank's own error counts most."""
    failed = {rank: entry["error"] for rank, entry in sorted(told.items()) if entry["error"] is not None}
    if failed:
        texts = dict.fromkeys(error["text"] for error in failed.values())
        lines = [
            f"{_who([rank for rank, error in failed.items() if error['text'] == text], told)}: {text}"
            for text in list(texts)[:8]
        ]
        return {"text": "\n".join(lines), "code": next(iter(failed.values()))["code"]}
    missing = [rank for rank in range(world) if rank not in told]
    if missing:
        there = ", ".join(f"{host} ({count})" for host, count in _counted(entry["host"] for entry in told.values()))
        text = f"{len(missing)} of {world} ranks have not come within {start_limit_s():g} s ({LIMIT_VARIABLE})"
        numbers = ", ".join(map(str, missing[:16])) + (" …" if len(missing) > 16 else "")
        return {"text": f"{text}\n  missing:  rank {numbers}\n  there:    {there}", "code": 1}
    lines = shared_places(told) or differences(told)
    if lines:
        return {"text": "\n".join(["the ranks of this run do not fit together", *lines[:12]]), "code": 2}
    return None


def shared_places(told: dict[int, dict[str, Any]]) -> list[str]:
    """A line for every place that several ranks have."""
    by_place: dict[str, list[int]] = {}
    for rank, entry in sorted(told.items()):
        by_place.setdefault(json.dumps(entry["place"]), []).append(rank)
    return [
        f"  {_who(group, told)}: all {json.loads(key)[0]}; lower `slots` in the hostfile, or set LOCAL_RANK"
        for key, group in by_place.items()
        if len(group) > 1
    ]


def differences(told: dict[int, dict[str, Any]]) -> list[str]:
    """A line for every fact in which ranks differ from rank 0: which, who, and both values."""
    reference = dotted(told[0]["facts"])
    lines: dict[tuple[str, str], list[int]] = {}
    for rank, entry in sorted(told.items()):
        facts = dotted(entry["facts"])
        for key in reference | facts:
            if facts.get(key) != reference.get(key):
                lines.setdefault((key, repr(facts.get(key))), []).append(rank)
    return [
        f"  {key}: {value} on {_who(group, told)}, {reference.get(key)!r} on {_who([0], told)}"
        for (key, value), group in lines.items()
    ]


def _who(group: list[int], told: dict[int, dict[str, Any]]) -> str:
    numbers = ", ".join(map(str, group[:8])) + (" …" if len(group) > 8 else "")
    hosts = ", ".join(dict.fromkeys(told[rank]["host"] for rank in group[:8]))
    return f"rank{'s' if len(group) > 1 else ''} {numbers} on {hosts}"


def _counted(words: Iterable[str]) -> list[tuple[str, int]]:
    counts: dict[str, int] = {}
    for word in words:
        counts[word] = counts.get(word, 0) + 1
    return list(counts.items())


def _told(error: Exception | None) -> dict[str, Any] | None:
    if error is None:
        return None
    text = str(error) if isinstance(error, StartError | Stopped) else f"{type(error).__name__}: {error}"
    return {"text": text, "code": getattr(error, "exit_code", 1)}


def _raised(error: dict[str, Any]) -> Exception:
    if error["code"] == EXIT_STOPPED:
        return Stopped(error["text"])
    return StartError(error["text"], exit_code=error["code"])


def await_verdict(store: Any, ranks: Ranks, deadline: float, limit_s: float, error: Exception | None) -> dict[str, Any]:
    """What rank 0 decided. A rank with an error of its own does not wait for it."""
    lost = {"text": f"rank 0 did not compare the ranks within {limit_s:g} s; see its log", "code": 1}
    try:
        while error is None and time.monotonic() < deadline + 2 * MORE_ERRORS_S:
            if store.check(["verdict"]):
                return dict(json.loads(store.get("verdict")))
            time.sleep(POLL_S)
    except (dist.DistNetworkError, dist.DistStoreError, RuntimeError):
        lost = {"text": "rank 0 was lost at the start; see its log", "code": 1}
    return {"hosts": [], "error": _told(error) or lost}


def _take_leave(store: Any, ranks: Ranks, verdict: dict[str, Any]) -> None:
    """Where the start failed, rank 0 holds the store until the others have read why."""
    if verdict["error"] is None:
        return
    with suppress(dist.DistNetworkError, dist.DistStoreError, RuntimeError):
        left = store.add("left", 1)
        until = time.monotonic() + min(FAREWELL_S, start_limit_s())
        while ranks.first and left < ranks.world and time.monotonic() < until:
            time.sleep(POLL_S)
            left = store.add("left", 0)


# ---- the network ---------------------------------------------------------------------------------------------------


def choose_interface(hosts: list[str]) -> None:
    """Let gloo use the interface that leads to rank 0, where this host's name leads to itself alone.

    Many systems list their own name as 127.0.1.1: gloo would tell the other nodes that address. A variable that the
    user has set wins.
    """
    if len(set(hosts)) < 2 or "GLOO_SOCKET_IFNAME" in os.environ:
        return
    with suppress(OSError):
        if not socket.gethostbyname(platform.node()).startswith("127."):
            return
    name = interface_to(os.environ["MASTER_ADDR"])
    if name is not None:
        os.environ["GLOO_SOCKET_IFNAME"] = name
        log.info("gloo uses the interface %s: this host's name leads to itself alone", name)


def interface_to(host: str) -> str | None:
    """Name of the network interface whose address this machine uses towards `host`; None where it cannot be told."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, 9))  # sends nothing
            own = probe.getsockname()[0]
            for _, name in socket.if_nameindex():
                with suppress(OSError):
                    asked = struct.pack("256s", name.encode()[:15])
                    if socket.inet_ntoa(fcntl.ioctl(probe.fileno(), SIOCGIFADDR, asked)[20:24]) == own:
                        return name
    except OSError:
        pass
    return None


# ---- the first all-reduce ------------------------------------------------------------------------------------------


def time_all_reduce(device: torch.device, hosts: list[str]) -> None:
    """Say how long an all-reduce of 4 MB takes, the first and a later one, and warn of a slow one. A collective."""
    if len(hosts) < 2:
        return
    box = torch.zeros(PROBE_BYTES // 4, device=device)
    taken = []
    for _ in range(3):
        start = time.perf_counter()
        dist.all_reduce(box)
        float(box[0])  # waits for a GPU
        taken.append(time.perf_counter() - start)
    nodes = ", ".join(f"{host} ({count})" for host, count in _counted(hosts)[:16])
    text = f"ranks     {len(hosts)} on {nodes}; all-reduce of 4 MB: first {taken[0]:.2f} s, then {min(taken[1:]):.3f} s"
    log.info("%s", text)
    if min(taken[1:]) > SLOW_S and not torch.distributed.get_rank():
        log.warning("that is slow: NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME choose the network interface")
