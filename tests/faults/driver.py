"""One rank of a fault test: `dsvid.train.main` for each job of a JSON file, in one process, with the job's faults.

A fault: {"rank", "phase", "count", "do"}: when `rank` enters `phase` for the `count`-th time, a signal to itself
("SIGTERM"), to its loader process ("kill-worker"), a sleep of some seconds ("sleep 5"), or one that holds the GIL
("hold 60"). Phase "loader": the `count`-th item never comes, and SIGTERM follows half a second later. "times 5": every
such phase takes five times longer than it does by itself, and at least `LEAST_S` longer: the noise of a busy machine.
"""

import ctypes
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from dsvid.data import loader
from dsvid.train import main
from dsvid.watchdog import Watch

RANK = int(os.environ["RANK"])
LEAST_S = 0.2
plain_enter, plain_iter = Watch.enter, loader.TrainLoader.__iter__


def act(what: str) -> None:
    word, _, seconds = what.partition(" ")
    if word == "sleep":
        time.sleep(float(seconds))
    elif word == "hold":
        ctypes.PyDLL(None).sleep(int(seconds))  # native code that does not give the GIL back
    elif word == "kill-worker":
        (worker,) = multiprocessing.active_children()
        for name in ("SIGTERM", "SIGKILL"):  # the first is ignored
            assert worker.is_alive() and worker.pid is not None
            os.kill(worker.pid, getattr(signal, name))
    else:
        os.kill(os.getpid(), getattr(signal, word))


def plant(faults: list[dict[str, Any]]) -> None:
    seen: Counter[str] = Counter()
    mine = [fault for fault in faults if fault["rank"] == RANK]

    def enter(self: Watch, phase: str) -> None:
        for fault in mine:
            if fault["phase"] == self.phase and fault["do"].startswith("times "):
                time.sleep(max(LEAST_S, float(fault["do"].split()[1]) * (time.monotonic() - self.since)))
        plain_enter(self, phase)
        seen[phase] += 1
        for fault in mine:
            if fault["phase"] == phase and fault["count"] == seen[phase]:
                act(fault["do"])

    def items(self: loader.TrainLoader) -> Any:
        for number, item in enumerate(plain_iter(self), start=1):
            for fault in mine:
                if fault["phase"] == "loader" and fault["count"] == number:
                    threading.Timer(0.5, act, ["SIGTERM"]).start()
                    time.sleep(1000)
            yield item

    Watch.enter, loader.TrainLoader.__iter__ = enter, items  # type: ignore[method-assign]


for job in json.loads(Path(sys.argv[1]).read_text()):
    plant(job["faults"])
    print(f"EXIT {job['name']} {main(job['argv'])}", flush=True)
