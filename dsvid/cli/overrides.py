"""`a=b` items of a command line -> keyword arguments of `load_model`, their values checked before a file is opened."""

from __future__ import annotations

from typing import Any

from dsvid.errors import RecipeError
from dsvid.recipe import split_overrides

_FILES = ("head_map", "labels")


def model_overrides(items: list[str]) -> dict[str, Any]:
    """{field: value}; `model.` in front is allowed. Raises RecipeError for no `a=b`, or a value that cannot be."""
    ours, theirs = split_overrides(items)
    if theirs:
        raise RecipeError("this command has no DeepSpeed JSON", found=f"ds.{next(iter(theirs))}", fix="leave it out")
    plain = {key.removeprefix("model."): value for key, value in ours.items()}
    nested = next((key for key in plain if "." in key), None)
    if nested is not None:
        raise RecipeError(f"{nested} is no setting of the model", expected="num_classes=, num_heads=, num_frames=, …")
    if "dtype" in plain:
        raise RecipeError("dtype is no setting of the model here", expected="weights are read and computed in fp32")
    for name, value in plain.items():
        _check(name, value)
    return plain


def _check(name: str, value: Any) -> None:
    from dsvid.models.spec import ModelSpec, check_value
    from dsvid.weights.load import ALIASES

    field = ALIASES.get(name, name)
    if name in _FILES and not isinstance(value, str):
        raise RecipeError(f"{name}={value} is no value of {name}", expected="a file", fix=f"{name}=./{value}")
    if field in ModelSpec.__dataclass_fields__ and (field, value) != ("positions", "checkpoint"):
        check_value(field, value, name)
