"""The step benchmark at a tiny size: both sides agree in loss and gradient norm, and a disagreement is an error."""

import argparse
import json
import sys
from pathlib import Path

import pytest

from dsvid.cli import bench_finetune, bench_mask, bench_step, main
from dsvid.cli.bench_options import ARCHS, ATTENTION, DTYPES, OPTIONS
from dsvid.cli.bench_step import Bench
from dsvid.errors import DsvidError
from dsvid.models import encoder_size
from dsvid.models.attention import REQUESTS

pytest.importorskip("transformers")
MATMUL_RATE = bench_step.matmul_rate


@pytest.fixture(autouse=True)
def no_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's rate takes seconds to measure, where bf16 is emulated half a minute."""
    monkeypatch.setattr(bench_step, "matmul_rate", lambda *_: 1e11)


def _arguments(*options: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    OPTIONS["step"](parser)
    tiny = ["--arch", "vit_micro", "--batch", "1", "--frames", "4", "--size", "32", "--mask-ratio", "0.75"]
    return parser.parse_args([*tiny, "--repeats", "1", *options])


def test_the_options_are_what_there_is() -> None:
    assert set(ATTENTION) == set(REQUESTS)
    assert set(DTYPES) == set(bench_mask.DTYPES)
    assert all(encoder_size(arch).depth for arch in ARCHS)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_every_arm_agrees(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Four clips' worth of tokens are too few for bf16 noise to average out as it does at 1568 tokens.
    monkeypatch.setattr(bench_step, "_GRAD_NORM_SHARE", 2e-2)
    report = bench_step.run(_arguments("--dtype", dtype))
    arms = report["arms"]
    assert {"dsvid", "transformers eager", "transformers sdpa"} <= set(arms)
    assert ("dsvid, bf16 weights" in arms) == (dtype == "bf16")
    assert all(arm["cpu_s"] > 0 and arm["wall_s"] > 0 for arm in arms.values())
    assert set(report["ratios"]) >= {"eager / dsvid", "sdpa / dsvid"}
    json.dumps(report)


def test_medians_lie_within_their_spread(capsys: pytest.CaptureFixture[str]) -> None:
    report = bench_step.run(_arguments("--repeats", "5"))
    shown = capsys.readouterr().out
    for arm in report["arms"].values():
        assert arm["spread"][0] < arm["cpu_s"] < arm["spread"][1]
    for name, ratio in report["ratios"].items():
        low, high = report["spread"][name]
        assert low < ratio < high and f"{ratio:.3f}x  ({low:.3f} to {high:.3f})" in shown


def test_the_result_is_written_as_json_and_as_a_picture(tmp_path: Path) -> None:
    words = ["--arch", "vit_micro", "--batch", "1", "--frames", "4", "--size", "32", "--mask-ratio", "0.75"]
    files = ["--json", str(tmp_path / "step.json"), "--png", str(tmp_path / "step.png")]
    assert main(["bench", "step", *words, "--repeats", "1", *files]) == 0
    result = json.loads((tmp_path / "step.json").read_text())
    assert result["settings"]["arch"] == "vit_micro" and "eager / dsvid" in result["ratios"]
    assert (tmp_path / "step.png").is_file()


def test_dual_masking_agrees_with_their_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_step, "matmul_rate", MATMUL_RATE)
    report = bench_step.run(_arguments("--decoder-mask-ratio", "0.5", "--size", "64"))
    single = bench_step.run(_arguments("--size", "64"))
    assert report["gflop"] < single["gflop"]
    assert report["arms"]["dsvid"]["loss"] != single["arms"]["dsvid"]["loss"]
    assert 0 < report["arms"]["dsvid"]["share_of_matmul"] < 1.2 and report["matmul_gflop_s"] > 1


def test_a_fine_tuning_step_agrees_with_theirs() -> None:
    report = bench_step.run(_arguments("--task", "classify", "--batch", "2"))
    arms = report["arms"]
    assert {"dsvid", "transformers eager", "transformers sdpa"} <= set(arms)
    assert arms["dsvid"]["loss"] == pytest.approx(arms["transformers eager"]["loss"], rel=1e-5)
    # all tokens are computed: more than in pre-training with a mask, which has a decoder besides
    assert report["gflop"] > 0.01 and report["ratios"].keys() >= {"eager / dsvid", "sdpa / dsvid"}


def test_a_wrong_fine_tuning_step_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_finetune.FinetuneBench, "pixels", lambda self: Bench.pixels(self) * 1.1)
    with pytest.raises(DsvidError, match="bench step"):
        bench_step.run(_arguments("--task", "classify", "--batch", "2"))


def test_alone_needs_no_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    report = bench_step.run(_arguments("--alone"))
    assert set(report["arms"]) == {"dsvid"} and not report["ratios"]
    with pytest.raises(DsvidError, match="transformers"):
        bench_step.run(_arguments())


def test_a_difference_in_the_model_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    right = bench_step.transformers_state

    def wrong(source: object) -> dict[str, object]:
        state = right(source)
        state["decoder.head.bias"] = state["decoder.head.bias"] + 0.1
        return state

    monkeypatch.setattr(bench_step, "transformers_state", wrong)
    with pytest.raises(DsvidError, match="loss of"):
        bench_step.run(_arguments())
