"""Ranks from the environments of launchers, and what the first rank says."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from dsvid.errors import RecipeError
from dsvid.runtime import fast_bf16, one_thread, read_ranks


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "RANK",
        "WORLD_SIZE",
        "LOCAL_RANK",
        "MASTER_ADDR",
        "MASTER_PORT",
        "SLURM_PROCID",
        "SLURM_STEP_NUM_TASKS",
    ):
        monkeypatch.setenv(name, "")  # so that the values set by read_ranks are undone after the test
        monkeypatch.delenv(name)


def test_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = read_ranks()
    assert (ranks.rank, ranks.world, ranks.local, ranks.first) == (0, 1, 0, True)
    assert int(os.environ["MASTER_PORT"]) > 1023


def test_a_launcher_s_variables_win_over_slurm_s(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "RANK": "3",
        "WORLD_SIZE": "4",
        "LOCAL_RANK": "1",
        "SLURM_PROCID": "9",
        "SLURM_STEP_NUM_TASKS": "2",
    }.items():
        monkeypatch.setenv(name, value)
    ranks = read_ranks()
    assert (ranks.rank, ranks.world, ranks.local, ranks.first) == (3, 4, 1, False)


def test_srun_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SLURM_PROCID": "2", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "0"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RecipeError, match="MASTER_ADDR"):
        read_ranks()
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MASTER_ADDR", "node1")
    monkeypatch.setenv("MASTER_PORT", "29500")
    assert read_ranks().rank == 2


@pytest.mark.parametrize(("rank", "world"), [("x", "2"), ("2", "2"), ("-1", "2")])
def test_ranks_that_cannot_be(rank: str, world: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", world)
    with pytest.raises(RecipeError):
        read_ranks()


def test_a_batch_script_is_no_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}.items():  # set by sbatch too, without a step
        monkeypatch.setenv(name, value)
    assert read_ranks().world == 1


def test_a_cpu_without_bf16_arithmetic_is_known(tmp_path: Path) -> None:
    (tmp_path / "new").write_text("flags : fpu avx512f avx512_bf16 sse\n")
    (tmp_path / "old").write_text("flags : fpu avx2 sse\n")
    assert fast_bf16(tmp_path / "new")
    assert not fast_bf16(tmp_path / "old") and not fast_bf16(tmp_path / "none")


def test_an_evaluation_has_one_thread_on_the_cpu_and_gives_the_others_back() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(KeyError), one_thread(torch.device("cpu")):
            assert torch.get_num_threads() == 1
            raise KeyError
        assert torch.get_num_threads() == 2
        with one_thread(torch.device("cuda")):
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
