"""The user's mistakes: one clear message, exit code 2, in seconds, before a model is built or a file is written."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from deepspeed.accelerator import get_accelerator

from dsvid import engine, train
from dsvid.data.manifest import read_list
from dsvid.data.shard_packing import Packing
from dsvid.data.shard_samples import PackOptions
from tests.data.numbered_videos import write_video

ROOT = Path(__file__).resolve().parents[1]
ZERO2 = str(ROOT / "ds_configs" / "zero2.json")


@pytest.fixture(autouse=True)
def one_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the mistake was not found before the process group was started")

    monkeypatch.setattr(engine, "start_distributed", refuse)


def mistake(capsys: pytest.CaptureFixture[str], out: Path, *words: str, config: str = ZERO2) -> str:
    """Run, expect exit code 2 and no output folder, and return the message."""
    existed = out.exists()
    assert train.main(["--ds_config", config, "--out", str(out), "--recipe", "demo_pretrain", *words]) == 2
    message = capsys.readouterr().err
    assert "Error: " in message and "Traceback" not in message
    assert existed or not out.exists(), "something was written"
    return message


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["data.num_frames=7"], "data.num_frames=6"),
        (["data.input_size=60"], "data.input_size=64"),
        (["pretrain.mask_ratio=0"], "mask_ratio"),
        (["pretrain.mask_ratio=1"], "mask_ratio"),
        (["pretrain.mask_ratio=0.001"], "leave at least one visible"),
        (["pretrain.decoder_mask_ratio=0.1"], "decoder_mask_ratio"),
        (["pretrain.decoder_mask_ratio=0.5", "data.input_size=56"], "even token grid"),
        (["model.decoder_heads=3"], "does not divide"),
        (["model.arch=vit_bsae"], "vit_base"),
        (["batch.total=15", "data.num_sample=2"], "batch.total=16"),
        (["batch.micro=3", "data.num_sample=2"], "multiple of 2"),
        (["modle.arch=vit_base"], "did you mean"),
        (["data.jpeg_decoder=gpu"], "data.jpeg_decoder=cpu"),  # the built-in clips are not packed
        (["data.train=shards", "data.jpeg_decoder=gpu"], "data.cache_mb=0"),
        (["model.compile_mode=max-autotune"], "model.compile=true"),
        (["run.max_step=3"], "run.max_steps"),
        (["ds.zero_optimization.stge=3"], "zero_optimization.stage"),
        (["ds.scheduler.type=WarmupLR", "optim.layer_decay=0.9"], "WarmupLR"),
        (["nonsense"], "section.key=value"),
        (["--recipe", "demo_pretrane"], "demo_pretrain"),
        (["model.positions=sincos_separable", "model.decoder_dim=40", "model.decoder_heads=2"], "divisible by 16"),
    ],
)
def test_wrong_values(words: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert expected in mistake(capsys, tmp_path / "out", *words)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_decoders_of_a_gpu_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_video(tmp_path / "v.mp4", 12, 80, 80, g=12)
    (tmp_path / "list.csv").write_text("v.mp4 0\n")
    Packing(read_list(tmp_path / "list.csv"), tmp_path / "packed", PackOptions()).run()
    train_on = f"data.train={tmp_path / 'packed'}"
    words = [train_on, "data.jpeg_decoder=gpu", "data.cache_mb=0", "batch.total=1"]
    assert "needs CUDA" in mistake(capsys, tmp_path / "out", *words)
    assert "needs CUDA" in mistake(capsys, tmp_path / "out", train_on, "data.decoder=torchcodec_cuda", "batch.total=1")
    words[0] = f"data.train={tmp_path / 'list.csv'}"
    assert "dsvid data pack LIST OUT" in mistake(capsys, tmp_path / "out", *words)


def test_a_precision_that_the_device_does_not_have(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # some processors have it
    monkeypatch.setattr(type(get_accelerator()), "is_fp16_supported", lambda _: False)
    words = ["ds.fp16.enabled=true", "ds.bf16.enabled=false"]
    assert "does not support fp16" in mistake(capsys, tmp_path / "out", *words)


@pytest.mark.skipif(importlib.util.find_spec("wandb") is not None, reason="wandb is installed")
def test_numbers_that_are_to_go_where_nothing_is_installed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "pip install wandb" in mistake(capsys, tmp_path / "out", "ds.wandb.enabled=true")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "nothing there"),
        ("", "empty"),
        (b"\x00\x01\x02\xff" * 50, "text"),
        ("video.mp4\n", "line 1"),
        ("a.mp4 1\nb.mp4 two three four\n", "line 2"),
        ("# only a comment\n", "no"),
    ],
)
def test_wrong_lists(
    content: str | bytes | None, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "train.csv"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    message = mistake(capsys, tmp_path / "out", f"data.train={path}", "data.val=")
    assert str(path) in message
    assert content is None or expected in message


def test_a_folder_in_place_of_a_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "without train.csv" in mistake(capsys, tmp_path / "out", f"data.train={tmp_path}")


def test_labels_outside_the_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "train.csv"
    path.write_text("a.mp4 1\nb.mp4 9\n")
    message = mistake(capsys, tmp_path / "out", "--recipe", "demo_finetune", f"data.train={path}", "data.train_limit=0")
    assert "line 2" in message and "label 9" in message


def test_json_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "ds.json"
    path.write_text('{"bf16": {"enabled": true},}')
    assert "not strict JSON" in mistake(capsys, tmp_path / "out", config=str(path))
    path.write_text('{"zero_optimisation": {"stage": 2}}')
    assert "zero_optimization" in mistake(capsys, tmp_path / "out", config=str(path))
    assert "nothing there" in mistake(capsys, tmp_path / "out", config=str(tmp_path / "none.json"))


def test_a_batch_that_does_not_divide_over_the_ranks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("DSVID_START_TIMEOUT_S", "1")  # the other two never come
    assert "batch.total does not divide over the ranks" in mistake(capsys, tmp_path / "out")


def test_ranks_that_contradict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "5")
    assert "RANK does not fit" in mistake(capsys, tmp_path / "out")


def test_an_output_folder_of_something_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").touch()
    assert "cat.jpg" in mistake(capsys, tmp_path / "photos")


def test_an_output_folder_on_a_read_only_file_system(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Root may write everywhere but there."""
    command = ["mount", "-t", "tmpfs", "-o", "ro,size=1m", "tmpfs", str(tmp_path)]
    if not shutil.which("mount") or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system")
    try:
        assert "is not writable" in mistake(capsys, tmp_path / "out")
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_the_command_line_itself() -> None:
    with pytest.raises(SystemExit) as caught:
        train.main(["--recipe", "demo_pretrain"])
    assert caught.value.code == 2


def test_what_is_nobody_s_mistake_names_its_rank(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> int:
        raise RuntimeError("loader worker 0 (pid 7) died\nand more")

    monkeypatch.setattr(train, "run", die)
    assert train.main(["--ds_config", ZERO2, "--out", str(tmp_path / "out")]) == 1
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("rank 0 on ") and last.endswith("failed: RuntimeError: loader worker 0 (pid 7) died")
