"""Start real ranks that meet faults: one process each, gloo over loopback, several jobs one after the other."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.distributed.conftest import finish, free_port, launch

DRIVER = Path(__file__).with_name("driver.py")


def fault(rank: int, phase: str, count: int, do: str) -> dict[str, Any]:
    return {"rank": rank, "phase": phase, "count": count, "do": do}


def job(name: str, argv: list[str], *faults: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "argv": argv, "faults": list(faults)}


@dataclass(frozen=True)
class Ended:
    """What the ranks of a start did: return code and output of each process, and of each job the codes of its ranks."""

    processes: list[int]
    outputs: list[str]

    def codes(self, name: str) -> list[int]:
        return [int(code) for output in self.outputs for code in re.findall(rf"^EXIT {name} (\d+)$", output, re.M)]

    def output(self, name: str, rank: int = 0) -> str:
        """What a rank printed in a job."""
        before, _, _ = self.outputs[rank].partition(f"EXIT {name} ")
        return before.rpartition("EXIT ")[2]


def start(
    world: int, jobs: list[dict[str, Any]], scratch: Path, *, driver: Path = DRIVER, **environment: str
) -> list[subprocess.Popen[str]]:
    jobs_file = scratch / f"jobs-{free_port()}.json"
    jobs_file.write_text(json.dumps(jobs))
    return launch(world, [sys.executable, "-u", str(driver), str(jobs_file)], scratch, **environment)


def wait(ranks: list[subprocess.Popen[str]], timeout: float = 200) -> Ended:
    codes, outputs = zip(*finish(ranks, timeout), strict=True)
    return Ended(list(codes), list(outputs))


def saved_steps(out: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in (out / "checkpoints").glob("step-*"))
