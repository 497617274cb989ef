"""F28: ranks that do not fit together end at once, before a process group, a model or a file; the odd one is named."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.distributed.conftest import ROOT, free_port, rank_environment, words

HOST = platform.node()


def run(tmp_path: Path, first: list[str], second: list[str], clone: Path = ROOT) -> list[tuple[int, str]]:
    """Two ranks with a command each, the second from the clone `clone`: (exit code, what it printed)."""
    port = free_port()
    ranks = [
        subprocess.Popen(
            [sys.executable, str(place / "dsvid" / "train.py"), *argv],
            env=rank_environment(rank, 2, port) | {"PYTHONPATH": str(place)},
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank, (place, argv) in enumerate([(ROOT, first), (clone, second)])
    ]
    ended = [process.communicate(timeout=100)[0] for process in ranks]
    return [(process.returncode, text) for process, text in zip(ranks, ended, strict=True)]


def test_another_recipe_json_list_and_code_are_named(tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    shutil.copytree(ROOT / "dsvid", clone / "dsvid", ignore=shutil.ignore_patterns("__pycache__"))
    with (clone / "dsvid" / "schedule.py").open("a") as file:
        file.write("# another version\n")
    for name, label in (("one", 1), ("two", 2)):
        (tmp_path / f"{name}.csv").write_text(f"video.mp4 {label}\n" * 16)
    out = tmp_path / "out"
    first = words(out, f"data.train={tmp_path / 'one.csv'}")
    second = words(out, f"data.train={tmp_path / 'two.csv'}", "run.seed=7", "ds.zero_optimization.stage=3")
    second += ["--resume", "never"]
    results = run(tmp_path, first, second, clone)
    for code, text in results:
        assert code == 2, text
        assert "Traceback" not in text
    text = results[0][1]
    assert f"recipe.run.seed: 7 on rank 1 on {HOST}, 0 on rank 0 on {HOST}" in text
    assert "ds.zero_optimization.stage: 3 on rank 1" in text
    assert "SHA-256 of data.train: " in text and "dsvid.source files: " in text
    assert "--resume: 'never' on rank 1" in text
    assert "version of" not in text
    assert not out.exists(), "something was written"


def test_a_run_folder_that_the_ranks_do_not_share_is_found_before_a_step_is_made(tmp_path: Path) -> None:
    results = run(tmp_path, words(tmp_path / "a"), words(tmp_path / "b"))
    for code, text in results:
        assert code == 2, text
        assert "is not the same folder on all nodes" in text and f"rank 1 ({HOST})" in text
    assert not list((tmp_path / "a").glob(".shared*")) and not list(tmp_path.glob("*/checkpoints/*"))


def test_a_list_that_one_rank_does_not_have_ends_all_in_seconds(tmp_path: Path) -> None:
    argv = words(tmp_path / "out")
    since = time.monotonic()
    results = run(tmp_path, argv, [*argv, f"data.train={tmp_path / 'none.csv'}"])
    assert time.monotonic() - since < 60
    assert [code for code, _ in results] == [2, 2]
    assert f"rank 1 on {HOST}: DataError: " in results[0][1] and "none.csv" in results[0][1]


@pytest.mark.parametrize("seconds", ["3"])
def test_a_rank_that_never_comes_is_named(tmp_path: Path, seconds: str) -> None:
    environment = rank_environment(0, 2, free_port()) | {"DSVID_START_TIMEOUT_S": seconds}
    command = [sys.executable, str(ROOT / "dsvid" / "train.py"), *words(tmp_path / "out")]
    done = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=100
    )
    assert done.returncode == 1
    assert "1 of 2 ranks have not come within 3 s" in done.stderr and "missing:  rank 1" in done.stderr
