"""The checks can fail: one altered number, bit or weight in a case is found, and so is a case that nobody can read."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dsvid.errors import DsvidError
from tests.reference import (
    check_masks,  # noqa: F401  registers its checkers
    check_pretraining,  # noqa: F401
)
from tests.reference.registry import UnknownKind, check_case, find_cases

CASES = Path(__file__).parent / "cases" / "pretrain"
Json = dict[str, Any]
Tensors = dict[str, torch.Tensor]


def _altered(
    source: Path, folder: Path, case: Callable[[Json], None] | None, io: Callable[[Tensors], None] | None
) -> Path:
    shutil.copytree(source, folder)
    if case is not None:
        content = json.loads((folder / "case.json").read_text())
        case(content)
        (folder / "case.json").write_text(json.dumps(content))
    if io is not None:
        tensors = load_file(folder / "io.safetensors")
        io(tensors)
        save_file(tensors, folder / "io.safetensors")
    return folder


def _scale(*path: str, by: float) -> Callable[[Json], None]:
    def alter(case: Json) -> None:
        for key in path[:-1]:
            case = case[key]
        case[path[-1]] *= by

    return alter


def _shift(key: str, by: float = 1e-4) -> Callable[[Tensors], None]:
    def alter(io: Tensors) -> None:
        io[key][0, 2, 7] += by

    return alter


def _flip(key: str, *place: int) -> Callable[[Tensors], None]:
    def alter(io: Tensors) -> None:
        io[key][place] = ~io[key][place]

    return alter


@pytest.mark.parametrize(
    ("case", "io"),
    [
        (_scale("loss", by=1 + 1e-5), None),
        (_scale("grad_norm_total", by=1 + 3e-4), None),
        (_scale("grad_norm", "first_qkv.weight", by=1 + 3e-4), None),
        (_scale("grad_norm_all", "decoder.blocks.1.attn.v_bias", by=1 - 3e-4), None),
        (_scale("pred_moments", "sumsq", by=1 + 1e-4), None),
        (None, _shift("pred")),
        (None, _shift("targets")),
        (None, _shift("clip_t0")),
        (None, _flip("mask", 0, 5)),
        (None, _flip("decode_mask", 1, 9)),
        (None, _flip("loss_mask", 1, 9)),
    ],
)
def test_one_altered_expectation_is_found(
    tmp_path: Path, case: Callable[[Json], None] | None, io: Callable[[Tensors], None] | None
) -> None:
    source = CASES / "videomaev2" / "dual_p8_r90_d50"
    check_case(source)
    with pytest.raises((AssertionError, DsvidError)):
        check_case(_altered(source, tmp_path / "altered", case, io))


def test_one_altered_weight_is_found(tmp_path: Path) -> None:
    folder = _altered(CASES / "videomae" / "p8_r90", tmp_path / "altered", None, None)
    content = torch.load(folder / "checkpoint.pth", weights_only=True)
    content["model"]["encoder.blocks.1.attn.q_bias"][3] += 0.02
    torch.save(content, folder / "checkpoint.pth")
    with pytest.raises(AssertionError):
        check_case(folder)


@pytest.mark.parametrize(
    ("name", "key", "place"),
    [
        ("videomae/mask_tube", "m1", (2, 77)),
        ("videomaev2/mask_generators", "rc0", (3, 700)),
        ("videomaev2/mask_generators", "rc3_all", (1, 50)),
        ("videomaev2/mask_generators", "tube1", (0, 1000)),
    ],
)
def test_one_altered_mask_bit_is_found(tmp_path: Path, name: str, key: str, place: tuple[int, int]) -> None:
    folder = _altered(CASES / name, tmp_path / "altered", None, _flip(key, *place))
    with pytest.raises(AssertionError):
        check_case(folder)


@pytest.mark.parametrize("key", ["masked_per_frame", "realised_ratio", "total_masked"])
def test_one_altered_mask_count_is_found(tmp_path: Path, key: str) -> None:
    def alter(case: Json) -> None:
        case["cases"][0][key] += 1

    with pytest.raises(AssertionError):
        check_case(_altered(CASES / "videomae" / "mask_tube", tmp_path / "altered", alter, None))


def test_an_unknown_kind_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "case.json").write_text(json.dumps({"system": "Nobody's"}))
    with pytest.raises(UnknownKind, match="Nobody's.*VideoMAE V2"):
        check_case(tmp_path)


def test_cases_are_found_at_any_depth_and_an_empty_folder_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in ("a", "b/c/d"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "case.json").write_text("{}")
    monkeypatch.setenv("DSVID_REFERENCE", f"{tmp_path / 'a'}:{tmp_path / 'b'}")
    assert find_cases(CASES)[-2:] == [tmp_path / "a", tmp_path / "b/c/d"]
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("DSVID_REFERENCE", str(tmp_path / "empty"))
    with pytest.raises(FileNotFoundError, match="empty"):
        find_cases(CASES)
