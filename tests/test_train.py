"""Small decisions of the loop: what is due, and which numbers end a run before they are saved."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dsvid.runtime import Ranks
from dsvid.train import finite_mean, is_due, picture_due, validation_due


def job(precision: str = "fp32", **recipe: Any) -> Any:
    return SimpleNamespace(facts={"precision": precision}, ranks=Ranks(0, 1, 0), device=torch.device("cpu"), **recipe)


def test_the_mean_over_micro_batches() -> None:
    losses = [torch.tensor(1.0), torch.tensor(2.0)]
    assert finite_mean(losses, 0.5, 3, job(), skipped=0) == 1.5


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_ends_the_run(wrong: float) -> None:
    for precision in ("fp32", "bf16"):
        with pytest.raises(FloatingPointError, match="step 3, rank 0"):
            finite_mean([torch.tensor(1.0), torch.tensor(wrong)], 0.5, 3, job(precision), skipped=0)


def test_a_gradient_that_is_not_finite_ends_the_run_where_deepspeed_would_apply_it() -> None:
    with pytest.raises(FloatingPointError, match="gradient norm nan"):
        finite_mean([torch.tensor(1.0)], math.nan, 3, job("fp32"), skipped=0)
    # In half precision DeepSpeed has skipped the step: the weights are sound.
    assert finite_mean([torch.tensor(1.0)], math.inf, 3, job("bf16"), skipped=1) == 1.0


def test_what_is_due() -> None:
    assert [step for step in range(1, 10) if is_due(step, 3)] == [3, 6, 9]
    assert not any(is_due(step, 0) for step in range(1, 10))


def test_pictures_come_in_pre_training_and_at_its_end() -> None:
    run = SimpleNamespace(images_every=4)
    pretrain = job(recipe=SimpleNamespace(run=run), schedule=SimpleNamespace(stop_step=10), pretrain=True)
    assert [step for step in range(1, 11) if picture_due(pretrain, step)] == [4, 8, 10]
    pretrain.pretrain = False
    assert not any(picture_due(pretrain, step) for step in range(1, 11))


def test_validation_leaves_the_last_step_to_the_test() -> None:
    recipe = SimpleNamespace(eval=SimpleNamespace(every_epochs=1), data=SimpleNamespace(val="builtin"))
    classify = job(recipe=recipe, schedule=SimpleNamespace(stop_step=9, steps_per_epoch=3), pretrain=False)
    assert [step for step in range(1, 10) if validation_due(classify, step)] == [3, 6]
