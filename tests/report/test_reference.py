"""Reference lines and bands: numbers of a formula, or measured ones; nothing where neither is known."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from dsvid.recipe import load_recipe
from dsvid.report.curves import draw
from dsvid.report.reading import read_run
from dsvid.report.reference import BANDS, band_of, chance, loss_levels
from dsvid.report.run_charts import learning_charts
from tests.report.made_run import make_settings, make_trained

ROOT = Path(__file__).resolve().parents[2]
ARGV = ("dsvid/train.py", "--ds_config", "ds.json", "--recipe", "demo_pretrain")


def test_predicting_the_mean_costs_just_under_one() -> None:
    patch = torch.rand(1000, 128, dtype=torch.float64)
    normalised = (patch - patch.mean(1, keepdim=True)) / (patch.var(1, keepdim=True).sqrt() + 1e-6)
    assert float((normalised**2).mean()) == pytest.approx(127 / 128, abs=1e-4)
    (level,) = loss_levels(load_recipe("demo_pretrain"))
    assert level.value == 1.0
    assert loss_levels(load_recipe("demo_pretrain", {"pretrain.norm_pix": False})) == []


def test_guessing_costs_the_logarithm_of_the_classes() -> None:
    targets = torch.softmax(torch.randn(50, 8), dim=1)  # mixed and smoothed
    cost = float(torch.nn.functional.cross_entropy(torch.zeros(50, 8), targets))
    (level,) = loss_levels(load_recipe("demo_finetune"))
    assert level.value == pytest.approx(math.log(8)) == pytest.approx(cost, abs=1e-5)


def test_chance() -> None:
    recipe = load_recipe("demo_finetune")
    found = {name: chance(recipe, name) for name in ("top1", "top5", "mean_class", "mAP")}
    assert {name: level.value for name, level in found.items() if level} == {
        "top1": 12.5,
        "top5": 62.5,
        "mean_class": 12.5,
    }


@pytest.mark.parametrize(
    ("changes", "drawn"),
    [
        ({}, True),
        ({"run.seed": 5, "run.log_every": 7}, True),
        ({"optim.base_lr": 1e-3}, False),
        ({"batch.total": 32}, False),
    ],
)
def test_a_band_belongs_to_the_settings_that_were_measured(changes: dict[str, Any], drawn: bool) -> None:
    band, why = band_of(load_recipe("demo_pretrain", dict(changes)), ARGV)
    assert (band is not None) == drawn and (not why) == drawn
    assert drawn or next(iter(changes)) in why


def test_where_nothing_is_known_it_is_said() -> None:
    recipe = load_recipe("pretrain_videomae_base_k400")
    band, why = band_of(recipe, (*ARGV[:-1], "pretrain_videomae_base_k400"))
    assert band is None and why == "No reference curve of pretrain_videomae_base_k400 is known."
    assert band_of(recipe, (*ARGV[:-1], "own.yaml"))[0] is None


def test_the_band_is_drawn_and_told(tmp_path: Path) -> None:
    loss = draw(learning_charts(read_run(make_trained(tmp_path / "a")))[0])
    assert loss.count('<polygon class="band"') == 1 and BANDS["demo_pretrain"].source in loss
    other = draw(learning_charts(read_run(make_settings(tmp_path / "b", "demo_finetune")))[0])
    assert "band" not in other


def test_the_band_is_the_one_of_the_documents() -> None:
    text = (ROOT / "docs" / "report.md").read_text()
    for epoch, low, high in BANDS["demo_pretrain"].at:
        assert f"| {epoch:g} | {low:.3f} – {high:.3f} |" in text
    epochs = [epoch for epoch, _, _ in BANDS["demo_pretrain"].at]
    assert epochs == sorted(epochs) and all(low < high for _, low, high in BANDS["demo_pretrain"].at)
