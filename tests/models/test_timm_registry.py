"""timm's create_model gives the model that build_model gives, under names that are not timm's own."""

import pytest
import timm
import torch

from dsvid.errors import RecipeError
from dsvid.models import timm_registry
from dsvid.models.spec import ModelSpec, build_model


def test_timm_knows_our_models_and_keeps_its_own() -> None:
    assert set(timm_registry.NAMES) <= set(timm.list_models("dsvid_*"))
    assert "dsvid_vit_base_patch16_224" in timm_registry.NAMES and "dsvid_vit_giant_patch14_224" in timm_registry.NAMES
    assert timm.model_entrypoint("vit_base_patch16_224").__module__ == "timm.models.vision_transformer"


def test_a_model_of_timm_is_ours() -> None:
    made = timm.create_model("dsvid_vit_tiny_patch16_224", num_classes=5, num_frames=4, image_size=32, depth=2, seed=3)
    ours = build_model(ModelSpec("classify", "vit_tiny", 4, 32, num_classes=5, depth=2), seed=3)
    clip = torch.randn(2, 3, 4, 32, 32)
    assert made.state_dict().keys() == ours.state_dict().keys()
    assert torch.equal(made.eval()(clip), ours.eval()(clip)) and made(clip).shape == (2, 5)


@pytest.mark.parametrize("options", [{"pretrained": True}, {"no_such_field": 1}])
def test_what_it_cannot_give_is_an_error(options: dict[str, object]) -> None:
    with pytest.raises(RecipeError, match="dsvid_vit_tiny_patch16_224"):
        timm.create_model("dsvid_vit_tiny_patch16_224", **options)
