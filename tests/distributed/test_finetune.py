"""Fine-tuning on real ranks: the moving average, validation, frozen parameters and probes at every ZeRO stage."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from dsvid.data import builtin
from dsvid.weights.consolidate import consolidate
from tests.distributed.conftest import FP32, ZERO2, finish, must_succeed, start_ranks

pytestmark = pytest.mark.long

Ranks = Callable[..., list[tuple[int, str]]]
DECAY = 0.7
STAGES = [("fp32", stage) for stage in range(4)] + [("bf16", stage) for stage in range(4)]
SETTINGS = [
    "data.train_limit=16", "data.num_frames=4", "data.sampling_rate=2", "data.input_size=32", "data.short_side=40",
    "data.num_workers=0", "data.cache_mb=0", "model.drop_path=0.1", "batch.total=8", "batch.micro=2", "run.epochs=2",
    "run.log_every=1", "run.save_every=1", "run.keep=9", "optim.warmup_epochs=0", "eval.segments=1", "eval.crops=1",
    "eval.batch=5", "data.test=",
]  # fmt: skip


def few_clips(folder: Path, split: str, count: int) -> Path:
    """A list of the first clips of the built-in ones."""
    root = builtin.list_for(split)
    lines = root.read_text().splitlines()
    entries = [line for line in lines if line and not line.startswith(("#", "path"))][:count]
    path = folder / f"{split}-{count}.csv"
    path.write_text("".join(f"{root.parent}/{line}\n" for line in entries))
    return path


def job(out: Path, lists: Path, *more: str) -> list[str]:
    data = [f"data.train={lists / 'train-16.csv'}", f"data.val={lists / 'val-12.csv'}"]
    return ["--ds_config", ZERO2, "--recipe", "demo_finetune", "--out", str(out), *SETTINGS, *data, *more]


def rows(out: Path, kind: str) -> list[dict[str, object]]:
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["kind"] == kind]


@pytest.fixture(scope="module")
def lists(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lists")
    few_clips(folder, "train", 16)
    few_clips(folder, "val", 12)
    return folder


@pytest.fixture(scope="module")
def runs(lists: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two ranks fine-tune the same four steps with a moving average at every stage, and with resting blocks."""
    scratch = tmp_path_factory.mktemp("finetune")
    average = [f"optim.ema_decay={DECAY}", "eval.every_epochs=1", "optim.weight_decay_end=0.2"]
    rest = ["model.freeze_blocks=2", f"optim.ema_decay={DECAY}"]
    jobs = []
    for kind, stage in STAGES:
        more = [f"ds.zero_optimization.stage={stage}", *([FP32] if kind == "fp32" else [])]
        jobs.append(job(scratch / f"{kind}-z{stage}", lists, *average, *more))
    for stage in (0, 2, 3):
        jobs.append(job(scratch / f"rest-z{stage}", lists, *rest, FP32, f"ds.zero_optimization.stage={stage}"))
    jobs.append(job(scratch / "probe", lists, "model.linear_probe=true", FP32))
    must_succeed(finish(start_ranks(2, jobs, scratch), timeout=500))
    return scratch


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize(("kind", "stage"), STAGES)
def test_the_moving_average_is_that_of_the_weights_of_every_step(kind: str, stage: int, runs: Path) -> None:
    out = runs / f"{kind}-z{stage}"
    steps = [consolidate(out / "checkpoints" / f"step-{step:08d}") for step in (1, 2, 3, 4)]
    first = consolidate(out / "checkpoints" / "step-00000001", weights="ema")
    found = weights(out / "weights_ema")
    assert found.keys() == steps[0].keys()
    for name, tensor in found.items():
        expected = first[name]
        for state in steps[1:]:
            expected = DECAY * expected + (1 - DECAY) * state[name]
        torch.testing.assert_close(tensor, expected, rtol=1e-5, atol=1e-7, msg=name)
    name = "blocks.0.mlp.fc1.weight"
    assert not torch.equal(found[name], steps[3][name]), "the average follows behind"


@pytest.mark.parametrize(("kind", "stage"), STAGES)
def test_evaluating_the_average_leaves_the_training_alone(kind: str, stage: int, runs: Path) -> None:
    reference = [row["loss"] for row in rows(runs / "fp32-z0", "train")]
    losses = [row["loss"] for row in rows(runs / f"{kind}-z{stage}", "train")]
    assert len(losses) == 4
    # Steps 3 and 4 come after a validation with the average in place.
    assert losses == pytest.approx(reference, rel=1e-5 if kind == "fp32" else 1e-2)


@pytest.mark.parametrize(("kind", "stage"), STAGES)
def test_validation_is_written_and_the_best_weights_are_kept(kind: str, stage: int, runs: Path) -> None:
    out = runs / f"{kind}-z{stage}"
    evals = rows(out, "eval")
    assert [(row["split"], row["step"], row["videos"], row.get("final")) for row in evals] == [
        ("val", 2, 12, None),
        ("val", 4, 12, None),
        ("val", 4, 12, True),
    ]
    assert all({"top1", "top5", "mean_class", "ema_top1", "ema_top5"} <= row.keys() for row in evals[:2])
    best = max(evals[:2], key=lambda row: max(row["top1"], row["ema_top1"]))  # type: ignore[type-var]
    kept = json.loads((out / "weights_best" / "config.json").read_text())
    assert kept["trained"]["steps"] == best["step"]
    source = "ema" if best["ema_top1"] > best["top1"] else "last"  # type: ignore[operator]
    state = consolidate(out / "checkpoints" / f"step-{best['step']:08d}", weights=source)
    assert all(torch.equal(state[name], tensor) for name, tensor in weights(out / "weights_best").items())


def test_a_run_that_goes_on_keeps_the_best_it_had_not_published(
    runs: Path, lists: Path, run_ranks: Ranks, tmp_path: Path
) -> None:
    more = ["eval.every_epochs=1", FP32]
    out = tmp_path / "out"
    must_succeed(run_ranks(1, [job(out, lists, *more, "run.max_steps=2")]))
    # As if it had been ended behind the checkpoint, in the middle of a line.
    shutil.rmtree(out / "weights_best")
    lines = [line for line in (out / "metrics.jsonl").read_text().splitlines() if '"kind": "train"' in line]
    (out / "metrics.jsonl").write_text("\n".join([*lines, '{"kind": "ev']))
    must_succeed(run_ranks(1, [job(out, lists, *more, "run.max_steps=2")]))
    assert json.loads((out / "weights_best" / "config.json").read_text())["trained"]["steps"] == 2
    assert [row.get("final") for row in rows(out, "eval")] == [None, True], "the test's line is replaced, not repeated"


def test_a_list_of_which_nothing_can_be_read_ends_the_run(lists: Path, run_ranks: Ranks, tmp_path: Path) -> None:
    gone = tmp_path / "gone.csv"
    gone.write_text(f"{tmp_path}/gone.mp4 1\n")
    words = job(tmp_path / "out", lists, "run.max_steps=1", f"data.test={gone}")
    for code, output in run_ranks(2, [words]):
        assert code == 2 and "no video of data.test could be read" in output
    assert (tmp_path / "out" / "weights" / "model.safetensors").is_file(), "what was trained is not lost"


def test_a_start_that_failed_does_not_lock_its_folder(lists: Path, run_ranks: Ranks, tmp_path: Path) -> None:
    out = tmp_path / "out"
    nothing = tmp_path / "empty.pth"
    nothing.write_bytes(b"no weights")
    ((code, output),) = run_ranks(1, [job(out, lists, f"model.init={nothing}", "run.max_steps=1")])
    assert code == 2 and "empty.pth" in output
    must_succeed(run_ranks(1, [job(out, lists, "run.max_steps=1")]))


def test_a_recipe_that_the_command_line_completes_trains(lists: Path, run_ranks: Ranks, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("task: classify\nmodel: {arch: vit_micro, positions: sincos_separable}\n")
    words = job(tmp_path / "out", lists, "run.max_steps=1", "model.num_classes=8", "run.epochs=1")
    words[words.index("demo_finetune")] = str(path)
    must_succeed(run_ranks(1, [words]))
    assert weights(tmp_path / "out" / "weights")["head.weight"].shape == (8, 128)


def test_the_average_is_taken_up_where_it_was_saved(runs: Path, lists: Path, run_ranks: Ranks, tmp_path: Path) -> None:
    more = [f"optim.ema_decay={DECAY}", "eval.every_epochs=1", "optim.weight_decay_end=0.2", FP32]
    must_succeed(run_ranks(2, [job(tmp_path / "out", lists, *more, f"run.max_steps={stop}") for stop in (3, 4)]))
    whole, again = weights(runs / "fp32-z2" / "weights_ema"), weights(tmp_path / "out" / "weights_ema")
    assert all(torch.equal(whole[name], tensor) for name, tensor in again.items())


def test_resting_blocks_rest_and_are_saved_at_every_stage(runs: Path) -> None:
    reference = weights(runs / "rest-z0" / "weights")
    start = weights(runs / "probe" / "weights")  # only its head was trained, from the same seed
    assert reference.keys() == start.keys()
    for name, tensor in reference.items():
        resting = name.startswith(("patch_embed.", "blocks.0.", "blocks.1.")) and ".norm" not in name
        assert torch.equal(tensor, start[name]) == resting, name
    for stage in (2, 3):
        for folder in ("weights", "weights_ema"):
            other = weights(runs / f"rest-z{stage}" / folder)
            expected = weights(runs / "rest-z0" / folder)
            assert other.keys() == expected.keys()
            for name, tensor in expected.items():
                torch.testing.assert_close(other[name], tensor, rtol=0, atol=2e-5, msg=f"{folder} {name}")


def test_a_probe_changes_the_head_alone(runs: Path) -> None:
    first = consolidate(runs / "probe" / "checkpoints" / "step-00000001")
    last = weights(runs / "probe" / "weights")
    changed = {name for name, tensor in last.items() if not torch.equal(tensor, first[name])}
    assert changed == {"head.weight", "head.bias"}
