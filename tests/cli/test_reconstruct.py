"""`dsvid reconstruct` as a user calls it: each output, whole videos, and mistakes that leave nothing behind."""

from __future__ import annotations

import json
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from dsvid.cli import main
from dsvid.data.builtin import write_clip
from dsvid.models.spec import ModelSpec, build_model
from dsvid.objectives import PretrainObjective
from dsvid.overlay.panels import Panels
from dsvid.weights.folder import write_folder
from tests.data.damaged_videos import damaged
from tests.report.reading_pages import check_page

SIZE = {"dim": 24, "depth": 1, "heads": 2, "patch": 8, "mlp_hidden": 48}
DECODER = {"decoder_dim": 24, "decoder_depth": 1, "decoder_heads": 2}
FRAMES, FPS, STEP = 21, 12, 2  # the clips of 4 frames begin at 0, 8 and 13: the last one ends with the video


def weights(folder: Path, task: str = "pretrain", trained: dict[str, object] | None = None) -> Path:
    more = DECODER if task == "pretrain" else {"num_classes": 2}
    spec = ModelSpec(task, "custom", 4, 32, **SIZE, **more)
    described = {
        "model": spec.to_config(),
        "input": {"sampling_rate": STEP, "short_side": 40},
        "trained": trained or {},
    }
    write_folder(folder, dict(build_model(spec, seed=3).state_dict()), described)
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reconstruct")
    levels = np.arange(FRAMES, dtype=np.uint8)[:, None, None, None] * 10
    across = np.arange(70, dtype=np.uint8)[None, None, :, None]
    write_clip(folder / "v.mp4", np.broadcast_to(levels + across // 2, (FRAMES, 50, 70, 3)).copy())
    weights(folder / "w", trained={"norm_pix": True, "mask_ratio": 0.75})
    weights(folder / "pixels", trained={"norm_pix": False, "mask_ratio": 0.75})
    weights(folder / "silent")
    weights(folder / "classify", "classify")
    return folder


def command(place: Path, *more: object, model: str = "w") -> list[str]:
    return ["reconstruct", "--weights", str(place / model), str(place / "v.mp4"), *map(str, more)]


def test_every_output(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = {name: place / "all" / f"o.{name}" for name in ("json", "png", "mp4", "html")}
    assert main(command(place, *(word for path in out.values() for word in ("-o", path)))) == 0
    shown = capsys.readouterr()
    assert "note:" not in shown.err and all(f"written: {path}" in shown.out for path in out.values())
    assert sorted(path.name for path in (place / "all").iterdir()) == ["o.html", "o.json", "o.mp4", "o.png"]

    said = json.loads(out["json"].read_text())
    assert [(clip["start_frame"], clip["end_frame"]) for clip in said["clips"]] == [(0, 8), (8, 16), (13, 21)]
    assert (said["mask_ratio"], said["hidden_patches"], said["patches"]) == (0.75, 12, 16)
    first, second, _ = said["clips"]
    assert [each["frame"] for each in first["frames"]] == [0, 2, 4, 6]
    assert np.sum(first["mask"]) == 12 and first["mask"] != second["mask"], "each clip has a mask of its own"
    by_frame = [each["loss"] for each in first["frames"]]
    assert first["loss"] == pytest.approx(np.mean(by_frame))
    assert first["loss_by_tubelet"] == pytest.approx([np.mean(by_frame[:2]), np.mean(by_frame[2:])])
    assert said["loss"] == pytest.approx(np.mean([clip["loss"] for clip in said["clips"]]))

    with av.open(str(out["mp4"])) as container:
        frames = [(float(frame.time), frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    numbers = [0, 2, 4, 6, 8, 10, 12, 14, 15, 17, 19]  # frames 13 of the last clip were shown already
    assert [time for time, _ in frames] == pytest.approx([number / FPS for number in numbers], abs=1e-3)
    panels = Panels(("a", "b", "c", "d"), 32)
    assert frames[0][1].shape == (panels.size[1], panels.size[0], 3)
    middle = frames[4][1][panels.size[1] // 2 - 60 : panels.size[1] // 2 + 60]
    assert abs(middle[:, 60:200].mean() - (80 + 17)) < 8, "the original of frame 8 is on the left"

    page = check_page(out["html"].read_text())
    assert len(page.all("img")) == 3 and "taken from the original" in page.text and "0.75" not in page.text
    with Image.open(out["png"]) as strip:
        assert strip.height > 5 * 144 and strip.width > 4 * 144


def test_the_loss_is_that_of_training(place: Path) -> None:
    assert main(command(place, "-o", place / "l.json", "--start", "0.5", "--seed", "7", "--view-fps", "12")) == 0
    said = json.loads((place / "l.json").read_text())
    assert said["clips"][0]["start_frame"] == 6 and said["frame_distance"] == 1
    from dsvid.data.order import sample_seed
    from dsvid.data.stream import open_stream
    from dsvid.predict.clips import centre_square
    from dsvid.weights import load_model

    model, _ = load_model(place / "w", task="pretrain")
    objective = PretrainObjective(model, model.grid, mask_ratio=0.75).eval()
    with open_stream(place / "v.mp4") as stream:
        pictures = [centre_square(40, 32)(picture) for number, picture in stream.pictures() if 6 <= number < 10]
    batch = {"clip": torch.stack(pictures)[None], "seed": torch.tensor([sample_seed(7, 0, 0)])}
    with torch.no_grad():
        assert said["clips"][0]["loss"] == pytest.approx(float(objective(batch).loss), rel=1e-5)


def test_what_the_weights_do_not_say_is_told(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(place, "-o", place / "s.json", model="silent")) == 0
    told = capsys.readouterr().err
    assert "which mask ratio" in told and "normalised pixels" in told
    assert json.loads((place / "s.json").read_text())["mask_ratio"] == 0.9
    assert main(command(place, "-o", place / "p.html", model="pixels")) == 0
    assert "nothing of a hidden patch is taken from the original" in check_page((place / "p.html").read_text()).text


def test_a_short_video_repeats_its_last_frame(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(place, "-o", place / "e.png", "-o", place / "e.json", "--start", "1.6")) == 0
    assert "shorter than a clip (2 of 8 frames)" in capsys.readouterr().err
    (clip,) = json.loads((place / "e.json").read_text())["clips"]
    assert clip["padded"] and [each["frame"] for each in clip["frames"]] == [19, 19, 19, 19]


@pytest.mark.parametrize(
    ("model", "more", "words"),
    [
        ("w", ("-o", "x.gif"), ".png, .mp4, .html, .json"),
        ("w", ("-o", "x.png", "--mask-ratio", "1"), "--mask-ratio"),
        ("w", ("-o", "x.png", "--mask-ratio", "0.01"), "--mask-ratio does not suit the model"),
        ("w", ("-o", "x.png", "--start", "9"), "--start lies outside of the video"),
        ("w", ("-o", "x.png", "--start=-1"), "--start"),
        ("w", ("-o", "x.png", "ds.a=1"), "no DeepSpeed JSON"),
        ("classify", ("-o", "x.png"), "hold no decoder"),
        ("encoder.pth", ("-o", "x.png"), "hold no decoder"),
        ("nothing", ("-o", "x.png"), "nothing there"),
    ],
)
def test_mistakes(
    place: Path, model: str, more: tuple[str, ...], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    spec = ModelSpec("classify", "vit_micro", 4, 32, num_classes=2)
    state = build_model(spec, seed=0).state_dict()
    if model == "encoder.pth":
        torch.save({"model": dict(state)}, place / model)
    monkeypatch.chdir(tmp_path)
    assert main(command(place, *more, model=model)) == 2
    assert words in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def broken_command(place: Path, video: Path, *more: object) -> list[str]:
    return ["reconstruct", "--weights", str(place / "w"), str(video), *map(str, more)]


def test_clips_of_which_no_frame_can_be_decoded_are_left_out_aloud(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video = damaged(tmp_path / "v.mp4", range(10, 30), fps=FPS)  # so 10 to 31 are lost
    outputs = [word for name in ("json", "png", "mp4", "html") for word in ("-o", tmp_path / f"o.{name}")]
    assert main(broken_command(place, video, *outputs)) == 0
    shown = capsys.readouterr()
    said = json.loads((tmp_path / "o.json").read_text())
    clips = said["clips"]
    assert [(clip["start_frame"], clip["replaced"]) for clip in clips] == [(0, 0), (8, 3), (32, 0), (40, 0)]
    assert said["loss"] == pytest.approx(np.mean([clip["loss"] for clip in clips])) and "over 4 clips" in shown.out
    for note in (
        "2 of 6 clips have no frame that can be decoded: left out",
        "the first one after): 3 frames of 1 clip",
    ):
        assert sum(note in each for each in said["notes"]) == 1 and note in shown.err
        assert note in check_page((tmp_path / "o.html").read_text()).text
    assert not any(note.startswith("left out") for note in said["notes"])


def test_where_the_first_clip_is_lost_the_picture_is_of_the_next_one_or_of_none(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video = damaged(tmp_path / "v.mp4", range(10, 30), fps=FPS)
    start = ("--start", 16 / FPS)
    assert main(broken_command(place, video, *start, "-o", tmp_path / "o.png", "-o", tmp_path / "o.json")) == 0
    assert "the PNG shows the clip at 2.67 s" in capsys.readouterr().err and (tmp_path / "o.png").exists()
    assert main(broken_command(place, video, *start, "-o", tmp_path / "alone.png")) == 2
    assert "another --start" in capsys.readouterr().err and not (tmp_path / "alone.png").exists()


def test_a_video_that_is_none(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "v.mp4").write_bytes(b"no video at all")
    words = ["reconstruct", "--weights", str(place / "w"), str(tmp_path / "v.mp4"), "-o", str(tmp_path / "o.png")]
    assert main(words) == 2
    assert "v.mp4" in capsys.readouterr().err and not (tmp_path / "o.png").exists()
