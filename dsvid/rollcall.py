"""Who is still there when something went wrong: each rank that can answers with where it is, and the others are named.

Uses the store of the rendezvous through a connection of its own, so it works while the process group is broken.
"""

from __future__ import annotations

import json
import time
from contextlib import suppress
from typing import Any

import torch.distributed as dist

from dsvid.rendezvous import POLL_S, reconnect
from dsvid.runtime import Ranks

ANSWER_S = 5.0  # how long a call waits for those that do not answer
ECHOES = ("gloo", "nccl", "connection closed", "connection reset", "broken pipe", "timed out waiting", "failed on rank")
STORE_ERRORS = (dist.DistNetworkError, dist.DistStoreError, RuntimeError, OSError)


HEARD: dict[int, str] = {}  # errors that other ranks told of while this one was still at work: they end before it


class RollCall:
    """One rank's part in roll calls. A rank alone calls nobody.

    What a rank answers is a plain tree, kept under its number; the first answer counts. One user at a time.
    """

    def __init__(self, ranks: Ranks, hosts: list[str]) -> None:
        self.ranks, self.hosts = ranks, hosts
        self._store: Any = None
        self._answered = False

    def called(self) -> bool:
        """Whether any rank has called. False where the store cannot be asked."""
        if self.ranks.world == 1:
            return False
        with suppress(*STORE_ERRORS):
            return bool(self._connected().check(["called"]))
        self._store = None
        return False

    def call(self, own: dict[str, Any], answer_s: float | None = None) -> dict[int, dict[str, Any]]:
        """Answer with `own`, make the others answer and wait for them; returns answers by rank, the own among them."""
        answers = {self.ranks.rank: own}
        if self.ranks.world == 1:
            return answers
        until = time.monotonic() + (ANSWER_S if answer_s is None else answer_s)
        try:
            store = self._connected()
            store.set(str(self.ranks.rank), json.dumps(own))
            store.set("called", "1")
            while True:
                for rank in set(range(self.ranks.world)) - answers.keys():
                    if store.check([str(rank)]):
                        answers[rank] = json.loads(store.get(str(rank)))
                if len(answers) == self.ranks.world or time.monotonic() >= until:
                    break
                time.sleep(POLL_S)
        except STORE_ERRORS:
            self._store = None  # rank 0, which held it, is gone: nobody else can be heard
        return answers

    def hear(self, answers: dict[int, dict[str, Any]]) -> None:
        """Remember who failed by itself."""
        HEARD.update({rank: answer["error"] for rank, answer in answers.items() if not answer.get("lost", True)})

    def name(self, ranks: list[int]) -> str:
        """`rank 3 on node2` or `ranks 3, 4 on node2`; at most eight of them."""
        hosts = ", ".join(dict.fromkeys(self.hosts[rank] for rank in ranks[:8] if rank < len(self.hosts)))
        numbers = ", ".join(map(str, ranks[:8])) + (f" and {len(ranks) - 8} more" if len(ranks) > 8 else "")
        return f"rank{'s' if len(ranks) > 1 else ''} {numbers}" + (f" on {hosts}" if hosts else "")

    def _connected(self) -> Any:
        if self._store is None:
            self._store = reconnect("roll", timeout_s=3)
        return self._store


def is_echo(error: BaseException) -> bool:
    """Whether an error may be only the echo of another rank's end: a connection that broke, or a wait for it."""
    if isinstance(error, dist.DistError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(sign in text for sign in ECHOES)


def cause(roll: RollCall, error: str, lost: bool) -> str:
    """A line on what ended the other ranks, or nothing: who failed by itself, else who does not answer.

    `error` is how this rank ended; `lost`: it may be only the echo of another rank's end.
    """
    answers = roll.call({"error": error, "lost": lost})
    roll.hear(answers)
    missing = [rank for rank in range(roll.ranks.world) if rank not in answers]
    if HEARD:
        rank = roll.ranks.rank if roll.ranks.rank in HEARD else min(HEARD)
        return "" if rank == roll.ranks.rank else f"{roll.name([rank])} failed: {HEARD[rank]}"
    if not missing:
        return ""
    if missing[0] == 0 and len(answers) == 1:
        return f"{roll.name([0])} did not answer: the process, which held the ranks together, is gone"
    return f"{roll.name(missing)} did not answer: killed, or the machine is gone"
