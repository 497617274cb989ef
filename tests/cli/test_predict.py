"""`dsvid predict` as a user calls it: each output of each task; mistakes end with 2 and leave nothing behind."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from dsvid.cli import main
from dsvid.data import ava_generated
from dsvid.data.builtin import write_clip
from dsvid.models.spec import ModelSpec, build_model
from dsvid.overlay.risk import ALARM
from dsvid.overlay.text import colour_of
from dsvid.show import output_size
from dsvid.weights.folder import write_folder
from tests.data.damaged_videos import damaged
from tests.report.reading_pages import Page, check_page

SIZE = {"dim": 24, "depth": 1, "heads": 2, "patch": 8, "mlp_hidden": 48, "head_init_scale": 50.0}
BOXES = "second,x1,y1,x2,y2\n1,0.1,0.2,0.4,0.7\n1,0.5,0.2,0.8,0.7\n2,0.2,0.2,0.5,0.7\n2,0.5,0.2,0.8,0.7\n"


def weights(folder: Path, task: str, labels: list[str]) -> Path:
    spec = ModelSpec(task, "custom", 4, 32, num_classes=len(labels), **(SIZE if task != "pretrain" else SIZE | {
        "decoder_dim": 24, "decoder_depth": 1, "decoder_heads": 2}))  # fmt: skip
    state = {
        k: v + 0.1 * torch.randn(v.shape, generator=torch.Generator().manual_seed(1))
        for k, v in build_model(spec, seed=3).state_dict().items()
    }
    described = {"model": spec.to_config(), "input": {"sampling_rate": 2, "short_side": 40}, "labels": labels}
    write_folder(folder, state, described)
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("predict")
    ava_generated.make_set(folder / "set", videos={"val": 1}, seconds=4, whole=True)
    (video,) = (folder / "set" / "videos").iterdir()
    video.rename(folder / "v.mp4")  # 96 x 80, 48 frames at 12 fps
    weights(folder / "detect", "detect", ["sit down", "stand up", "walk"])
    weights(folder / "classify", "classify", ["first class", "second class", "third class"])
    weights(folder / "pretrain", "pretrain", [])
    weights(folder / "risk", "anomaly", ["safe", "anomaly"])
    weights(folder / "three", "anomaly", ["safe", "anomaly", "unsure"])
    (folder / "b.csv").write_text(BOXES)
    return folder


def frames_of(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert stream.width % 2 == stream.height % 2 == 0
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]


def test_people_are_drawn_where_their_boxes_are(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = [place / "d" / name for name in ("o.json", "o.png", "o.mp4")]
    words = ["predict", str(place / "v.mp4"), "--weights", str(place / "detect"), "--boxes", str(place / "b.csv")]
    assert main([*words, *(word for path in out for word in ("-o", str(path)))]) == 0
    shown = capsys.readouterr().out
    assert all(f"written: {path}" in shown for path in out)
    assert sorted(path.name for path in (place / "d").iterdir()) == ["o.json", "o.mp4", "o.png"]
    said = json.loads(out[0].read_text())
    assert (said["format"], said["task"], said["video"]["frames"]) == ("dsvid-predict", "detect", 48)
    assert [key["second"] for key in said["key_frames"]] == [1.0, 2.0] and "b.csv" in said["boxes_from"]
    person = said["key_frames"][0]["people"][0]
    assert person["box"] == [0.1, 0.2, 0.4, 0.7] and person["actions"][0]["label"] in ("sit down", "stand up", "walk")
    frames = frames_of(out[2])
    size = output_size((96, 80))
    assert len(frames) == 48 and frames[0].shape == (size[1], size[0], 3)

    def left_edge(picture: np.ndarray, track: int) -> float:
        """Where most of the pixels of the track's colour in one column are, below the labels."""
        part = picture[round(0.3 * size[1]) : round(0.65 * size[1])].astype(int)
        columns = (np.abs(part - colour_of(track)).sum(axis=2) < 90).sum(axis=0)
        return float(np.flatnonzero(columns > 0.7 * len(part))[0]) / size[0]

    for frame, x in ((12, 0.1), (18, 0.15), (24, 0.2)):  # between the key frames the first one moves
        assert left_edge(frames[frame], 1) == pytest.approx(x, abs=0.015), frame
        assert left_edge(frames[frame], 2) == pytest.approx(0.5, abs=0.015), frame
    plain = frames[40].astype(int)  # no boxes any more
    assert (np.abs(plain - colour_of(1)).sum(axis=2) < 40).mean() < 0.002
    with Image.open(out[1]) as sheet:
        assert sheet.format == "PNG" and sheet.width > 900


def test_classes_are_listed_and_drawn_over_time(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["predict", "--weights", str(place / "classify"), str(place / "v.mp4"), "--top", "2"]
    assert main(words) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0].startswith("whole video") and len(table) == 1 + 6 and "class" in table[0]
    assert table[1].startswith("0:00.0 - 0:00.7") and table[-1].split()[2] == "0:04.0"
    assert main([*words, "-o", str(place / "c.json"), "-o", str(place / "c.mp4"), "-o", str(place / "c.PNG")]) == 0
    said = json.loads((place / "c.json").read_text())
    assert [clip["start_frame"] for clip in said["clips"]] == [0, 8, 16, 24, 32, 40]
    assert all(len(clip["top"]) == 2 for clip in said["clips"])
    frames = frames_of(place / "c.mp4")
    size = output_size((96, 80))
    assert frames[0].shape[0] > size[1] and len(frames) == 48  # the curves are below
    strip = [frame[size[1] + 40 :].astype(int) for frame in frames]
    marks = [
        float(np.flatnonzero((part.min(axis=2) > 200).mean(axis=0) > 0.4).mean()) for part in (strip[5], strip[40])
    ]
    assert marks[1] - marks[0] == pytest.approx(35 / 48 * size[0], rel=0.15)  # the line moves along
    assert (place / "c.PNG").is_file()


def test_clips_of_which_no_frame_can_be_decoded_have_no_class(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video = damaged(tmp_path / "v.mp4", range(10, 30))  # so 10 to 31 are lost, and the clips from 16 and 24
    outputs = [word for name in ("json", "mp4", "png", "html") for word in ("-o", str(tmp_path / f"o.{name}"))]
    assert main(["predict", "--weights", str(place / "classify"), str(video), *outputs]) == 0
    assert "2 of 6 clips have no frame that can be decoded: left out" in capsys.readouterr().err
    clips = json.loads((tmp_path / "o.json").read_text())["clips"]
    assert [clip["start_frame"] for clip in clips] == [0, 8, 32, 40]


def test_risk_is_listed_and_drawn_over_time(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["predict", "--weights", str(place / "risk"), str(place / "v.mp4")]
    assert main([*words, "-o", str(place / "r.json")]) == 0
    risks = np.sort([each["risk"] for each in json.loads((place / "r.json").read_text())["scores"]])
    threshold = float(risks[23:25].mean())  # half of the frames are above it
    words += ["--threshold", str(threshold)]
    assert main(words) == 0
    shown = capsys.readouterr()
    assert "mean risk" in shown.out and "48 of 48 frames judged" in shown.out and "risk >= 0." in shown.out
    assert "of computing" in shown.err
    assert main([*words, "-o", str(place / "r.json"), "-o", str(place / "r.mp4"), "-o", str(place / "r.png")]) == 0
    said = json.loads((place / "r.json").read_text())
    assert (said["task"], said["threshold"]) == ("anomaly", threshold) and said["realtime_factor"] > 0
    assert [each["frame"] for each in said["scores"]] == list(range(48))
    risks = np.array([each["risk"] for each in said["scores"]])
    assert said["highest"]["risk"] == risks.max() and np.ptp(risks) > 0.01
    over = {i for each in said["intervals"] for i in range(each["start_frame"], each["end_frame"])}
    assert over == set(np.flatnonzero(risks >= threshold).tolist()) and len(over) == 24
    frames = frames_of(place / "r.mp4")
    size = output_size((96, 80))
    assert len(frames) == 48 and frames[0].shape[0] > size[1] and frames[0].shape[1] == size[0]
    for frame, picture in enumerate(frames):  # the border of the alarm, where there is one
        edge = picture[size[1] // 2, :3].astype(int).mean(axis=0)
        assert (np.abs(edge - ALARM).sum() < 90) == (risks[frame] >= threshold), (frame, edge, risks[frame])
    with Image.open(place / "r.png") as sheet:
        assert sheet.format == "PNG" and sheet.width > 900


def test_risk_every_s_of_a_short_odd_sized_video(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_clip(tmp_path / "v.mp4", np.random.default_rng(0).integers(0, 255, (7, 34, 50, 3), dtype=np.uint8))
    with av.open(str(tmp_path / "v.mp4")) as container:  # 33 x 49, as no H.264 in yuv420p has it
        pictures = [frame.to_ndarray(format="rgb24")[:33, :49] for frame in container.decode(video=0)]
    with av.open(str(tmp_path / "odd.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=24)
        stream.width, stream.height, stream.pix_fmt = 49, 33, "bgr0"
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")))
        container.mux(stream.encode(None))
    out = [tmp_path / name for name in ("o.json", "o.png", "o.mp4")]
    words = ["predict", "--weights", str(place / "risk"), str(tmp_path / "odd.mkv"), "--every", "0.125"]
    assert main([*words, *(word for path in out for word in ("-o", str(path)))]) == 0
    assert "shorter than a window" in capsys.readouterr().err
    said = json.loads(out[0].read_text())
    assert [each["frame"] for each in said["scores"]] == [0, 3, 6] and said["threshold"] == 0.5
    assert len(frames_of(out[2])) == 7


def test_a_page_of_each_task_holds_everything_and_loads_nothing(place: Path) -> None:
    def page_of(task: str, *words: str) -> Page:
        path = place / f"{task}.html"
        assert main(["predict", str(place / "v.mp4"), "--weights", str(place / task), "-o", str(path), *words]) == 0
        found = check_page(path.read_text())
        assert len(found.all("img")) == 1 and "v.mp4" in found.text
        assert not (place / "sheet.png").exists()
        return found

    clips = page_of("classify", "-o", str(place / "same.png"), "-o", str(place / "same.json"))
    said = json.loads((place / "same.json").read_text())["top"]
    bars = clips.all("meter")
    assert [float(bar["value"]) for bar in bars] == pytest.approx([each["score"] for each in said], abs=1e-4)
    assert [bar["aria-label"] for bar in bars] == [each["label"] for each in said] and clips.all("svg")
    sheet = base64.b64decode(clips.all("img")[0]["src"].partition(",")[2])
    assert sheet == (place / "same.png").read_bytes()
    people = page_of("detect", "--boxes", str(place / "b.csv"))
    assert {bar["aria-label"] for bar in people.all("meter")} <= {"sit down", "stand up", "walk"}
    assert "2" in people.text and "b.csv" in people.text and "person 1" in people.text
    risk = page_of("risk", "--threshold", "0.25")
    assert not risk.all("meter") and "0.25: an alarm from here on" in risk.text and "Mean risk" in risk.text


def test_names_that_look_like_html_stay_names(tmp_path: Path, place: Path) -> None:
    weights(tmp_path / "odd", "classify", ["<script>alert(1)</script>", "a & b", '"quoted"'])
    words = ["predict", str(place / "v.mp4"), "--weights", str(tmp_path / "odd"), "-o", str(tmp_path / "p.html")]
    assert main(words) == 0
    found = check_page((tmp_path / "p.html").read_text())
    assert "<script>alert(1)</script>" in found.text and "a & b" in found.text


def test_without_an_output_people_are_listed(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(place))
    assert (
        main(["predict", "--weights", str(place / "detect"), str(place / "v.mp4"), "--every", "2", "num_classes=3"])
        == 0
    )
    shown = capsys.readouterr()
    assert [line.split()[:3] for line in shown.out.splitlines()] == [
        ["0:00.0", "person", "1"],
        ["0:02.0", "person", "1"],
    ]
    assert "the whole frame" in shown.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("{d}/none.mp4 --weights {d}/classify", "no such video"),
        ("{d}/b.csv --weights {d}/classify", "cannot be decoded"),
        ("{d} --weights {d}/classify", "is a folder"),
        ("{d}/v.mp4 --weights {d}/none", "nothing there"),
        ("{d}/v.mp4 --weights {d}/pretrain", "pre-training"),
        ("{d}/v.mp4 --weights {d}/classify --boxes {d}/b.csv", "--boxes is for weights of detection"),
        ("{d}/v.mp4 --weights {d}/detect --boxes {d}/none.csv", "cannot be read"),
        ("{d}/v.mp4 --weights {d}/detect --boxes {d}/b.csv --every 2", "--every and --boxes"),
        ("{d}/v.mp4 --weights {d}/classify -o {d}/x.gif", "expected: .json, .png, .mp4"),
        ("{d}/v.mp4 --weights {d}/classify -o {d}/x", "no suffix"),
        ("{d}/v.mp4 --weights {d}/classify -o {d}/v.mp4", "the video itself"),
        ("{d}/v.mp4 --weights {d}/classify -o {d}/x.png -o {d}/y.png", "one of each kind"),
        ("{d}/v.mp4 --weights {d}/classify -o {d}/b.csv/x.png", "cannot be written"),
        ("{d}/v.mp4 --weights {d}/classify -o /proc/x.mp4", "cannot be written"),
        ("{d}/v.mp4 --weights {d}/classify --every 0", "--every must be positive"),
        ("{d}/v.mp4 --weights {d}/classify --view-fps nan", "--view-fps must be positive"),
        ("{d}/v.mp4 --weights {d}/classify --threshold 2", "--threshold"),
        ("{d}/v.mp4 --weights {d}/classify --labels {d}/none.txt", "cannot be read"),
        ("{d}/v.mp4 --weights {d}/classify --task detect", "another task"),
        ("{d}/v.mp4 --weights {d}/classify --task anomaly", "another task"),
        ("{d}/v.mp4 --weights {d}/pretrain --task anomaly", "pre-training"),
        ("{d}/v.mp4 --weights {d}/three", "expected: 2 classes: safe, anomaly"),
        ("{d}/v.mp4 --weights {d}/risk --threshold 1.5", "--threshold"),
        ("{d}/v.mp4 --weights {d}/risk --threshold nan", "--threshold"),
        ("{d}/v.mp4 --weights {d}/risk --boxes {d}/b.csv", "--boxes is for weights of detection"),
        ("{d}/v.mp4 --weights {d}/risk --top 2", "--top is for classes"),
        ("{d}/v.mp4 --weights {d}/risk --person-score 0.5", "--person-score is for people"),
        ("{d}/v.mp4 --weights {d}/classify --person-score 0.5", "--person-score is for people"),
        ("{d}/v.mp4 --weights {d}/classify --threshold 0.5", "--threshold is for actions"),
    ],
)  # fmt: skip
def test_mistakes_end_with_2_and_say_what_to_do(
    place: Path, capsys: pytest.CaptureFixture[str], words: str, said: str
) -> None:
    before = sorted(path.name for path in place.iterdir())
    assert main(["predict", *words.format(d=place).split()]) == 2
    assert said in capsys.readouterr().err
    assert sorted(path.name for path in place.iterdir()) == before


def test_a_disk_that_fills_leaves_nothing_half_written(place: Path, tmp_path: Path) -> None:
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "from dsvid.cli import main; import dsvid.show, dsvid.predict.detect;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000)); sys.exit(main(sys.argv[1:]))"
    )
    words = ["predict", str(place / "v.mp4"), "--weights", str(place / "detect"), "--boxes", str(place / "b.csv")]
    done = subprocess.run(
        [sys.executable, "-c", code, *words, "-o", str(tmp_path / "o.mp4"), "-o", str(tmp_path / "o.png")],
        capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 2 and "o.mp4 cannot be written" in done.stderr, done.stderr
    assert not list(tmp_path.iterdir())


def test_help_is_quick_and_has_examples() -> None:
    start = time.monotonic()
    code = (
        "import sys; from dsvid.cli import main\ntry: main(['predict', '--help'])\n"
        "finally: assert not {'torch', 'PIL', 'numpy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and time.monotonic() - start < 5
    assert "second,x1,y1,x2,y2" in done.stdout and "dsvid predict --weights runs/ft/weights video.mp4" in done.stdout
    assert "--task anomaly drive.mp4" in done.stdout
