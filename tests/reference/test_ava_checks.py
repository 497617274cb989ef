"""The checks of the AVA cases can fail: an altered number, line, weight or word is found."""

from __future__ import annotations

import copy
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dsvid.errors import DsvidError
from tests.reference import check_ava  # noqa: F401  registers its checkers
from tests.reference.registry import CHECKERS, check_case
from tests.reference.test_finetuning_checks import altered, leaves

CASES = Path(__file__).parent / "cases" / "ava"
FOUND = (AssertionError, DsvidError, KeyError, IndexError, ValueError, RuntimeError)
# what a case says of itself, and the sizes that its numbers were not computed from
SAID = ("info", "description", "seconds", "numpy", "notes", "max_abs_diff_f32_f64", "tolerance", "per_class_4dp")


def is_found(folder: Path) -> None:
    with pytest.raises(FOUND):
        check_case(folder)


@pytest.mark.parametrize("name", ["dataset_small", "head_rect", "head_square", "pipeline_boxes"])
def test_every_altered_number_of_a_sample_is_found(name: str) -> None:
    folder = CASES / name
    case = json.loads((folder / "case.json").read_text())
    found = [leaf for leaf in leaves(case) if not set(SAID) & set(leaf[0])]
    checker = CHECKERS[case["kind"]]
    for path, value in random.Random(1).sample(found, 12):
        changed = altered(case, path, value)
        if isinstance(value, float) and path[-1] != "ln_eps":  # above the tolerance of the case
            changed = altered_by(case, path, max(2e-3, abs(value) * 5e-3))
        try:
            checker(folder, changed)
        except FOUND:
            continue
        if path[-1] != "ln_eps" and "crop_uniforms" not in path and "boxes_xywh" not in path:
            raise AssertionError(f"{name}: {path} may be anything")


def altered_by(case: Any, path: tuple[Any, ...], by: float) -> Any:
    changed = copy.deepcopy(case)
    node = changed
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] += by
    return changed


@pytest.mark.parametrize(
    ("name", "path", "by"),
    [
        ("eval_basic", ("official", "per_class", "11"), 3e-9),
        ("eval_basic", ("official_excl", "mAP"), -3e-9),
        ("eval_basic", ("official_excl_nocap_stable", "per_class", "79"), 3e-9),
        ("eval_basic", ("seed", "per_class", "14"), 3e-9),
        ("eval_basic", ("tie_range_seed", "80", 1), 3e-9),
        ("eval_basic", ("mmaction2", "person_interaction"), 3e-9),
        ("eval_basic", ("mmaction2", "per_class_4dp", "74"), 2e-4),
        ("eval_iou_edge", ("seed_stable", "per_class", "3"), 3e-9),
        ("eval_ties", ("tie_range_official_excl_nocap", "65", 0), 3e-9),
        ("eval_ties", ("tie_range_seed_mAP", 1), 3e-9),
        ("eval_ties", ("seed", "per_class", "15"), 0.1),  # outside of the range
        ("eval_ties", ("official", "mAP"), 0.1),
    ],
)
def test_one_altered_average_is_found(tmp_path: Path, name: str, path: tuple[Any, ...], by: float) -> None:
    folder = Path(shutil.copytree(CASES / name, tmp_path / name))
    expected = json.loads((folder / "expected.json").read_text())
    (folder / "expected.json").write_text(json.dumps(altered_by(expected, path, by)))
    is_found(folder)


@pytest.mark.parametrize("key", ["official", "seed", "mmaction2"])
def test_a_number_in_place_of_nan_or_error_is_found(tmp_path: Path, key: str) -> None:
    name = "eval_iou_edge" if key == "mmaction2" else "eval_basic"
    folder = Path(shutil.copytree(CASES / name, tmp_path / name))
    expected = json.loads((folder / "expected.json").read_text())
    if key == "mmaction2":
        expected[key] = {"overall": 0.5}
    else:
        expected[key]["per_class"]["3"] = 0.0
    (folder / "expected.json").write_text(json.dumps(expected))
    is_found(folder)


@pytest.mark.parametrize(
    ("name", "file", "change"),
    [
        ("eval_basic", "gt.csv", lambda lines: lines[:3] + lines[4:]),
        ("eval_basic", "detections.csv", lambda lines: lines[:50] + lines[53:]),
        ("eval_basic", "excluded.csv", lambda lines: lines[1:]),
        ("eval_basic", "labelmap.pbtxt", lambda lines: lines[4:]),
        ("eval_basic", "result.log", lambda lines: lines[:10] + lines[11:]),
        ("eval_basic", "result.log", lambda lines: [lines[0].replace("nan", "0.0"), *lines[1:]]),
        ("eval_iou_edge", "detections.csv", lambda lines: lines[:2] + lines[3:]),
        ("dataset_small", "gt.csv", lambda lines: lines[:-1]),
        ("dataset_small", "movie_list.txt", lambda lines: lines[::-1]),
        ("dataset_small", "det_person_bbox.json", lambda lines: [line.replace("0.8098", "0.7998") for line in lines]),
        ("dataset_small", "ann_min.json", lambda lines: [line.replace("198.13", "198.14") for line in lines]),
    ],
)
def test_an_altered_file_of_a_case_is_found(
    tmp_path: Path, name: str, file: str, change: Callable[[list[str]], list[str]]
) -> None:
    folder = Path(shutil.copytree(CASES / name, tmp_path / name))
    text = (folder / file).read_text()
    (folder / file).write_text("\n".join(change(text.splitlines())))
    assert (folder / file).read_text() != text
    is_found(folder)


@pytest.mark.parametrize(
    ("file", "key", "by"),
    [
        ("expected.npz", "eval_logits", 3e-5),
        ("expected.npz", "eval_roi_first", 3e-5),
        ("expected.npz", "eval_tokens_mean_t", 3e-5),
        ("expected.npz", "eval_scores", 3e-5),
        ("expected.npz", "train_logits", 3e-5),
        ("expected.npz", "eval_ext_boxes", 3e-3),
        ("expected.npz", "grad_head_weight", 3e-5),
        ("weights_f16.npz", "norm.bias", 0.02),
        ("weights_f16.npz", "blocks.1.attn.q_bias", 0.2),
        ("inputs.npz", "boxes0", 0.2),
        ("inputs.npz", "labels0", 1.0),
        ("expected.npz", "of a name that nothing reads", 0.0),
    ],
)
def test_one_altered_array_of_a_head_is_found(tmp_path: Path, file: str, key: str, by: float) -> None:
    folder = Path(shutil.copytree(CASES / "head_square", tmp_path / "case"))
    with np.load(folder / file) as stored:
        arrays = {name: stored[name] for name in stored.files}
    if key in arrays:
        flat = arrays[key].reshape(-1).copy()
        flat[1] = 1 - flat[1] if key == "labels0" else flat[1] + by
        arrays[key] = flat.reshape(arrays[key].shape)
    else:
        arrays[key] = np.zeros(3)
    np.savez(folder / file, **arrays)
    is_found(folder)


def test_an_image_without_boxes_in_a_batch_is_read(tmp_path: Path) -> None:
    """The square case with a third clip that nobody is in: its tokens are checked, all else is as before."""
    folder = Path(shutil.copytree(CASES / "head_square", tmp_path / "case"))
    case = json.loads((folder / "case.json").read_text())
    case["num_images"], case["padded_shape"][0] = 3, 3
    (folder / "case.json").write_text(json.dumps(case))
    arrays, expected = (dict(np.load(folder / name)) for name in ("inputs.npz", "expected.npz"))
    arrays["clip2"] = arrays["clip0"]
    for name in ("boxes", "labels", "box_scores"):
        arrays[f"{name}2"] = arrays[f"{name}0"][:0]
    np.savez(folder / "inputs.npz", **arrays)
    is_found(folder)
    tokens = expected["eval_tokens_mean_t"]
    np.savez(folder / "expected.npz", **{**expected, "eval_tokens_mean_t": np.concatenate([tokens, tokens[:1]])})
    check_case(folder)


@pytest.mark.parametrize(
    ("gt", "detections", "excluded", "mean"),
    [
        ("a,902,0.1,0.1,0.5,0.5,1,0\n", "", "", {"seed": 0.0, "official": 0.0, "mmaction2": None}),
        (
            "a,902,0.1,0.1,0.5,0.5,1,0\n",
            "a,0902,0.1,0.1,0.5,0.5,1,0.5\n",
            "a,0902\n",
            {"seed": None, "mmaction2": None},
        ),
        ("a,902,0.1,0.1,0.5,0.5,1,0\n", "b,0902,0.1,0.1,0.5,0.5,1,0.5\n", "", {"seed": 0.0, "mmaction2": None}),
        ("", "a,0902,0.1,0.1,0.5,0.5,1,0.5\n", "", {"seed": None, "official": None}),
    ],
)
def test_degenerate_files_are_read(
    tmp_path: Path, gt: str, detections: str, excluded: str, mean: dict[str, float | None]
) -> None:
    folder = Path(shutil.copytree(CASES / "eval_basic", tmp_path / "case"))
    for name, text in (("gt", gt), ("detections", detections), ("excluded", excluded)):
        (folder / f"{name}.csv").write_text(text)
    (folder / "labelmap.pbtxt").write_text('item {\n  name: "sit"\n  id: 1\n}\n')
    groups = {"person_movement": None, "object_manipulation": None, "person_interaction": None}
    expected: dict[str, Any] = {
        key: {"overall": value, **groups, "per_class_4dp": {}}
        if key == "mmaction2"
        else {"mAP": value, "per_class": {"1": value}}
        for key, value in mean.items()
    }
    (folder / "expected.json").write_text(json.dumps(expected))
    shown = "nan" if mean["seed"] is None else "0.0"
    keys = ("PascalBoxes_PerformanceByCategory/AP@0.5IOU/sit", "PascalBoxes_Precision/mAP@0.5IOU")
    (folder / "result.log").write_text("{" + ",\n ".join(f"'{key}': {shown}" for key in keys) + "}")
    check_case(folder)
    expected["seed"]["mAP"] = 0.5
    (folder / "expected.json").write_text(json.dumps(expected))
    is_found(folder)
