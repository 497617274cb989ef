"""Initial values: the originals' distributions, and a pure function of seed and name."""

import math

import pytest
import torch

from dsvid.models import DecoderSize, EncoderSize, MaskedAutoencoder, VisionTransformer, init_weights, initial_value
from dsvid.tokens import TubeletGrid

GRID = TubeletGrid(4, 32, 32, 2, 16)
ENCODER, DECODER = EncoderSize(384, 2, 6, 16), DecoderSize(192, 2, 3)


@pytest.fixture(scope="module")
def autoencoder() -> dict[str, torch.Tensor]:
    return MaskedAutoencoder(ENCODER, DECODER, GRID, seed=3).state_dict()


@pytest.fixture(scope="module")
def classifier() -> dict[str, torch.Tensor]:
    return VisionTransformer(ENCODER, GRID, num_classes=400, seed=3).state_dict()


def _xavier(weight: torch.Tensor) -> float:
    return math.sqrt(6.0 / sum(weight.shape))


@pytest.mark.parametrize(
    "name",
    [
        "encoder.blocks.0.attn.qkv.weight",
        "encoder.blocks.1.attn.proj.weight",
        "encoder.blocks.0.mlp.fc1.weight",
        "decoder.blocks.1.mlp.fc2.weight",
        "decoder.head.weight",
    ],
)
def test_linear_weights_are_xavier_uniform(autoencoder: dict[str, torch.Tensor], name: str) -> None:
    weight = autoencoder[name]
    bound = _xavier(weight)
    assert float(weight.abs().max()) == pytest.approx(bound, rel=1e-3)
    assert float(weight.abs().max()) <= bound
    assert float(weight.std()) == pytest.approx(bound / math.sqrt(3), rel=0.01)


def test_encoder_to_decoder_keeps_torch_default(autoencoder: dict[str, torch.Tensor]) -> None:
    assert float(autoencoder["encoder_to_decoder.weight"].std()) == pytest.approx(0.0295, abs=2e-4)


def test_patch_embedding_keeps_torch_default(autoencoder: dict[str, torch.Tensor]) -> None:
    bound = 1.0 / math.sqrt(GRID.values)
    for name in ("weight", "bias"):
        value = autoencoder[f"encoder.patch_embed.proj.{name}"]
        assert float(value.abs().max()) <= bound
        assert float(value.std()) == pytest.approx(bound / math.sqrt(3), rel=0.08)


def test_mask_token_is_cut_at_one_deviation() -> None:
    token = initial_value("mask_token", (1, 1, 20000), 0)
    assert float(token.abs().max()) <= 0.02
    assert float(token.std()) == pytest.approx(0.02 * 0.5396, rel=0.02)  # deviation of a normal cut at one sigma


def test_norms_and_biases(autoencoder: dict[str, torch.Tensor], classifier: dict[str, torch.Tensor]) -> None:
    for state in (autoencoder, classifier):
        for name, value in state.items():
            if "norm" in name:
                assert bool((value == (1.0 if name.endswith("weight") else 0.0)).all()), name
            elif name.endswith("bias") and "patch_embed" not in name:
                assert not value.any(), name


def test_the_fine_tuning_model_uses_a_truncated_normal(classifier: dict[str, torch.Tensor]) -> None:
    assert float(classifier["blocks.0.mlp.fc1.weight"].std()) == pytest.approx(0.02, rel=0.01)
    assert float(classifier["head.weight"].std()) == pytest.approx(0.02 * 0.001, rel=0.02)
    demo = VisionTransformer(ENCODER, GRID, num_classes=400, head_init_scale=1.0)
    assert float(demo.state_dict()["head.weight"].std()) == pytest.approx(0.02, rel=0.02)


def test_values_depend_on_seed_and_name_alone(autoencoder: dict[str, torch.Tensor]) -> None:
    torch.manual_seed(99)
    deeper = MaskedAutoencoder(EncoderSize(384, 3, 6, 16), DECODER, GRID, seed=3).state_dict()
    for name, value in autoencoder.items():
        assert torch.equal(value, deeper[name]), name
    first, second = (autoencoder[f"encoder.blocks.{i}.mlp.fc1.weight"] for i in (0, 1))
    assert not torch.equal(first, second)
    other = MaskedAutoencoder(ENCODER, DECODER, GRID, seed=4).state_dict()
    assert not torch.equal(first, other["encoder.blocks.0.mlp.fc1.weight"])


def test_an_objective_prefix_changes_nothing() -> None:
    shape = (8, 4)
    name = "encoder.blocks.0.mlp.fc1.weight"
    assert torch.equal(initial_value(f"model.{name}", shape, 1), initial_value(name, shape, 1))


def test_a_parameter_without_a_rule_is_an_error() -> None:
    with pytest.raises(KeyError, match=r"encoder\.gate"):
        initial_value("encoder.gate", (3,), 0)


def test_a_partitioned_parameter_is_not_set_silently() -> None:
    model = MaskedAutoencoder(ENCODER, DECODER, GRID, seed=None)
    model.mask_token.data = torch.empty(0)  # what deepspeed.zero.Init leaves behind
    with pytest.raises(ValueError, match="mask_token"):
        init_weights(model, 0)
