"""The checks of fine-tuning and anomaly cases can fail: altered expectations, lines and tensors are found."""

from __future__ import annotations

import copy
import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file

from dsvid.errors import DsvidError
from tests.reference import (
    check_anomaly,  # noqa: F401  registers its checkers
    check_finetuning,  # noqa: F401
)
from tests.reference.registry import RECOGNISED, UnknownKind, check_case

CASES = Path(__file__).parent / "cases" / "finetune"
# What a case is computed from, or what no rule of ours gives
GIVEN = {"inputs", "model_kwargs", "seed", "shape", "label", "logits", "labels", "fps", "TT", "TA", "timesteps"}


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], float]]:
    if isinstance(value, (dict, list)):
        for key, below in value.items() if isinstance(value, dict) else enumerate(value):
            if key not in GIVEN:
                yield from leaves(below, (*path, key))
    elif isinstance(value, (int, float)) and value == value:
        yield path, value


def altered(case: Any, path: tuple[Any, ...], value: float) -> Any:
    changed = copy.deepcopy(case)
    node = changed
    for key in path[:-1]:
        node = node[key]
    if isinstance(value, bool):
        node[path[-1]] = not value
    else:
        node[path[-1]] = value + 1 if isinstance(value, int) else value + max(1e-3, abs(value) * 1e-3)
    return changed


@pytest.mark.parametrize("name", sorted(path.name for path in CASES.iterdir()))
def test_every_altered_number_of_a_sample_is_found(name: str) -> None:
    case = json.loads((CASES / name / "case.json").read_text())
    (checker,) = [checker for predicate, checker in RECOGNISED if predicate(case)]
    # without its layers, layer decay of 1 leaves no trace of their number
    found = [leaf for leaf in leaves(case) if leaf[0] != ("num_layers",)]
    checker(CASES / name, case)
    for path, value in random.Random(0).sample(found, min(6, len(found))):
        try:
            checker(CASES / name, altered(case, path, value))
        except (AssertionError, DsvidError, KeyError, IndexError):
            continue
        raise AssertionError(f"{name}: {path} may be anything")


@pytest.mark.parametrize("key", ["lr", "wd"])
def test_one_altered_step_of_a_schedule_is_found(tmp_path: Path, key: str) -> None:
    folder = Path(shutil.copytree(CASES / "schedule_accum_wdend", tmp_path / "case"))
    arrays = load_file(folder / "arrays.safetensors")
    arrays[key][123] *= 1 + 1e-7
    save_file(arrays, folder / "arrays.safetensors")
    with pytest.raises(AssertionError, match=key):
        check_case(folder)


@pytest.mark.parametrize(
    ("name", "file", "change"),
    [
        ("merge_v1_5x3", "2.txt", lambda lines: lines[:40] + lines[41:]),
        ("merge_v1_5x3", "0.txt", lambda lines: [*lines, "vid_001 no scores"]),
        ("merge_v2_2x3", "1.txt", lambda lines: lines[:9] + lines[9:10] * 2 + lines[11:]),
        ("tad_metrics", "frame_level_anno_val.csv", lambda lines: lines[:100] + lines[101:]),
        ("tad_dada_dataset", "DADA2K/DADA2K_my_split/training.txt", lambda lines: lines[1:]),
        ("tad_dota_dataset", "DoTA/dataset/val_split.txt", lambda lines: lines[::-1]),
    ],
)
def test_an_altered_file_of_a_case_is_found(tmp_path: Path, name: str, file: str, change: Any) -> None:
    folder = Path(shutil.copytree(CASES / name, tmp_path / "case"))
    path = folder / file
    path.write_text("\n".join(change(path.read_text().splitlines())))
    with pytest.raises((AssertionError, DsvidError)):
        check_case(folder)


def test_a_case_that_says_nothing_about_itself_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "case.json").write_text(json.dumps({"source": "somebody", "inputs": {"lr": 1}}))
    with pytest.raises(UnknownKind):
        check_case(tmp_path)


def test_a_named_system_is_never_guessed_at(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(CASES / "short_sampler", tmp_path / "case"))
    case = json.loads((folder / "case.json").read_text())
    (folder / "case.json").write_text(json.dumps({**case, "system": "Nobody's"}))
    with pytest.raises(UnknownKind, match="Nobody's"):
        check_case(folder)
