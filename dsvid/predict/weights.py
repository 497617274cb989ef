"""Weights of any family -> an objective that gives scores, its class names and how it wants its pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from dsvid.data import ava_boxes, ava_clips
from dsvid.data.ava import CLASSES
from dsvid.data.ava_files import read_label_map
from dsvid.data.ava_names import AVA_NAMES
from dsvid.errors import CheckpointError, DataError
from dsvid.objectives import AnomalyObjective, ClassifyObjective, DetectObjective
from dsvid.objectives.anomaly import CLASSES as RISKS
from dsvid.timeline import Names
from dsvid.weights.card import Card, read_card, read_labels
from dsvid.weights.load import load_model

TASKS = ("classify", "detect", "anomaly")
PUBLISHED = {"detect": "ava", "anomaly": "simple_tad"}  # how the originals' files of a task treat the final norm


@dataclass
class Predictor:
    """`objective` is in eval mode, on the CPU; `short_side` is that of the frames before any crop."""

    task: str
    objective: nn.Module
    names: Names
    frames: int
    input_size: int
    patch: int
    short_side: int
    sampling_rate: int
    view_fps: float | None
    notes: list[str]


def open_predictor(
    path: Path, *, task: str = "auto", family: str = "auto", overrides: dict[str, Any] | None = None,
    labels: Path | None = None,
) -> Predictor:  # fmt: skip
    """Open weights for `task`; "auto" takes what the weights say of themselves, else classification.

    Raises CheckpointError for weights that cannot classify: of pre-training, without a head, of another task.
    """
    card = read_card(path)
    task = _task_of(path, card, task)
    chosen = dict(overrides or {})
    classes = chosen.pop("num_classes", None)
    own = bool(card.model.get("arch"))
    if task in PUBLISHED and not own:  # published weights do not say what they are for
        chosen = {"final_norm_policy": PUBLISHED[task], "task": task} | chosen
    model, report = load_model(path, family, classes, **chosen)
    if report.missing or not getattr(model, "num_classes", 0):
        raise _not_fine_tuned(path, task, report.missing)
    if task == "anomaly":
        _check_risk(path, model.num_classes, labels)
    said = card.input
    notes = [] if report.family == "dsvid" else [f"weights read as those of {report.family}"]
    mean, std = said.get("mean"), said.get("std")
    objective: nn.Module
    if task == "detect":
        objective = DetectObjective(model, model.grid, mean=mean or ava_clips.MEAN, std=std or ava_clips.STD)
        short = int(said.get("short_side") or ava_boxes.SHORT_SIDE)
    else:
        kind = AnomalyObjective if task == "anomaly" else ClassifyObjective
        objective = kind(model, model.grid, mean=card.mean, std=card.std)
        short = card.short_side(model.grid.height)
    names = class_names(task, model.num_classes, list(card.labels), labels, notes, card.trained.get("classes") or ())
    return Predictor(
        task, objective.eval(), names, model.grid.frames, model.grid.height, model.grid.patch, short,
        card.sampling_rate, said.get("view_fps"), notes,
    )  # fmt: skip


def _task_of(path: Path, card: Card, wanted: str) -> str:
    stated = card.model.get("task")
    if stated == "pretrain":
        raise CheckpointError(
            f"--weights {path} are of pre-training: they name no classes",
            fix=f"fine-tune them: deepspeed dsvid/train.py --recipe finetune_… model.init={path}, "
            f"or see what they learned: dsvid features VIDEO --weights {path} --out DIR",
        )
    if stated and stated not in TASKS:
        raise CheckpointError(f"--weights {path}: dsvid predict does not show task {stated}", expected=", ".join(TASKS))
    if stated and wanted not in ("auto", stated):
        raise CheckpointError(f"--weights {path} are of another task", found=stated, expected=f"--task {wanted}")
    return str(stated or ("classify" if wanted == "auto" else wanted))


def _check_risk(path: Path, classes: int, labels: Path | None) -> None:
    if classes != len(RISKS):
        raise CheckpointError(
            f"--weights {path} cannot judge risk", found=f"{classes} classes", expected="2 classes: safe, anomaly",
            fix="leave --task anomaly out for weights that classify",
        )  # fmt: skip
    if labels is not None:
        raise CheckpointError(f"--labels {labels} has no use", found="weights of task anomaly: safe, anomaly",
                              fix="leave it out")  # fmt: skip


def _not_fine_tuned(path: Path, task: str, missing: list[str]) -> CheckpointError:
    hint = f"fine-tune them: deepspeed dsvid/train.py --recipe finetune_… model.init={path}"
    if task == "classify":
        hint += "; weights that do not say what they are for: --task detect (AVA), --task anomaly"
    return CheckpointError(
        f"--weights {path} cannot {task}", found=f"no {', '.join(missing[:3]) or 'head.weight'}",
        expected="fine-tuned weights, with a head", fix=hint,
    )  # fmt: skip


def class_names(
    task: str, classes: int, stored: list[str], labels: Path | None, notes: list[str], trained: Sequence[int] = ()
) -> Names:
    """Names of `labels`, else those in the weights, else AVA's where there are 80 actions.

    Detection counts classes from 1, as AVA does, or has the numbers it was `trained` with, and shows the classes that
    its label map names. Raises CheckpointError for names that do not fit the head.
    """
    first = 1 if task == "detect" else 0
    numbers = list(trained) if len(trained) == classes else list(range(first, classes + first))
    if labels is not None and labels.suffix == ".pbtxt":
        names = _names_of_map(labels, numbers)
    elif labels is not None:
        names = read_labels(labels)
        if len(names) != classes:
            raise CheckpointError(
                f"--labels {labels} does not fit the head", found=f"{len(names)} names",
                expected=f"{classes} classes", fix="the list that the weights were trained with",
            )  # fmt: skip
    elif task == "anomaly":
        names = list(RISKS)
    elif stored:
        names = stored if len(stored) == classes else []
        if not names:
            notes.append(f"the weights name {len(stored)} classes but have {classes}: shown by number")
    elif task == "detect" and classes == CLASSES:
        names = [AVA_NAMES.get(number, "") for number in range(1, CLASSES + 1)]
        notes.append("names: AVA's, as the weights have 80 classes and no names (--labels FILE for others)")
    else:
        names = []
        notes.append("the weights hold no class names: shown by number (--labels FILE)")
    return Names(names, classes, numbers=numbers, only_named=bool(first and any(names)))


def _names_of_map(path: Path, numbers: Sequence[int]) -> list[str]:
    """Names by column of a label map of AVA's, "" for the classes that it leaves out."""
    try:
        found = read_label_map(path)
    except DataError as error:
        raise CheckpointError(error.what, found=error.found, expected=error.expected) from error
    if max(found) > max(numbers):
        raise CheckpointError(
            f"--labels {path} does not fit the head", found=f"class {max(found)}", expected=f"at most {max(numbers)}"
        )
    return [found.get(number, "") for number in numbers]
