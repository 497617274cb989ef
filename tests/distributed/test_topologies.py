"""A run goes on with another number of ranks, another ZeRO stage, micro-batch or offload: every number is kept."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from dsvid.weights.shards import KINDS, open_shards
from tests.distributed.conftest import finish, launch, must_succeed

DRIVER = Path(__file__).with_name("topologies.py")
STAGES = range(4)
SAVED = "checkpoints/step-00000004"
# losses of further steps; the negative controls below say what this would miss
TOLERANCE = 2e-6
OFFLOAD = {"offload_optimizer": {"device": "cpu"}}
OFFLOAD_TOO = {"offload_param": {"device": "cpu"}}


def start(world: int, jobs: list[dict[str, Any]], scratch: Path) -> list[dict[str, Any]]:
    name = f"jobs-{len(list(scratch.iterdir()))}"
    (scratch / f"{name}.json").write_text(json.dumps(jobs))
    command = [sys.executable, str(DRIVER), str(scratch / f"{name}.json"), str(scratch / f"{name}.result.json")]
    must_succeed(finish(launch(world, command, scratch), timeout=500))
    return list(json.loads((scratch / f"{name}.result.json").read_text()))


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("topologies")


def source(world: int, stage: int, scratch: Path, *, bf16: bool = False) -> dict[str, Any]:
    name = f"from-{'bf16' if bf16 else 'fp32'}-w{world}-z{stage}"
    return {"out": str(scratch / name), "stage": stage, "steps": 4, "bf16": bf16}


Saved = dict[tuple[int, int], dict[str, Any]]


def train_sources(world: int, stages: list[int], scratch: Path, *, bf16: bool = False) -> Saved:
    jobs = [source(world, stage, scratch, bf16=bf16) for stage in stages]
    results = start(world, jobs, scratch)
    return {(world, stage): {**job, **result} for stage, job, result in zip(stages, jobs, results, strict=True)}


@pytest.fixture(scope="module")
def saved(scratch: Path) -> Saved:
    """Four steps and a checkpoint by two ranks at each stage, and the losses of three steps more."""
    return train_sources(2, list(STAGES), scratch)


def resume(origin: dict[str, Any], stage: int, out: Path, **more: Any) -> dict[str, Any]:
    # another seed: whatever is not loaded differs
    return {"out": str(out), "stage": stage, "load": origin["out"], "seed": 7, "bf16": origin["bf16"], **more}


def must_hold_the_same(first: Path, second: Path, *, step: int = 4) -> None:
    """Bit equality of two checkpoint folders, whatever their layout."""
    ours, theirs = open_shards(first), open_shards(second)
    assert {name: tuple(shape) for name, shape in ours.shapes.items()} == {
        name: tuple(shape) for name, shape in theirs.shapes.items()
    }
    assert len(ours.shapes) > 10 and ours.groups and len(ours.frozen) == 2 and len(ours.buffers) == 2
    for name, shape in ours.shapes.items():
        for kind in KINDS:
            pair = [torch.full((shape.numel(),), torch.nan) for _ in range(2)]
            ours.read(kind, name, 0, pair[0])
            theirs.read(kind, name, 0, pair[1])
            assert torch.equal(*pair), f"{kind} of {name}"
            assert bool(pair[0].isfinite().all())
        assert ours.step_of(name) == theirs.step_of(name) == step
    for name, shape in ours.frozen.items():
        pair = [torch.full((shape.numel(),), torch.nan) for _ in range(2)]
        ours.read_frozen(name, 0, pair[0])
        theirs.read_frozen(name, 0, pair[1])
        assert torch.equal(*pair), name
    for name, buffer in ours.buffers.items():
        assert torch.equal(buffer, theirs.buffers[name]), name
        assert bool(buffer.any()), f"{name} says nothing"
    for key in ("global_steps", "global_samples", "skipped_steps"):
        assert ours.module_state[key] == theirs.module_state[key]
    by_name = [
        {
            name: (own["lr"], own["weight_decay"])
            for names, own in zip(s.groups, s.hypers, strict=True)
            for name in names
        }
        for s in (ours, theirs)
    ]
    assert by_name[0] == by_name[1]
    assert len(set(by_name[0].values())) > 4, "groups that do not differ prove nothing"


def must_go_on(origins: list[dict[str, Any]], jobs: list[dict[str, Any]], results: list[dict[str, Any]]) -> None:
    for origin, job, result in zip(origins, jobs, results, strict=True):
        label = f"{origin['out']} -> {job['out']}"
        must_hold_the_same(Path(origin["out"]) / SAVED, Path(job["out"]) / SAVED)
        assert result["lrs"] == pytest.approx(origin["lrs"], rel=1e-12), label
        assert result["decays"] == pytest.approx(origin["decays"], rel=1e-12), label
        worst = max(abs(a - b) for a, b in zip(result["losses"], origin["losses"], strict=True))
        assert worst <= TOLERANCE, f"{label}: losses differ by {worst}"


def check_all(world: int, origins: Saved, scratch: Path, pairs: list[tuple[tuple[int, int], int]], tag: str) -> None:
    sources = [origins[key] for key, _ in pairs]
    jobs = [
        resume(origins[key], stage, scratch / f"{tag}-w{key[0]}z{key[1]}-to-w{world}z{stage}") for key, stage in pairs
    ]
    must_go_on(sources, jobs, start(world, jobs, scratch))


FAULTS = ["exp_avg", "exp_avg_sq", "step", "one moment", "one lr", "schedule", "decay", "group lr"]


@pytest.fixture(scope="module")
def alone(saved: Saved, scratch: Path) -> list[dict[str, Any]]:
    """One rank goes on with what two saved, from each stage to each other once; then the negative controls."""
    jobs = [resume(saved[2, a], (a + 2) % 4, scratch / f"alone-{a}") for a in STAGES]
    jobs += [resume(saved[2, 2], 1, scratch / f"spoilt-{n}", spoil=f, save=False) for n, f in enumerate(FAULTS)]
    return [{**job, **result} for job, result in zip(jobs, start(1, jobs, scratch), strict=True)]


def test_one_rank_goes_on_with_what_two_saved(alone: list[dict[str, Any]], saved: Saved) -> None:
    must_go_on([saved[2, a] for a in STAGES], alone[:4], alone[:4])


def test_what_a_resume_might_lose_shows_in_the_losses(alone: list[dict[str, Any]], saved: Saved) -> None:
    """The negative controls: without them equal losses would prove little."""
    for fault, result in zip(FAULTS, alone[4:], strict=True):
        worst = max(abs(a - b) for a, b in zip(result["losses"], saved[2, 2]["losses"], strict=True))
        assert worst > 5 * TOLERANCE, f"{fault}: {worst} would not be noticed"


def test_two_ranks_go_on_at_another_stage_micro_batch_or_with_offload(saved: Saved, scratch: Path) -> None:
    pairs = [(a, (a + 1) % 4) for a in STAGES]
    origins = [saved[2, a] for a, _ in pairs] + [saved[2, 0], saved[2, 3], saved[2, 1]]
    jobs = [resume(saved[2, a], b, scratch / f"2to2-{a}-{b}") for a, b in pairs]
    jobs += [
        resume(saved[2, 0], 3, scratch / "micro", micro=2),
        resume(saved[2, 3], 2, scratch / "offload-2", zero=OFFLOAD),
        resume(saved[2, 1], 3, scratch / "offload-3", zero={**OFFLOAD, **OFFLOAD_TOO, "sub_group_size": 100}),
    ]
    must_go_on(origins, jobs, start(2, jobs, scratch))


def test_a_run_that_went_on_can_be_gone_on_with(saved: Saved, scratch: Path) -> None:
    """Resume, train, save, resume: also where a rank holds nothing but padding of a group."""
    jobs = []
    for stage in (1, 2, 3):
        once, twice = scratch / f"once-{stage}", scratch / f"twice-{stage}"
        jobs.append(resume(saved[2, 0], stage, once, steps=3, more=0))
        jobs.append({**resume({"out": str(once), "bf16": False}, stage, twice), "more": 0})
    assert len(start(2, jobs, scratch)) == 6
    for stage in (1, 2, 3):
        folders = [scratch / f"{name}-{stage}" / "checkpoints" / "step-00000007" for name in ("once", "twice")]
        must_hold_the_same(*folders, step=7)


@pytest.mark.long
@pytest.mark.slow
def test_every_pair_of_stages_for_every_change_of_ranks(saved: Saved, scratch: Path) -> None:
    """All 16 pairs for 2=2, 1 -> 2, 4 -> 2, 2 -> 1 and 2 -> 4."""
    pairs = list(itertools.product(STAGES, STAGES))
    others = train_sources(1, list(STAGES), scratch) | train_sources(4, list(STAGES), scratch)
    to_two = [((world, a), b) for world in (2, 1, 4) for a, b in pairs]
    check_all(2, saved | others, scratch, to_two, "all")
    for world in (1, 4):
        check_all(world, saved, scratch, [((2, a), b) for a, b in pairs], "all")


@pytest.mark.long
@pytest.mark.slow
def test_bf16_keeps_every_bit_of_the_fp32_state(scratch: Path) -> None:
    """Losses of bf16 are too noisy to prove anything; the state is compared bit by bit."""
    origins = train_sources(2, list(STAGES), scratch, bf16=True)
    for world in (1, 2, 4):
        pairs = list(itertools.product(STAGES, STAGES)) if world == 1 else [(a, (a + world) % 4) for a in STAGES]
        jobs = [resume(origins[2, a], b, scratch / f"bf16-{world}-{a}-{b}", more=0) for a, b in pairs]
        start(world, jobs, scratch)
        for (a, _), job in zip(pairs, jobs, strict=True):
            must_hold_the_same(Path(origins[2, a]["out"]) / SAVED, Path(job["out"]) / SAVED)
