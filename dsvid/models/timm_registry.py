"""Our classifiers of clips for `timm.create_model`: importing this module registers them as `dsvid_` + the name that
VideoMAE's and simple-tad's registries have. timm's own models of those names are for pictures, and stay what they are.
"""

from __future__ import annotations

from typing import Any

from timm.models import register_model

from dsvid.errors import RecipeError
from dsvid.models.sizes import encoder_size
from dsvid.models.spec import Model, ModelSpec, build_model

ARCHS = ("vit_tiny", "vit_small", "vit_base", "vit_large", "vit_huge", "vit_giant",
         "internvideo2_small", "internvideo2_base", "internvideo2_large")  # fmt: skip
_OF_TIMM = ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")  # what timm hands to every entry point


def _register(arch: str) -> str:
    name = f"dsvid_{arch}_patch{encoder_size(arch).patch}_224"

    def create(
        pretrained: bool = False, num_classes: int = 400, num_frames: int = 16, seed: int = 0, **options: Any
    ) -> Model:
        if pretrained:
            raise RecipeError(f"{name} brings no weights", fix="dsvid.weights.load_model(FILE), or `dsvid convert`")
        more = {key: value for key, value in options.items() if key not in _OF_TIMM}
        try:
            spec = ModelSpec("classify", arch, num_frames, more.pop("image_size", 224), num_classes=num_classes, **more)
        except TypeError as error:
            raise RecipeError(f"{name} takes the fields of ModelSpec", found=error) from error
        return build_model(spec, seed=seed)

    create.__name__, create.__module__ = name, __name__
    create.__doc__ = f"`{arch}` on float clips [B, 3, num_frames, image_size, image_size] -> [B, num_classes]."
    register_model(create)
    return name


NAMES = tuple(_register(arch) for arch in ARCHS)
