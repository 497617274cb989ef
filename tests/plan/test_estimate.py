"""Whole answers: the two large cases by hand, the batch as the trainer resolves it, time, advice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dsvid import deepspeed_json
from dsvid.communication import Links, communication_s, step_s
from dsvid.engine import checkpointing_function
from dsvid.errors import DataError, RecipeError
from dsvid.plan import compute
from dsvid.plan.advice import Change, candidates, cheapest, others
from dsvid.plan.estimate import GIB, Plan, Question, count_videos, estimate
from dsvid.plan.run_length import run_length
from dsvid.recipe import load_recipe, recipe_names, split_overrides
from dsvid.schedule import resolve_schedule

ROOT = Path(__file__).resolve().parents[2]
TREES = {path.stem: deepspeed_json.load_ds_config(path) for path in (ROOT / "ds_configs").glob("*.json")}
GIANT = "pretrain_videomaev2_giant"
H100 = compute.Rate(989e12, 0.3, "test")


def ask(recipe: str = GIANT, tree: str = "zero2", gpus: int = 64, **more: Any) -> Plan:
    return estimate(Question(recipe, TREES[tree], gpus, 8, **more))


def test_the_giant_on_64_gpus_by_hand() -> None:
    plan = ask(memory=80 * GIB)
    assert plan.states.device / GIB == pytest.approx(2.12, rel=0.02)
    assert plan.flops_model / 1e9 == pytest.approx(1425, rel=0.01)
    # 452 MiB a clip by the formula of a bf16 stream; the stream is fp32 here (4 N D a block) and targets are fp32
    count, encoder, decoder = plan.count, plan.spec.encoder_size, plan.spec.decoder_size
    stream = 4 * (40 * count.encoded * encoder.dim + 4 * (count.encoded + count.decoded) * decoder.dim)
    expected = 452 * (1 << 20) + stream + 920 * plan.spec.grid.values * 6
    assert plan.activations.saved / 128 == pytest.approx(expected, rel=0.03)
    assert plan.fits and cheapest(plan) is None and others(plan, None) == []


def test_six_billion_need_checkpointing_on_64_gpus() -> None:
    plan = ask(tree="zero3", ours={"model.arch": "vit_6b"}, memory=80 * GIB)
    assert plan.states.device / GIB == pytest.approx(16 * 5918.7e6 / 64 / GIB, rel=0.01)
    assert plan.flops_model / 1e9 == pytest.approx(7580, rel=0.01)
    change = cheapest(plan)
    assert change is not None and change.words == ("ds.activation_checkpointing.number_checkpoints=28",)
    fewer = plan.question.changed({}, {"activation_checkpointing.number_checkpoints": 27})
    assert estimate(fewer).fits is False, "as few as fit"
    assert [other.words for other in others(plan, change)] == [("batch.micro=32",)]
    again = retyped(plan, change)
    assert again.checkpointing and again.fits and again.peak == change.plan.peak
    assert checkpointing_function(again.config) is not None, "the trainer takes these words as the plan does"


def test_more_blocks_than_are_computed_twice_already() -> None:
    few = {"activation_checkpointing.number_checkpoints": 20}
    plan = ask(tree="zero3", ours={"model.arch": "vit_6b"}, theirs=few, memory=80 * GIB)
    change = cheapest(plan)
    assert plan.fits is False and change is not None
    assert change.words == ("ds.activation_checkpointing.number_checkpoints=28",)
    whole = ask(tree="zero3", ours={"model.arch": "vit_6b"}, theirs=few, memory=29 * GIB)
    dear = cheapest(whole)
    assert dear is not None and dear.words == ("ds.activation_checkpointing.number_checkpoints=48",)
    assert retyped(whole, dear).fits


def retyped(plan: Plan, change: Change) -> Plan:
    """The answer to the question with the words of `change` typed behind it."""
    ours, theirs = split_overrides(list(change.words))
    return estimate(plan.question.changed(ours, theirs))


@pytest.mark.parametrize(
    ("words", "memory", "wanted"),
    [
        ({"zero_optimization.stage": 0}, 28, ("ds.zero_optimization.stage=1",)),
        ({"zero_optimization.stage": 2}, 20, ("ds.activation_checkpointing.number_checkpoints=3",)),
        ({"zero_optimization.stage": 3, "activation_checkpointing": {}}, 6.5, ("batch.micro=16",)),
    ],
)
def test_cheap_changes_come_before_dear_ones(words: dict[str, Any], memory: float, wanted: tuple[str, ...]) -> None:
    plan = ask(ours={"batch.micro": 32}, theirs=words, memory=int(memory * GIB))
    change = cheapest(plan)
    assert plan.fits is False and change is not None and change.plan.fits
    assert change.words == wanted
    assert retyped(plan, change).fits


def test_offload_is_the_last_thing_and_nothing_may_help() -> None:
    question: dict[str, Any] = {"recipe": GIANT, "tree": "zero2", "gpus": 1}
    plan = ask(**question, memory=10 * GIB, reserve=0)
    change = cheapest(plan)
    assert change is not None and "ds.zero_optimization.offload_optimizer.device=cpu" in change.words
    assert retyped(plan, change).states.host > 0
    assert cheapest(ask(**question, memory=GIB, reserve=0)) is None
    order = list(candidates(plan))
    assert [candidate.offload for candidate in order] == sorted(candidate.offload for candidate in order)


def test_batch_and_lr_are_the_trainer_s() -> None:
    plan = ask("pretrain_videomae_base_k400_800e", gpus=8, videos=240_000)
    assert plan.schedule == resolve_schedule(plan.recipe, world=8, videos=240_000)
    with pytest.raises(RecipeError, match="batch.total does not divide"):
        ask(gpus=24)
    with pytest.raises(RecipeError, match="batch.micro does not divide"):
        ask(gpus=512)
    with pytest.raises(RecipeError, match="contradicts"):
        ask(theirs={"train_batch_size": 3})


def test_time_follows_from_rate_links_and_steps() -> None:
    plan = ask(rate=H100, videos=1_000_000)
    length, time = run_length(plan), plan.time
    assert time is not None and length.steps == plan.schedule.total_steps == 300 * (4_000_000 // 8192)
    assert time.compute_s == pytest.approx(plan.flops_executed * 128 / (0.3 * 989e12))
    assert time.communication_s == communication_s(plan.sent_bytes, 64, Links(300e9, 40e9, 8))
    assert time.total_s == step_s(time.compute_s, time.communication_s, compute.ASSUMED_OVERLAP)
    assert length.days == pytest.approx(length.steps * time.total_s / 86400)
    assert length.gpu_hours == pytest.approx(length.days * 24 * 64)
    alone = ask("pretrain_videomae_base_ucf101", gpus=1, rate=H100)
    assert alone.time is not None and alone.time.communication_s == 0
    assert run_length(ask(videos=1_000_000)).days is None


def test_accumulation_and_checkpointing_cost_time() -> None:
    plain, more = ask(), ask(ours={"batch.micro": 64})
    assert more.schedule.accumulation == 2
    assert more.sent_bytes == plain.sent_bytes * 1.5, "gradients are reduced twice, weights gathered once"
    plain = ask("pretrain_videomae_base_k400", gpus=8)
    again = ask("pretrain_videomae_base_k400", gpus=8, theirs={"activation_checkpointing": {}})
    assert again.flops_executed > 1.25 * plain.flops_executed and again.flops_model == plain.flops_model
    assert again.activations.device < plain.activations.device / 2


def test_loader_cores() -> None:
    assert compute.loader_cores(300, 1, randaugment=False) == (15, 20)
    assert compute.loader_cores(300, 4, randaugment=False) == (3.75, 5)
    assert compute.loader_cores(300, 2, randaugment=True) == (22.5, 30), "each of a video's clips is augmented"


def test_the_length_of_the_list(tmp_path: Path) -> None:
    recipe = load_recipe(GIANT)
    assert count_videos(recipe, 7).count == 7
    assumed = count_videos(recipe, 0)
    assert assumed.count == 1_350_000 and "assumed" in assumed.source
    (tmp_path / "train.csv").write_text("a.mp4 0\nb.mp4 1\nc.mp4 0\n")
    assert count_videos(load_recipe(GIANT, {"data.train": str(tmp_path / "train.csv")}), 0).count == 3
    (tmp_path / "train.csv").write_text("a.mp4 0 what is this\n")
    with pytest.raises(DataError):
        count_videos(load_recipe(GIANT, {"data.train": str(tmp_path / "train.csv")}), 0)
    unknown = ask("ava_vit_base_k400_finetuned", gpus=32, rate=H100)
    assert unknown.videos.count is None and run_length(unknown).steps is None and run_length(unknown).days is None


def one_of_a_kind() -> list[str]:
    """A recipe for each pair of task and architecture."""
    kinds = {(recipe.task, recipe.model.arch): name for name in recipe_names() for recipe in [load_recipe(name)]}
    return sorted(kinds.values())


@pytest.mark.parametrize("name", one_of_a_kind())
def test_every_kind_of_recipe_has_a_plan(name: str) -> None:
    recipe = load_recipe(name)
    gpus = recipe.about.gpus or 1
    for tree in ("zero2", "zero3_offload"):
        plan = ask(name, tree, gpus, ours={} if gpus > 1 else {"batch.micro": 0}, videos=100_000)
        assert (
            plan.peak > plan.states.device + plan.states.host // 1_000_000
            and plan.flops_executed > 0
            and plan.checkpoint > 0
        )
