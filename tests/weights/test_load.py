"""Weights to start from: folders, files, and what must not load in silence."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dsvid.errors import CheckpointError
from dsvid.models.spec import ModelSpec, build_model
from dsvid.weights import load_model
from dsvid.weights.folder import read_state, write_folder
from dsvid.weights.load import initial_state

PRETRAIN = ModelSpec("pretrain", "vit_micro", 4, 16, positions="sincos_separable")
CLASSIFY = replace(PRETRAIN, task="classify", num_classes=5)


@pytest.fixture()
def folder(tmp_path: Path) -> Path:
    state = build_model(PRETRAIN, seed=7).state_dict()
    write_folder(tmp_path / "w", state, {"model": PRETRAIN.to_config()})
    return tmp_path / "w"


def test_a_folder_comes_back_as_the_same_model(folder: Path) -> None:
    model, report = load_model(folder)
    assert not report.missing and not report.unexpected
    expected = build_model(PRETRAIN, seed=7).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


def test_a_classifier_takes_the_encoder_and_names_what_starts_fresh(folder: Path) -> None:
    state, report = initial_state(folder, CLASSIFY)
    assert set(report.missing) == {"fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias"}
    assert torch.equal(state["blocks.2.mlp.fc1.weight"], read_state(folder)["encoder.blocks.2.mlp.fc1.weight"])
    model, _ = load_model(folder, num_classes=5)
    video = torch.randn(2, 3, 4, 16, 16)
    assert model(video).shape == (2, 5)
    assert model.forward_features(video).shape == (2, 128)


def test_other_positions_do_not_load_in_silence(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="other positions") as caught:
        initial_state(folder, replace(PRETRAIN, positions="sincos_flat"))
    assert caught.value.fix == "model.positions=sincos_separable"


@pytest.mark.parametrize("damage", ["nan", "missing", "extra", "shape"])
def test_weights_that_do_not_fit_are_named(damage: str, folder: Path, tmp_path: Path) -> None:
    state = read_state(folder)
    name = "encoder.blocks.1.attn.q_bias"
    if damage == "nan":
        state[name][0] = float("nan")
    elif damage == "missing":
        del state[name]
    elif damage == "extra":
        state["encoder.blocks.1.attn.k_bias"] = torch.zeros(3)
        name = "k_bias"
    else:
        state[name] = torch.zeros(7)
    write_folder(tmp_path / "damaged", state, {"model": PRETRAIN.to_config()})
    with pytest.raises(CheckpointError, match=name.split(".")[-1]):
        initial_state(tmp_path / "damaged", PRETRAIN)


def test_a_released_layout_gets_the_released_heads(tmp_path: Path) -> None:
    # 64 dims a head would give the micro decoder 1 head: the tensors fit, the predictions would be wrong.
    spec = replace(PRETRAIN, num_frames=16, input_size=224, positions="sincos_flat")
    torch.save({"model": build_model(spec, seed=3).state_dict()}, tmp_path / "p.pth")
    model, _ = load_model(tmp_path / "p.pth")
    assert model.decoder_size.heads == 2  # type: ignore[union-attr]


def test_an_unknown_decoder_is_asked_for(tmp_path: Path) -> None:
    odd = replace(PRETRAIN, num_frames=16, input_size=224, positions="sincos_flat", decoder_depth=1)
    torch.save({"model": build_model(odd, seed=3).state_dict()}, tmp_path / "p.pth")
    with pytest.raises(CheckpointError, match="how many heads"):
        load_model(tmp_path / "p.pth")
    model, _ = load_model(tmp_path / "p.pth", decoder_depth=1, decoder_heads=2)
    assert model.decoder_size.depth == 1  # type: ignore[union-attr]
    features, _ = load_model(tmp_path / "p.pth", num_classes=0)
    assert features.num_classes == 0  # type: ignore[union-attr]


@pytest.mark.parametrize(("path", "family"), [("nowhere", "auto"), (".", "resnet")])
def test_nothing_there_and_unknown_families(path: str, family: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        load_model(tmp_path / path, family=family)
