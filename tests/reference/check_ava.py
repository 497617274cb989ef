"""AVA: mAP by three protocols, the detector's head, the box pipeline, reading the data set."""

from __future__ import annotations

import ast
import copy
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dsvid.data import ava as ava_data
from dsvid.data import ava_boxes as boxes
from dsvid.data import ava_clips as clips
from dsvid.data.ava_annotations import Annotations, annotations_from_csv, annotations_json, read_person_boxes
from dsvid.data.ava_files import ImageNumbers, read_boxes, read_exclusions, read_label_map, read_video_list
from dsvid.errors import DataError
from dsvid.metrics import ava, ava_report
from dsvid.models.detector import box_features, box_logits
from dsvid.models.roi import plain_roi_align, roi_align
from dsvid.models.spec import ModelSpec, build_model
from dsvid.objectives.detect import detection_loss
from tests.reference.comparing import assert_close, assert_number
from tests.reference.registry import checks

Json = dict[str, Any]
AP_ATOL, FOUR_PLACES = 1e-9, 5.1e-5
# mmaction2's names of the groups
GROUPS = {"person_movement": "pose", "object_manipulation": "object", "person_interaction": "person"}


# ---- mAP -----------------------------------------------------------------------------------------------------------


@checks("ava_map")
def check_map(folder: Path, case: Json) -> None:
    files = {name: folder / file for name, file in case["files"].items()}
    expected = json.loads(files["expected"].read_text())
    names = read_label_map(files["labelmap"])
    numbers = ImageNumbers()
    truth, found = read_boxes(files["gt"], numbers), read_boxes(files["detections"], numbers)
    excluded = read_exclusions(files["excluded"], numbers)

    def score(protocol: ava.Protocol, without: Any) -> ava.AvaScores:
        return ava.score_detections(
            truth.rows, found.rows, list(names), protocol, listed=truth.images, excluded=without
        )

    seed, official = ava.PROTOCOLS["seed"], ava.PROTOCOLS["official"]
    runs = {
        "official": (official, None),
        "official_excl": (official, excluded),
        "official_excl_nocap": (official.with_cap(None), excluded),
        "seed": (seed, excluded),
    }
    unread = set(expected)
    for name, how in runs.items():
        scores = score(*how)
        for key in (name, f"{name}_stable"):
            if key in expected:
                _check_classes(key, scores, expected[key])
                unread.discard(key)
        if f"tie_range_{name}" in expected:
            _check_ranges(name, scores, expected)
            unread -= {f"tie_range_{name}", f"tie_range_{name}_mAP"}
    _check_log(score(seed, excluded), names, files["result_log"].read_text())
    if "mmaction2" in expected:
        _check_mmaction2(lambda: score(ava.PROTOCOLS["mmaction2"], excluded), expected["mmaction2"])
        unread.discard("mmaction2")
    assert not unread, f"not compared: {', '.join(sorted(unread))}"


def _value(number: float | None) -> float:
    return float("nan") if number is None else float(number)


def _check_within(what: str, expected: float, low: float, high: float, ours: float, atol: float = AP_ATOL) -> None:
    """The same number where no tie leaves it open, else both inside the range."""
    if math.isnan(expected) or math.isnan(ours):
        assert math.isnan(expected) and math.isnan(ours), f"{what}: {ours!r}, expected {expected!r}"
    elif high - low <= AP_ATOL:
        assert_number(what, ours, expected, atol=atol)
    else:
        for number in (ours, expected):
            assert low - atol <= number <= high + atol, f"{what}: {number!r} outside of {low!r} to {high!r}"


def _check_classes(what: str, scores: ava.AvaScores, expected: Json) -> None:
    columns = zip(scores.classes.tolist(), scores.ap, scores.lowest, scores.highest, strict=True)
    assert {str(label) for label in scores.classes} == set(expected["per_class"]), f"{what}: other classes"
    for label, ap, low, high in columns:
        _check_within(f"{what} class {label}", _value(expected["per_class"][str(label)]), low, high, ap)
    _check_within(f"{what} mAP", _value(expected["mAP"]), *scores.mean_range, scores.mean)


def _check_ranges(name: str, scores: ava.AvaScores, expected: Json) -> None:
    ours = dict(zip(map(str, scores.classes.tolist()), zip(scores.lowest, scores.highest, strict=True), strict=True))
    theirs = {**expected[f"tie_range_{name}"], "mAP": expected[f"tie_range_{name}_mAP"]}
    for label, pair in {**ours, "mAP": scores.mean_range}.items():
        for number, wanted in zip(pair, theirs[label], strict=True):
            _check_within(f"tie range of {name} {label}", _value(wanted), 0.0, 0.0, number)


def _check_log(scores: ava.AvaScores, names: dict[int, str], text: str) -> None:
    """Our result.log has the keys of the original's in its order; its numbers where no tie leaves them open."""
    ours = ava_report.result_log(scores, names)
    read = [ast.literal_eval(re.sub(r"\bnan\b", "None", each)) for each in (ours, text)]
    assert list(read[0]) == list(read[1]), "result.log: other keys, or another order"
    by_name = {name: place for place, name in enumerate(names.values())}
    for key, wanted in read[1].items():
        place = by_name.get(key.removeprefix(ava_report.CLASS_KEY))
        low, high = scores.mean_range if place is None else (scores.lowest[place], scores.highest[place])
        _check_within(f"result.log {key}", _value(wanted), low, high, _value(read[0][key]))


def _check_mmaction2(score: Any, expected: Json) -> None:
    if "error" in expected:
        if "Invalid box" in expected["error"]:  # the original refuses
            with pytest.raises(DataError, match="inverted"):
                score()
        else:  # it stumbles over having nothing to count: NaN here
            assert math.isnan(score().mean), expected["error"]
        return
    scores = score()
    _check_within("mmaction2", _value(expected["overall"]), *scores.mean_range, scores.mean)
    low, high, ours = (
        ava.AvaScores(
            scores.protocol, scores.classes, ap, ap, ap, scores.truths, scores.detections, scores.images
        ).group_means()
        for ap in (scores.lowest, scores.highest, scores.ap)
    )
    for key, name in GROUPS.items():
        _check_within(f"mmaction2 {key}", _value(expected[key]), low[name], high[name], ours[name])
    detected = {str(label) for label, count in zip(scores.classes, scores.detections, strict=True) if count}
    assert detected == set(expected["per_class_4dp"]), "mmaction2: other classes were detected"
    columns = zip(scores.classes.tolist(), scores.ap, scores.lowest, scores.highest, strict=True)
    for label, ap, lowest, highest in columns:
        wanted = _value(expected["per_class_4dp"].get(str(label)))
        _check_within(f"mmaction2 class {label}", wanted, lowest, highest, ap, atol=FOUR_PLACES)


# ---- data set ------------------------------------------------------------------------------------------------------


@checks("ava_dataset")
def check_dataset(folder: Path, case: Json) -> None:
    content = json.loads((folder / "ann_min.json").read_text())
    sizes = {video: tuple(size) for video, size in content["sizes"].items()}
    videos = read_video_list(folder / "movie_list.txt")
    annotations = annotations_from_csv(folder / "gt.csv", videos, sizes)
    _check_annotations(annotations, content)
    people = read_person_boxes(folder / "det_person_bbox.json")
    columns = ava_data.class_columns()
    _check_items(ava_data.train_samples(annotations, columns), case["train_items"], case["tolerance"])
    val = ava_data.val_samples(annotations, people, columns, min_score=case["box_thresh"])
    _check_items(val, case["val_items"], case["tolerance"])
    assert case["frame_span"] == 64 == clips.FRAMES * clips.RATE


def _check_annotations(annotations: Annotations, content: Json) -> None:
    """The json that AlphAction makes of the csv: images, people, boxes to the second decimal, ids."""
    ours = annotations_json(annotations)
    assert len(ours["images"]) == content["n_images"]
    assert {**content["first_image"], **ours["images"][0]} == content["first_image"]
    names = ("id", "image_id", "person_id", "bbox", "action_ids")
    made, wanted = (
        {entry["id"]: {name: entry[name] for name in names} for entry in entries}
        for entries in (ours["annotations"], content["annotations"])
    )
    assert made == wanted
    assert len(made) == len(content["annotations"])


def _check_items(samples: ava_data.AvaSamples, items: list[Json], atol: float) -> None:
    assert len(samples) == len(items)
    for number, item in enumerate(items):
        sample = samples[number]
        frame = sample.frame
        ours = (frame.video, frame.micros, [frame.width, frame.height])
        assert ours == (item["movie"], item["timestamp"] * 1_000_000, item["size"]), f"item {number}: {ours}"
        close("boxes_xyxy", sample.boxes, item["boxes_xyxy"], atol)
        if "labels" in item:
            assert [(np.flatnonzero(row) + 1).tolist() for row in sample.labels] == item["labels"], f"item {number}"
        if "scores" in item:
            close("scores", sample.scores, item["scores"], atol)


def close(what: str, ours: Any, expected: Any, atol: float) -> None:
    assert_close(what, torch.as_tensor(np.asarray(ours)), torch.tensor(expected, dtype=torch.float64), atol)


# ---- boxes, frames, sizes ------------------------------------------------------------------------------------------


@checks("ava_pipeline")
def check_pipeline(folder: Path, case: Json) -> None:
    atol = case["tolerance"]
    for entry in case["cases"]:
        _check_boxes(entry, atol)
    for entry in case["temporal"]:
        index = clips.window_indices(entry["raw_frames"], entry["frame_num"], entry["rate"])
        assert index.tolist() == entry["index"], f"{entry['raw_frames']} frames: {index.tolist()}"
    for entry in case["collate"]:
        width, height = boxes.padded_batch([(w, h) for h, w in entry["shapes"]], 16)
        assert [len(entry["shapes"]), 3, 2, height, width] == entry["padded"], f"{entry['shapes']}: {(height, width)}"
    assert [255 * value for value in clips.MEAN] == pytest.approx(case["normalise"]["mean"], abs=1e-9)
    assert [255 * value for value in clips.STD] == pytest.approx(case["normalise"]["std"], abs=1e-9)


def _check_boxes(entry: Json, atol: float) -> None:
    size = (entry["width"], entry["height"])
    xywh = np.array(entry["boxes_xywh"], dtype=np.float32).reshape(-1, 4)
    clipped, kept = boxes.clip_boxes(boxes.corners(xywh), *size)
    original = clipped[kept]
    close("xyxy_clipped", original, entry["xyxy_clipped"], atol)
    short = min(entry["resized_wh"])
    new = boxes.resized(size, short)
    assert list(new) == entry["resized_wh"]
    assert list(boxes.resized(size, short, swapped_sides=True)) == entry["seed_resized_wh"]
    small = boxes.resize_boxes(original, size, new)
    close("resized", small, entry["resized"], atol)
    corner = boxes.crop_corner(new, clips.CROP, entry["crop_uniforms"])
    assert list(corner) == entry["crop_xy"]
    cropped = boxes.crop_boxes(small, corner, clips.CROP)
    close("cropped", cropped, entry["cropped"], atol)
    close("flipped", boxes.flip_boxes(cropped, clips.CROP), entry["flipped"], atol)
    close("test_extended", boxes.widen_boxes(small, new), entry["test_extended"], atol)
    shares = boxes.frame_shares(original, size)
    assert [[f"{value:.5f}" for value in row] for row in shares] == entry["csv_boxes"]


# ---- the head ------------------------------------------------------------------------------------------------------

HEAD_ATOL, TOKENS_ATOL, LOSS_ATOL, GRAD_RTOL, GRAD_ATOL, F64_ATOL = 1e-5, 1e-5, 1e-5, 2e-3, 1e-5, 1e-6


class Head:
    """The model of a case, its padded clips, and the boxes, labels and scores of all images in one list."""

    def __init__(self, folder: Path, case: Json) -> None:
        config = case["config"]
        spec = ModelSpec(
            task="detect",
            arch="custom",
            num_frames=config["all_frames"],
            input_size=config["img_size"],
            tubelet=config["tubelet_size"],
            num_classes=config["num_classes"],
            dim=config["embed_dim"],
            depth=config["depth"],
            heads=config["num_heads"],
            patch=config["patch_size"],
            mlp_hidden=int(config["embed_dim"] * config["mlp_ratio"]),
            norm_eps=config["ln_eps"],
        )
        self.model = build_model(spec, seed=None)
        with np.load(folder / "weights_f16.npz") as weights:
            self.model.load_state_dict({name: torch.from_numpy(weights[name]).float() for name in weights.files})
        self.patch = config["patch_size"]
        inputs = np.load(folder / "inputs.npz")
        numbers = range(case["num_images"])
        self.clips = [torch.from_numpy(inputs[f"clip{number}"]).float() for number in numbers]
        self.sizes = [(clip.shape[-1], clip.shape[-2]) for clip in self.clips]
        self.video = torch.zeros(case["padded_shape"])
        for number, clip in enumerate(self.clips):
            self.video[number, :, :, : clip.shape[-2], : clip.shape[-1]] = clip
        self.boxes = [inputs[f"boxes{number}"].astype(np.float32).reshape(-1, 4) for number in numbers]
        classes = config["num_classes"]
        self.labels = torch.cat([torch.from_numpy(inputs[f"labels{n}"]).reshape(-1, classes).float() for n in numbers])
        self.scores = torch.cat([torch.from_numpy(inputs[f"box_scores{n}"]).reshape(-1).float() for n in numbers])
        self.image = torch.cat([torch.full((len(each),), n) for n, each in enumerate(self.boxes)])

    def together(self, parts: list[np.ndarray]) -> torch.Tensor:
        return torch.from_numpy(np.concatenate(parts))


@checks("ava_head")
def check_head(folder: Path, case: Json) -> None:
    roi = {"output": 7, "spatial_scale": 1 / case["config"]["patch_size"], "sampling_ratio": 0, "aligned": False,
           "then": "MaxPool2d(7)"}  # fmt: skip
    assert case["config"]["roi"] == roi
    head = Head(folder, case)
    with np.load(folder / "expected.npz") as stored:
        expected = {name: torch.from_numpy(stored[name]) for name in stored.files}
    sizes = [tuple(size) for size in head.sizes]
    width, height = boxes.padded_batch(sizes, head.patch)
    assert list(head.video.shape[-2:]) == [height, width]
    _check_eval(head, case, expected)
    _check_train(head, case, expected)
    _check_jitter(head, case)
    assert not expected, f"not compared: {', '.join(sorted(expected))}"


@torch.no_grad()
def _check_eval(head: Head, case: Json, expected: dict[str, torch.Tensor]) -> None:
    model = head.model.eval()
    wide = head.together(
        [
            boxes.widen_boxes(each, size, tuple(case["config"]["test_ext"]))
            for each, size in zip(head.boxes, head.sizes, strict=True)
        ]
    )
    features = model.forward_map(head.video)
    tokens = features.flatten(2).transpose(1, 2)
    for align in (roi_align, plain_roi_align):
        raster = align(features, wide, head.image, 1 / head.patch)
        assert_close("eval_roi_first", raster[0], expected["eval_roi_first"], HEAD_ATOL)
        assert_close("eval_pooled", raster.amax(dim=(2, 3)), expected["eval_pooled"], HEAD_ATOL)
    logits = box_logits(model.head, box_features(features, wide, head.image, head.patch))
    for name, ours, atol in (
        ("eval_tokens_mean_t", tokens, TOKENS_ATOL),
        ("eval_ext_boxes", wide, case["tolerance"]["boxes"]),
        ("eval_roi_first", raster[0], HEAD_ATOL),
        ("eval_pooled", box_features(features, wide, head.image, head.patch), HEAD_ATOL),
        ("eval_logits", logits, HEAD_ATOL),
        ("eval_scores", logits.sigmoid() * head.scores[:, None], HEAD_ATOL),
    ):
        assert_close(name, ours, expected.pop(name), atol)
    if "eval_logits_f64" in expected:
        exact = copy.deepcopy(model).double()
        features = exact.forward_map(head.video.double())
        for align in (roi_align, plain_roi_align):
            pooled = align(features, wide.double(), head.image, 1 / head.patch).amax(dim=(2, 3))
            assert_close("eval_logits_f64", exact.head(pooled), expected["eval_logits_f64"], F64_ATOL)
        del expected["eval_logits_f64"]


def _check_train(head: Head, case: Json, expected: dict[str, torch.Tensor]) -> None:
    model = head.model.train()
    model.zero_grad()
    features = model.forward_map(head.video)
    logits = box_logits(model.head, box_features(features, head.together(head.boxes), head.image, head.patch))
    assert_close("train_logits", logits.detach(), expected.pop("train_logits"), HEAD_ATOL)
    loss = detection_loss(logits, head.labels, torch.ones(len(logits)), 1.0)
    assert_number("loss", loss.item(), case["loss_train_no_jitter"], atol=LOSS_ATOL)
    loss.backward()
    ours = {name: each.grad.norm().item() for name, each in model.named_parameters()}
    assert set(ours) == set(case["grad_norms"]), "other parameters"
    for name, value in case["grad_norms"].items():
        assert_number(f"gradient of {name}", ours[name], value, rtol=GRAD_RTOL)
    gradients = {"head_weight": "head.weight", "patch_bias": "patch_embed.proj.bias", "q_bias0": "blocks.0.attn.q_bias"}
    parameters = dict(model.named_parameters())
    for key, name in gradients.items():
        if f"grad_{key}" in expected:
            assert_close(f"gradient of {name}", parameters[name].grad, expected.pop(f"grad_{key}"), GRAD_ATOL)


def _check_jitter(head: Head, case: Json) -> None:
    jitter = case["jitter"]
    out_x, in_x, out_y, in_y = jitter["args"]
    # an image without boxes has neither draws nor a result
    draws = [each for each in jitter["uniform01_draws"] if each]
    results = [each for each in jitter["result"] if each]
    given = [(each, size) for each, size in zip(head.boxes, head.sizes, strict=True) if len(each)]
    assert len(draws) == 4 * len(given)
    for place, ((each, size), wanted) in enumerate(zip(given, results, strict=True)):
        uniforms = np.array(draws[4 * place : 4 * place + 4])
        moved = boxes.jitter_boxes(each, size, uniforms, (out_x, in_x), (out_y, in_y))
        close("jittered boxes", moved, wanted, case["tolerance"]["boxes"])
