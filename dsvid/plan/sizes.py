"""The sizes of a recipe's parameters: of the real modules on torch's meta device, which has shapes and no memory."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch

from dsvid.job import freeze, model_spec
from dsvid.models.spec import build_model
from dsvid.optim import parameter_groups
from dsvid.recipe import Recipe
from dsvid.tasks import task_of


@dataclass(frozen=True)
class ParameterSizes:
    """Numbers of values: of each trained parameter by optimizer group, of each resting one, of the largest block."""

    groups: tuple[tuple[int, ...], ...]
    frozen: tuple[int, ...]
    largest_block: int

    @property
    def each(self) -> list[int]:
        """Every parameter, trained or resting."""
        return [*(numel for group in self.groups for numel in group), *self.frozen]

    @property
    def trained(self) -> int:
        """Values that have a gradient."""
        return sum(map(sum, self.groups))

    @property
    def total(self) -> int:
        """All values."""
        return self.trained + sum(self.frozen)


@lru_cache(maxsize=8)
def parameter_sizes(recipe: Recipe) -> ParameterSizes:
    """Sizes for the recipe's model, groups and resting parts. Raises RecipeError where sizes do not fit each other."""
    spec = model_spec(recipe)
    with torch.device("meta"):
        objective = task_of(recipe).objective(recipe, build_model(spec, seed=None))
    freeze(objective, recipe, spec)
    groups = parameter_groups(
        objective.named_parameters(),
        lr=recipe.optim.base_lr,
        weight_decay=recipe.optim.weight_decay,
        layer_decay=recipe.optim.layer_decay,
        depth=spec.encoder_size.depth,
    )
    blocks = [module for name, module in objective.named_modules() if name.split(".")[-2:-1] == ["blocks"]]
    return ParameterSizes(
        tuple(tuple(parameter.numel() for parameter in group["params"]) for group in groups),
        tuple(parameter.numel() for parameter in objective.parameters() if not parameter.requires_grad),
        max(sum(parameter.numel() for parameter in block.parameters()) for block in blocks),
    )
