"""Weights to start from and models from files: folders, files, and what must not load in silence."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dsvid.errors import CheckpointError, RecipeError
from dsvid.models.spec import ModelSpec, build_model
from dsvid.weights import load_model
from dsvid.weights.card import Card
from dsvid.weights.export import Layout, export
from dsvid.weights.folder import read_state, write_folder
from dsvid.weights.load import family_names, open_start

PRETRAIN = ModelSpec("pretrain", "vit_micro", 4, 16, positions="sincos_separable")
CLASSIFY = replace(PRETRAIN, task="classify", num_classes=5)


@pytest.fixture()
def folder(tmp_path: Path) -> Path:
    state = build_model(PRETRAIN, seed=7).state_dict()
    write_folder(tmp_path / "w", state, {"model": PRETRAIN.to_config()})
    return tmp_path / "w"


def _write(path: Path, state: dict[str, Tensor], spec: ModelSpec) -> Path:
    write_folder(path, state, {"model": spec.to_config()})
    return path


def test_a_folder_comes_back_as_the_same_model(folder: Path) -> None:
    model, report = load_model(folder, task="pretrain")
    assert not report.missing and not report.unexpected
    assert model.spec == PRETRAIN
    expected = build_model(PRETRAIN, seed=7).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


def test_without_a_task_a_pre_training_folder_gives_features(folder: Path) -> None:
    model, report = load_model(folder)
    video = torch.randn(2, 3, 4, 16, 16)
    assert model.num_classes == 0 and model.forward_features(video).shape == (2, 128)
    assert torch.equal(model(video), model.forward_features(video))
    assert report.dropped["mask_token"] == "the decoder of pre-training"
    assert report.missing == ["fc_norm.weight", "fc_norm.bias"]


def test_a_run_folder_means_its_weights(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    folder.rename(run / "weights")
    (run / "recipe.yaml").write_text("task: pretrain\n")
    model, report = load_model(run, task="pretrain")
    assert report.family == "dsvid" and model.spec == PRETRAIN


def test_a_classifier_takes_the_encoder_and_names_what_starts_fresh(folder: Path) -> None:
    start = open_start(folder, CLASSIFY)
    assert set(start.report.missing) == {"fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias"}
    assert not start.names & set(start.report.missing)
    name = "blocks.2.mlp.fc1.weight"
    assert torch.equal(start.tensor(name), read_state(folder)[f"encoder.{name}"])
    assert torch.equal(start.tensor(name), start.tensor(name))
    model, _ = load_model(folder, num_classes=5)
    video = torch.randn(2, 3, 4, 16, 16)
    assert model(video).shape == (2, 5)


def test_a_config_written_before_the_newer_fields_is_read(folder: Path) -> None:
    old = {"task", "arch", "num_frames", "input_size", "tubelet", "num_classes", "positions", "drop_path", "head_drop",
           "head_init_scale", "attention", "decoder", "decoder_dim", "decoder_depth", "decoder_heads"}  # fmt: skip
    config = json.loads((folder / "config.json").read_text())
    config["model"] = {name: value for name, value in config["model"].items() if name in old}
    assert config["model"].keys() == old
    (folder / "config.json").write_text(json.dumps(config))
    model, _ = load_model(folder, task="pretrain")
    assert model.spec == PRETRAIN


@pytest.mark.parametrize("model", [None, "vit_micro", {}, {"arch": "vit_micro", "depths": 3}])
def test_a_description_that_is_none_is_named(model: Any, folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text()) | {"model": model}
    if model is None:
        del config["model"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="model description is not understood"):
        load_model(folder)


def test_other_positions_do_not_load_in_silence(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="other positions") as caught:
        open_start(folder, replace(PRETRAIN, positions="sincos_flat"))
    assert caught.value.fix == "model.positions=sincos_separable"
    torch.save({"module": build_model(CLASSIFY, seed=1).state_dict()}, tmp_path / "f.pth")
    with pytest.raises(CheckpointError, match="other positions") as caught:
        open_start(tmp_path / "f.pth", CLASSIFY)
    assert "init_family=mvd" in str(caught.value.fix)
    assert open_start(tmp_path / "f.pth", CLASSIFY, family="mvd").report.family == "mvd"


# ---- an autoencoder from an encoder's file -------------------------------------------------------------------------


def test_an_autoencoder_takes_an_encoder_s_file_only_where_that_is_asked_for(tmp_path: Path) -> None:
    path = _write(tmp_path / "c", build_model(CLASSIFY, seed=3).state_dict(), CLASSIFY)
    with pytest.raises(CheckpointError, match="not in the file") as caught:
        open_start(path, PRETRAIN)
    assert "model.fresh_decoder=true" in str(caught.value.fix)
    start = open_start(path, PRETRAIN, fresh_decoder=True)
    own = build_model(PRETRAIN, seed=0).state_dict()
    fresh = {name for name in own if not name.startswith("encoder.")} | {"encoder.norm.weight", "encoder.norm.bias"}
    assert set(start.report.missing) == fresh == set(own) - start.names
    stored = read_state(path)
    for name in start.names:
        assert torch.equal(start.tensor(name), stored[name.removeprefix("encoder.")]), name
    assert start.report.dropped.keys() == {"fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias"}


def test_an_autoencoder_s_own_decoder_is_left_out_where_that_is_asked_for(folder: Path) -> None:
    """Of another size it may then be."""
    small = replace(PRETRAIN, decoder_dim=32)
    with pytest.raises(CheckpointError, match="another shape"):
        open_start(folder, small)
    start = open_start(folder, small, fresh_decoder=True)
    assert all(name.startswith("encoder.") for name in start.names) and "encoder.norm.weight" in start.names
    assert "mask_token" in start.report.dropped and "decoder.head.weight" in start.report.dropped


def test_an_encoder_of_another_depth_is_refused(tmp_path: Path) -> None:
    path = _write(tmp_path / "c", build_model(CLASSIFY, seed=3).state_dict(), CLASSIFY)
    for depth in (3, 5):
        with pytest.raises(CheckpointError):
            open_start(path, replace(PRETRAIN, depth=depth), fresh_decoder=True)


# ---- what a file states and no tensor shows ------------------------------------------------------------------------

PLAIN = replace(CLASSIFY, positions="sincos_flat")


def _stating(layout: Layout, spec: ModelSpec, path: Path) -> Path:
    export(layout, path, build_model(spec, seed=4).state_dict(), spec, Card(), overwrite=False)
    return path


@pytest.mark.parametrize("layout", ["dsvid", "hf", "videomae"])
@pytest.mark.parametrize("task", ["classify", "pretrain"])
def test_other_heads_than_the_file_states_do_not_load_in_silence(layout: Layout, task: str, tmp_path: Path) -> None:
    spec = replace(PLAIN, task=task, num_classes=5 if task == "classify" else 0)
    path = _stating(layout, replace(spec, heads=2, decoder_heads=2), tmp_path / "w")
    with pytest.raises(CheckpointError, match="other attention heads") as caught:
        open_start(path, spec)
    assert caught.value.fix == "model.heads=2" and "states 2" in str(caught.value) and caught.value.expected == 4
    open_start(path, replace(spec, heads=2))
    if task == "pretrain":
        with pytest.raises(CheckpointError, match="heads of the decoder") as caught:
            open_start(path, replace(spec, heads=2, decoder_heads=4))
        assert caught.value.fix == "model.decoder_heads=2"
        open_start(path, replace(PLAIN, heads=2))  # the decoder is of no use there


@pytest.mark.parametrize("layout", ["dsvid", "hf"])
def test_another_gelu_than_the_file_states_does_not_load_in_silence(layout: Layout, tmp_path: Path) -> None:
    path = _stating(layout, replace(PLAIN, gelu="tanh"), tmp_path / "w")
    with pytest.raises(CheckpointError, match="other GELU") as caught:
        open_start(path, PLAIN)
    assert caught.value.fix == "model.gelu=tanh"
    assert not open_start(path, replace(PLAIN, gelu="tanh")).report.notes


def test_another_width_is_said_before_the_heads(tmp_path: Path) -> None:
    path = _stating("dsvid", PLAIN, tmp_path / "w")
    with pytest.raises(CheckpointError, match="another shape"):
        open_start(path, replace(PLAIN, arch="vit_tiny", input_size=32))


def test_another_eps_than_the_file_states_is_noted(tmp_path: Path) -> None:
    blocks = "the file states an eps of 1e-12 for the norms of the blocks, training uses 1e-06"
    pooled = "the file states an eps of 1e-05 for fc_norm, training uses 1e-06"
    theirs = replace(PLAIN, norm_eps=1e-12, pooled_eps=1e-5)
    for layout in ("hf", "dsvid"):
        report = open_start(_stating(layout, theirs, tmp_path / layout), PLAIN).report  # type: ignore[arg-type]
        assert report.notes == [blocks, pooled]
        assert f"note: {blocks}" in report.lines() and f"note: {blocks}" in report.table()
    start = open_start(_stating("hf", replace(theirs, task="pretrain", num_classes=0), tmp_path / "p"), PLAIN)
    assert start.report.notes == [blocks]  # fc_norm starts fresh
    assert not open_start(_stating("hf", PLAIN, tmp_path / "same"), PLAIN).report.notes


def test_what_transformers_code_has_beside_its_config_is_noted(tmp_path: Path) -> None:
    path = _stating("hf", PLAIN, tmp_path / "w")
    config = json.loads((path / "config.json").read_text())
    del config["dsvid"]
    (path / "config.json").write_text(json.dumps(config))
    (note,) = open_start(path, PLAIN).report.notes
    assert "1e-05 for fc_norm" in note
    for key in ("num_attention_heads", "hidden_act", "layer_norm_eps"):
        del config[key]
    (path / "config.json").write_text(json.dumps(config))
    assert open_start(path, replace(PLAIN, heads=2)).report.notes == [note]  # what is not said is not compared


# ---- what does not fit ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["nan", "inf", "missing", "extra", "shape"])
def test_weights_that_do_not_fit_are_named(damage: str, folder: Path, tmp_path: Path) -> None:
    state = read_state(folder)
    name = "encoder.blocks.1.attn.q_bias"
    if damage in ("nan", "inf"):
        state[name][0] = float(damage)
    elif damage == "missing":
        del state[name]
    elif damage == "extra":
        state["encoder.blocks.1.attn.scale"] = torch.zeros(3)
        name = "scale"
    else:
        state[name] = torch.zeros(7)
    _write(tmp_path / "damaged", state, PRETRAIN)
    for spec in (PRETRAIN, CLASSIFY):
        with pytest.raises(CheckpointError, match=name.split(".")[-1]):
            open_start(tmp_path / "damaged", spec)
    with pytest.raises(CheckpointError, match=name.split(".")[-1]):
        load_model(tmp_path / "damaged", task="pretrain")


@pytest.mark.parametrize("name", ["patch_embed.proj.bias", "blocks.3.mlp.fc2.weight", "blocks.0.norm1.bias"])
def test_each_backbone_key_is_needed(name: str, tmp_path: Path) -> None:
    spec = replace(CLASSIFY, positions="sincos_flat")
    state = build_model(spec, seed=1).state_dict()
    del state[name]
    torch.save({"module": state}, tmp_path / "f.pth")
    with pytest.raises(CheckpointError, match=name):
        load_model(tmp_path / "f.pth", num_frames=4, image_size=16)


# ---- heads ---------------------------------------------------------------------------------------------------------


@pytest.fixture()
def fine_tuned(tmp_path: Path) -> Path:
    torch.save(
        {"module": build_model(replace(CLASSIFY, positions="sincos_flat"), seed=4).state_dict()}, tmp_path / "f.pth"
    )
    return tmp_path / "f.pth"


def _own(path: Path) -> dict[str, Tensor]:
    state: dict[str, Tensor] = torch.load(path, weights_only=True)["module"]
    return state


@pytest.mark.parametrize(("classes", "expected"), [(None, 5), (5, 5), (7, 7), (0, 0)])
def test_the_head_is_taken_for_as_many_classes_only(classes: int | None, expected: int, fine_tuned: Path) -> None:
    model, report = load_model(fine_tuned, num_classes=classes)
    assert model.num_classes == expected
    if expected == 5:
        assert torch.equal(model.head.weight, _own(fine_tuned)["head.weight"])
    elif expected == 7:
        assert "5 classes, the model has 7" in report.dropped["head.weight"]
        assert {"head.weight", "head.bias"} <= set(report.missing)
    else:
        assert report.dropped["head.bias"] == "the model has no head" and not report.missing


@pytest.mark.parametrize("text", ["[4, 0, 4]", "4 # of five\n\n# none\n0\n4\n"])
def test_a_head_map_chooses_rows(text: str, fine_tuned: Path, tmp_path: Path) -> None:
    (tmp_path / "map").write_text(text)
    expected = _own(fine_tuned)["head.weight"][[4, 0, 4]]
    for classes in (3, None):
        model, report = load_model(fine_tuned, num_classes=classes, head_map=str(tmp_path / "map"))
        assert torch.equal(model.head.weight, expected)
    assert report.reshaped["head.bias"] == "3 of 5 classes by map"
    spec = replace(CLASSIFY, positions="sincos_flat", num_classes=3)
    assert torch.equal(open_start(fine_tuned, spec, head_map=str(tmp_path / "map")).tensor("head.weight"), expected)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("[0, 1]", "2 entries"),
        ("[0, 1, 5]", "class 5"),
        ("0\n1\n-1", "class -1"),
        ("one\ntwo\n", "one"),
        ("[true]", "True"),
    ],
)
def test_a_head_map_that_does_not_fit_is_refused(text: str, match: str, fine_tuned: Path, tmp_path: Path) -> None:
    (tmp_path / "map").write_text(text)
    with pytest.raises(CheckpointError, match=match):
        load_model(fine_tuned, num_classes=3, head_map=str(tmp_path / "map"))


def test_a_head_map_without_a_head_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "map").write_text("[0]")
    with pytest.raises(CheckpointError, match="has no head"):
        load_model(folder, num_classes=1, head_map=str(tmp_path / "map"))


# ---- what a file says of its model ---------------------------------------------------------------------------------


def test_a_released_layout_gets_the_released_heads(tmp_path: Path) -> None:
    # 64 dims a head would give the micro decoder 1 head: the tensors fit, the predictions would be wrong.
    spec = replace(PRETRAIN, num_frames=16, input_size=224, positions="sincos_flat")
    torch.save({"model": build_model(spec, seed=3).state_dict()}, tmp_path / "p.pth")
    model, _ = load_model(tmp_path / "p.pth", task="pretrain")
    assert model.decoder_size.heads == 2 and model.spec.arch == "vit_micro"


def test_an_unknown_decoder_is_asked_for(tmp_path: Path) -> None:
    odd = replace(PRETRAIN, num_frames=16, input_size=224, positions="sincos_flat", decoder_depth=1)
    torch.save({"model": build_model(odd, seed=3).state_dict()}, tmp_path / "p.pth")
    with pytest.raises(CheckpointError, match="how many heads"):
        load_model(tmp_path / "p.pth", task="pretrain")
    model, _ = load_model(tmp_path / "p.pth", task="pretrain", decoder_heads=2)
    assert model.decoder_size.depth == 1
    features, _ = load_model(tmp_path / "p.pth")
    assert features.num_classes == 0


def test_a_file_without_a_decoder_is_no_autoencoder(fine_tuned: Path) -> None:
    with pytest.raises(CheckpointError, match="no decoder"):
        load_model(fine_tuned, task="pretrain")


def test_heads_of_a_width_that_is_not_registered_are_asked_for(tmp_path: Path) -> None:
    spec = ModelSpec("classify", "custom", 4, 16, dim=48, depth=2, heads=3, patch=8, mlp_hidden=100, num_classes=3)
    model = build_model(spec, seed=2).eval()
    torch.save(model.state_dict(), tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match="num_heads"):
        load_model(tmp_path / "c.pth")
    loaded, _ = load_model(tmp_path / "c.pth", num_heads=3, num_frames=4, image_size=16)
    assert asdict(loaded.spec) == asdict(spec)
    video = torch.randn(1, 3, 4, 16, 16)
    assert torch.equal(loaded(video), model(video))


def test_other_heads_than_the_registered_ones_are_obeyed(fine_tuned: Path) -> None:
    model, _ = load_model(fine_tuned, num_heads=8)
    assert model.spec.arch == "vit_micro" and model.spec.encoder_size.heads == 8
    assert load_model(fine_tuned)[0].spec.encoder_size.heads == 4


def test_frames_and_size_follow_the_overrides(fine_tuned: Path) -> None:
    model, _ = load_model(fine_tuned, num_frames=4, image_size=24)
    assert model(torch.randn(1, 3, 4, 24, 24)).shape == (1, 5)
    assert load_model(fine_tuned)[0].grid.frames == 16


def test_an_architecture_of_another_size_is_refused(tmp_path: Path, fine_tuned: Path) -> None:
    spec = ModelSpec("classify", "custom", 4, 16, dim=48, depth=3, heads=3, patch=8, mlp_hidden=96, num_classes=3)
    torch.save(build_model(spec, seed=2).state_dict(), tmp_path / "c.pth")
    own = _write(tmp_path / "own", build_model(spec, seed=2).state_dict(), spec)
    for path in (tmp_path / "c.pth", own):
        with pytest.raises(CheckpointError, match="not of the size of arch=vit_large") as caught:
            load_model(path, arch="vit_large", num_heads=3)
        assert caught.value.found == "width 48, 3 blocks, patch 8, MLP 96"
        assert caught.value.expected == "width 1024, 24 blocks, patch 16, MLP 4096"
    model, _ = load_model(fine_tuned, arch="vit_micro")
    assert model.spec == load_model(fine_tuned)[0].spec and model.spec.dim == 0
    with pytest.raises(RecipeError, match="model.arch is unknown"):
        load_model(fine_tuned, arch="resnet")


@pytest.mark.parametrize("depth", [3, 5])
def test_another_depth_is_refused(depth: int, fine_tuned: Path, tmp_path: Path) -> None:
    own = _write(tmp_path / "own", build_model(PLAIN, seed=2).state_dict(), PLAIN)
    for path in (fine_tuned, own):
        with pytest.raises(CheckpointError, match=r"blocks\.3\." if depth == 3 else r"blocks\.4\."):
            load_model(path, depth=depth)
    assert load_model(fine_tuned, depth=4)[1].unexpected == []


def test_a_shallower_decoder_is_refused(folder: Path) -> None:
    shallow = replace(PRETRAIN, decoder_depth=1)
    with pytest.raises(CheckpointError, match=r"decoder\.blocks\.1\.") as caught:
        open_start(folder, shallow)
    assert caught.value.expected == "a model of 4 blocks and 1 of a decoder"
    with pytest.raises(CheckpointError, match=r"decoder\.blocks\.1\."):
        load_model(folder, task="pretrain", decoder_depth=1)


@pytest.mark.parametrize("family", ["vivit", "videomae", "mvd", "hf"])
def test_a_file_that_describes_itself_is_of_no_other_family(family: str, tmp_path: Path) -> None:
    spec = replace(CLASSIFY, heads=2)
    own = _write(tmp_path / "w", build_model(spec, seed=2).state_dict(), spec)
    for path in (own, own / "model.safetensors"):
        with pytest.raises(CheckpointError, match=f"no file of family {family}") as caught:
            load_model(path, family=family)
        assert "--from dsvid" in str(caught.value.fix)
        assert load_model(path, family="dsvid")[0].spec == load_model(path)[0].spec == spec


@pytest.mark.parametrize("policy", ["simple_tad", "family"])
def test_the_final_norm_policy_of_training(policy: str, folder: Path) -> None:
    start = open_start(folder, CLASSIFY, final_norm=policy)
    assert ("fc_norm.weight" in start.names) == (policy == "simple_tad")
    detect = replace(PRETRAIN, task="detect")
    assert torch.equal(open_start(folder, detect).tensor("norm.weight"), read_state(folder)["encoder.norm.weight"])
    with pytest.raises(CheckpointError, match="final_norm=ava"):
        open_start(folder, CLASSIFY, final_norm="ava")
    with pytest.raises(CheckpointError, match="final_norm is unknown"):
        open_start(folder, CLASSIFY, final_norm="none")


def test_a_model_in_half_precision(folder: Path) -> None:
    model, _ = load_model(folder, num_classes=3, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model(torch.randn(1, 3, 4, 16, 16)).isfinite().all()


def test_values_that_the_wanted_type_cannot_hold_are_named(folder: Path, tmp_path: Path) -> None:
    state = read_state(folder)
    state["encoder.blocks.1.attn.q_bias"][3] = 1e6
    _write(tmp_path / "large", state, PRETRAIN)
    load_model(tmp_path / "large", dtype=torch.bfloat16)
    with pytest.raises(CheckpointError, match="q_bias"):
        load_model(tmp_path / "large", dtype=torch.float16)


@pytest.mark.parametrize(("path", "family"), [("nowhere", "auto"), (".", "auto"), (".", "resnet")])
def test_nothing_there_and_unknown_families(path: str, family: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        load_model(tmp_path / path, family=family)


@pytest.mark.parametrize("override", [{"num_layers": 3}, {"final_norm_policy": "other"}, {"positions": "checkpoint"}])
def test_overrides_that_mean_nothing_are_refused(override: dict[str, Any], fine_tuned: Path) -> None:
    with pytest.raises(CheckpointError):
        load_model(fine_tuned, **override)


def test_every_family_of_the_contract_is_there() -> None:
    expected = "videomae videomaev2 vivit mvd umt internvideo2 smile mme sigma mgmae hf dsvid"
    assert set(family_names()) == set(expected.split())
