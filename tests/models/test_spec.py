"""The model as plain data: values that a field cannot have, and what is built from the others."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from dsvid.errors import CheckpointError, RecipeError
from dsvid.models import MaskedAutoencoder
from dsvid.models.spec import ModelSpec, build_model, check_value

SPEC = ModelSpec("classify", "vit_micro", 4, 16)
WRONG: list[tuple[str, Any]] = [
    ("task", "segment"), ("arch", 5), ("num_frames", 0), ("num_frames", 2.0), ("num_classes", -1), ("heads", True),
    ("heads", None), ("positions", "sincos"), ("drop_path", 3), ("drop_path", -0.1), ("head_drop", 1.0),
    ("head_init_scale", 0), ("attention", "foo"), ("attention", ["sdpa"]), ("decoder", ""), ("cls_token", 1),
    ("norm_eps", -1), ("norm_eps", 0.0), ("pooled_eps", float("nan")), ("norm_eps", float("inf")), ("gelu", "quick"),
    ("norm_eps", "1e-6"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_value_that_a_field_cannot_have(name: str, value: Any) -> None:
    with pytest.raises(RecipeError, match=name) as caught:
        replace(SPEC, **{name: value})
    assert caught.value.expected
    with pytest.raises(CheckpointError, match="w/config.json") as stored:
        ModelSpec.from_config({**SPEC.to_config(), name: value}, "w/config.json")
    assert name in str(stored.value.found) and stored.value.expected == caught.value.expected


def test_values_at_the_ends_are_allowed() -> None:
    given = {"drop_path": 0, "head_drop": 0.99, "norm_eps": 1e-12, "heads": 0, "attention": "math", "tubelet": 1}
    assert replace(SPEC, **given).drop_path == 0
    with pytest.raises(RecipeError, match="num_heads=x is no value of num_heads"):
        check_value("heads", "x", "num_heads")


def test_an_autoencoder_has_the_gelu_of_its_description() -> None:
    model = build_model(replace(SPEC, task="pretrain", gelu="tanh"), seed=None)
    assert isinstance(model, MaskedAutoencoder)
    for part in (model.encoder, model.decoder):
        assert [block.mlp.approximate for block in part.blocks] == ["tanh"] * len(part.blocks)
