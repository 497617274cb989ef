"""What is settled before a device is used: what rests."""

from __future__ import annotations

from torch import nn

from dsvid.job import freeze, model_spec
from dsvid.models.spec import build_model
from dsvid.recipe import Recipe, build_recipe
from dsvid.tasks import task_of


def recipe(**model: object) -> Recipe:
    data = {"train": "list.csv", "num_frames": 4, "input_size": 16, **model.pop("data", {})}  # type: ignore[dict-item]
    return build_recipe({"task": "classify", "model": {"arch": "vit_micro", "num_classes": 3, **model}, "data": data})


def trained(settings: Recipe) -> set[str]:
    spec = model_spec(settings)
    objective: nn.Module = task_of(settings).objective(settings, build_model(spec, seed=0))
    freeze(objective, settings, spec)
    return {name for name, parameter in objective.named_parameters() if parameter.requires_grad}


def test_nothing_rests_unless_it_is_asked_for() -> None:
    settings = recipe()
    everything = {
        name
        for name, _ in task_of(settings)
        .objective(settings, build_model(model_spec(settings), seed=0))
        .named_parameters()
    }
    assert trained(settings) == everything
    assert trained(recipe(linear_probe=True)) == {"model.head.weight", "model.head.bias"}
    assert everything - trained(recipe(freeze_blocks=1)) == {
        name
        for name in everything
        if name.startswith(("model.patch_embed.", "model.blocks.0.")) and ".norm" not in name
    }
