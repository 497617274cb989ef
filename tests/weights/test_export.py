"""Weights out: transformers computes what we compute, files come back, and nothing is left out in silence."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from dsvid.errors import CheckpointError
from dsvid.models.spec import ModelSpec, build_model
from dsvid.models.vit import video_patches
from dsvid.weights.card import Card, read_card, read_labels
from dsvid.weights.export import LAYOUTS, Layout, export, hf_config, remarks

PRETRAIN = ModelSpec("pretrain", "vit_micro", 4, 32)
CLASSIFY = replace(PRETRAIN, task="classify", num_classes=3)
CARD = Card(
    labels=("left", "right", "up"),
    input={"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7], "sampling_rate": 3, "short_side": 40},
    trained={"steps": 7},
)


def trained(spec: ModelSpec) -> Any:
    """A model none of whose values is 0 or 1: a bias or norm that is lost or swapped shows."""
    model = build_model(spec, seed=2).eval()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * (0.3 if parameter.ndim == 1 else 0.1))
    return model


def written(layout: Layout, spec: ModelSpec, path: Path, card: Card = CARD) -> Any:
    model = trained(spec)
    export(layout, path, model.state_dict(), spec, card, overwrite=False)
    return model


# ---- transformers --------------------------------------------------------------------------------------------------


def from_transformers(kind: str, folder: Path) -> Any:
    transformers = pytest.importorskip("transformers")
    model, info = getattr(transformers, kind).from_pretrained(folder, output_loading_info=True)
    # 5.9 to 5.14 have a bias of k, which is zero in every VideoMAE and starts so there.
    assert not [name for name in info["missing_keys"] if not name.endswith("key.bias")]
    return model.eval()


def test_transformers_computes_the_same_logits(tmp_path: Path) -> None:
    ours = written("hf", CLASSIFY, tmp_path / "hf")
    theirs = from_transformers("VideoMAEForVideoClassification", tmp_path / "hf")
    video = torch.randn(3, 3, 4, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits = theirs(video.permute(0, 2, 1, 3, 4)).logits
        torch.testing.assert_close(logits, ours(video), rtol=0, atol=1e-5)
        # In float64, with its eps at the one place where it takes none from the config, nothing at all is left.
        ours, theirs, video = ours.double(), theirs.double(), video.double()
        tokens = ours.encode(video_patches(video, ours.grid)).mean(dim=1)
        features = F.layer_norm(tokens, (tokens.shape[-1],), ours.fc_norm.weight, ours.fc_norm.bias, 1e-5)
        exact = theirs(video.permute(0, 2, 1, 3, 4)).logits
    torch.testing.assert_close(exact, ours.head(features), rtol=0, atol=1e-9)
    assert theirs.config.id2label == {0: "left", 1: "right", 2: "up"}
    assert theirs.config.label2id == {"left": 0, "right": 1, "up": 2}


def test_transformers_predicts_the_same_pixels(tmp_path: Path) -> None:
    ours = written("hf", PRETRAIN, tmp_path / "hf")
    theirs = from_transformers("VideoMAEForPreTraining", tmp_path / "hf")
    video = torch.randn(2, 3, 4, 32, 32, generator=torch.Generator().manual_seed(1))
    hidden = (torch.arange(ours.grid.tokens) % 4 != 1).expand(2, -1)
    index = torch.arange(ours.grid.tokens).expand(2, -1)
    visible, decoded = index[~hidden].view(2, -1), index[hidden].view(2, -1)
    patches = video_patches(video, ours.grid)[~hidden].view(2, visible.shape[1], -1)
    with torch.no_grad():
        expected = ours(patches, visible, decoded, decoded.shape[1])
        found = theirs(video.permute(0, 2, 1, 3, 4), bool_masked_pos=hidden).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_transformers_gives_our_features_where_there_is_no_head(tmp_path: Path) -> None:
    spec = replace(CLASSIFY, num_classes=0)
    ours = written("hf", spec, tmp_path / "hf", replace(CARD, labels=()))
    theirs = from_transformers("VideoMAEForVideoClassification", tmp_path / "hf")
    video = torch.randn(1, 3, 4, 32, 32)
    with torch.no_grad():
        features = theirs(video.permute(0, 2, 1, 3, 4)).logits
        torch.testing.assert_close(features, ours.forward_features(video), rtol=0, atol=1e-5)


def test_transformers_other_gelu_and_eps(tmp_path: Path) -> None:
    spec = replace(CLASSIFY, gelu="tanh", norm_eps=1e-12, pooled_eps=1e-5)
    ours = written("hf", spec, tmp_path / "hf").double()
    theirs = from_transformers("VideoMAEForVideoClassification", tmp_path / "hf").double()
    video = torch.randn(1, 3, 4, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(theirs(video.permute(0, 2, 1, 3, 4)).logits, ours(video), rtol=0, atol=1e-9)
    assert not any("fc_norm" in line for line in remarks("hf", spec))
    assert any("fc_norm" in line for line in remarks("hf", CLASSIFY))


def test_transformers_predicts_the_same_pixels_with_the_other_gelu(tmp_path: Path) -> None:
    spec = replace(PRETRAIN, gelu="tanh", norm_eps=1e-12, pooled_eps=1e-5)
    ours = written("hf", spec, tmp_path / "hf").double()
    theirs = from_transformers("VideoMAEForPreTraining", tmp_path / "hf").double()
    video = torch.randn(1, 3, 4, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    index = torch.arange(ours.grid.tokens)[None]
    hidden = index % 4 != 1
    with torch.no_grad():
        found = theirs(video.permute(0, 2, 1, 3, 4), bool_masked_pos=hidden).logits
        patches = video_patches(video, ours.grid)[:, index[~hidden]]
        expected = ours(patches, index[~hidden][None], index[hidden][None], int(hidden.sum()))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)  # of the tables, which are fp32


@pytest.mark.parametrize("norm_pix", [None, True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_whether_pixels_were_normalised_goes_along(layout: Layout, norm_pix: bool | None, tmp_path: Path) -> None:
    trained = {} if norm_pix is None else {"norm_pix": norm_pix}
    written(layout, PRETRAIN, tmp_path / "a", replace(CARD, labels=(), trained={"steps": 7, **trained}))
    card = read_card(tmp_path / "a")
    assert card.norm_pix is (norm_pix is not False)
    written("hf", PRETRAIN, tmp_path / "b", card)
    stated = json.loads((tmp_path / "b" / "config.json").read_text())["norm_pix_loss"]
    assert stated is (norm_pix is not False)


def test_transformers_word_on_normalised_pixels_is_read(tmp_path: Path) -> None:
    written("hf", PRETRAIN, tmp_path / "a", Card())
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    del config["dsvid"]
    (tmp_path / "a" / "config.json").write_text(json.dumps(config | {"norm_pix_loss": False}))
    assert read_card(tmp_path / "a").trained == {"norm_pix": False}


def test_transformers_prepares_pixels_as_we_do(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    written("hf", CLASSIFY, tmp_path / "hf")
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "hf")
    assert type(processor).__name__.startswith("VideoMAE")
    frames = [torch.full((3, 60, 50), 10 * i, dtype=torch.uint8).numpy() for i in range(4)]
    pixels = torch.as_tensor(processor(frames, return_tensors="pt")["pixel_values"])
    assert pixels.shape == (1, 4, 3, 32, 32)
    expected = (torch.tensor([0, 10, 20, 30])[:, None] / 255 - torch.tensor([0.1, 0.2, 0.3])) / torch.tensor(
        [0.5, 0.6, 0.7]
    )
    torch.testing.assert_close(pixels[0, :, :, 16, 16], expected, atol=1e-5, rtol=0)


def test_biases_stand_under_the_names_of_both_generations(tmp_path: Path) -> None:
    model = written("hf", PRETRAIN, tmp_path / "hf")
    tensors = load_file(tmp_path / "hf" / "model.safetensors")
    for ours, theirs in (
        ("encoder.blocks.1", "videomae.encoder.layer.1"),
        ("decoder.blocks.0", "decoder.decoder_layers.0"),
    ):
        attention = f"{theirs}.attention.attention"
        for short, whole in (("q_bias", "query.bias"), ("v_bias", "value.bias")):
            own = model.state_dict()[f"{ours}.attn.{short}"]
            assert torch.equal(tensors[f"{attention}.{short}"], own)
            assert torch.equal(tensors[f"{attention}.{whole}"], own)
        assert f"{attention}.key.bias" not in tensors
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["use_mean_pooling"] is False


def test_the_giant_s_odd_mlp_width_is_written_as_it_is() -> None:
    assert hf_config(ModelSpec("classify", "vit_giant", 16, 224, num_classes=2), Card())["intermediate_size"] == 6144


# ---- files of the originals ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("spec", "key"), [(PRETRAIN, "model"), (CLASSIFY, "module")])
def test_a_videomae_file_has_the_original_s_places(spec: ModelSpec, key: str, tmp_path: Path) -> None:
    model = written("videomae", spec, tmp_path / "w.pth")
    stored = torch.load(tmp_path / "w.pth", weights_only=True)
    state = model.state_dict()
    # Where the originals look: the first of these keys that is there.
    first = next(name for name in ("model", "module") if name in stored)
    assert first == key and stored[key].keys() == state.keys()
    assert all(torch.equal(stored[key][name], tensor) for name, tensor in state.items())
    if spec.task == "pretrain":
        assert {name.partition(".")[0] for name in state} == {"encoder", "decoder", "encoder_to_decoder", "mask_token"}
    else:
        assert {"patch_embed.proj.weight", "blocks.0.attn.q_bias", "fc_norm.bias", "head.weight"} <= state.keys()


# ---- there and back ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_labels_and_pixels_come_back(layout: Layout, tmp_path: Path) -> None:
    written(layout, CLASSIFY, tmp_path / "w")
    card = read_card(tmp_path / "w")
    assert card.labels == CARD.labels and card.mean == (0.1, 0.2, 0.3) and card.std == (0.5, 0.6, 0.7)
    assert card.sampling_rate == 3 and card.short_side(32) == 40 and card.trained == {"steps": 7}


def test_classes_without_names_stay_without(tmp_path: Path) -> None:
    written("hf", CLASSIFY, tmp_path / "w", Card())
    assert read_card(tmp_path / "w").labels == ()


# ---- refused -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["hf", "videomae"])
@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (replace(CLASSIFY, positions="sincos_separable"), "sincos_separable"),
        (replace(CLASSIFY, positions="sincos_umt"), "sincos_umt"),
        (replace(CLASSIFY, positions="learned"), "learned"),
        (replace(CLASSIFY, positions="learned", cls_token=True), "class token"),
        (replace(CLASSIFY, final_norm="tokens"), "norm over all tokens"),
        (replace(CLASSIFY, arch="internvideo2_small", num_frames=4, input_size=28), "RMSNorm"),
    ],
)
def test_models_that_a_layout_cannot_hold(layout: Layout, spec: ModelSpec, reason: str, tmp_path: Path) -> None:
    with torch.device("meta"):
        state = build_model(spec, seed=None).state_dict()
    with pytest.raises(CheckpointError, match=reason) as caught:
        export(layout, tmp_path / "w", state, spec, Card(), overwrite=False)
    assert caught.value.fix == "--to dsvid"
    assert not (tmp_path / "w").exists()


def test_umt_at_its_own_grid_is_plain(tmp_path: Path) -> None:
    spec = ModelSpec("classify", "vit_micro", 8, 112, tubelet=1, num_classes=2, positions="sincos_umt")
    written("hf", spec, tmp_path / "hf", Card())
    assert (tmp_path / "hf" / "model.safetensors").is_file()


def test_the_other_gelu_is_not_videomae_s(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="tanh"):
        written("videomae", replace(CLASSIFY, gelu="tanh"), tmp_path / "w.pth")


@pytest.mark.parametrize("layout", ["hf", "videomae"])
@pytest.mark.parametrize("change", ["extra", "missing"])
def test_no_tensor_is_left_out_or_made_up(layout: Layout, change: str, tmp_path: Path) -> None:
    state: dict[str, Tensor] = trained(CLASSIFY).state_dict()
    if change == "extra":
        state["blocks.0.gamma_1"] = torch.ones(128)
    else:
        del state["blocks.0.attn.v_bias"]
    with pytest.raises(CheckpointError, match="gamma_1" if change == "extra" else "v_bias"):
        export(layout, tmp_path / "w", state, CLASSIFY, Card(), overwrite=False)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_destination_that_is_there_is_only_replaced_on_demand(layout: Layout, tmp_path: Path) -> None:
    model = written(layout, CLASSIFY, tmp_path / "w")
    with pytest.raises(CheckpointError, match="exists"):
        export(layout, tmp_path / "w", model.state_dict(), CLASSIFY, Card(), overwrite=False)
    export(layout, tmp_path / "w", model.state_dict(), CLASSIFY, Card(), overwrite=True)
    assert read_card(tmp_path / "w").labels == ()
    assert [path.name for path in tmp_path.iterdir()] == ["w"], "something was left behind"


@pytest.mark.parametrize("layout", ["dsvid", "hf"])
def test_a_folder_with_other_files_is_left_alone(layout: Layout, tmp_path: Path) -> None:
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "thesis.tex").write_text("years")
    with pytest.raises(CheckpointError, match=r"thesis\.tex"):
        export(layout, tmp_path / "w", trained(CLASSIFY).state_dict(), CLASSIFY, Card(), overwrite=True)
    assert [path.name for path in (tmp_path / "w").iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_place_that_cannot_be_written(layout: Layout, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match="cannot be written"):
        written(layout, CLASSIFY, tmp_path / "file" / "w")


@pytest.mark.parametrize("layout", ["hf", "videomae"])
def test_a_full_disk_leaves_nothing_behind(layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    written(layout, CLASSIFY, tmp_path / "w")
    before = read_card(tmp_path / "w")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match="No space left"):
        export(layout, tmp_path / "w", trained(CLASSIFY).state_dict(), CLASSIFY, Card(), overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["w"]
    assert read_card(tmp_path / "w") == before


# ---- class names ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["a b\nc\n", '["a b", "c"]', '{"0": "a b", "1": "c"}', '{"c": 1, "a b": 0}', "\ufeffa b\r\nc\r\n\r\n"]
)
def test_forms_of_a_label_file(text: str, tmp_path: Path) -> None:
    (tmp_path / "l").write_bytes(text.encode())
    assert read_labels(tmp_path / "l") == ["a b", "c"]


@pytest.mark.parametrize("text", ["", "[1, 2", '{"0": "a", "2": "b"}'])
def test_wrong_label_files(text: str, tmp_path: Path) -> None:
    (tmp_path / "l").write_text(text)
    with pytest.raises(CheckpointError, match="labels="):
        read_labels(tmp_path / "l")


def test_class_names_that_repeat_are_refused() -> None:
    with pytest.raises(CheckpointError, match="repeat"):
        Card().with_labels(["a", "b", "a"], "labels=x")
