"""Words -> values as argparse reads them; the defaults and counts of the originals' options."""

from __future__ import annotations

from typing import Any

import pytest

from dsvid.errors import RecipeError
from dsvid.migrate.options import Program, read_values
from dsvid.migrate.programs import PROGRAMS


def program(project: str, task: str = "classify") -> Program:
    return next(each for each in PROGRAMS if each.project == project and each.task == task)


def values(text: str, project: str = "videomae") -> dict[str, Any]:
    return read_values(program(project), text.split())[0]


@pytest.mark.parametrize(
    ("project", "task", "count"),
    [
        ("videomae", "pretrain", 44), ("videomae", "classify", 82), ("videomaev2", "pretrain", 51),
        ("videomaev2", "classify", 87), ("action-detection", "detect", 62), ("simple-tad", "pretrain", 51),
        ("simple-tad", "anomaly", 88), ("simple-tad-mvd", "anomaly", 96), ("simple-tad-umt", "anomaly", 88),
        ("simple-tad-internvideo2", "anomaly", 110),
    ],
)  # fmt: skip
def test_every_option_of_the_original_is_there_once(project: str, task: str, count: int) -> None:
    names = [option.name for option in program(project, task).options]
    assert len(names) == len(set(names)) == count


@pytest.mark.parametrize(
    ("project", "task", "defaults"),
    [
        ("videomae", "pretrain", {"epochs": 800, "mask_ratio": 0.75, "lr": 1.5e-4, "min_lr": 1e-5, "warmup_epochs": 40,
                                  "decoder_depth": 4}),
        ("videomae", "classify", {"epochs": 30, "lr": 1e-3, "min_lr": 1e-6, "warmup_epochs": 5, "num_sample": 2,
                                  "test_num_segment": 5, "mixup": 0.8, "drop_path": 0.1, "warmup_lr": 1e-6}),
        ("videomaev2", "pretrain", {"epochs": 300, "mask_ratio": 0.9, "decoder_mask_ratio": 0.0, "num_sample": 1}),
        ("videomaev2", "classify", {"test_num_segment": 10, "warmup_lr": 1e-8, "min_lr": 1e-6, "num_sample": 2}),
        ("action-detection", "detect", {"nb_classes": 80, "val_freq": 2, "min_lr": 1e-6, "warmup_epochs": 5}),
        ("simple-tad", "pretrain", {"aa": "rand-m3-n3-mstd0.5-inc1", "view_fps": 10, "min_lr": 1e-5}),
        ("simple-tad", "anomaly", {"aa": "rand-m6-n3-mstd0.5-inc1", "sampling_rate": 1, "sampling_rate_val": -1,
                                   "num_workers": 8, "test_num_segment": 1, "mixup": 0.8, "smoothing": 0.1}),
        ("simple-tad-internvideo2", "anomaly", {"tubelet_size": 1, "aa": "rand-m3-n3-mstd0.5-inc1", "mixup": 0.0,
                                                "cutmix": 0.0, "smoothing": 0.0, "layer_decay": 0.75}),
    ],
)  # fmt: skip
def test_defaults_differ_as_in_the_originals(project: str, task: str, defaults: dict[str, Any]) -> None:
    found = read_values(program(project, task), [])[0]
    assert {name: found[name] for name in defaults} == defaults


def test_values_are_typed_and_the_last_one_counts() -> None:
    found = values(
        "--batch_size 8 --lr=5e-4 --opt_betas 0.9 0.95 --batch_size 16 --warmup_steps -1 --use_cls --layer 0.7"
    )
    assert (found["batch_size"], found["lr"], found["opt_betas"], found["warmup_steps"]) == (16, 5e-4, (0.9, 0.95), -1)
    assert found["use_mean_pooling"] is False and found["auto_resume"] is True
    assert found["layer_decay"] == 0.7, "argparse takes the unique beginning of a name"


def test_a_truth_is_any_text() -> None:
    assert read_values(program("videomae", "pretrain"), ["--normlize_target", "False"])[0]["normlize_target"] is True
    assert read_values(program("videomae", "pretrain"), ["--normlize_target", ""])[0]["normlize_target"] is False


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("--batchsize 8", r"no option --batchsize[\s\S]*fix: +--batch_size"),
        ("--mixup_ 8", r"no option --mixup_"),
        ("--batch_size", "has no value"),
        ("--batch_size --lr 1", "has no value"),
        ("--batch_size 8.5", "a whole number"),
        ("--lr fast", "a number"),
        ("--dist_eval=1", "takes no value"),
        ("--data_set K400", r"one of Kinetics-400[\s\S]*fix"),
        ("--lr 1e-3 stray", "'stray'"),
        ("--batch_size ${BS}", r"only a run of the script would tell[\s\S]*--var BS=VALUE"),
        ("--batch_size $((2*4))", "write the value down"),
    ],
)
def test_mistakes_name_the_option_and_the_cure(text: str, says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        values(text)


def test_deepspeed_s_own_options_are_taken() -> None:
    assert values("--enable_deepspeed --deepspeed --deepspeed_config x.json")["enable_deepspeed"] is True
