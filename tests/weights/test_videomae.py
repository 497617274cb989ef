"""VideoMAE pre-training files: every tensor accounted for, nothing executed, clear errors."""

import argparse
import pickle
from pathlib import Path

import pytest
import torch

from dsvid.errors import CheckpointError
from dsvid.models import DecoderSize, EncoderSize, MaskedAutoencoder, VisionTransformer
from dsvid.tokens import TubeletGrid
from dsvid.weights.source import open_weights
from dsvid.weights.videomae import load_autoencoder, load_encoder

GRID = TubeletGrid(4, 16, 24, 2, 8)
ENCODER, DECODER = EncoderSize(32, 2, 2, 8), DecoderSize(16, 1, 2)


def _trained() -> MaskedAutoencoder:
    model = MaskedAutoencoder(ENCODER, DECODER, GRID, seed=8)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    return model


def _classifier(**options: object) -> VisionTransformer:
    return VisionTransformer(ENCODER, GRID, num_classes=5, **options)


def _write(path: Path, state: dict[str, torch.Tensor], key: str = "model", prefix: str = "") -> Path:
    content = {prefix + name: tensor for name, tensor in state.items()}
    extra = {"args": argparse.Namespace(lr=1.0), "epoch": 3}
    torch.save({key: content, **extra} if key else content, path)
    return path


@pytest.mark.parametrize(("key", "prefix"), [("model", ""), ("module", ""), ("", ""), ("model", "_orig_mod.")])
def test_a_pretraining_file_loads_whole(tmp_path: Path, key: str, prefix: str) -> None:
    source = _trained()
    path = _write(tmp_path / "w.pth", source.state_dict(), key, prefix)
    model = MaskedAutoencoder(ENCODER, DECODER, GRID)
    report = load_autoencoder(model, path)
    assert sorted(report.loaded) == sorted(source.state_dict())
    assert not (report.dropped or report.missing or report.unexpected or report.reshaped)
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in model.state_dict().items())


def test_the_encoder_goes_to_the_classifier_and_the_rest_is_named(tmp_path: Path) -> None:
    source = _trained()
    state = source.state_dict() | {"teacher.weight": torch.zeros(3)}
    model = _classifier()
    report = load_encoder(model, _write(tmp_path / "w.pth", state))
    own = model.state_dict()
    for name, value in source.encoder.state_dict().items():
        if not name.startswith("norm."):
            assert torch.equal(own[name], value), name
    decoder = [name for name in state if name.startswith(("decoder.", "mask_token", "encoder_to_decoder."))]
    assert sorted(report.dropped) == sorted([*decoder, "encoder.norm.weight", "encoder.norm.bias"])
    assert sorted(report.missing) == ["fc_norm.bias", "fc_norm.weight", "head.bias", "head.weight"]
    assert report.unexpected == ["teacher.weight"]
    assert bool((own["fc_norm.weight"] == 1).all()) and not own["fc_norm.bias"].any()
    assert any("unexpected: 1 (teacher.weight)" in line for line in report.lines())


def test_the_other_norm_policy_keeps_the_encoder_norm(tmp_path: Path) -> None:
    source, model = _trained(), _classifier()
    report = load_encoder(model, _write(tmp_path / "w.pth", source.state_dict()), final_norm="simple_tad")
    assert torch.equal(model.state_dict()["fc_norm.weight"], source.encoder.state_dict()["norm.weight"])
    assert sorted(report.missing) == ["head.bias", "head.weight"]


def test_half_precision_files_become_fp32(tmp_path: Path) -> None:
    half = {name: value.half() for name, value in _trained().state_dict().items()}
    model = MaskedAutoencoder(ENCODER, DECODER, GRID)
    load_autoencoder(model, _write(tmp_path / "w.pth", half))
    assert model.mask_token.dtype == torch.float32
    assert torch.equal(model.mask_token.detach(), half["mask_token"].float())


def test_a_missing_backbone_parameter_is_an_error(tmp_path: Path) -> None:
    state = _trained().state_dict()
    del state["encoder.blocks.1.attn.q_bias"]
    path = _write(tmp_path / "w.pth", state)
    with pytest.raises(CheckpointError, match=r"blocks\.1\.attn\.q_bias"):
        load_encoder(_classifier(), path)
    with pytest.raises(CheckpointError, match=r"encoder\.blocks\.1\.attn\.q_bias"):
        load_autoencoder(MaskedAutoencoder(ENCODER, DECODER, GRID), path)


def test_a_wrong_prefix_loads_nothing_silently(tmp_path: Path) -> None:
    path = _write(tmp_path / "w.pth", _trained().state_dict(), prefix="student.")
    with pytest.raises(CheckpointError, match=r"not in the file(.|\n)*student\."):
        load_encoder(_classifier(), path)


def test_another_shape_names_the_parameter(tmp_path: Path) -> None:
    path = _write(tmp_path / "w.pth", _trained().state_dict())
    wide = VisionTransformer(EncoderSize(48, 2, 2, 8), GRID)
    with pytest.raises(CheckpointError, match=r"patch_embed\.proj\.weight(.|\n)*48"):
        load_encoder(wide, path)


class _Payload:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, ("raise SystemExit('executed')",))


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    torch.save({"model": _trained().state_dict(), "extra": _Payload()}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="cannot be read"):
        open_weights(tmp_path / "w.pth")


@pytest.mark.parametrize("content", [b"", b"not weights", pickle.dumps({"model": 3})])
def test_files_that_hold_no_weights(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"w\.pth"):
        open_weights(tmp_path / "w.pth")


def test_a_missing_file_and_a_file_without_tensors(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such"):
        open_weights(tmp_path / "none.pth")
    torch.save({"epoch": 3}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="holds no weights"):
        open_weights(tmp_path / "w.pth")
