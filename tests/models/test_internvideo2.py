"""InternVideo2's encoder, and every model class under the same demands: gradients, checkpointing, types, drop path."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from dsvid.errors import RecipeError
from dsvid.models.init import initial_value
from dsvid.models.internvideo2 import RMSNorm
from dsvid.models.sizes import CLASSIFIERS
from dsvid.models.spec import ModelSpec, build_model
from dsvid.models.vit import video_patches
from dsvid.tokens import TubeletGrid, position_table

SIZES = {"dim": 32, "depth": 3, "heads": 2, "patch": 8, "mlp_hidden": 48, "num_classes": 5, "head_init_scale": 1.0}
VIT = ModelSpec("classify", "custom", 4, 16, **SIZES)
INTERN = ModelSpec("classify", "internvideo2_custom", 4, 16, tubelet=1, pool_heads=4, pool_dim=24, **SIZES)
SPECS = {
    "videomae": VIT,
    "umt": replace(VIT, tubelet=1, positions="sincos_umt"),
    "tokens": replace(VIT, final_norm="tokens"),
    "vivit": replace(VIT, positions="learned", cls_token=True, pool="first", final_norm="tokens", gelu="tanh"),
    "internvideo2": INTERN,
    "internvideo2_separate": replace(INTERN, positions="learned_separate", gelu="tanh"),
}
# Millions of parameters with 400 classes and 8 frames (counted on the originals).
RELEASED = {
    "internvideo2_small": 23.35,
    "internvideo2_base": 89.75,
    "internvideo2_large": 309.24,
    "internvideo2_1b": 1021.02,
    "internvideo2_6b": 5942.04,
    "vivit_base": 88.94,
}


@pytest.fixture(params=SPECS)
def spec(request: pytest.FixtureRequest) -> ModelSpec:
    return SPECS[request.param]


def _video(frames: int = 4, height: int = 16, width: int = 16) -> Tensor:
    return torch.randn(3, 3, frames, height, width, generator=torch.Generator().manual_seed(0))


def _model(spec: ModelSpec, **changes: Any) -> Any:
    model = build_model(replace(spec, **changes), seed=1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("gamma", "cls_token")):
                parameter.add_(0.5)  # LayerScale starts so small that blocks would hardly count
    return model


@pytest.mark.parametrize("arch", RELEASED)
def test_parameters_of_the_released_models(arch: str) -> None:
    frames, tubelet = (32, 2) if arch == "vivit_base" else (8, 1)
    with torch.device("meta"):
        model = build_model(ModelSpec("classify", arch, frames, 224, tubelet=tubelet, num_classes=400), seed=None)
        logits = model(torch.zeros(1, 3, frames, 224, 224))
    assert logits.shape == (1, 400)
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    # ViViT's published file has a bias of the keys too, which changes nothing: 9216 numbers that we leave out.
    assert millions == pytest.approx(RELEASED[arch], abs=0.01)
    assert set(RELEASED) == set(CLASSIFIERS)


def test_every_path_gives_the_same_logits(spec: ModelSpec) -> None:
    model, video = _model(spec).eval(), _video()
    logits = model(video)
    assert logits.shape == (3, 5)
    assert torch.allclose(model.head(model.forward_features(video)), logits)
    assert torch.allclose(model.forward_patches(video_patches(video, model.grid)), logits, atol=1e-6)
    assert not torch.allclose(model(video.flip(2)), logits, atol=1e-4)


def test_every_parameter_has_a_gradient(spec: ModelSpec) -> None:
    model = _model(spec)
    model(_video()).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.isfinite().all()), name
        assert bool(parameter.grad.any()) or name.endswith("k_bias"), name


@pytest.mark.parametrize("attention", ["sdpa", "math"])
def test_attention_backends_agree(spec: ModelSpec, attention: str) -> None:
    model = _model(spec, attention=attention).double()
    exact = _model(spec, attention="sdpa").double()
    assert torch.allclose(model(_video().double()), exact(_video().double()), atol=1e-12)


def test_checkpointing_changes_no_gradient(spec: ModelSpec) -> None:
    seeds, gradients = torch.tensor([5, 6, 7]), []
    functions: tuple[Callable[..., Any] | None, ...] = (
        None, lambda block, *args: checkpoint(block, *args, use_reentrant=False)
    )  # fmt: skip
    for function in functions:
        model = _model(spec, drop_path=0.4).train()
        model.set_checkpointing(function)
        model.forward_patches(video_patches(_video(), model.grid), seeds).square().sum().backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])


def test_drop_path_follows_the_seeds(spec: ModelSpec) -> None:
    model, seeds = _model(spec, drop_path=0.6).train(), torch.tensor([5, 6, 7])
    patches = video_patches(_video(), model.grid)
    once = model.forward_patches(patches, seeds)
    assert torch.equal(once, model.forward_patches(patches, seeds))
    assert not torch.allclose(once, model.forward_patches(patches, seeds + 10), atol=1e-5)
    assert torch.allclose(model.eval()(_video()), _model(spec).eval()(_video()), atol=1e-6)


def test_half_precision_and_autocast_are_close_and_keep_the_stream_wide(spec: ModelSpec) -> None:
    model, video = _model(spec).eval(), _video()
    exact = model(video)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.allclose(model(video).float(), exact, atol=0.1)
        assert model.encode(video_patches(video, model.grid)).dtype == torch.float32
    half = _model(spec).eval().bfloat16()
    assert half(video).dtype == torch.bfloat16
    assert torch.allclose(half(video).float(), exact, atol=0.1)
    assert half.encode(video_patches(video, model.grid)).dtype == torch.float32


def test_double_precision_is_computed_in_double(spec: ModelSpec) -> None:
    model = _model(spec).eval()
    exact, single = _model(spec).eval().double()(_video().double()), model(_video())
    assert exact.dtype == torch.float64
    assert 0 < float((exact - single).abs().max().detach()) < 1e-5


def test_maps_of_other_sizes(spec: ModelSpec) -> None:
    model = _model(spec).eval()
    assert model.forward_map(_video(4, 16, 40)).shape == (3, 32, 2, 5)
    square = model.forward_map(_video())
    tokens = model.encode(video_patches(_video(), model.grid))
    tokens = tokens if getattr(model, "norm", None) is None else model.norm(tokens)
    assert torch.allclose(square.flatten(2).mean(2), tokens[:, -model.grid.tokens :].mean(1), atol=1e-6)
    with pytest.raises(RecipeError, match="number of frames"):
        model.forward_map(_video(8))


def test_the_log_names_the_length_of_attention() -> None:
    assert "9 tokens" in _model(SPECS["vivit"]).attention_choices()[0]
    assert "17 tokens" in _model(INTERN).attention_choices()[0]


def test_tanh_and_erf_differ_a_little(spec: ModelSpec) -> None:
    logits = []
    for gelu in ("erf", "tanh"):
        model = _model(spec, gelu=gelu).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if ".mlp." in name:
                    parameter.mul_(20)  # where the two curves are furthest apart
            logits.append(model(_video()))
    assert 1e-6 < float((logits[0] - logits[1]).abs().max()) < 1e-2


def test_rms_norm_is_computed_in_fp32() -> None:
    norm = RMSNorm(512)
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(0.5, 2.0, 512))
    x = torch.randn(5, 512)
    exact = x.double() / (x.double().square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight.double()
    assert torch.allclose(norm(x).double(), exact, atol=1e-6)
    half = norm.bfloat16()(x)
    assert half.dtype == torch.bfloat16
    assert torch.allclose(half.double(), exact, rtol=2**-6, atol=1e-6)  # three roundings, no sum in half precision


def test_heads_of_the_pooling_must_divide() -> None:
    with pytest.raises(RecipeError, match="attention pooling"):
        build_model(replace(INTERN, pool_heads=5), seed=None)


# ---- initial values ------------------------------------------------------------------------------------------------


def test_initial_values_of_internvideo2() -> None:
    state = build_model(replace(INTERN, dim=128, mlp_hidden=512, head_init_scale=0.001), seed=2).state_dict()
    assert bool((state["blocks.1.ls2.gamma"] == 1e-5).all())
    for block in range(3):
        for name in ("attn.proj", "mlp.fc2"):
            std = float(state[f"blocks.{block}.{name}.weight"].std())
            assert std == pytest.approx(0.02 / (2 * (block + 1)) ** 0.5, rel=0.03)
    assert float(state["blocks.2.mlp.fc1.weight"].std()) == pytest.approx(0.02, rel=0.03)
    assert bool((state["blocks.0.attn.q_norm.weight"] == 1).all())
    assert not state["clip_projector.cross_attn.k_bias"].any()
    assert float(state["clip_projector.cross_attn.k.weight"].std()) == pytest.approx(0.02, rel=0.03)
    assert float(state["head.weight"].std()) == pytest.approx(0.00002, rel=0.15)
    assert float(state["cls_token"].std()) == pytest.approx(0.02, rel=0.3)
    assert not state["pos_embed"][0, 0].any()
    assert torch.equal(state["pos_embed"][0, 1:], position_table("sincos_separable", 4, 2, 2, 128))


def test_separate_tables_start_as_sines_and_the_class_token_has_none() -> None:
    state = build_model(SPECS["internvideo2_separate"], seed=2).state_dict()
    assert not state["pos_embed_cls"].any()
    assert state["pos_embed_spatial"].shape == (1, 4, 32) and state["pos_embed_temporal"].shape == (1, 4, 32)
    assert float(state["pos_embed_spatial"].abs().max()) <= 1.0 and bool(state["pos_embed_temporal"].any())


def test_other_models_keep_their_values() -> None:
    assert float(initial_value("blocks.7.attn.proj.weight", (256, 256), 0).std()) == pytest.approx(0.02, rel=0.02)
    assert float(initial_value("pos_embed", (1, 500, 64), 0).std()) == pytest.approx(0.02, rel=0.02)


def test_a_model_made_in_bf16_has_the_values_of_fp32(spec: ModelSpec) -> None:
    exact, half = build_model(spec, seed=3).state_dict(), build_model(spec, seed=3, dtype=torch.bfloat16).state_dict()
    assert set(exact) == set(half)
    assert all(torch.equal(exact[name].bfloat16(), half[name]) for name in exact)


# ---- descriptions --------------------------------------------------------------------------------------------------


def test_architectures_with_learned_tables_have_them_whatever_the_recipe_says() -> None:
    assert ModelSpec("classify", "internvideo2_base", 8, 224).positions == "learned"
    assert (
        ModelSpec("classify", "internvideo2_base", 8, 224, positions="learned_separate").positions == "learned_separate"
    )
    vivit = ModelSpec("classify", "vivit_base", 32, 224)
    assert (vivit.positions, vivit.gelu, vivit.cls_token, vivit.extra_tokens) == ("learned", "tanh", True, 1)


def test_a_custom_architecture_needs_every_size() -> None:
    with pytest.raises(RecipeError, match="mlp_hidden"):
        _ = replace(VIT, mlp_hidden=0).encoder_size
    with pytest.raises(RecipeError, match="decoder_heads"):
        _ = replace(VIT, task="pretrain", decoder_dim=16, decoder_depth=1).decoder_size
    with pytest.raises(RecipeError, match="no decoder"):
        _ = ModelSpec("pretrain", "internvideo2_base", 8, 224).decoder_size
    with pytest.raises(RecipeError, match="no decoder"):
        _ = ModelSpec("pretrain", "internvideo2_custom", 8, 28).decoder_size
    with pytest.raises(RecipeError, match="task=segment"):
        replace(VIT, task="segment")


def test_a_class_token_needs_learned_positions() -> None:
    with pytest.raises(RecipeError, match="learned positions"):
        build_model(replace(VIT, cls_token=True), seed=None)


def test_descriptions_come_back(spec: ModelSpec) -> None:
    assert ModelSpec.from_config(spec.to_config(), "test") == spec


def test_a_custom_autoencoder_runs() -> None:
    custom = replace(
        VIT, task="pretrain", num_classes=0, decoder_dim=16, decoder_depth=1, decoder_heads=2, decoder_hidden=24
    )
    model = build_model(custom, seed=0)
    assert model.grid == TubeletGrid(4, 16, 16, 2, 8)
    tokens = torch.arange(8, dtype=torch.int32)[None]
    assert model(torch.zeros(1, 2, 384), tokens[:, :2], tokens[:, 2:], 6).shape == (1, 6, 384)
