"""Families: how files are recognised, what their names become, what each rule does to a model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dsvid.errors import CheckpointError
from dsvid.models.spec import ModelSpec, build_model
from dsvid.tokens import resize_table
from dsvid.weights import load_model
from dsvid.weights.load import open_start
from dsvid.weights.vivit import simple_tad_state

State = dict[str, Tensor]
VIT = ModelSpec("classify", "custom", 8, 16, dim=32, depth=2, heads=2, patch=8, mlp_hidden=48, num_classes=3)
PRETRAIN = replace(VIT, task="pretrain", num_classes=0, decoder_dim=16, decoder_depth=1, decoder_heads=2)
INTERN = replace(VIT, arch="internvideo2_custom", tubelet=1, pool_heads=4, pool_dim=24)
SIZE: dict[str, Any] = {"num_heads": 2, "num_frames": 8, "image_size": 16}


def _random(spec: ModelSpec, seed: int = 5) -> State:
    model = build_model(spec, seed=None)
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(p.shape, generator=generator) * 0.2 for name, p in model.named_parameters()}


def _prefixed(state: State, prefix: str) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def _save(path: Path, state: State, key: str = "model") -> Path:
    torch.save({key: state} if key else state, path)
    return path


PRE, FINE = _random(PRETRAIN), _random(VIT)
BACKBONE = {name: tensor for name, tensor in FINE.items() if not name.startswith(("fc_norm", "head"))}
NORM = {"norm.weight": torch.full((32,), 1.5), "norm.bias": torch.full((32,), 0.5)}
ONE = torch.zeros(1)


def _mme() -> State:
    names = {n: t for n, t in PRE.items() if n.startswith("encoder.")}
    return names | {"decoder.0.blocks.0.norm1.weight": ONE, "encoder_to_decoder.0.weight": ONE, "mask_token": ONE}


def _umt() -> State:
    state = {n: t for n, t in _random(replace(VIT, tubelet=1)).items() if not n.startswith(("fc_norm", "head"))}
    return _prefixed(state | NORM, "encoder.") | {"clip_decoder.0.head.weight": ONE}


FILES: dict[str, tuple[State, str]] = {
    "videomae": (PRE, "videomae"),
    "compiled": (_prefixed(PRE, "_orig_mod."), "videomae"),
    "wrapped twice": (_prefixed(FINE, "module.backbone."), "videomae"),
    "our engine": (_prefixed(FINE, "model."), "videomae"),
    "fine-tuned": (FINE, "videomae"),
    "smile": (PRE | {"decoder.head.weight": torch.zeros(77, 16), "decoder.head.bias": torch.zeros(77)}, "smile"),
    "sigma": (PRE | {"prototypes": ONE, "head.0.weight": ONE, "head.2.bias": ONE}, "sigma"),
    "mme": (_mme(), "mme"),
    "mme momentum": (_prefixed(_prefixed(BACKBONE, "encoder.model."), "encoder_q."), "mme"),
    "mvd": (
        BACKBONE | NORM | {"mask_token_img": ONE, "decoder_vid.norm.bias": ONE, "pos_embed": torch.zeros(1, 16, 32)},
        "mvd",
    ),
    "umt": (_umt(), "umt"),
    "umt fine-tuned": (_random(replace(VIT, tubelet=1)), "umt"),
    "vivit converted": (_prefixed(BACKBONE | NORM | {"pos_embed": torch.zeros(1, 16, 32)}, "encoder."), "vivit"),
    "internvideo2": (_random(INTERN) | {"final_clip_decoder.head.weight": ONE, "mae_pos_embed": ONE}, "internvideo2"),
}


@pytest.mark.parametrize("name", FILES)
def test_files_are_recognised_and_whole(name: str, tmp_path: Path) -> None:
    state, family = FILES[name]
    model, report = load_model(_save(tmp_path / "w.pth", state), attn_pool_num_heads=4, **SIZE)
    assert report.family == family and len(report.why) > 20
    assert not report.unexpected, report.table()
    assert set(report.missing) <= {"fc_norm.weight", "fc_norm.bias"}
    assert model.forward_features(torch.randn(1, 3, 8, 16, 16)).isfinite().all()
    accounted = {*report.dropped, *report.unexpected}
    assert len(state) == len(accounted) + len(report.loaded)
    for kind in ("loaded", "reshaped", "dropped", "missing", "unexpected"):
        assert kind in report.table() and any(line.startswith(kind) for line in report.lines())
    again, asked = load_model(tmp_path / "w.pth", family=family, attn_pool_num_heads=4, **SIZE)
    assert asked.family == family and again.spec == model.spec


def test_what_looks_the_same_is_said(tmp_path: Path) -> None:
    _, report = load_model(_save(tmp_path / "w.pth", FINE), **SIZE)
    assert "MVD has another position table" in report.why and "SMILE" in report.why
    model, _ = load_model(tmp_path / "w.pth", family="mvd", **SIZE)
    assert model.spec.positions == "sincos_separable"


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("sigma", "videomae"), ("mme", "videomae"), ("umt", "videomae"), ("mvd", "umt"), ("videomae", "mvd"),
        ("videomae", "vivit"), ("internvideo2", "videomae"), ("fine-tuned", "internvideo2"), ("fine-tuned", "hf"),
        ("fine-tuned", "dsvid"),
    ],
)  # fmt: skip
def test_another_family_than_the_file_s_is_refused(name: str, family: str, tmp_path: Path) -> None:
    path = _save(tmp_path / "w.pth", FILES[name][0])
    with pytest.raises(CheckpointError, match=f"no file of family {family}") as caught:
        load_model(path, family=family, **SIZE)
    assert caught.value.fix == "family=auto"


def test_a_wrong_prefix_is_no_family(tmp_path: Path) -> None:
    path = _save(tmp_path / "w.pth", _prefixed(FINE, "student."))
    for family in ("auto", "videomae", "mvd"):
        with pytest.raises(CheckpointError, match=r"student\."):
            load_model(path, family=family, **SIZE)


def test_two_models_in_one_file_are_not_mixed(tmp_path: Path) -> None:
    path = _save(tmp_path / "w.pth", FINE | _prefixed(FINE, "backbone."))
    with pytest.raises(CheckpointError, match="two tensors mean the same"):
        load_model(path, **SIZE)
    path = _save(tmp_path / "w.pth", FINE | {"encoder.blocks.0.attn.q_bias": torch.zeros(32)})
    with pytest.raises(CheckpointError, match="two tensors mean the same"):
        load_model(path, **SIZE)


# ---- final norm ----------------------------------------------------------------------------------------------------


def test_the_norm_of_a_pre_training_file_by_policy(tmp_path: Path) -> None:
    path = _save(tmp_path / "w.pth", PRE)
    family, fresh = load_model(path, **SIZE)
    assert bool((family.fc_norm.weight == 1).all()) and "fresh" in fresh.dropped["encoder.norm.weight"]
    simple_tad, _ = load_model(path, final_norm_policy="simple_tad", **SIZE)
    assert torch.equal(simple_tad.fc_norm.bias, PRE["encoder.norm.bias"])
    ava, _ = load_model(path, final_norm_policy="ava", **SIZE)
    assert torch.equal(ava.norm.bias, PRE["encoder.norm.bias"]) and ava.fc_norm is None


def test_the_norm_of_a_fine_tuned_file_by_policy(tmp_path: Path) -> None:
    path = _save(tmp_path / "w.pth", FINE)
    ava, report = load_model(path, final_norm_policy="ava", **SIZE)
    assert bool((ava.norm.weight == 1).all()) and "fc_norm.weight" in report.dropped and "norm.weight" in report.missing
    for policy in ("family", "simple_tad"):
        model, _ = load_model(path, final_norm_policy=policy, **SIZE)
        assert torch.equal(model.fc_norm.weight, FINE["fc_norm.weight"])


def test_vivit_s_norm_goes_on_as_simple_tad_has_it(tmp_path: Path) -> None:
    model, _ = load_model(_save(tmp_path / "w.pth", FILES["vivit converted"][0]), **SIZE)
    assert bool((model.fc_norm.weight == 1.5).all())


# ---- positions, kernels --------------------------------------------------------------------------------------------


def test_stored_tables_are_used_on_request_only(tmp_path: Path) -> None:
    state = dict(FILES["vivit converted"][0])
    state["encoder.pos_embed"] = torch.randn(1, 16, 32)
    path = _save(tmp_path / "w.pth", state)
    plain, report = load_model(path, **SIZE)
    assert plain.positions is not None and "sin-cos" in report.dropped["encoder.pos_embed"]
    stored, _ = load_model(path, positions="checkpoint", **SIZE)
    assert torch.equal(stored.pos_embed, state["encoder.pos_embed"])


@pytest.mark.parametrize(("frames", "size"), [(16, 16), (8, 32), (4, 24), (8, 16)])
def test_internvideo2_s_table_is_resized_behind_the_class_row(frames: int, size: int, tmp_path: Path) -> None:
    state = {name: t for name, t in _random(INTERN).items() if not name.startswith(("fc_norm", "head"))}
    model, report = load_model(_save(tmp_path / "w.pth", state, ""), num_heads=2, attn_pool_num_heads=4,
                               num_frames=frames, image_size=size)  # fmt: skip
    table = state["pos_embed"][0]
    side = size // 8
    assert torch.equal(model.pos_embed[0, 0], table[0])
    assert torch.allclose(model.pos_embed[0, 1:], resize_table(table[1:], (8, 2, 2), (frames, side, side)))
    assert ("pos_embed" in report.reshaped) == ((frames, size) != (8, 16))


def test_a_fine_tuned_table_of_the_model_s_own_grid_is_taken_as_it_is(tmp_path: Path) -> None:
    spec = replace(INTERN, num_frames=2, input_size=32)  # 2 x 4 x 4 positions: as many as 8 x 2 x 2
    state = _random(spec)
    model, report = load_model(
        _save(tmp_path / "w.pth", state), num_heads=2, attn_pool_num_heads=4, num_frames=2, image_size=32
    )
    assert torch.equal(model.pos_embed, state["pos_embed"]) and not report.reshaped


def test_separate_tables_and_kernels_of_one_frame(tmp_path: Path) -> None:
    spec = replace(INTERN, positions="learned_separate")
    state = _random(spec)
    model, report = load_model(_save(tmp_path / "w.pth", state), num_heads=2, attn_pool_num_heads=4, num_frames=8,
                               tubelet=2, image_size=24)  # fmt: skip
    assert model.pos_embed_spatial.shape == (1, 9, 32) and model.pos_embed_temporal.shape == (1, 4, 32)
    assert torch.equal(model.pos_embed_cls, state["pos_embed_cls"])
    kernel = model.patch_embed.proj.weight
    assert torch.allclose(kernel.sum(2), state["patch_embed.proj.weight"][:, :, 0]) and kernel.shape[2] == 2
    assert set(report.reshaped) == {"pos_embed_spatial", "pos_embed_temporal", "patch_embed.proj.weight"}


def test_other_families_kernels_are_not_stretched(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"patch_embed\.proj\.weight has another shape"):
        load_model(_save(tmp_path / "w.pth", FINE), num_heads=2, tubelet=4)


def test_training_starts_from_every_family(tmp_path: Path) -> None:
    specs = {
        **dict.fromkeys(("videomae", "mme", "sigma", "vivit converted"), VIT),
        "internvideo2": INTERN,
        "umt": replace(VIT, tubelet=1, positions="sincos_umt"),
        "mvd": replace(VIT, positions="sincos_separable"),
    }
    for name, spec in specs.items():
        start = open_start(_save(tmp_path / "w.pth", FILES[name][0]), spec)
        names = {name for name, _ in build_model(spec, seed=None).named_parameters()}
        assert start.names | set(start.report.missing) == names
        assert all(start.tensor(own).dtype == torch.float32 for own in start.names)
    with pytest.raises(CheckpointError, match="other positions"):
        open_start(_save(tmp_path / "w.pth", FILES["umt"][0]), replace(VIT, tubelet=1))


def test_an_autoencoder_starts_from_whole_files_only(tmp_path: Path) -> None:
    start = open_start(_save(tmp_path / "w.pth", PRE), PRETRAIN)
    assert start.names == set(PRE) and not start.report.missing
    for name in ("mme", "fine-tuned", "smile"):
        with pytest.raises(CheckpointError):
            open_start(_save(tmp_path / "w.pth", FILES[name][0]), PRETRAIN)


# ---- transformers --------------------------------------------------------------------------------------------------


def _transformers(kind: str, **sizes: Any) -> tuple[Any, dict[str, Any]]:
    transformers = pytest.importorskip("transformers")
    common = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
              "image_size": 16, "num_frames": 4, **sizes}  # fmt: skip
    config = getattr(transformers, f"{kind.partition('For')[0]}Config")(**common)
    torch.manual_seed(0)
    model = getattr(transformers, kind)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model, common


@pytest.mark.parametrize("pooling", [True, False])
def test_transformers_own_output_is_reproduced(pooling: bool, tmp_path: Path) -> None:
    theirs, _ = _transformers("VideoMAEForVideoClassification", patch_size=8, num_labels=3, use_mean_pooling=pooling)
    theirs.save_pretrained(tmp_path / "hf")
    model, report = load_model(tmp_path / "hf")
    assert report.family == "hf" and not report.missing and not report.unexpected
    video = torch.randn(2, 3, 4, 16, 16)
    with torch.no_grad():
        assert torch.allclose(model(video), theirs(video.transpose(1, 2)).logits, atol=1e-5)
    torch.save(theirs.state_dict(), tmp_path / "hf" / "in_memory.pth")  # names of the release that runs here
    again, _ = load_model(tmp_path / "hf" / "in_memory.pth")
    with torch.no_grad():
        assert torch.equal(again(video), model(video))


def test_a_pre_training_folder_of_transformers_gives_its_autoencoder(tmp_path: Path) -> None:
    decoder = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    sizes = {f"decoder_{name}": value for name, value in decoder.items()}
    theirs, _ = _transformers("VideoMAEForPreTraining", patch_size=8, use_mean_pooling=False, **sizes)
    theirs.save_pretrained(tmp_path / "hf")
    model, report = load_model(tmp_path / "hf", task="pretrain")
    assert not report.missing and not report.unexpected and model.decoder_size.heads == 2
    video = torch.randn(2, 3, 4, 16, 16)
    mask = torch.tensor([[True, False, True, True] * 2, [False, True, True, True] * 2])
    with torch.no_grad():
        expected = theirs(video.transpose(1, 2), bool_masked_pos=mask).logits
        order = mask.int().argsort(dim=1, stable=True).int()
        patches = video.view(2, 3, 2, 2, 2, 8, 2, 8).permute(0, 2, 4, 6, 1, 3, 5, 7).reshape(2, 8, -1)
        seen = torch.gather(patches, 1, order[:, :2, None].long().expand(-1, -1, patches.shape[2]))
        ours = model(seen, order[:, :2], order[:, 2:], 6)
    assert torch.allclose(ours, expected, atol=1e-5)


@pytest.mark.parametrize("release", ["file", "in memory"])
def test_vivit_of_transformers_is_reproduced(release: str, tmp_path: Path) -> None:
    theirs, _ = _transformers("VivitForVideoClassification", tubelet_size=[2, 8, 8], num_labels=3)
    theirs.save_pretrained(tmp_path / "hf")
    path = tmp_path / "hf"
    if release == "in memory":
        path = path / "m.pth"
        torch.save(theirs.state_dict(), path)
    model, report = load_model(path)
    assert report.family == "vivit" and not report.unexpected and not report.missing
    assert all(name.endswith(("key.bias", "k_proj.bias")) for name in report.dropped)
    video = torch.randn(2, 3, 4, 16, 16)
    with torch.no_grad():
        assert torch.allclose(model(video), theirs(video.transpose(1, 2)).logits, atol=1e-5)
    wider, _ = load_model(path, num_frames=8, image_size=24)
    table = theirs.state_dict()["vivit.embeddings.position_embeddings"][0]
    assert torch.allclose(wider.pos_embed[0, 1:], resize_table(table[1:], (2, 2, 2), (4, 3, 3)))
    without, _ = load_model(path, final_norm_policy="simple_tad")
    assert without.cls_token is None and without.spec.gelu == "erf" and without.spec.positions == "sincos_flat"
    start = open_start(path, without.spec)
    assert "cls_token" not in start.names and torch.equal(start.tensor("fc_norm.bias"), without.fc_norm.bias)


def test_simple_tad_s_conversion_averages_pairs_of_slots(tmp_path: Path) -> None:
    table = torch.randn(1, 1 + 4 * 196, 8)
    layer = "encoder.layer.0.attention.attention."
    state = {"embeddings.position_embeddings": table, "embeddings.cls_token": torch.zeros(1, 1, 8)}
    state |= {f"{layer}{part}.weight": torch.full((8, 8), float(i)) for i, part in enumerate(("query", "key", "value"))}
    state[f"{layer}key.bias"] = torch.ones(8)
    converted = simple_tad_state(_save(tmp_path / "w.pth", state, ""))
    assert set(converted) == {"encoder.pos_embed", "encoder.blocks.0.attn.qkv.weight"}
    assert torch.allclose(
        converted["encoder.pos_embed"][0], table[0, 1:].view(2, 2, 196, 8).mean(1).view(-1, 8), atol=1e-6
    )
    assert converted["encoder.blocks.0.attn.qkv.weight"][:, 0].tolist() == [0.0] * 8 + [1.0] * 8 + [2.0] * 8


def test_what_config_json_says_of_a_model(tmp_path: Path) -> None:
    theirs, _ = _transformers("VideoMAEForVideoClassification", patch_size=8, num_labels=3)
    theirs.save_pretrained(tmp_path / "hf")
    spec = load_model(tmp_path / "hf")[0].spec
    assert (spec.heads, spec.norm_eps, spec.pooled_eps, spec.num_frames, spec.input_size) == (4, 1e-12, 1e-5, 4, 16)
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config | {"hidden_act": "relu"}))
    with pytest.raises(CheckpointError, match="hidden_act"):
        load_model(tmp_path / "hf")
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config | {"layer_norm_eps": 1e-5}))
    assert load_model(tmp_path / "hf")[0].blocks[0].norm1.eps == 1e-5


@pytest.mark.parametrize("left_out", ["image_size", "num_frames", "tubelet_size", "everything"])
def test_what_a_vivit_config_leaves_out_is_transformers_default(left_out: str, tmp_path: Path) -> None:
    theirs, _ = _transformers("VivitForVideoClassification", image_size=224, num_frames=32, num_labels=3)
    theirs.save_pretrained(tmp_path / "hf")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    kept = {"model_type": "vivit", "num_attention_heads": 4}
    kept |= {} if left_out == "everything" else {k: v for k, v in config.items() if k != left_out}
    (tmp_path / "hf" / "config.json").write_text(json.dumps(kept))
    table = theirs.state_dict()["vivit.embeddings.position_embeddings"][0]
    for size, resized in ({}, table[1:]), ({"num_frames": 16, "image_size": 112}, None):
        model, report = load_model(tmp_path / "hf", **size)  # type: ignore[arg-type]
        expected = resize_table(table[1:], (16, 14, 14), (8, 7, 7)) if resized is None else resized
        assert not report.missing and torch.allclose(model.pos_embed[0, 1:], expected)


@pytest.mark.parametrize("act", ["gelu_new", "gelu_fast", "gelu"])
def test_an_autoencoder_of_transformers_has_its_gelu(act: str, tmp_path: Path) -> None:
    decoder = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    sizes = {f"decoder_{name}": value for name, value in decoder.items()}
    theirs, _ = _transformers("VideoMAEForPreTraining", patch_size=8, use_mean_pooling=False, hidden_act=act, **sizes)
    theirs.double().save_pretrained(tmp_path / "hf")
    model, _ = load_model(tmp_path / "hf", task="pretrain", dtype=torch.float64)
    assert model.spec.gelu == ("erf" if act == "gelu" else "tanh")
    video = torch.randn(1, 3, 4, 16, 16, dtype=torch.float64)
    mask = torch.tensor([[True, False, True, True] * 2])
    order = mask.int().argsort(dim=1, stable=True)
    patches = video.view(1, 3, 2, 2, 2, 8, 2, 8).permute(0, 2, 4, 6, 1, 3, 5, 7).reshape(1, 8, -1)
    with torch.no_grad():
        expected = theirs(video.transpose(1, 2), bool_masked_pos=mask).logits
        ours = model(patches[:, order[0, :2]], order[:, :2], order[:, 2:], 6)
    # The other GELU is 1e-4 away.
    assert torch.allclose(ours, expected, atol=1e-6)
