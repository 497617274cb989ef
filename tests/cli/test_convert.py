"""`dsvid convert`: every layout to every other and back, and what is said where that cannot be."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dsvid.cli import main
from dsvid.models.spec import ModelSpec, build_model
from dsvid.weights import load_model
from dsvid.weights.card import Card, read_card
from dsvid.weights.export import export

PRETRAIN = ModelSpec("pretrain", "vit_micro", 4, 32)
CLASSIFY = replace(PRETRAIN, task="classify", num_classes=3)
CARD = Card(labels=("left", "right", "up"), input={"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7], "sampling_rate": 3})
SIZES = ["num_frames=4", "image_size=32"]


def source(path: Path, spec: ModelSpec, layout: str = "dsvid") -> dict[str, torch.Tensor]:
    """Weights under `path`, none of them at its usual initial value; returns them."""
    model = build_model(spec, seed=2)
    generator = torch.Generator().manual_seed(5)
    state = {name: t + 0.1 * torch.randn(t.shape, generator=generator) for name, t in model.state_dict().items()}
    card = CARD if spec.num_classes else replace(CARD, labels=())
    export(layout, path, state, spec, card, overwrite=False)  # type: ignore[arg-type]
    return state


def config(folder: Path) -> dict[str, object]:
    loaded = json.loads((folder / "config.json").read_text())
    return {key: loaded[key] for key in ("model", "input", "labels")}


# ---- there and back ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [PRETRAIN, CLASSIFY, replace(CLASSIFY, num_classes=0)], ids=["pre", "cls", "features"])
@pytest.mark.parametrize("layout", ["hf", "videomae"])
def test_there_and_back_is_the_same_to_the_bit(layout: str, spec: ModelSpec, tmp_path: Path) -> None:
    state = source(tmp_path / "a", spec)
    there = tmp_path / ("b.pth" if layout == "videomae" else "b")
    assert main(["convert", str(tmp_path / "a"), str(there), "--to", layout]) == 0
    assert main(["convert", str(there), str(tmp_path / "c")]) == 0
    back = load_file(tmp_path / "c" / "model.safetensors")
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in state.items())
    before, after = (load_model(tmp_path / name)[0].spec for name in ("a", "c"))
    if spec.task == "pretrain":  # a decoder's size may be named, or written out
        sizes = [(s.decoder_size.dim, s.decoder_size.depth, s.decoder_size.heads, s.decoder_size.hidden)
                 for s in (before, after)]  # fmt: skip
        assert sizes[0] == sizes[1]
        after = replace(after, decoder_dim=0, decoder_depth=0, decoder_heads=0, decoder_hidden=0)
    assert after == before
    assert config(tmp_path / "c")["labels"] == config(tmp_path / "a")["labels"]
    assert read_card(tmp_path / "c").mean == (0.1, 0.2, 0.3) and read_card(tmp_path / "c").sampling_rate == 3


def test_a_foreign_pretraining_file_keeps_its_decoder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = build_model(PRETRAIN, seed=2).state_dict()
    torch.save({"model": state, "epoch": 3}, tmp_path / "p.pth")
    assert main(["convert", str(tmp_path / "p.pth"), str(tmp_path / "w"), *SIZES]) == 0
    shown = capsys.readouterr().out
    assert "with its decoder" in shown and "videomae" in shown and "loaded" in shown
    back = load_file(tmp_path / "w" / "model.safetensors")
    assert back.keys() == state.keys() and all(torch.equal(back[name], state[name]) for name in state)


def test_an_unknown_decoder_leaves_the_encoder_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = replace(PRETRAIN, decoder_depth=1)
    torch.save({"model": build_model(odd, seed=2).state_dict()}, tmp_path / "p.pth")
    assert main(["convert", str(tmp_path / "p.pth"), str(tmp_path / "w"), *SIZES]) == 0
    assert "the encoder alone" in capsys.readouterr().out
    assert load_model(tmp_path / "w")[0].spec.task == "classify"
    words = ["convert", str(tmp_path / "p.pth"), str(tmp_path / "whole"), *SIZES, "decoder_heads=2"]
    assert main(words) == 0
    assert "with its decoder" in capsys.readouterr().out
    assert "decoder.blocks.0.attn.q_bias" in load_file(tmp_path / "whole" / "model.safetensors")


def test_the_encoder_alone_on_demand_and_a_new_head_is_announced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = source(tmp_path / "p.pth", PRETRAIN, "videomae")
    assert main(["convert", str(tmp_path / "p.pth"), str(tmp_path / "w"), "num_classes=5"]) == 0
    shown = capsys.readouterr().out
    assert "initial values" in shown and "head.weight" in shown
    back = load_file(tmp_path / "w" / "model.safetensors")
    assert back["head.weight"].shape == (5, 128)
    assert torch.equal(back["blocks.1.attn.v_bias"], state["encoder.blocks.1.attn.v_bias"])


def test_labels_of_a_file_go_into_every_layout(tmp_path: Path) -> None:
    source(tmp_path / "a", CLASSIFY)
    (tmp_path / "names.txt").write_text("falling\nrising\nstill\n")
    for layout, target in (("dsvid", "d"), ("hf", "h"), ("videomae", "v.pth")):
        words = ["convert", str(tmp_path / "a"), str(tmp_path / target), "--to", layout]
        assert main([*words, f"labels={tmp_path / 'names.txt'}"]) == 0
        assert read_card(tmp_path / target).labels == ("falling", "rising", "still")


def test_a_small_size_needs_its_heads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = ModelSpec("classify", "custom", 4, 32, dim=48, depth=2, heads=4, patch=8, mlp_hidden=96, num_classes=2)
    state = build_model(spec, seed=1).state_dict()
    torch.save({"module": state}, tmp_path / "s.pth")
    assert main(["convert", str(tmp_path / "s.pth"), str(tmp_path / "w"), *SIZES]) == 2
    assert "num_heads" in capsys.readouterr().err
    assert main(["convert", str(tmp_path / "s.pth"), str(tmp_path / "w"), *SIZES, "num_heads=4"]) == 0
    assert load_model(tmp_path / "w")[0].spec.encoder_size.heads == 4


# ---- refused -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [PRETRAIN, CLASSIFY])
def test_a_missing_backbone_tensor_is_named(
    spec: ModelSpec, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = build_model(spec, seed=2).state_dict()
    lost = next(name for name in state if name.endswith("blocks.2.mlp.fc1.weight") and "decoder" not in name)
    del state[lost]
    torch.save({"model": state}, tmp_path / "p.pth")
    assert main(["convert", str(tmp_path / "p.pth"), str(tmp_path / "w"), *SIZES]) == 2
    assert "blocks.2.mlp.fc1.weight" in capsys.readouterr().err
    assert not (tmp_path / "w").exists()


def test_a_damaged_source_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"model": build_model(PRETRAIN, seed=2).state_dict()}, tmp_path / "p.pth")
    content = (tmp_path / "p.pth").read_bytes()
    (tmp_path / "p.pth").write_bytes(content[: len(content) // 2])
    assert main(["convert", str(tmp_path / "p.pth"), str(tmp_path / "w")]) == 2
    assert "p.pth" in capsys.readouterr().err
    state = build_model(CLASSIFY, seed=2).state_dict()
    state["head.bias"][0] = float("nan")
    torch.save({"module": state}, tmp_path / "n.pth")
    assert main(["convert", str(tmp_path / "n.pth"), str(tmp_path / "w"), *SIZES]) == 2
    assert "NaN" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere.pth", "w"], "nowhere.pth"),
        (["a", "a"], "exists"),
        (["a", "file/w"], "cannot be written"),
        (["a", "w", "--to", "videomae", "labels=nowhere.txt"], "nowhere.txt"),
        (["a", "w", "labels=two.txt"], "2 names"),
        (["a", "w", "labels=same.txt"], "repeat"),
        (["a", "w", "nonsense"], "nonsense"),
        (["a", "w", "ds.bf16.enabled=1"], "DeepSpeed"),
        (["a", "w", "--from", "resnet"], "resnet"),
        (["a", "w", "no_such_setting=1"], "no_such_setting"),
        (["a", "w", "num_heads=many"], "whole number"),
        (["a", "w", "num_classes=-1"], "whole number"),
        (["a", "w", "num_heads=7"], "7"),
        (["a", "w", "gelu=quick"], "erf, tanh"),
        (["a", "w", "cls_token=1"], "true or false"),
        (["a", "w", "dtype=fp16"], "dtype"),
        (["a", "w", "num_frames=5"], "num_frames=5"),
        (["a", "w", "head_map=5"], "head_map=./5"),
        (["a", "w", "labels=[one, two, three]"], "labels="),
        (["a", "w", "attention=foo"], "auto, flash_attn, sdpa, math"),
        (["a", "w", "drop_path=3"], "drop_path=3"),
        (["a", "w", "norm_eps=-1"], "norm_eps=-1"),
        (["a", "w", "num_frames=0"], "num_frames=0"),
        (["a", "w", "arch=5"], "arch=5"),
        (["a", "w", "arch=vit_large"], "width 128, 4 blocks, patch 8, MLP 512"),
        (["a", "w", "task=segment"], "pretrain, classify, detect, anomaly"),
        (["a", "w", "depth=2"], "blocks.2."),
        (["a", "w", "--from", "vivit"], "--from dsvid"),
        (["a/model.safetensors", "w", "--from", "vivit"], "--from dsvid"),
    ],
)
def test_wrong_calls(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    source(tmp_path / "a", CLASSIFY)
    (tmp_path / "file").write_text("x")
    (tmp_path / "two.txt").write_text("one\ntwo\n")
    (tmp_path / "same.txt").write_text("one\ntwo\none\n")
    assert main(["convert", *words]) == 2
    assert said in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "file", "same.txt", "two.txt"]


@pytest.mark.parametrize("layout", ["hf", "videomae"])
def test_what_a_layout_cannot_hold_is_refused(layout: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source(tmp_path / "a", replace(CLASSIFY, positions="sincos_separable"))
    assert main(["convert", str(tmp_path / "a"), str(tmp_path / "b"), "--to", layout]) == 2
    told = capsys.readouterr().err
    assert "sincos_separable" in told and "--to dsvid" in told


def test_classes_that_were_changed_lose_their_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source(tmp_path / "a", CLASSIFY)
    assert main(["convert", str(tmp_path / "a"), str(tmp_path / "b"), "num_classes=5"]) == 0
    assert "class names" in capsys.readouterr().out
    assert read_card(tmp_path / "b").labels == ()


def test_a_hugging_face_file_of_the_older_names_converts(tmp_path: Path) -> None:
    state = source(tmp_path / "h", CLASSIFY, "hf")
    for endings in (("query.bias", "value.bias"), ("attention.q_bias", "attention.v_bias")):
        tensors = load_file(tmp_path / "h" / "model.safetensors")
        kept = {name: tensor for name, tensor in tensors.items() if not name.endswith(endings)}
        assert len(kept) == len(tensors) - 8
        old = tmp_path / endings[0]
        old.mkdir()
        save_file(kept, old / "model.safetensors")
        for name in ("config.json", "preprocessor_config.json"):
            (old / name).write_bytes((tmp_path / "h" / name).read_bytes())
        assert main(["convert", str(old), str(tmp_path / f"{endings[0]}-w")]) == 0
        back = load_file(tmp_path / f"{endings[0]}-w" / "model.safetensors")
        assert all(torch.equal(back[name], tensor) for name, tensor in state.items())


def test_other_pixels_stay_other_pixels(tmp_path: Path) -> None:
    spec = replace(PRETRAIN, gelu="tanh")
    export("hf", tmp_path / "a", build_model(spec, seed=2).state_dict(), spec, Card(trained={"norm_pix": False}),
           overwrite=False)  # fmt: skip
    assert main(["convert", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    described = json.loads((tmp_path / "b" / "config.json").read_text())
    assert described["trained"]["norm_pix"] is False and described["model"]["gelu"] == "tanh"
    assert main(["convert", str(tmp_path / "b"), str(tmp_path / "c"), "--to", "hf"]) == 0
    described = json.loads((tmp_path / "c" / "config.json").read_text())
    assert described["norm_pix_loss"] is False and described["hidden_act"] == "gelu_pytorch_tanh"
