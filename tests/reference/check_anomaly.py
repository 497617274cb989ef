"""Traffic anomalies: windows, labels in time, the two data sets, losses, measures and their groups."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dsvid.data import augment, traffic
from dsvid.errors import DataError
from dsvid.metrics import anomaly, anomaly_groups
from dsvid.objectives.anomaly import AnomalyTargets, anomaly_loss
from tests.reference.check_finetuning import _inputs
from tests.reference.comparing import assert_close, assert_number
from tests.reference.registry import recognises

Json = dict[str, Any]
TIME_ATOL, LOSS_ATOL, EXACT_ATOL, ENGINE_ATOL = 1e-5, 1e-6, 1e-9, 1e-5
LOSS_NAMES = {"temporal_exponential_defaults": "exponential1"}


def _entries(*keys: str) -> Any:
    """True for a case whose list of entries is recognised by these keys."""
    return lambda case: isinstance(case.get("cases"), list) and set(keys) <= set(case["cases"][0])


# ---- windows and data sets -----------------------------------------------------------------------------------------


@recognises(_entries("timesteps", "regular", "with_start"))
def check_windows(folder: Path, case: Json) -> None:
    for entry in case["cases"]:
        for key, with_start in (("regular", False), ("with_start", True)):
            if isinstance(entry[key], dict):  # the original refuses
                assert set(entry[key]) == {"error"}
                with pytest.raises(DataError):
                    _windows(entry, with_start)
            else:
                assert _windows(entry, with_start) == (entry[key] or []), f"{key} of {entry['timesteps']} frames"


def _windows(entry: Json, with_start: bool) -> list[list[int]]:
    cut = traffic.windows(
        entry["timesteps"],
        length=entry["num_frames"],
        source_fps=entry["orig_fps"],
        view_fps=entry["view_fps"],
        step=entry["sampling_rate"],
        with_start=with_start,
    )
    found: list[list[int]] = cut.tolist()
    return found


@recognises(_entries("labels", "ttc", "smoothed"))
def check_time_labels(folder: Path, case: Json) -> None:
    for entry in case["cases"]:
        limits = (entry["TT"], entry["TA"])
        times = traffic.time_to_anomaly(entry["labels"], entry["fps"], *limits)
        assert_close("ttc", torch.from_numpy(times), torch.tensor(entry["ttc"], dtype=torch.float64), TIME_ATOL)
        risk = torch.from_numpy(traffic.smooth_risk(entry["labels"], times, *limits))
        assert_close("smoothed", torch.stack([1 - risk, risk], dim=1), torch.tensor(entry["smoothed"]), TIME_ATOL)


@recognises(lambda case: _inputs("root", "view_fps", "orig_fps")(case) and "clip_lvl_cat" in case["expected"])
def check_dota(folder: Path, case: Json) -> None:
    root, expected = folder / case["inputs"]["root"], case["expected"]
    lists = {"train": "train_split.txt", "validation": "val_split.txt", "test": "val_split.txt"}
    for part in sorted(lists.keys() & expected.keys()):
        clips = traffic.read_dota(root, lists[part])
        # the original tests every window, whatever the option says
        step = 1 if part == "test" else _step(case["inputs"], part)
        _check_windows_of(clips, case["inputs"], step, expected[part], expected.get(f"{part}_item0"), 0)
        for key, ours in (
            ("clip_lvl_cat", {clip.name: clip.category for clip in clips}),
            ("clip_lvl_ego", {clip.name: clip.ego for clip in clips}),
        ):
            assert ours == expected[key], f"{key}: {ours}"


@recognises(lambda case: _inputs("root", "view_fps", "orig_fps")(case) and "night" in case["expected"])
def check_dada(folder: Path, case: Json) -> None:
    root, expected, inputs = folder / case["inputs"]["root"], case["expected"], case["inputs"]
    lists = {"train": "training.txt", "validation": "validation.txt", "test": "validation.txt"}
    for part in sorted(lists.keys() & expected.keys()):
        clips = traffic.read_dada(root, lists[part])
        step = _step(inputs, part)
        _check_windows_of(clips, inputs, step, expected[part], expected.get(f"{part}_item1"), 1)
        assert {clip.name: clip.ego for clip in clips} == expected["ego"]
        assert {clip.name: clip.night for clip in clips} == expected["night"]


def _step(inputs: Json, part: str) -> int:
    own: int = 0 if part == "train" else inputs.get("sampling_rate_val", 0)
    return own if own > 0 else int(inputs["sampling_rate"])


def _check_windows_of(
    clips: list[traffic.TrafficClip], inputs: Json, step: int, expected: Json, item: Json | None, item_number: int
) -> None:
    assert {clip.fps for clip in clips} == {inputs["orig_fps"]}
    cut = traffic.cut_windows(clips, length=inputs["num_frames"], view_fps=inputs["view_fps"], step=step)
    assert len(cut) == expected["n"]
    assert [int((cut.label == kind).sum()) for kind in (0, 1)] == [expected["n_safe"], expected["n_risk"]]
    for number, entry in enumerate(expected["windows"]):
        clip = clips[cut.clip[number]]
        names = [clip.frames[position] for position in cut.frames[number]]
        ours = (clip.name, [int(Path(name).stem) for name in names], names[-1], int(cut.label[number]))
        assert ours == (entry["clip"], entry["frames"], entry["target"], entry["label"]), f"window {number}: {ours}"
        assert_number("ttc", float(cut.ttc_s[number]), entry["ttc"], atol=TIME_ATOL)
        assert_number("smoothed label", float(cut.risk[number]), entry["smoothed_anomaly"], atol=TIME_ATOL)
    if item is not None:
        clip, positions = clips[cut.clip[item_number]], cut.frames[item_number]
        channels, frames, height, width = item["shape"]
        pictures = torch.from_numpy(traffic.read_frames(clip, positions))
        assert augment.resize(pictures, height, width).shape == (frames, height, width, channels)
        ours = (clip.name, clip.frames[positions[-1]], int(cut.label[item_number]))
        assert ours == (item["clip"], item["frame"], item["label"]), f"item {item_number}: {ours}"
        assert "ttc" not in item or abs(cut.ttc_s[item_number] - item["ttc"]) <= TIME_ATOL


# ---- losses --------------------------------------------------------------------------------------------------------


@recognises(_inputs("logits", "labels", "ttc", "smoothed_labels"))
def check_losses(folder: Path, case: Json) -> None:
    inputs = case["inputs"]
    logits = torch.tensor(inputs["logits"], dtype=torch.float64, requires_grad=True)
    smoothed = torch.tensor(inputs["smoothed_labels"], dtype=torch.float64)
    assert_close("smoothed labels", smoothed.sum(dim=1), torch.ones(len(smoothed)), TIME_ATOL)
    ttc = torch.tensor(inputs["ttc"], dtype=torch.float64)
    targets = AnomalyTargets(torch.tensor(inputs["labels"]), ttc, smoothed[:, 1])
    assert case["expected"]
    for name, expected in case["expected"].items():
        loss = anomaly_loss(LOSS_NAMES.get(name, name), logits, targets)
        assert_number(name, float(loss.detach()), expected, atol=LOSS_ATOL, rtol=LOSS_ATOL)
        (gradient,) = torch.autograd.grad(loss, logits)
        assert bool(gradient.isfinite().all()), f"gradient of {name}"


# ---- measures ------------------------------------------------------------------------------------------------------


@recognises(_inputs("predictions", "annotations", "thresholds"))
def check_metrics(folder: Path, case: Json) -> None:
    inputs, expected = case["inputs"], case["expected"]
    predictions = anomaly_groups.read_predictions(folder / inputs["predictions"])
    frames = anomaly_groups.join_annotations(predictions, folder / inputs["annotations"])
    assert predictions.repeated == 0
    assert frames.unmatched == 0
    _check_engine(_single_precision_risk(folder / inputs["predictions"]), frames.label, expected["engine"])
    ours = anomaly.anomaly_scores(frames.score, frames.label)
    exact = dict(expected["sklearn_exact"])
    assert anomaly.count_at(frames.score, frames.label, [0.5]).matrix() == exact.pop("confmat")
    for name, value in exact.items():
        assert_number(name, getattr(ours, {"acc": "accuracy"}.get(name, name)), value, atol=EXACT_ATOL)
    curve = anomaly.count_at(frames.score, frames.label)
    for name in ("mcc", "precision", "recall", "f1"):
        values = torch.tensor(expected[f"{name}_at_threshold"], dtype=torch.float64)
        assert_close(name, torch.from_numpy(getattr(curve, name)), values, EXACT_ATOL)
    _check_groups(frames, expected)


def _check_groups(frames: anomaly_groups.JoinedFrames, expected: Json) -> None:
    groups = anomaly_groups.clip_groups(frames)
    for name, entry in expected["by_category"].items():
        _check_group(name, groups[name], entry)
    ego = anomaly_groups.ego_clips(frames)
    table = [groups["total"], *(groups[f"{c}/all"] for c in anomaly_groups.CATEGORIES)]
    for part in ("ego", "nonego"):
        table += [groups[part], *(groups[f"{c}/{part}"] for c in anomaly_groups.CATEGORIES)]
    assert [_line(group) for group in table] == _printed(expected["metrics_dota_text"])
    frame_groups = [anomaly_groups.group_scores(frames, where) for where in (ego, ~ego)]
    assert [_line(group) for group in (groups["total"], *frame_groups)] == _printed(expected["metrics_dada_text"])
    flags = {"ego": frames.flag("ego"), "night": frames.flag("night")}
    where = {"ego": flags["ego"], "noego": ~flags["ego"], "night": flags["night"], "day": ~flags["night"]}
    names = {"acc": "accuracy", "p": "precision", "r": "recall", "map": "ap", "auc": "auroc"}
    for entry in expected["metrics_by_categories_group_stats"]:
        chosen = where[entry["group"]]
        ours = anomaly_groups.group_scores(frames, chosen).scores
        for key, name in names.items():
            _check_number(f"{entry['group']} {key}", getattr(ours, name), entry[key], EXACT_ATOL)
        # the original's variable for F1 is overwritten by the loop over thresholds: it holds the one at 1.00
        last = anomaly.count_at(frames.score[chosen], frames.label[chosen], [1.0]).f1[0]
        assert_number(f"{entry['group']} f1", last, entry["f1"], atol=EXACT_ATOL)


def _check_group(name: str, group: anomaly_groups.GroupScores, entry: Json) -> None:
    ours = {"clips": group.clips, **dataclasses.asdict(group.scores)}
    for key, value in entry.items():
        _check_number(f"{name} {key}", ours[key], value, EXACT_ATOL)


def _line(group: anomaly_groups.GroupScores) -> tuple[str, ...]:
    scores = group.scores
    return (str(group.clips), *(f"{100 * value:.1f}" for value in (scores.auroc, scores.mcc_auc, scores.mcc_05)))


def _printed(lines: list[str]) -> list[tuple[str, ...]]:
    pattern = re.compile(r"\s*len: (\d+) \| auroc: (\S+) \| aucmcc: (\S+) \| mcc05: (\S+)")
    found = [match.groups() for line in lines if (match := pattern.fullmatch(line))]
    assert found
    return found


def _single_precision_risk(path: Path) -> np.ndarray:
    columns = anomaly_groups._read(path, ("logits_safe", "logits_risk"))
    logits = torch.tensor([[float(x) for x in columns[name]] for name in ("logits_safe", "logits_risk")]).T
    return _risk(logits)


def _risk(logits: torch.Tensor) -> np.ndarray:
    return logits.float().softmax(dim=1)[:, 1].numpy()


def _check_engine(risk: np.ndarray, labels: Any, expected: Json) -> None:
    """The measures that the original logs while it trains: argmax, 101 thresholds, single precision."""
    hard, curve = anomaly.count_higher_logit(risk, labels), anomaly.count_at(risk, labels)
    area, highest, at = anomaly.mcc_summary(curve)
    ours = {
        "acc": hard.accuracy[0],
        "recall": hard.recall[0],
        "precision": hard.precision[0],
        "f1": hard.f1[0],
        "auroc": anomaly.binned_roc_area(curve),
        "ap": anomaly.binned_average_precision(curve),
        "mcc_auc": area,
        "mcc_max": highest,
        "mcc_max_thresh": at,
        "mcc_05": curve.mcc[50],
    }
    assert hard.matrix() == expected["confmat"], f"{hard.matrix()}, expected {expected['confmat']}"
    for name, value in expected.items():
        if name != "confmat":
            _check_number(name, float(ours[name.removesuffix("_binned101")]), value, ENGINE_ATOL)


@recognises(_entries("logits", "labels", "engine", "analysis"))
def check_metrics_edge(folder: Path, case: Json) -> None:
    for entry in case["cases"]:
        logits = torch.tensor(entry["logits"], dtype=torch.float64)
        _check_engine(_risk(logits), entry["labels"], entry["engine"])
        ours = anomaly.anomaly_scores(anomaly_groups.risk_of(logits.numpy()), entry["labels"])
        names = ("accuracy", "precision", "recall", "f1", "ap", "auroc")
        for name, value in zip(names, entry["analysis"], strict=True):
            # old scikit-learn raised for a single class, which the original turned into -10 and -11
            known = float("nan") if value in (-10, -11) else float(value)
            _check_number(f"{name} of {entry['labels']}", getattr(ours, name), known, EXACT_ATOL)


def _check_number(what: str, ours: float, expected: float, atol: float) -> None:
    if np.isnan(expected):
        assert np.isnan(ours), f"{what}: {ours!r}, expected NaN"
    else:
        assert_number(what, ours, expected, atol=atol)
