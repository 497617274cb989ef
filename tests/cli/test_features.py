"""`dsvid features`: what is in a file, and what happens when it is started again."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from safetensors import safe_open

from dsvid.cli import main
from dsvid.data.decode import open_clip_source
from dsvid.data.decoder_choice import choose_decoder
from dsvid.data.feature_files import KEYS, read_arrays
from dsvid.models.spec import ModelSpec, build_model
from dsvid.weights import load_model
from dsvid.weights.folder import write_folder
from tests.distributed.conftest import finish, launch, must_succeed

SPEC = ModelSpec("classify", "vit_micro", 4, 16, num_classes=3)
INPUT = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3], "sampling_rate": 2}


# ---- the command ---------------------------------------------------------------------------------------------------


def write_video(path: Path, frames: int, size: tuple[int, int] = (32, 40)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=10, options={"preset": "veryfast", "crf": "20"})
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        for number in range(frames):
            picture = np.full((*size, 3), 5 * number % 256, np.uint8)
            picture[:, : size[1] // 2] = 200 - 3 * number % 200
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode(None))


def some_weights() -> dict[str, torch.Tensor]:
    """No tensor as it was initialised. By chance, not by a constant: its sums would cancel and leave rounding."""
    draws = torch.Generator().manual_seed(4)
    plain = build_model(SPEC, seed=3).state_dict()
    return {name: tensor + 0.02 * torch.randn(tensor.shape, generator=draws) for name, tensor in plain.items()}


@pytest.fixture()
def place(tmp_path: Path) -> Path:
    for name, frames in (("a/v.mp4", 21), ("b/v.mp4", 5), ("b/w.mp4", 16)):
        write_video(tmp_path / name, frames)
    (tmp_path / "list.txt").write_text("a/v.mp4\nb/v.mp4\nb/w.mp4\n")
    described = {"model": SPEC.to_config(), "input": INPUT, "labels": [], "trained": {}}
    write_folder(tmp_path / "w", some_weights(), described)
    return tmp_path


def call(place: Path, *more: str, out: str = "f") -> int:
    words = ["features", str(place / "list.txt"), "--weights", str(place / "w"), "--out", str(place / out)]
    return main([*words, "--workers", "0", *more])


def expected_features(place: Path, video: str, starts: list[list[int]]) -> torch.Tensor:
    from dsvid.data import augment
    from dsvid.data.manifest import Entry

    model, _ = load_model(place / "w")
    mean, std = (torch.tensor(INPUT[key]).view(1, 3, 1, 1, 1) for key in ("mean", "std"))
    with open_clip_source(Entry(str(place / video), -1, 0, -1, "video"), choose_decoder("auto")[0]) as source:
        clips = [torch.from_numpy(source.read(indices)) for indices in starts]
    clips = [augment.center_crop(augment.resize_short_side(clip, 16), 16) for clip in clips]
    pixels = (torch.stack(clips).permute(0, 4, 1, 2, 3).float() / 255 - mean) / std
    with torch.no_grad():
        return model.forward_features(pixels)  # type: ignore[no-any-return,union-attr]


def test_a_file_holds_what_the_model_says_of_each_window(place: Path) -> None:
    assert call(place, "--stride-frames", "4", "--batch", "2") == 0
    arrays, facts = read_arrays(place / "f" / "a" / "v.npz")
    assert arrays["start_frame"].tolist() == [0, 4, 8, 12, 16]
    assert arrays["end_frame"].tolist() == [8, 12, 16, 20, 21]
    assert arrays["padded"].tolist() == [False] * 4 + [True]
    assert arrays["start_s"].tolist() == pytest.approx([0.0, 0.4, 0.8, 1.2, 1.6])
    assert arrays["end_s"][-1] == pytest.approx(2.1)
    shown = [[s, s + 2, s + 4, s + 6] for s in (0, 4, 8, 12)] + [[16, 18, 20, 20]]
    torch.testing.assert_close(
        torch.from_numpy(arrays["features"]), expected_features(place, "a/v.mp4", shown), atol=1e-5, rtol=1e-5
    )
    assert facts["path"] == str(place / "a" / "v.mp4") and facts["fps"] == 10 and facts["frames"] == 21
    assert facts["num_frames"] == 4 and facts["sampling_rate"] == 2 and len(facts["weights_sha256"]) == 64
    short, _ = read_arrays(place / "f" / "b" / "v.npz")
    assert short["features"].shape == (1, 128) and short["padded"].tolist() == [True]


def test_workers_give_the_same_and_fp16_is_its_rounding(place: Path) -> None:
    assert call(place, out="none") == 0
    assert call(place, "--workers", "2", "--format", "safetensors", "--dtype", "fp16", "--stride-s", "0.8",
                out="two") == 0  # fmt: skip
    for name in ("a/v", "b/v", "b/w"):
        one, _ = read_arrays(place / "none" / f"{name}.npz")
        two, facts = read_arrays(place / "two" / f"{name}.safetensors")
        assert two["features"].dtype == np.float16 and facts["dtype"] == "fp16"
        assert np.array_equal(one["features"].astype(np.float16), two["features"])
        assert all(np.array_equal(one[key], two[key]) for key in KEYS if key != "features")
    with safe_open(place / "two" / "a" / "v.safetensors", framework="np") as opened:
        assert set(opened.keys()) == set(KEYS)


def test_a_second_start_makes_only_what_is_missing_or_damaged(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(place) == 0
    kept, damaged, lost = (place / "f" / name for name in ("a/v.npz", "b/v.npz", "b/w.npz"))
    before, content = kept.stat().st_mtime_ns, damaged.read_bytes()
    features = read_arrays(damaged)[0]["features"]
    damaged.write_bytes(content[:-40])
    lost.unlink()
    capsys.readouterr()
    assert call(place) == 0
    shown = capsys.readouterr().out
    assert "2 videos written, 1 done before, 0 unreadable" in shown and "made again" in shown
    assert kept.stat().st_mtime_ns == before and lost.is_file()
    assert np.array_equal(read_arrays(damaged)[0]["features"], features)
    assert not list((place / "f").rglob(".*")), "something was left behind"


@pytest.mark.parametrize(
    "change",
    [
        ["--stride-frames", "3"],
        ["--sampling-rate", "1"],
        ["--dtype", "fp16"],
        ["--frame-start", "0"],
        ["--frame-name", "{}.png"],
    ],
)
def test_features_made_otherwise_do_not_mix(change: list[str], place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(place) == 0
    assert call(place, *change) == 2
    assert "made otherwise" in capsys.readouterr().err


def test_another_family_does_not_mix(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"module": some_weights()}, place / "w.pth")
    words = ["features", str(place / "list.txt"), "--weights", str(place / "w.pth"), "--out", str(place / "f"),
             "--workers", "0", "num_frames=4", "image_size=16"]  # fmt: skip
    assert main(words) == 0
    assert json.loads((place / "f" / "features.json").read_text())["family"] == "videomae"
    assert main([*words, "--family", "videomae"]) == 0  # what auto found
    assert main([*words, "--family", "mvd"]) == 2  # the same tensors beside another position table
    assert "family: 'videomae' there, 'mvd' here" in capsys.readouterr().err


def test_other_weights_do_not_mix(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(place) == 0
    write_folder(place / "w", build_model(SPEC, seed=4).state_dict(), {"model": SPEC.to_config(), "input": INPUT})
    assert call(place) == 2
    assert "weights_sha256" in capsys.readouterr().err


def test_unreadable_videos_are_listed_once_and_do_not_stop_the_rest(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = (place / "b" / "w.mp4").read_bytes()
    (place / "b" / "w.mp4").write_bytes(whole[: len(whole) // 2])
    (place / "list.txt").write_text("a/v.mp4\nb/w.mp4\nnowhere.mp4\n")
    for _ in range(2):
        assert call(place) == 0
    assert "2 unreadable" in capsys.readouterr().out
    lines = [json.loads(line) for line in (place / "f" / "bad_clips.jsonl").read_text().splitlines()]
    assert sorted(Path(line["path"]).name for line in lines) == ["nowhere.mp4", "w.mp4"]
    assert all(line["error"] and line["rank"] == 0 for line in lines)
    assert sorted(p.name for p in (place / "f").rglob("*.npz")) == ["v.npz"]


def test_nothing_readable_is_an_error(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "list.txt").write_text("nowhere.mp4\nneither.mp4\n")
    assert call(place) == 2
    assert "no video of the list could be read" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--batch", "0"], "--batch"),
        (["--stride-frames", "-1"], "--stride-frames"),
        (["--stride-frames", "0"], "--stride-frames"),
        (["--stride-s", "0"], "--stride-s"),
        (["--stride-s", "nan"], "--stride-s"),
        (["--stride-s", "inf"], "--stride-s"),
        (["--stride-s=-inf"], "--stride-s"),
        (["--view-fps", "nan"], "--view-fps"),
        (["--frame-start", "-1"], "--frame-start"),
        (["--frame-name", "img_{:05"], "--frame-name"),
        (["--frame-name", "img.jpg"], "--frame-name"),
        (["attention=foo"], "attention=foo"),
        (["--short-side", "8"], "--short-side"),
        (["nonsense"], "nonsense"),
        (["task=pretrain"], "autoencoder"),
        (["num_frames=x"], "whole number"),
        (["ds.bf16.enabled=true"], "DeepSpeed"),
    ],
)
def test_wrong_arguments(words: list[str], said: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(place, *words) == 2
    assert said in capsys.readouterr().err


def test_a_missing_list_and_missing_weights(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["features", "no.txt", "--weights", str(place / "w"), "--out", str(place / "f")]) == 2
    assert "no.txt" in capsys.readouterr().err
    assert main(["features", str(place / "list.txt"), "--weights", "no.pth", "--out", str(place / "f")]) == 2
    assert "no.pth" in capsys.readouterr().err
    assert not (place / "f").exists()


def test_two_ranks_share_the_list(place: Path) -> None:
    words = [sys.executable, "-m", "dsvid", "features", str(place / "list.txt"), "--weights", str(place / "w")]

    def run(world: int, out: str) -> list[str]:
        ended = finish(launch(world, [*words, "--out", str(place / out), "--workers", "0"], place), timeout=200)
        must_succeed(ended)
        return [output for _, output in ended]

    outputs = run(2, "f")
    assert "2 videos written" in outputs[0] and "[rank 1] features  1 videos written" in outputs[1]
    run(1, "alone")
    for name in ("a/v", "b/v", "b/w"):
        one, two = (read_arrays(place / out / f"{name}.npz")[0] for out in ("f", "alone"))
        np.testing.assert_allclose(one["features"], two["features"], atol=1e-6)


def test_a_folder_of_frames_has_no_seconds(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    (place / "frames").mkdir()
    for number in range(9):
        Image.new("RGB", (20, 24), (20 * number, 90, 30)).save(place / "frames" / f"{number:03}.png")
    (place / "list.txt").write_text("frames\n")
    naming = ["--frame-name", "{:03}.png", "--frame-start", "0"]
    assert call(place, *naming) == 0
    arrays, facts = read_arrays(place / "f" / "frames.npz")
    assert arrays["end_frame"].tolist() == [8, 9] and np.isnan(arrays["start_s"]).all() and facts["fps"] is None
    assert call(place, *naming, "--stride-s", "1", out="g") == 2
    assert "--stride-frames" in capsys.readouterr().out
