"""Micro-batches, accumulation, steps and learning rates."""

from __future__ import annotations

import pytest

from dsvid.errors import RecipeError
from dsvid.recipe import build_recipe, load_recipe, recipe_names
from dsvid.schedule import resolve_schedule


def test_the_batch_arithmetic() -> None:
    recipe = build_recipe({"batch": {"total": 48, "micro": 4}, "run": {"epochs": 10}, "optim": {"warmup_epochs": 2}})
    schedule = resolve_schedule(recipe, world=3, videos=1000)
    assert (schedule.batch_micro, schedule.accumulation, schedule.steps_per_epoch) == (4, 4, 20)
    assert (schedule.total_steps, schedule.warmup_steps, schedule.stop_step) == (200, 40, 200)
    assert schedule.lr == pytest.approx(1.5e-4 * 48 / 256)


def test_stop_epoch_and_max_steps_never_change_the_schedule() -> None:
    base = {"batch": {"total": 10}, "optim": {"warmup_epochs": 1}}
    whole = resolve_schedule(build_recipe({**base, "run": {"epochs": 20}}), world=1, videos=100)
    stopped = resolve_schedule(build_recipe({**base, "run": {"epochs": 20, "stop_epoch": 12}}), world=1, videos=100)
    short = resolve_schedule(build_recipe({**base, "run": {"epochs": 20, "max_steps": 7}}), world=1, videos=100)
    assert stopped.total_steps == short.total_steps == whole.total_steps == 200
    assert (stopped.stop_step, short.stop_step) == (120, 7)


@pytest.mark.parametrize(
    ("tree", "world", "message"),
    [
        ({"batch": {"total": 16}}, 3, "batch.total does not divide over the ranks"),
        ({"batch": {"total": 16, "micro": 3}}, 2, "batch.micro does not divide"),
        ({"batch": {"total": 16, "micro": 16}}, 2, "batch.micro does not divide"),
        ({"batch": {"total": 2000}}, 1, "less than one step"),
        ({"batch": {"total": 16}, "run": {"epochs": 5}}, 1, "warm-up is as long"),
    ],
)
def test_a_batch_that_does_not_fit_says_what_would(tree: dict[str, object], world: int, message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        resolve_schedule(build_recipe(tree), world=world, videos=1000)
    assert caught.value.fix


def test_the_suggested_micro_batch_works() -> None:
    with pytest.raises(RecipeError) as caught:
        resolve_schedule(build_recipe({"batch": {"total": 24, "micro": 5}}), world=2, videos=100)
    micro = int(str(caught.value.fix).split("=")[1])
    tree = {"batch": {"total": 24, "micro": micro}, "optim": {"warmup_epochs": 1}}
    assert resolve_schedule(build_recipe(tree), world=2, videos=100).batch_micro == micro


def test_a_limit_lets_few_devices_accumulate_and_many_run_smaller_batches() -> None:
    recipe = load_recipe("finetune_videomae_small_k400")
    split = {
        world: (plan.batch_micro, plan.accumulation, plan.lr)
        for world in (1, 2, 32, 64)
        for plan in [resolve_schedule(recipe, world=world, videos=240_000)]
    }
    assert split == {1: (24, 32, 7.5e-4), 2: (24, 16, 7.5e-4), 32: (24, 1, 7.5e-4), 64: (12, 1, 7.5e-4)}


def test_warmup_steps_take_the_place_of_epochs() -> None:
    recipe = build_recipe({"batch": {"total": 10}, "optim": {"warmup_epochs": 40, "warmup_steps": 15}})
    assert resolve_schedule(recipe, world=1, videos=100).warmup_steps == 15
    with pytest.raises(RecipeError, match="warm-up is as long"):
        resolve_schedule(
            build_recipe({"batch": {"total": 10}, "optim": {"warmup_steps": 15}, "run": {"epochs": 1}}),
            world=1,
            videos=100,
        )


@pytest.mark.parametrize(
    ("name", "gpus", "lr", "min_lr"),
    [  # effective rates of the released scripts: base * batch / 256
        ("pretrain_videomae_small_k400", 32, 6e-4, 4e-5),
        ("pretrain_videomae_base_k400", 64, 1.2e-3, 8e-5),
        ("pretrain_videomae_large_k400", 64, 3e-4, 2e-5),
        ("pretrain_videomae_huge_k400", 64, 6e-4, 4e-5),
        ("pretrain_videomae_base_ucf101", 8, 2.25e-4, 7.5e-6),
        ("pretrain_videomaev2_base", 32, 4e-3, 4e-5),
        ("pretrain_videomaev2_large", 48, 6e-3, 6e-5),
        ("pretrain_videomaev2_huge", 64, 8e-3, 8e-5),
        ("pretrain_videomaev2_giant", 64, 4.8e-3, 8e-5),
        ("finetune_videomae_small_k400", 32, 7.5e-4, 1.5e-6),
        ("finetune_videomae_base_k400", 64, 7.5e-4, 1.5e-6),
        ("finetune_videomae_base_k400_800e", 64, 2e-3, 2e-6),
        ("finetune_videomae_huge_k400", 64, 2e-3, 2e-5),
        ("finetune_videomaev2_base_ssv2", 16, 2e-3, 1e-6),
        ("finetune_videomaev2_giant_k710_ucf101", 8, 1e-3 * 24 / 256, 1e-6 * 24 / 256),
    ],
)
def test_the_released_recipes_have_the_released_learning_rates(name: str, gpus: int, lr: float, min_lr: float) -> None:
    schedule = resolve_schedule(load_recipe(name), world=gpus, videos=240_000)
    assert schedule.accumulation == 1, "the script's own number of GPUs needs no accumulation"
    assert schedule.lr == pytest.approx(lr)
    assert schedule.min_lr == pytest.approx(min_lr)


@pytest.mark.parametrize("name", [name for name in recipe_names() if name.startswith("finetune_")])
def test_a_fine_tuning_recipe_runs_as_published_and_on_one_device(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.about.gpus, "without it no run is set beside the paper's"
    published = resolve_schedule(recipe, world=recipe.about.gpus, videos=240_000)
    assert published.accumulation == 1
    alone = resolve_schedule(recipe, world=1, videos=240_000)
    assert (alone.batch_total, alone.lr, alone.total_steps) == (
        published.batch_total,
        published.lr,
        published.total_steps,
    )
    assert alone.batch_micro == published.batch_micro
