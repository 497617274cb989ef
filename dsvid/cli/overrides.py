"""`a=b` items of a command line -> keyword arguments of `load_model`, their types checked before a file is opened."""

from __future__ import annotations

import typing
from typing import Any

from dsvid.errors import RecipeError
from dsvid.recipe import split_overrides

_ALIASES = {"num_heads": "heads", "image_size": "input_size", "attn_pool_num_heads": "pool_heads"}


def model_overrides(items: list[str]) -> dict[str, Any]:
    """{field: value}; `model.` in front is allowed. Raises RecipeError for no `a=b`, or a value of another type."""
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
    from dsvid.models.spec import ModelSpec

    hint = typing.get_type_hints(ModelSpec).get(_ALIASES.get(name, name))
    if hint is int:
        good, expected = isinstance(value, int) and not isinstance(value, bool) and value >= 0, "a whole number >= 0"
    elif hint is float:
        good, expected = isinstance(value, int | float) and not isinstance(value, bool), "a number"
    elif hint is bool:
        good, expected = isinstance(value, bool), "true or false"
    elif typing.get_origin(hint) is typing.Literal:
        words = (*typing.get_args(hint), *(("checkpoint",) if name == "positions" else ()))
        good, expected = value in words, ", ".join(words)
    else:
        return  # names and files: whoever uses them says what is wrong with them
    if not good:
        raise RecipeError(f"{name}={value} is no value of {name}", expected=expected)
