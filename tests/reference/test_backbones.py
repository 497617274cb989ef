"""The checks of the backbone cases can fail: an altered expectation, weight or kind of file is found."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dsvid.errors import DsvidError
from tests.reference import check_backbones  # noqa: F401  registers its checkers
from tests.reference.registry import check_case

CASES = Path(__file__).parent / "cases" / "backbones"


@pytest.mark.parametrize(
    ("name", "key", "by"),
    [
        ("mvd-finetuned", "logits", 3e-5),
        ("mvd-finetuned", "features_f64", 3e-6),
        ("mvd-finetuned", "tokens_out", 5e-5),
        ("mvd-finetuned", "pos_embed", 3e-5),
        ("mme-pretrain", "tokens_in", 5e-5),
        ("mme-pretrain", "logits_simple_tad", 3e-5),
        ("videomae-hf", "logits_f64", 3e-6),
        ("vivit-hf", "last_hidden_state", 5e-5),
        ("vivit-converted", "logits_ckpt_pos", 3e-5),
        ("vivit-converted", "pos_embed_sincos", 3e-5),
        ("internvideo2-1b-pretrain", "logits_gelu_tanh", 3e-5),
        ("internvideo2-1b-pretrain", "pooled_before_fc_norm", 3e-5),
        ("internvideo2-sep-pos-interp-16f", "pos_embed_temporal", 3e-5),
        ("videomae-ava-feature-map", "feature_map_from_finetuned", 3e-5),
        ("sigma-pretrain", "of a name that nothing reads", 0.0),
    ],
)
def test_one_altered_number_is_found(name: str, key: str, by: float, tmp_path: Path) -> None:
    shutil.copytree(CASES / name, tmp_path / name)
    io = load_file(tmp_path / name / "io.safetensors")
    if key in io:
        io[key].view(-1)[5] += by
    else:
        io[key] = torch.zeros(3)
    save_file(io, tmp_path / name / "io.safetensors")
    with pytest.raises(AssertionError, match=key.split("_f64")[0]):
        check_case(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "file", "tensor"),
    [
        ("sigma-pretrain", "checkpoint.pth", "encoder.blocks.1.attn.v_bias"),
        ("vivit-converted", "hf_state_dict.pth", "encoder.layer.3.attention.attention.key.weight"),
        ("videomae-hf", "checkpoint_v5_names.pth", "videomae.encoder.layer.1.attention.attention.value.bias"),
        ("videomae-ava-feature-map", "checkpoint.pth", "encoder.norm.bias"),
    ],
)
def test_one_altered_weight_is_found(name: str, file: str, tensor: str, tmp_path: Path) -> None:
    shutil.copytree(CASES / name, tmp_path / name)
    content = torch.load(tmp_path / name / file, weights_only=True)
    (content.get("model", content))[tensor].view(-1)[3] += 0.05
    torch.save(content, tmp_path / name / file)
    with pytest.raises(AssertionError):
        check_case(tmp_path / name)


def test_another_family_s_file_is_found(tmp_path: Path) -> None:
    shutil.copytree(CASES / "mvd-finetuned", tmp_path / "case")
    shutil.copyfile(CASES / "internvideo2-1b-pretrain" / "checkpoint.pth", tmp_path / "case" / "checkpoint.pth")
    with pytest.raises(DsvidError, match="no file of family mvd"):
        check_case(tmp_path / "case")
