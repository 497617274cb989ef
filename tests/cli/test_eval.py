"""`dsvid eval`: whose word counts, recipe or weights, and what is refused before or after the work."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dsvid.cli import main
from dsvid.cli.eval import fine_tuned
from dsvid.data import ava_generated, builtin, traffic_generated
from dsvid.models.spec import ModelSpec, build_model
from dsvid.recipe import build_recipe
from dsvid.weights.folder import write_folder

SPEC = ModelSpec("classify", "vit_micro", 4, 32, num_classes=3, head_init_scale=1.0)


def weights(folder: Path, labels: tuple[str, ...] = (), spec: ModelSpec = SPEC, **stated: Any) -> Path:
    model = build_model(spec, seed=1)
    state = {name: parameter.detach() for name, parameter in model.named_parameters()}
    described = {"sampling_rate": 2, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], **stated}
    write_folder(folder, state, {"model": spec.to_config(), "input": described, "labels": list(labels)})
    return folder


def recipe_file(folder: Path, entries: list[str], **data: Any) -> Path:
    listed = folder / "test.csv"
    listed.write_text("".join(f"{entry}\n" for entry in entries))
    path = folder / "mine.yaml"
    tree = {
        "task": "classify",
        "model": {"arch": "vit_micro", "num_classes": 3},
        "data": {"test": str(listed), "num_frames": 4, "sampling_rate": 2, "input_size": 32, "num_workers": 0, **data},
        "eval": {"batch": 2},
    }
    path.write_text(json.dumps(tree))
    return path


def clips(count: int) -> list[str]:
    root = builtin.list_for("test").parent
    return [f"{root}/test/{number:05}.mp4 {number % 3}" for number in range(count)]


def run(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str]:
    code = main(["eval", *map(str, words)])
    captured = capsys.readouterr()
    return code, captured.out + captured.err


def test_the_names_in_the_weights_are_used_and_the_files_are_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = weights(tmp_path / "w", ("push", "pull", "lift"))
    out = tmp_path / "out"
    code, text = run(capsys, "--weights", source, "--recipe", recipe_file(tmp_path, clips(3)), "--out", out)
    assert code == 0, text
    result = json.loads((out / "result.json").read_text())
    assert [entry["class"] for entry in result["classes"]] == ["push", "pull", "lift"]
    with (out / "predictions.csv").open() as file:
        assert {row["predicted"] for row in csv.DictReader(file)} <= {"push", "pull", "lift"}
    assert (out / "confusion.png").is_file()


def test_what_the_weights_say_of_themselves_holds(tmp_path: Path) -> None:
    spec = ModelSpec("classify", "vit_micro", 4, 32, num_classes=3, gelu="tanh", positions="sincos_separable")
    settings = build_recipe(json.loads(recipe_file(tmp_path, clips(1)).read_text()))
    model = fine_tuned(weights(tmp_path / "w", spec=spec), settings, "auto")
    assert (model.spec.gelu, model.spec.positions) == ("tanh", "sincos_separable")


def test_the_recipe_speaks_for_a_file_that_says_nothing(tmp_path: Path) -> None:
    model = build_model(SPEC, seed=1)
    path = tmp_path / "tuned.pth"
    torch.save({"module": {name: parameter.detach() for name, parameter in model.named_parameters()}}, path)
    tree = json.loads(recipe_file(tmp_path, clips(1)).read_text())
    assert fine_tuned(path, build_recipe(tree), "auto").spec.positions == "sincos_flat"
    assert fine_tuned(path, build_recipe(tree), "mvd").spec.positions == "sincos_separable"
    tree["model"] |= {"positions": "sincos_separable", "gelu": "tanh"}
    spec = fine_tuned(path, build_recipe(tree), "auto").spec
    assert (spec.positions, spec.gelu) == ("sincos_separable", "tanh")


def test_the_pixels_are_prepared_as_the_weights_say(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = weights(tmp_path / "w", mean=[0.5, 0.5, 0.5], std=[0.5, 0.5, 0.5])
    code, text = run(capsys, "--weights", source, "--recipe", recipe_file(tmp_path, clips(2)))
    assert code == 0 and "data.mean is (0.5, 0.5, 0.5), as the weights say" in text


def test_short_videos_and_too_many_segments_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = weights(tmp_path / "w")
    path = recipe_file(tmp_path, clips(2))
    code, text = run(capsys, "--weights", source, "--recipe", path, "data.sampling_rate=9")
    assert code == 0 and "short_videos 2" in text and "2 videos have fewer frames than 4 frames at distance 9" in text
    code, text = run(capsys, "--weights", source, "--recipe", path, "eval.segments=30", "data.sampling=dense")
    assert code == 0 and "short_videos 2" in text and "eval.segments" in text
    code, text = run(capsys, "--weights", source, "--recipe", path)
    assert code == 0 and "short_videos 0" in text and "fewer frames" not in text


def test_a_list_that_cannot_be_read_at_all_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = recipe_file(tmp_path, [f"{tmp_path}/gone.mp4 1", clips(1)[0]])
    code, text = run(capsys, "--weights", weights(tmp_path / "w"), "--recipe", path, "--out", tmp_path / "out")
    assert code == 0 and "unreadable 1" in text and "gone.mp4" in text
    assert f"{tmp_path}/gone.mp4,1,,,0," in (tmp_path / "out" / "predictions.csv").read_text()
    path = recipe_file(tmp_path, [f"{tmp_path}/gone.mp4 1"])
    code, text = run(capsys, "--weights", tmp_path / "w", "--recipe", path)
    assert code == 2 and "no video of data.test could be read" in text and "gone.mp4" in text


def test_mistakes_are_found_before_the_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, source = recipe_file(tmp_path, clips(1)), weights(tmp_path / "w")
    taken = tmp_path / "file"
    taken.write_text("mine")
    for words, message in (
        (["--out", taken], "cannot be written"),
        (["model.num_classes=4"], "another number of classes"),
        (["data.num_frames=5"], "not divisible by the tubelet size"),
        (["model.patch=16"], "expected: 4 frames of 32 x 32, cut into 2 x 16 x 16"),
        (["ds.bf16.enabled=true"], "no DeepSpeed JSON"),
        (["model.num_classes=2"], "another number of classes"),
    ):
        code, text = run(capsys, "--weights", source, "--recipe", path, *words)
        assert code == 2 and message in text, text
    headless = weights(tmp_path / "features", spec=ModelSpec("classify", "vit_micro", 4, 32))
    code, text = run(capsys, "--weights", headless, "--recipe", path)
    assert code == 2 and "not a fine-tuned model" in text


def test_classes_without_videos_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = weights(tmp_path / "w", ("push", "pull", "lift"))
    code, text = run(capsys, "--weights", source, "--recipe", recipe_file(tmp_path, clips(2)))
    assert code == 0 and "1 classes have no video in data.test: lift" in text and text.count("no video") == 1, text


def test_the_family_of_the_start_is_not_that_of_the_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = weights(tmp_path / "w")
    words = ["model.init=anything.pth", "model.init_family=mvd"]
    code, text = run(capsys, "--weights", source, "--recipe", recipe_file(tmp_path, clips(1)), *words)
    assert code == 0, text


def test_own_weights_are_tested_at_another_length_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, source = recipe_file(tmp_path, clips(1)), weights(tmp_path / "w")
    code, text = run(capsys, "--weights", source, "--recipe", path, "data.num_frames=8", "data.sampling_rate=1")
    assert code == 0, text


def test_a_detector_of_other_classes_is_refused_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ava_generated.make_set(tmp_path / "set", {"val": 1}, seconds=3)
    spec = ModelSpec("detect", "vit_micro", 4, 32, num_classes=3, positions="sincos_separable")
    folder = tmp_path / "w"
    state = {name: parameter.detach() for name, parameter in build_model(spec, seed=1).named_parameters()}
    trained = {"classes": [64, 1, 2]}
    write_folder(folder, state, {"model": spec.to_config(), "input": {}, "labels": [], "trained": trained})
    settings = [
        f"data.root={tmp_path / 'set'}", "data.val=annotations/ava_val_v2.2_min.json", "data.num_frames=4",
        "data.labels=annotations/action_list.pbtxt", "data.input_size=32", "data.short_side=40", "data.num_workers=0",
        "model.num_classes=3", "eval.batch=2",
    ]  # fmt: skip
    words = ["--weights", folder, "--recipe", "demo_ava", "--split", "val", *settings]
    code, text = run(capsys, *words, "detect.classes=[1, 2, 64]")
    assert code == 2 and "other classes" in text and "detect.classes=[64, 1, 2]" in text
    code, text = run(capsys, *words, "detect.classes=[64, 1, 2]", "--out", tmp_path / "out")
    assert code == 0 and "2 key frames" in text, text
    code, text = run(capsys, *words, "detect.classes=[64, 1, 2]", "--play", "still")
    assert code == 2 and "--play is for classification" in text


def test_traffic_clips_of_which_no_frame_can_be_read_give_no_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lists = traffic_generated.make_set(tmp_path / "set", {"val": 2})
    source = weights(tmp_path / "w", spec=replace(SPEC, task="anomaly", num_classes=2), view_fps=10.0)
    words = [f"data.root={tmp_path / 'set'}", f"data.val={lists['val'].name}", "data.num_frames=4",
             "data.input_size=32", "data.num_workers=0", "model.positions=sincos_flat"]  # fmt: skip
    command = ["--weights", source, "--recipe", "demo_anomaly", "--split", "val", "--out", tmp_path / "out", *words]
    for clip in (tmp_path / "set" / "frames").iterdir():
        (clip / "images.zip").write_bytes(b"")
    code, text = run(capsys, *command)
    assert code == 2 and "no video of data.val could be read" in text and "images.zip" in text
    assert not list((tmp_path / "out").iterdir())
