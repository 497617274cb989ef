"""Freed blocks stay with the process: the next ones of their size cost no page faults."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import resource, sys
import torch
from dsvid.heap import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
for repeat in range(30):
    torch.zeros(40 << 20, dtype=torch.uint8)
    if repeat == 19:  # the first ones go through what the heap was made larger by
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc")
def test_blocks_are_faulted_in_once() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    environment["PYTHONPATH"] = str(Path(__file__).resolve().parents[1])
    faults = {}
    for how, more in (("keep", {}), ("not", {}), ("keep, but", {"MALLOC_ARENA_MAX": "2"})):
        command = [sys.executable, "-c", PROGRAM, how.split(",")[0]]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env={**environment, **more})
        faults[how] = int(done.stdout)
    assert faults["keep"] < 1000 < 50_000 < faults["not"] and faults["keep, but"] > 50_000
