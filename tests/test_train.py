"""Small decisions of the loop: what is due, and which numbers end a run before they are saved."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from dsvid.announcement import paper_versus_you
from dsvid.recipe import load_recipe
from dsvid.runtime import Ranks
from dsvid.schedule import resolve_schedule
from dsvid.stopping import Stopping
from dsvid.train import is_due, mean_loss, picture_due, validation_due
from dsvid.validation import best_of, validations


def job(precision: str = "fp32", **recipe: Any) -> Any:
    return SimpleNamespace(
        facts={"precision": precision}, ranks=Ranks(0, 1, 0), device=torch.device("cpu"), stop=Stopping(), **recipe
    )


def test_the_mean_over_micro_batches_shows_what_is_not_finite() -> None:
    assert mean_loss([torch.tensor(1.0), torch.tensor(2.0)], job()) == 1.5
    assert math.isnan(mean_loss([torch.tensor(1.0), torch.tensor(math.nan)], job()))


def test_what_is_due() -> None:
    assert [step for step in range(1, 10) if is_due(step, 3)] == [3, 6, 9]
    assert not any(is_due(step, 0) for step in range(1, 10))


def test_pictures_come_in_pre_training_and_at_its_end() -> None:
    run = SimpleNamespace(images_every=4)
    pretrain = job(recipe=SimpleNamespace(run=run), schedule=SimpleNamespace(stop_step=10), pretrain=True)
    assert [step for step in range(1, 11) if picture_due(pretrain, step)] == [4, 8, 10]
    pretrain.pretrain = False
    assert not any(picture_due(pretrain, step) for step in range(1, 11))


def test_validation_comes_with_the_epochs_and_at_the_end() -> None:
    recipe = SimpleNamespace(eval=SimpleNamespace(every_epochs=1), data=SimpleNamespace(val="builtin"))
    plan, task = SimpleNamespace(stop_step=8, steps_per_epoch=3), SimpleNamespace(scored="top1")
    classify = job(recipe=recipe, schedule=plan, task=task)
    assert [step for step in range(1, 9) if validation_due(classify, step)] == [3, 6, 8]


def beside_the_paper(world: int, **changes: Any) -> str:
    name = "finetune_videomae_small_k400"
    recipe = load_recipe(name, changes)
    plan = resolve_schedule(recipe, world=world, videos=240_000)
    return "\n".join(paper_versus_you(job(paper=load_recipe(name), recipe=recipe, schedule=plan)))


def test_fewer_devices_keep_the_paper_s_schedule_and_say_so() -> None:
    text = beside_the_paper(2)
    assert "paper     batch 768 (32 devices x 24), lr 7.50e-04, 150 epochs, 5x3 views" in text
    assert "you       batch 768 (2 devices x 24 x 16 accumulation), lr 7.50e-04" in text
    assert "the same batch, lr, epochs and views; published: top-1 79.0, top-5 93.8" in text


def test_what_differs_from_the_paper_is_named() -> None:
    text = beside_the_paper(2, **{"batch.total": 96, "eval.segments": 2})
    assert "differs: batch 768 -> batch 96; lr 7.50e-04 -> lr 9.38e-05; 5x3 views -> 2x3 views" in text


def test_a_recipe_without_a_published_run_is_not_compared() -> None:
    demo = load_recipe("demo_finetune")
    assert paper_versus_you(job(paper=demo, recipe=demo, schedule=None)) == []


def test_the_best_so_far_is_read_from_the_metrics(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert validations(path, "a") == [] and best_of([], "top1") is None
    rows = [
        {"kind": "train", "step": 1, "loss": 99.0},
        {"kind": "eval", "split": "val", "list": "a", "step": 2, "top1": 40.0, "ema_top1": 43.0},
        {"kind": "eval", "split": "val", "list": "b", "step": 3, "top1": 80.0},  # another list
        {"kind": "eval", "split": "val", "final": True, "step": 2, "top1": 90.0},  # the test, of more views
        {"kind": "eval", "split": "val", "list": "a", "step": 4, "top1": None},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert best_of(validations(path, "a"), "top1") == {"steps": 2, "top1": 43.0, "average": True, "list": "a"}
    assert best_of(validations(path, "b"), "top1") == {"steps": 3, "top1": 80.0, "average": False, "list": "b"}
    with path.open("a") as file:
        file.write(json.dumps({"list": "a", "step": 6, "top1": 43.0, "ema_top1": 41.0}) + "\n")
    nothing = {"list": "c", "step": 1, "top1": float("nan")}
    assert best_of([nothing], "top1") is None
    assert best_of([nothing, nothing | {"step": 2, "top1": 1.0}], "top1")["steps"] == 2  # type: ignore[index]
    best = best_of(validations(path, "a"), "top1")
    assert best is not None and best["steps"] == 2, "the first of equals stays"
