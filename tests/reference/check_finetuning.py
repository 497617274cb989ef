"""Fine-tuning of clips: frame indices and crops, layer decay, schedules, the short sampler, view merging, mixing."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file
from torch import Tensor, nn

from dsvid.data import augment, mix, sampling
from dsvid.data.order import short_pass
from dsvid.metrics.views import merge_files, score_files
from dsvid.objectives.classify import mixed_targets
from dsvid.optim import cosine_factor, is_frozen, parameter_groups, weight_decay_at
from dsvid.recipe import Recipe, build_recipe
from dsvid.schedule import Schedule, resolve_schedule
from tests.reference.comparing import assert_close, assert_number
from tests.reference.registry import recognises

Json = dict[str, Any]
SCHEDULE_ATOL, MERGE_ATOL, TARGET_ATOL = 1e-12, 1e-9, 1e-6


def _inputs(*keys: str) -> Any:
    """True for a case whose inputs are recognised by these keys."""
    return lambda case: set(keys) <= set(case.get("inputs", ()))


# ---- clips ---------------------------------------------------------------------------------------------------------


@recognises(_inputs("durations", "test_num_segment"))
def check_clips(folder: Path, case: Json) -> None:
    inputs, source = case["inputs"], case["source"]
    second = "v2" in source.lower()
    sparse = any(word in source for word in ("SSVideo", "RawFrame", "sparse_sample=True"))
    rule = SegmentRule(inputs, second) if sparse else DenseRule(inputs)
    views = [(d, k, c) for k in range(rule.segments) for c in range(rule.crops) for d in inputs["durations"]]
    found = [(entry["duration"], entry["chunk"], entry["crop"]) for entry in case["test"]]
    assert sorted(found) == sorted(views), "the views of the test"
    for entry in case["test"]:
        frames = rule.test(entry["duration"], entry["chunk"]) + rule.first
        _assert_frames(entry, frames)
        assert _crop_start(inputs, rule.crops, entry["crop"]) == entry["spatial_start_x"], f"crop of {entry}"
    for entry in case.get("train", []):
        _assert_frames(entry, rule.train(entry) + rule.first)
    for entry in case.get("validation", []):
        _assert_frames(entry, rule.validation(entry["duration"]) + rule.first)


class DenseRule:
    def __init__(self, inputs: Json) -> None:
        self.length, self.rate = inputs["num_frames"], inputs["sampling_rate"]
        self.segments, self.crops, self.first = inputs["test_num_segment"], inputs["test_num_crop"], 0

    def test(self, frames: int, chunk: int) -> np.ndarray:
        return sampling.dense_test(frames, self.length, self.rate, self.segments, chunk)

    def train(self, entry: Json) -> np.ndarray:
        frames, end = entry["duration"], entry["drawn_end_idx"]
        drawn = sampling.dense_range(frames, self.length, self.rate)
        assert (drawn is None) == (end is None), f"{entry}: is there a choice?"
        assert drawn is None or drawn[0] <= end < drawn[1], f"{entry}: end outside {drawn}"
        return sampling.dense_clip(frames, self.length, self.rate, end)

    def validation(self, frames: int) -> np.ndarray:
        return sampling.eval_indices("dense", frames, self.length, float(self.rate), 1, 0)


class SegmentRule:
    def __init__(self, inputs: Json, second: bool) -> None:
        self.length, self.short = inputs["num_frames"], "pad" if second else "zeros"
        self.segments, self.crops = inputs["test_num_segment"], inputs["test_num_crop"]
        self.first = inputs.get("start_idx", 0)
        # the first VideoMAE's rule is written for two chunks, whatever the option says
        self.spread = self.segments if second else 2

    def test(self, frames: int, chunk: int) -> np.ndarray:
        return sampling.segment_test(frames, self.length, self.spread, chunk)

    def train(self, entry: Json) -> np.ndarray:
        offsets = entry["drawn_offsets"]
        below = sampling.segment_range(entry["duration"], self.length)
        assert (offsets is None) == (below == 0) and all(0 <= o < below for o in offsets or []), f"{entry}: offsets"
        drawn = None if offsets is None else np.array(offsets)
        return sampling.segment_clip(entry["duration"], self.length, drawn, self.short)

    def validation(self, frames: int) -> np.ndarray:
        return sampling.segment_centre(frames, self.length)


def _assert_frames(entry: Json, frames: np.ndarray) -> None:
    assert frames.tolist() == entry["frames"], f"{entry}: {frames.tolist()}"


def _crop_start(inputs: Json, crops: int, number: int) -> int:
    """Where crop `number` starts along the long side, read off a clip that shows its own coordinates."""
    height, width, short = inputs.get("frame_h", 8), inputs.get("frame_w", 14), inputs.get("short_side", 8)
    resized = augment.resize_short_side(torch.zeros(1, height, width, 3, dtype=torch.uint8), short)
    rows, columns = torch.meshgrid(*map(torch.arange, resized.shape[1:3]), indexing="ij")
    along = rows if height > width else columns
    numbered = torch.stack([along % 256, along // 256, along * 0], dim=2)[None].to(torch.uint8)
    low, high, _ = augment.spatial_crop(numbered, short, crops, number)[0, 0, 0].tolist()
    return int(low + 256 * high)


# ---- layer decay ---------------------------------------------------------------------------------------------------


@recognises(lambda case: {"params", "layer_decay", "num_layers", "frozen"} <= set(case))
def check_layer_decay(folder: Path, case: Json) -> None:
    depth, decay, frozen = case["num_layers"], case["layer_decay"], set(case["frozen"])
    blocks = [int(found[1]) for name in frozen if (found := re.match(r"blocks\.(\d+)\.", name))]
    first_blocks = max(blocks, default=-1) + 1
    parameters = {name: nn.Parameter(torch.empty(entry["shape"])) for name, entry in case["params"].items()}
    for name in [*parameters, *frozen]:
        rests = is_frozen(name, depth=depth, freeze_blocks=first_blocks, linear_probe=False)
        assert rests == (name in frozen), f"{name}: frozen is {rests}"
    resting = {name: nn.Parameter(torch.empty(2, 2), requires_grad=False) for name in frozen}
    groups = parameter_groups(
        [*resting.items(), *parameters.items()],
        lr=1.0,
        weight_decay=case["weight_decay"],
        layer_decay=decay,
        depth=depth,
    )
    assert len(groups) == len(case["groups_in_order"])
    for index, (group, expected) in enumerate(zip(groups, case["groups_in_order"], strict=True)):
        assert expected["index"] == index
        assert group["lr"] == expected["lr_scale"], f"group {index}: {group['lr']!r}, expected {expected['lr_scale']!r}"
        assert group["weight_decay"] == expected["weight_decay"], f"group {index}"
        assert len(group["names"]) == expected["n_params"], f"group {index}"
    placed = {name: (index, group) for index, group in enumerate(groups) for name in group["names"]}
    assert placed.keys() == parameters.keys()
    for name, entry in case["params"].items():
        index, group = placed[name]
        # without layer decay the original's groups bear no layer
        label = group["label"] if decay < 1 else re.sub(r"layer_\d+_", "", group["label"])
        ours = (label, index, group["lr"], group["weight_decay"])
        assert ours == (entry["group"], entry["group_index"], entry["lr_scale"], entry["weight_decay"]), (
            f"{name}: {ours}"
        )
        assert entry["layer_id"] is None if decay >= 1 else group["label"].startswith(f"layer_{entry['layer_id']}_")
    _check_scales(case, depth, decay)


def _check_scales(case: Json, depth: int, decay: float) -> None:
    names = ["patch_embed.proj.weight", *(f"blocks.{i}.mlp.fc1.weight" for i in range(depth)), "head.weight"]
    every = [(name, nn.Parameter(torch.empty(2, 2))) for name in names]
    groups = parameter_groups(every, lr=1.0, weight_decay=0.0, layer_decay=decay, depth=depth)
    ours = [group["lr"] for group in groups]
    assert ours == (case["scale_values"] or [1.0]), f"scales {ours}"


# ---- schedules -----------------------------------------------------------------------------------------------------


@recognises(_inputs("lr", "min_lr", "warmup_epochs", "update_freq"))
def check_schedule(folder: Path, case: Json) -> None:
    inputs, expected = case["inputs"], case["expected"]
    arrays = load_file(folder / case["tensors"])
    recipe = _schedule_recipe(inputs)
    schedule = resolve_schedule(recipe, world=inputs["world_size"], videos=inputs["dataset_len"])
    assert schedule.batch_total == expected["total_batch_size"]
    assert schedule.steps_per_epoch == expected["steps_per_epoch"]
    assert schedule.total_steps == expected["n_steps"]
    assert_number("lr", schedule.lr, expected["scaled_lr"], atol=SCHEDULE_ATOL)
    assert_number("min_lr", schedule.min_lr, expected["scaled_min_lr"], atol=SCHEDULE_ATOL)
    start, end = recipe.optim.weight_decay, recipe.optim.weight_decay_end
    lr = np.array([_lr(schedule, step) for step in range(schedule.total_steps)])
    decay = np.array(
        [
            weight_decay_at(step, total=schedule.total_steps, start=start, end=start if end is None else end)
            for step in range(schedule.total_steps)
        ]
    )
    for name, ours in (("lr", lr), ("wd", decay)):
        assert_close(name, torch.from_numpy(ours), torch.from_numpy(arrays[name]), SCHEDULE_ATOL)
    for name, ours in (("lr_first5", lr[:5]), ("lr_last3", lr[-3:]), ("wd_last3", decay[-3:])):
        assert_close(name, torch.from_numpy(ours), torch.tensor(expected[name], dtype=torch.float64), SCHEDULE_ATOL)


def _schedule_recipe(inputs: Json) -> Recipe:
    """The recipe of a script's options; epochs may warm up for longer than run where steps are given instead."""
    steps = max(0, inputs["warmup_steps"])
    return build_recipe(
        {
            "task": "classify",
            "model": {"num_classes": 2},
            "optim": {
                "base_lr": inputs["lr"],
                "min_lr": inputs["min_lr"],
                "warmup_epochs": inputs["warmup_epochs"],
                "warmup_steps": steps,
                "weight_decay": inputs["weight_decay"],
                "weight_decay_end": inputs["weight_decay_end"],
            },
            "batch": {
                "total": inputs["batch_size"] * inputs["update_freq"] * inputs["world_size"],
                "micro": inputs["batch_size"],
            },
            "run": {"epochs": inputs["epochs"]},
        }
    )


def _lr(schedule: Schedule, step: int) -> float:
    ratio = schedule.min_lr / schedule.lr
    return schedule.lr * cosine_factor(step, total=schedule.total_steps, warmup=schedule.warmup_steps, min_ratio=ratio)


# ---- sampler -------------------------------------------------------------------------------------------------------


@recognises(_inputs("nb_samples_per_epoch", "dataset_len", "world_size"))
def check_short_sampler(folder: Path, case: Json) -> None:
    inputs, expected = case["inputs"], case["expected"]
    world = inputs["world_size"]
    for entry in expected["epochs"]:
        ranks = [
            short_pass(
                inputs["dataset_len"],
                inputs["nb_samples_per_epoch"],
                epoch=entry["epoch"],
                seed=inputs["seed"],
                rank=rank,
                world=world,
            )
            for rank in range(world)
        ]
        assert [rank.tolist() for rank in ranks] == entry["ranks"], f"epoch {entry['epoch']}"
        assert {len(rank) for rank in ranks} == {expected["per_rank"]}
        assert sum(map(len, ranks)) == expected["total_size"]
    clips = inputs["batch_size"] * inputs["update_freq"] * world
    assert expected["total_size"] // clips == expected["steps_per_epoch"]


# ---- merging -------------------------------------------------------------------------------------------------------


@recognises(_inputs("num_tasks", "segments", "crops", "videos"))
def check_merge(folder: Path, case: Json) -> None:
    inputs = case["inputs"]
    files = score_files(folder)
    assert len(files) == inputs["num_tasks"]
    assert case["expected"]
    for method, expected in case["expected"].items():
        merged = merge_files(files, method)
        top1, top5 = merged.accuracy()
        assert_number(f"{method} top-1", top1, expected["top1"], atol=MERGE_ATOL)
        assert_number(f"{method} top-5", top5, expected["top5"], atol=MERGE_ATOL)
        assert merged.scores.shape == (inputs["videos"], inputs["num_classes"])
        # a dropped line may be one that padding had written twice; padding may repeat a view without being announced
        assert merged.missing.sum() <= len(inputs["dropped_view_rows"]), f"missing views {merged.missing.tolist()}"
        assert merged.repeated or not inputs["duplicate_view_in_last_file"]
        lines = sum(len(path.read_text().splitlines()) - 1 for path in files)
        views = inputs["videos"] * inputs["segments"] * inputs["crops"]
        assert lines - merged.repeated + merged.missing.sum() == views, "lines, repeated and missing views"


# ---- mixing --------------------------------------------------------------------------------------------------------


@recognises(_inputs("mixup_alpha", "cutmix_alpha", "labels", "smoothing"))
def check_mixup(folder: Path, case: Json) -> None:
    inputs = case["inputs"]
    shape, labels = inputs["shape"], torch.tensor(inputs["labels"])
    clips = torch.arange(int(np.prod(shape)), dtype=torch.float64).reshape(shape) / 1000
    assert case["draws"]
    for draw in case["draws"]:
        lam, box = draw["drawn_lam"], draw["bbox_yh_xw"]
        if draw["use_cutmix"]:
            lam = mix.kept_share(tuple(box), *shape[-2:])
        assert_number("lam", lam, draw["final_lam"], atol=TARGET_ATOL)
        targets = mixed_targets(labels, labels.flip(0), lam, inputs["num_classes"], inputs["smoothing"])
        assert_close("targets", targets, torch.tensor(draw["targets"]), TARGET_ATOL)
        mixed = _mixed(clips, lam, box if draw["use_cutmix"] else None)
        sums = torch.tensor(draw["x_sum_per_sample"], dtype=torch.float64)
        # the original sums in single precision: so much of a sum of some hundred terms
        assert_close("sums", mixed.flatten(1).sum(dim=1) / sums, torch.ones_like(sums), 1e-5)


def _mixed(clips: Tensor, lam: float, box: list[int] | None) -> Tensor:
    """Clips [B, C, T, H, W] mixed with their mirror image in the batch, as the original pairs them."""
    if box is None:
        return torch.lerp(clips.flip(0), clips, lam)
    mixed = clips.permute(0, 2, 3, 4, 1).clone()
    for first in range(len(mixed) // 2):
        mix.swap_box(mixed, first, len(mixed) - 1 - first, (box[0], box[1], box[2], box[3]))
    return mixed
