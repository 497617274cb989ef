"""`dsvid plan` against DeepSpeed's engine: bytes of weights, gradients, masters, moments; of a checkpoint."""

from __future__ import annotations

import json
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

from dsvid.deepspeed_json import load_ds_config
from dsvid.plan.estimate import Plan, Question, estimate
from tests.distributed.conftest import ROOT, finish, launch, must_succeed

SHARE = 0.05
TREE = load_ds_config(ROOT / "ds_configs" / "zero2.json")
OURS = {
    "data.num_frames": 4, "data.input_size": 32, "batch.micro": 1, "run.epochs": 1, "optim.warmup_epochs": 0,
    "run.samples_per_epoch": 64, "model.depth": 3,
}  # fmt: skip
SMALL = {"reduce_bucket_size": 70_002, "allgather_bucket_size": 70_002, "stage3_param_persistence_threshold": 0}


def case(
    name: str, stage: int, *, bf16: bool = True, ours: dict[str, Any] | None = None, **zero: Any
) -> dict[str, Any]:
    theirs = {f"zero_optimization.{key}": value for key, value in {**SMALL, "stage": stage, **zero}.items()}
    return {"name": name, "tree": TREE, "ours": ours or {}, "theirs": {**theirs, "bf16.enabled": bf16}}


EVERY = [
    case(f"{'bf16' if bf16 else 'fp32'}-z{stage}", stage, bf16=bf16) for bf16 in (True, False) for stage in range(4)
]
ODD = [
    case("z1-no-overlap", 1, overlap_comm=False),
    case("z3-small-kept", 3, stage3_param_persistence_threshold=20_000),
    case("z2-average", 2, ours={"optim.ema_decay": 0.9}),
]
WIDE = [case(f"wide-z{stage}", stage) for stage in (1, 2, 3)]
for wide in WIDE:
    wide["theirs"]["data_types.grad_accum_dtype"] = "fp32"
FEW = [wanted for wanted in EVERY if wanted["name"] in ("bf16-z0", "bf16-z2", "bf16-z3", "fp32-z1")]
# One start for each number of ranks: imports cost most. What one rank holds of every kind is enough for the fast tests.
STARTS = {1: FEW, 2: EVERY, 4: [*EVERY, *ODD, *WIDE]}
CASES = [
    pytest.param(world, wanted, id=f"{wanted['name']}-{world}", marks=[] if world == 1 else [pytest.mark.long])
    for world, cases in STARTS.items()
    for wanted in cases
]


def complete(wanted: dict[str, Any], world: int) -> dict[str, Any]:
    return {**wanted, "ours": {**OURS, "batch.total": 2 * world, **wanted["ours"]}}


def predicted(wanted: dict[str, Any], world: int) -> Plan:
    whole = complete(wanted, world)
    return estimate(Question("demo_pretrain", TREE, world, 8, ours=whole["ours"], theirs=whole["theirs"]))


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """held(world)[case] -> what the rank that holds most holds."""

    @lru_cache
    def start(world: int) -> dict[str, dict[str, int]]:
        out = tmp_path_factory.mktemp(f"held-{world}")
        (out / "cases.json").write_text(json.dumps([complete(wanted, world) for wanted in STARTS[world]]))
        driver = Path(__file__).with_name("plan_states.py")
        must_succeed(finish(launch(world, [sys.executable, str(driver), str(out / "cases.json"), str(out)], out)))
        ranks = [json.loads((out / f"held-{rank}.json").read_text()) for rank in range(world)]
        return {name: {key: max(rank[name][key] for rank in ranks) for key in own} for name, own in ranks[0].items()}

    return start


@pytest.mark.parametrize(("world", "wanted"), CASES)
def test_model_states_are_what_the_engine_holds(world: int, wanted: dict[str, Any], held: Any) -> None:
    plan, real = predicted(wanted, world), held(world)[wanted["name"]]
    threshold = plan.settings.buckets["stage3_param_persistence_threshold"]
    whole = plan.settings.weight * sum(n for n in plan.sizes.each if n <= threshold) if plan.settings.stage == 3 else 0
    states = plan.states
    assert states.device - states.average + whole == pytest.approx(real["backward"], rel=SHARE)
    assert states.weights + whole == pytest.approx(real["weights"], rel=SHARE)
    assert states.average == pytest.approx(real["average"], rel=SHARE)
    # the gradients are gone behind a step, but where the engine keeps their place
    kept = states.gradients if plan.settings.stage == 3 else 0
    if plan.settings.stage == 1 and plan.settings.gradient > plan.settings.weight:
        kept = states.gradients - plan.settings.weight * plan.sizes.trained
    optimizer = states.masters + states.moments
    assert states.weights + whole + optimizer + kept == pytest.approx(real["after"], rel=SHARE)


@pytest.mark.parametrize(("world", "wanted"), CASES)
def test_a_checkpoint_weighs_what_the_plan_says(world: int, wanted: dict[str, Any], held: Any) -> None:
    plan, real = predicted(wanted, world), held(world)[wanted["name"]]
    saved = plan.checkpoint - plan.states.average * world  # the average is a file of dsvid's own
    assert saved == pytest.approx(real["checkpoint"], rel=SHARE)
