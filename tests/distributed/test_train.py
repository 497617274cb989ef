"""Real ranks over gloo: ZeRO stages, world sizes, accumulation, and a run that is killed and goes on."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.distributed.conftest import (
    FP32,
    ROOT,
    ZERO2,
    finish,
    launch,
    losses,
    must_succeed,
    words,
)

Ranks = Callable[..., list[tuple[int, str]]]


def test_every_stage_has_the_same_fp32_losses(stages: Path) -> None:
    reference = losses(stages / "fp32-z0")
    assert len(reference) == 10
    assert reference[-1] < reference[0] - 0.1, "nothing was learned, so equality would mean nothing"
    for stage in (1, 2, 3):
        assert losses(stages / f"fp32-z{stage}") == pytest.approx(reference, rel=1e-5)


def test_bf16_stays_within_a_hundredth_of_fp32(stages: Path) -> None:
    reference = losses(stages / "fp32-z0")
    for stage in range(4):
        assert losses(stages / f"bf16-z{stage}") == pytest.approx(reference, abs=1e-2)


def test_consolidated_weights_are_the_same_at_every_stage(stages: Path) -> None:
    reference = load_file(stages / "fp32-z0" / "weights" / "model.safetensors")
    assert "encoder.blocks.3.attn.q_bias" in reference
    assert all(tensor.dtype == torch.float32 for tensor in reference.values())
    for stage in (1, 2, 3):
        other = load_file(stages / f"fp32-z{stage}" / "weights" / "model.safetensors")
        assert other.keys() == reference.keys()
        for name, tensor in reference.items():
            torch.testing.assert_close(other[name], tensor, rtol=0, atol=2e-5, msg=name)


def test_bf16_weights_are_the_fp32_masters_not_their_copies(stages: Path) -> None:
    for stage in range(4):
        state = load_file(stages / f"bf16-z{stage}" / "weights" / "model.safetensors")
        tensor = state["encoder.blocks.0.mlp.fc1.weight"]
        assert not torch.equal(tensor, tensor.bfloat16().float()), f"stage {stage} exported rounded weights"


def test_zero3_starts_from_the_same_initial_values(stages: Path) -> None:
    # zero.Init turns a model's own initialisation into nothing, silently: the first loss would differ.
    assert losses(stages / "fp32-z3")[0] == pytest.approx(losses(stages / "fp32-z0")[0], rel=1e-6)


def test_the_run_folder_is_the_contract(stages: Path) -> None:
    out = stages / "fp32-z2"
    for name in ("recipe.yaml", "ds_config.json", "run.json", "metrics.jsonl", "weights/config.json"):
        assert (out / name).is_file(), name
    assert list((out / "tensorboard").iterdir())
    assert list((out / "pictures").glob("reconstruction-*.png"))
    assert (out / "checkpoints" / "latest").read_text().strip() == "step-00000010"
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    keys = {
        "kind",
        "step",
        "epoch",
        "samples",
        "loss",
        "lr",
        "grad_norm",
        "clips_per_s",
        "step_s",
        "data_s",
        "mfu",
        "mem_gb",
    }
    assert all(set(row) == keys for row in rows)
    assert [row["samples"] for row in rows] == [16 * step for step in range(1, 11)]
    assert all(row["grad_norm"] > 0 for row in rows)


@pytest.mark.parametrize("world", [1, 4])
def test_the_number_of_ranks_changes_no_loss(world: int, stages: Path, run_ranks: Ranks, tmp_path: Path) -> None:
    out = tmp_path / "out"
    must_succeed(run_ranks(world, [words(out, FP32)]))
    assert losses(out) == pytest.approx(losses(stages / "fp32-z2"), rel=1e-5)


def test_accumulation_workers_and_checkpointing_change_no_loss(stages: Path, run_ranks: Ranks, tmp_path: Path) -> None:
    (tmp_path / "ac.json").write_text('{"zero_optimization": {"stage": 3}, "activation_checkpointing": {}}')
    more = ["batch.micro=4", "data.num_workers=1"]
    other = words(tmp_path / "ac", *more)
    other[1] = str(tmp_path / "ac.json")
    must_succeed(run_ranks(1, [words(tmp_path / "accumulate", FP32, *more), other]))
    for name in ("accumulate", "ac"):
        assert losses(tmp_path / name) == pytest.approx(losses(stages / "fp32-z2"), rel=1e-5)


@pytest.mark.long
def test_a_run_moves_between_ranks_stages_and_micro_batches(stages: Path, run_ranks: Ranks, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for world, steps, more in (
        (2, 4, ["ds.zero_optimization.stage=2"]),
        (1, 7, ["ds.zero_optimization.stage=3", "batch.micro=4"]),
        (4, 10, ["ds.zero_optimization.stage=1"]),
    ):
        results = run_ranks(world, [words(out, FP32, *more, steps=steps)])
        must_succeed(results)
    assert "saved by 1 ranks at ZeRO stage 3, loaded by 4 at stage 1" in results[0][1]
    assert losses(out) == pytest.approx(losses(stages / "fp32-z2"), rel=1e-5)
    first = load_file(stages / "fp32-z2" / "weights" / "model.safetensors")
    second = load_file(out / "weights" / "model.safetensors")
    assert all(torch.allclose(first[name], second[name], rtol=0, atol=2e-5) for name in first)


def test_another_precision_is_refused_and_nothing_is_lost(stages: Path, run_ranks: Ranks) -> None:
    out = stages / "fp32-z2"
    before = (out / "metrics.jsonl").read_bytes()
    (code, output), *_ = run_ranks(1, [words(out, steps=12)])
    assert code == 2 and "was trained in another precision" in output
    assert (out / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("config", ["zero2_offload", "zero3_offload"])
def test_the_offload_configs_run(config: str, stages: Path, run_ranks: Ranks, tmp_path: Path) -> None:
    job = words(tmp_path / "out", FP32, steps=4)
    job[1] = str(ROOT / "ds_configs" / f"{config}.json")
    must_succeed(run_ranks(2, [job]))
    assert losses(tmp_path / "out") == pytest.approx(losses(stages / "fp32-z2")[:4], rel=1e-5)


@pytest.mark.long
@pytest.mark.parametrize("section", ["", ', "activation_checkpointing": {}'])
def test_a_compiled_model_has_the_same_losses_and_names(
    section: str, stages: Path, run_ranks: Ranks, tmp_path: Path
) -> None:
    (tmp_path / "own.json").write_text(f'{{"zero_optimization": {{"stage": 2}}{section}}}')
    settings = ["model.compile=true", "model.compile_mode=default"]
    for steps, more in ((3, settings), (5, [])):  # compiled, then resumed without
        job = words(tmp_path / "out", FP32, *more, steps=steps)
        job[1] = str(tmp_path / "own.json")
        must_succeed(run_ranks(1, [job], timeout=500))
    assert losses(tmp_path / "out") == pytest.approx(losses(stages / "fp32-z2")[:5], rel=1e-4)
    plain, compiled = (
        load_file(out / "weights" / "model.safetensors") for out in (stages / "fp32-z2", tmp_path / "out")
    )
    assert plain.keys() == compiled.keys()


def test_fine_tuning_from_a_run_tests_itself_and_eval_agrees_on_one_and_two_ranks(
    stages: Path, run_ranks: Ranks, tmp_path: Path
) -> None:
    settings = ["data.num_frames=8", "data.input_size=32", "data.num_workers=0", "run.max_steps=4", "eval.segments=1"]
    out = tmp_path / "ft"
    init = f"model.init={stages / 'fp32-z2' / 'weights'}"
    job = ["--ds_config", ZERO2, "--recipe", "demo_finetune", "--out", str(out), FP32, init, *settings]
    must_succeed(run_ranks(2, [job]))
    tested = json.loads((out / "test" / "result.json").read_text())
    assert tested["videos"] == 400 and tested["unreadable"] == 0
    command = [sys.executable, "-m", "dsvid", "eval", "--weights", str(out / "weights"), "--recipe", "demo_finetune"]
    settings.remove("run.max_steps=4")
    for world in (1, 2):
        must_succeed(finish(launch(world, [*command, "--out", str(tmp_path / f"eval{world}"), *settings], ROOT)))
    results = [json.loads((tmp_path / f"eval{world}" / "result.json").read_text()) for world in (1, 2)]
    assert results[0] == results[1]
    assert results[0]["top1"] == pytest.approx(tested["top1"], abs=0.5)
