"""`dsvid plan`: the table, the JSON, wrong input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dsvid.cli import main

ROOT = Path(__file__).resolve().parents[2]
ZERO2, ZERO3 = (str(ROOT / "ds_configs" / f"zero{stage}.json") for stage in (2, 3))
GIANT = ["plan", "--recipe", "pretrain_videomaev2_giant", "--ds_config", ZERO2]
HOSTS = ["--hostfile", str(ROOT / "hostfiles" / "8x8")]


def test_a_run_that_fits(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "new" / "plan.json"
    assert main([*GIANT, *HOSTS, "--gpu-mem", "80", "--gpu", "A100", "--json", str(out)]) == 0
    shown = capsys.readouterr().out
    for word in ("1025.54 M", "fits: ", "64 GPUs on 8 nodes", "micro-batch 128", "GPU hours", "assumed", "1424.7"):
        assert word in shown, word
    numbers = json.loads(out.read_text())
    assert numbers["fits"] is True and numbers["change"] is None and numbers["gpus"] == 64
    assert numbers["parameters"]["total"] == 1_025_543_960
    memory = numbers["memory_bytes"]
    parts = ("weights", "gradients", "masters", "moments", "average")
    assert memory["states"] == sum(memory[part] for part in parts)
    assert memory["peak"] == memory["peak_backward"] > memory["states"] + memory["activations"]
    assert numbers["rate"]["mfu_assumed"] == 0.3 and numbers["days"] > 0 and numbers["not_modelled"] == []


def test_a_run_that_does_not(capsys: pytest.CaptureFixture[str]) -> None:
    words = [*GIANT[:-1], ZERO3, *HOSTS, "--gpu-mem", "80", "model.arch=vit_6b"]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "does not fit" in shown
    assert "cheapest change: ds.activation_checkpointing.number_checkpoints=28" in shown
    assert "or: batch.micro=32" in shown
    assert main([*words, "ds.activation_checkpointing.number_checkpoints=28"]) == 0
    assert "\nfits: " in capsys.readouterr().out


def test_what_is_not_known_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*GIANT, *HOSTS, "ds.torch_autocast.enabled=true"]) == 0
    shown = capsys.readouterr().out
    assert "--gpu-mem GB says whether it fits" in shown and "give --gpu NAME or --tflops T" in shown
    assert "not known: what torch_autocast.enabled changes" in shown
    assert main(["plan", "--recipe", "ava_vit_base_k400_finetuned", "--ds_config", ZERO2, "--gpus", "32"]) == 0
    assert "give --videos" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--gpus", "0"], "--gpus"),
        (["--gpus", "24"], "batch.total does not divide over the ranks"),
        (["--gpus", "64", "--gpu-mem", "0"], "--gpu-mem"),
        (["--gpus", "64", "--gpu-mem", "nan"], "--gpu-mem"),
        (["--gpus", "64", "--gpu", "H1000"], "fix:      --gpu H100"),
        (["--gpus", "64", "--tflops", "300", "--mfu", "1.5"], "--mfu"),
        (["--gpus", "64", "--mfu", "0.4"], "--tflops T"),
        (["--gpus", "64", "model.archh=x"], "model.arch"),
        (["--gpus", "64", "model.arch=vit_7b"], "vit_6b"),
        (["--gpus", "64", "ds.zero_optimization.stag=3"], "zero_optimization.stage"),
        (["--gpus", "64", "nonsense"], "section.key=value"),
        (["--hostfile", "nowhere"], "hostfile nowhere"),
        (["--gpus", "64", "--json", "."], "--json"),
        (["--gpus", "64", "pretrain.decoder_mask_ratio=0.1"], "decoder_mask_ratio"),
    ],
)
def test_a_mistake_is_answered(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*GIANT, *words]) == 2
    answer = capsys.readouterr()
    assert said in answer.err and "Traceback" not in answer.err and answer.out == ""


def test_gpus_or_a_hostfile(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], [*HOSTS, "--gpus", "8"], [*HOSTS, "--gpu", "H100", "--tflops", "3"]):
        with pytest.raises(SystemExit) as caught:
            main([*GIANT, *words])
        assert caught.value.code == 2
    capsys.readouterr()


DEMO = ["plan", "--recipe", "demo_pretrain", "--ds_config", "ds_configs/zero2.json"]


@pytest.mark.parametrize(
    ("name", "tflops"),
    [("h100", 989), ("NVIDIA GeForce RTX 4090", 165), ("NVIDIA H100 PCIe", 756), ("NVIDIA A100-SXM4-80GB", 312)],
)
def test_a_gpu_by_the_name_that_its_driver_gives(name: str, tflops: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*DEMO, "--gpus", "1", "--gpu", name]) == 0
    assert f"{name}: {tflops} TFLOP/s" in capsys.readouterr().out


def test_another_gpu_is_no_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*DEMO, "--gpus", "1", "--gpu", "H1000"]) == 2
    assert "fix:      --gpu H100" in capsys.readouterr().err


def test_a_node_that_is_not_full_is_a_node(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*DEMO, "--gpus", "12", "batch.total=24"]) == 0
    assert "12 GPUs on 2 nodes" in capsys.readouterr().out
