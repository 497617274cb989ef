"""Start real ranks: one process each, gloo over loopback, as a launcher would."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DRIVER = Path(__file__).with_name("driver.py")
ZERO2 = str(ROOT / "ds_configs" / "zero2.json")
FP32 = "ds.bf16.enabled=false"

TINY = [
    "model.arch=vit_micro",
    "data.num_workers=0",
    "data.num_frames=8",
    "data.sampling_rate=2",
    "data.input_size=32",
    "model.positions=sincos_separable",
    "data.crop=random",
    "pretrain.mask_ratio=0.75",
    "run.log_every=1",
    "optim.warmup_epochs=0",
    "model.drop_path=0.1",
]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def rank_environment(rank: int, world: int, port: int) -> dict[str, str]:
    return {
        **os.environ,
        "RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_RANK": str(rank),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }


def launch(world: int, words: list[str], cwd: Path, **environment: str) -> list[subprocess.Popen[str]]:
    """The same command once for each rank of a node, as a launcher would start it; `finish` must follow."""
    port = free_port()
    return [
        subprocess.Popen(
            words,
            env=rank_environment(rank, world, port) | environment,
            cwd=cwd,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world)
    ]


def finish(ranks: list[subprocess.Popen[str]], timeout: float = 300) -> list[tuple[int, str]]:
    """(exit code, output) of each rank; none is left, whatever happens.

    All are read at once: a rank whose pipe is full would keep the others waiting.
    """
    try:
        with ThreadPoolExecutor(len(ranks)) as readers:
            outputs = list(readers.map(lambda process: process.communicate(timeout=timeout)[0], ranks))
    finally:
        for process in ranks:
            process.kill()
    return [(process.returncode, output) for process, output in zip(ranks, outputs, strict=True)]


def start_ranks(world: int, jobs: list[list[str]], scratch: Path) -> list[subprocess.Popen[str]]:
    jobs_file = scratch / f"jobs-{world}-{free_port()}.json"
    jobs_file.write_text(json.dumps(jobs))
    return launch(world, [sys.executable, str(DRIVER), str(jobs_file)], scratch)


@pytest.fixture()
def run_ranks(tmp_path: Path) -> Callable[..., list[tuple[int, str]]]:
    """run_ranks(world, [argv, …]) -> [(exit code, output)] of each rank; the ranks run the jobs one after the other."""

    def run(world: int, jobs: list[list[str]], timeout: float = 300) -> list[tuple[int, str]]:
        return finish(start_ranks(world, jobs, tmp_path), timeout)

    return run


def losses(out: Path) -> list[float]:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if row["kind"] == "train"]


def words(out: Path, *more: str, steps: int = 10) -> list[str]:
    return ["--ds_config", ZERO2, "--out", str(out), *TINY, f"run.max_steps={steps}", *more]


def task_words(recipe: str, settings: list[str], out: Path, root: Path, *more: str) -> list[str]:
    """A training of a recipe on the data below `root`."""
    return ["--ds_config", ZERO2, "--recipe", recipe, "--out", str(out), f"data.root={root}", *settings, *more]


def eval_words(recipe: str, settings: list[str], out: Path, root: Path, weights: Path) -> list[str]:
    """`dsvid eval` of weights, with the settings of their training."""
    own = [word for word in settings if not word.startswith("ds.")]
    words = ["eval", "--weights", str(weights), "--recipe", recipe, "--split", "val", "--out", str(out)]
    return [*words, f"data.root={root}", *own]


def must_succeed(results: list[tuple[int, str]]) -> None:
    for rank, (code, output) in enumerate(results):
        assert code == 0, f"rank {rank} ended with {code}:\n{output[-3000:]}"


@pytest.fixture(scope="session")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two ranks train the same ten steps at every ZeRO stage, in fp32 and in bf16."""
    scratch = tmp_path_factory.mktemp("stages")
    jobs = [
        words(scratch / f"{kind}-z{stage}", f"ds.zero_optimization.stage={stage}", *more)
        for kind, more in (("fp32", [FP32]), ("bf16", []))
        for stage in range(4)
    ]
    must_succeed(finish(start_ranks(2, jobs, scratch), timeout=400))
    return scratch
