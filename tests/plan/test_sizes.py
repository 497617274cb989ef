"""Parameters of every shipped recipe, counted without memory, against the models that are built."""

from __future__ import annotations

import pytest
import torch

from dsvid.job import model_spec
from dsvid.models.spec import build_model
from dsvid.plan.sizes import parameter_sizes
from dsvid.recipe import load_recipe, recipe_names

HAND = {  # encoder and decoder of 4 blocks, in millions; by hand
    "pretrain_videomaev2_giant": 1025.5, "pretrain_videomae_base_k400": 94.2, "pretrain_videomae_small_k400": 24.03,
}  # fmt: skip


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe(name: str) -> None:
    recipe = load_recipe(name)
    sizes = parameter_sizes(recipe)
    with torch.device("meta"):
        model = build_model(model_spec(recipe), seed=None)
    assert sizes.total == sum(parameter.numel() for parameter in model.parameters())
    assert sorted(sizes.each) == sorted(parameter.numel() for parameter in model.parameters())
    assert sizes.trained + sum(sizes.frozen) == sizes.total
    assert sizes.largest_block < sizes.total


@pytest.mark.parametrize("name", list(HAND))
def test_known_sizes(name: str) -> None:
    assert parameter_sizes(load_recipe(name)).total / 1e6 == pytest.approx(HAND[name], rel=1e-3)


def test_a_model_with_memory_has_as_many() -> None:
    recipe = load_recipe("demo_pretrain")
    model = build_model(model_spec(recipe), seed=None)
    assert parameter_sizes(recipe).total == sum(parameter.numel() for parameter in model.parameters())


def test_resting_parameters_have_no_group() -> None:
    probe = parameter_sizes(load_recipe("demo_finetune", {"model.linear_probe": True}))
    assert probe.trained == 128 * 8 + 8 and sum(probe.frozen) > probe.trained
    assert len(parameter_sizes(load_recipe("demo_finetune", {"optim.layer_decay": 0.5})).groups) > 4
