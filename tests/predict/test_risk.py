"""The risk of a video's frames: the evaluation's numbers for the same pictures, at any frame rate, in few words."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image

from dsvid.data import traffic_generated
from dsvid.data.builtin import write_clip
from dsvid.data.stream import open_stream
from dsvid.data.traffic_reader import TrafficReader
from dsvid.data.traffic_split import open_traffic
from dsvid.data.window_index import WindowIndex, WindowRule
from dsvid.errors import CheckpointError
from dsvid.metrics.anomaly_groups import risk_of
from dsvid.models.spec import ModelSpec, build_model
from dsvid.overlay.risk import ALARM, FINEST, RiskPainter, colour_of_risk
from dsvid.predict.anomaly import RiskWindows, judge, view_fps_of
from dsvid.predict.settings import Settings
from dsvid.predict.weights import open_predictor
from dsvid.recipe import AnomalyConfig, DataConfig
from dsvid.timeline import RiskTimeline, Video
from dsvid.weights.folder import write_folder

CPU = torch.device("cpu")
SIZE = {"dim": 24, "depth": 2, "heads": 2, "patch": 8, "mlp_hidden": 48, "head_init_scale": 50.0}
INPUT = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3], "sampling_rate": 1, "view_fps": 10.0, "short_side": 32}


def weights(folder: Path, classes: int = 2, task: str = "anomaly", **more: object) -> Path:
    spec = ModelSpec(task, "custom", 4, 32, num_classes=classes, **SIZE)
    noise = torch.Generator().manual_seed(1)
    state = build_model(spec, seed=3).state_dict()
    state = {name: tensor + 0.1 * torch.randn(tensor.shape, generator=noise) for name, tensor in state.items()}
    labels = ["safe", "anomaly"] if classes == 2 else []
    write_folder(folder, state, {"model": spec.to_config(), "input": {**INPUT, **more}, "labels": labels})
    return folder


def write_exactly(path: Path, pictures: np.ndarray, times: list[int], rate: int) -> None:
    """A video without loss; times in 1 / 1000 s."""
    with av.open(str(path), "w", format="matroska") as container:
        stream = container.add_stream("ffv1", rate=rate)
        stream.height, stream.width, stream.pix_fmt = *pictures.shape[1:3], "bgr0"
        stream.codec_context.time_base = Fraction(1, 1000)
        for picture, time in zip(pictures, times, strict=True):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


@pytest.mark.parametrize(("layout", "fps"), [("dota", 10), ("dada", 30)])
def test_the_risk_of_a_frame_is_that_of_the_evaluation(layout: str, fps: int, tmp_path: Path) -> None:
    lists = traffic_generated.make_set(tmp_path / "set", {"val": 2}, layout=layout)
    data = DataConfig(root=str(tmp_path / "set"), val=lists["val"].name, num_frames=4, view_fps=10, input_size=32)
    anomaly: Any = AnomalyConfig(layout=layout, padding="repeat")
    split = open_traffic(data, anomaly, "val")
    reader = TrafficReader(data, anomaly, split)
    count = len(split.clips[1].frames)
    numbers = range(len(split) - count, len(split))  # every frame of the second clip
    assert split.windows.take([numbers[0]]).clip[0] == 1 and count > 35
    predictor = open_predictor(weights(tmp_path / "w"))

    batch = reader.collate([reader.test_item(i, reader.frames(i, None).frames, 1, 0) for i in numbers], numbers)  # type: ignore[arg-type]
    with torch.no_grad():
        # scores around one half: at 1 they would hardly differ
        predictor.objective.model.head.bias -= predictor.objective.logits(batch).mean(dim=0)  # type: ignore[operator, union-attr]
        logits = predictor.objective.logits(batch).double().numpy()  # type: ignore[operator]

    pictures = np.concatenate([reader.frames(i, None).frames[-1:].numpy() for i in numbers])  # type: ignore[arg-type]
    write_exactly(tmp_path / "v.mkv", pictures, [round(1000 * i / fps) for i in range(count)], fps)
    with open_stream(tmp_path / "v.mkv") as stream:
        assert all((shown == kept).all() for (_, shown), kept in zip(stream.pictures(), pictures, strict=True))
        timeline = judge(stream, predictor, Settings(threshold=0.5, batch=5), CPU)
    assert timeline.frames.tolist() == list(range(count))
    assert np.abs(timeline.risk - risk_of(logits)).max() < 1e-5
    assert np.ptp(timeline.risk) > 0.05  # frames differ, so the order above is seen
    assert timeline.realtime > 0 and any("of computing" in note for note in timeline.notes)


@pytest.mark.parametrize("fps", [5.0, 10.0, 12.5, 25.0, 29.97, 30.0, 60.0])
def test_windows_of_a_steady_video_are_those_of_the_rule(fps: float) -> None:
    rule = WindowRule(6, 10, padding="repeat", nearest=True)
    index = WindowIndex([90], fps, rule)
    seconds = np.round(np.arange(90) / fps, 3)  # as Matroska stores them
    windows = RiskWindows(np.arange(90), seconds, fps, rule)
    assert windows.steady and len(index) == len(windows) == 90
    assert np.array_equal(np.stack([windows[i] for i in range(90)]), index.positions(np.arange(90))[1])


def test_windows_of_a_varying_rate_go_by_time() -> None:
    # 20 frames a second, later 10
    seconds = np.concatenate([np.arange(20) / 20, 1 + np.arange(20) / 10])
    windows = RiskWindows(np.arange(40), seconds, 40 / 3, WindowRule(4, 10, padding="repeat", nearest=True))
    assert not windows.steady
    assert windows[0].tolist() == [0, 0, 0, 0] and windows[3].tolist() == [0, 0, 1, 3]
    assert windows[10].tolist() == [4, 6, 8, 10] and windows[22].tolist() == [18, 20, 21, 22]
    assert windows[39].tolist() == [36, 37, 38, 39]


def test_every_s_holds_the_risk_between(tmp_path: Path) -> None:
    pictures = np.random.default_rng(0).integers(0, 255, (31, 40, 56, 3), dtype=np.uint8)
    write_exactly(tmp_path / "v.mkv", pictures, [round(1000 * i / 12) for i in range(31)], 12)
    predictor = open_predictor(weights(tmp_path / "w"))
    with open_stream(tmp_path / "v.mkv") as stream:
        whole = judge(stream, predictor, Settings(threshold=0.5), CPU)
        sparse = judge(stream, predictor, Settings(threshold=0.5, every_s=1.0), CPU)
        faster = judge(stream, predictor, Settings(view_fps=6.0), CPU)
        counted = judge(stream, predictor, Settings(sampling_rate=2), CPU)
    assert len(whole.frames) == 31 and any("10 of 12 frames a second" in note for note in whole.notes)
    assert sparse.frames.tolist() == [0, 12, 24]
    assert sparse.risk == pytest.approx(whole.risk[[0, 12, 24]], abs=1e-6)
    assert [sparse.at(frame) for frame in (0, 11, 12, 30)] == sparse.risk[[0, 0, 1, 2]].tolist()
    assert np.array_equal(faster.risk, counted.risk) and not np.allclose(faster.risk, whole.risk)
    drawn = RiskPainter(sparse).curves[0]
    assert np.interp(0.9, drawn.seconds, drawn.values) == pytest.approx(sparse.risk[0])


def test_weights_that_do_not_say_their_rate_have_simple_tads_aloud(tmp_path: Path) -> None:
    write_clip(tmp_path / "v.mp4", np.full((20, 34, 50, 3), 90, np.uint8))
    stated = open_predictor(weights(tmp_path / "w"))
    silent = replace(stated, view_fps=None)
    with open_stream(tmp_path / "v.mp4") as stream:
        rates = [view_fps_of(stream, replace(silent, frames=frames), Settings()) for frames in (16, 8)]
        said = [judge(stream, each, how, CPU).notes for each, how in
                ((silent, Settings()), (silent, Settings(view_fps=4.0)), (stated, Settings()))]  # fmt: skip
    assert rates == [10, 5]
    assert [any("do not say their frame rate" in note for note in notes) for notes in said] == [True, False, False]


def test_a_short_video_is_judged_aloud(tmp_path: Path) -> None:
    write_clip(tmp_path / "v.mp4", np.full((2, 34, 50, 3), 90, np.uint8))
    predictor = open_predictor(weights(tmp_path / "w"))
    with open_stream(tmp_path / "v.mp4") as stream:
        timeline = judge(stream, predictor, Settings(threshold=0.5), CPU)
    assert timeline.frames.tolist() == [0, 1] and any("shorter than a window" in note for note in timeline.notes)


def test_a_damaged_part_is_not_judged(tmp_path: Path) -> None:
    pictures = np.random.default_rng(0).integers(0, 255, (48, 64, 64, 3), dtype=np.uint8)
    write_clip(tmp_path / "v.mp4", pictures)
    stored = bytearray((tmp_path / "v.mp4").read_bytes())
    predictor = open_predictor(weights(tmp_path / "w"))
    with open_stream(tmp_path / "v.mp4") as stream:
        whole = judge(stream, predictor, Settings(), CPU)
    middle = len(stored) // 2
    stored[middle : middle + len(stored) // 4] = bytes(len(stored) // 4)
    (tmp_path / "v.mp4").write_bytes(stored)
    with open_stream(tmp_path / "v.mp4") as stream:
        timeline = judge(stream, predictor, Settings(), CPU)
    lost = set(range(48)) - set(timeline.frames.tolist())
    assert lost and len(whole.frames) == 48
    assert any("cannot be decoded" in note for note in timeline.notes)
    assert timeline.risk[0] == pytest.approx(whole.risk[0], abs=1e-5)


def line(values: list[float], threshold: float = 0.5, step: int = 1) -> RiskTimeline:
    frames = step * np.arange(len(values))
    video = Video("some/v.mp4", step * len(values), 10.0, step * len(values) / 10, 400, 300)
    return RiskTimeline(video, frames, frames / 10, np.array(values), threshold, "a window", 2.0)


def test_intervals_and_words() -> None:
    found = line([0.6, 0.2, 0.5, 0.9, 0.7, 0.12, 0.1, 0.8], step=2)
    assert [(a.start, a.end, a.peak, a.peak_s) for a in found.alarms()] == [
        (0, 2, 0.6, 0.0), (4, 10, 0.9, 0.6), (14, 16, 0.8, 1.4),
    ]  # fmt: skip
    assert found.alarms()[1].start_s == pytest.approx(0.4) and found.alarms()[2].end_s == pytest.approx(1.6)
    text = found.table().splitlines()
    assert "0.490" in text[0] and "8 of 16" in text[0] and "0.900" in text[1] and "0:00.6" in text[1]
    assert len(text) == 5 and "0:00.4 - 0:01.0" in text[3]
    said = found.to_json()
    assert said["highest"] == {"frame": 6, "second": 0.6, "risk": 0.9} and said["realtime_factor"] == 2.0
    assert said["scores"][3] == {"frame": 6, "second": 0.6, "risk": 0.9} and len(said["scores"]) == 8
    assert [each["peak"] for each in said["intervals"]] == [0.6, 0.9, 0.8]
    assert "never" in line([0.1, 0.2]).table() and not line([0.1, 0.2]).alarms()
    many = line([0.1, 0.9] * 30).table().splitlines()
    assert len(many) == 2 + 20 + 1 and "and 10 intervals" in many[-1]


def test_peaks_are_among_the_moments_and_in_the_curve() -> None:
    values = (0.2 + 0.1 * np.sin(np.arange(5000) / 50)).tolist()
    values[1234], values[4321] = 0.95, 0.9
    painter = RiskPainter(line(values))
    moments = painter.moments(12)
    assert len(moments) == 12 and moments == sorted(set(moments)) and {1234, 4321} <= set(moments)
    # filling the largest gap is at worst twice as wide as even gaps (Gonzalez 1985), here 5000 / 11
    assert max(np.diff([0, *moments, 4999])) < 2 * 455 and min(np.diff(moments)) > 455 / 4
    drawn = painter.curves[0]
    assert len(drawn.values) <= FINEST and {0.95, 0.9} <= set(drawn.values) and np.all(np.diff(drawn.seconds) > 0)
    assert painter.curves[1].values == [0.5, 0.5]
    assert RiskPainter(line([0.3] * 5)).moments(12) == [0, 1, 2, 3, 4]
    assert len(set(RiskPainter(line([0.3] * 500)).moments(12))) == 12
    assert "0.95 at 2:03.4" in painter.heading[0] and "0:02" not in painter.heading[1]


@pytest.mark.parametrize("size", [(800, 600), (64, 90), (31, 17)])
def test_the_bar_is_as_long_as_the_risk_and_turns_to_alarm(size: tuple[int, int]) -> None:
    for frame, risk in ((0, 0.3), (1, 0.8)):
        picture = Image.new("RGB", size, (90, 90, 90))
        RiskPainter(line([0.3, 0.8])).paint(picture, frame, frame / 10)
        pixels = np.asarray(picture).astype(int)
        border = np.abs(pixels[-1, :] - ALARM).sum(axis=1).max() < 10
        assert border == (risk >= 0.5)
        if min(size) < 60:
            continue
        inside = pixels[5:-10, 5:-10]
        bar = (np.abs(inside - colour_of_risk(risk, 0.5)).sum(axis=2) < 10).sum(axis=1)
        track = (np.abs(inside - (70, 72, 76)).sum(axis=2) < 10).sum(axis=1)
        row = int(np.argmax(track))
        assert bar[row] / (bar[row] + track[row]) == pytest.approx(risk, abs=0.06)
    calm, alarmed = colour_of_risk(0.0, 0.5), colour_of_risk(0.5, 0.5)
    assert calm[1] > 1.5 * calm[0] and alarmed[0] > 3 * alarmed[1] and colour_of_risk(0.2, 0.0) == alarmed


def test_weights_that_cannot_judge(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="3 classes") as caught:
        open_predictor(weights(tmp_path / "three", 3))
    assert "safe, anomaly" in str(caught.value)
    with pytest.raises(CheckpointError, match="another task"):
        open_predictor(weights(tmp_path / "c", 2, "classify"), task="anomaly")
    (tmp_path / "two.txt").write_text("a\nb\n")
    with pytest.raises(CheckpointError, match="has no use"):
        open_predictor(weights(tmp_path / "w"), labels=tmp_path / "two.txt")


def test_published_weights_are_opened_as_told(tmp_path: Path) -> None:
    """A file in VideoMAE's layout says neither its task nor its rate; its last norm is used as it is."""
    spec = ModelSpec("anomaly", "vit_tiny", 16, 224, num_classes=2)
    with torch.no_grad():
        state = build_model(spec, seed=0).state_dict()
        kept = {name.replace("fc_norm.", "norm."): tensor + 0.25 for name, tensor in state.items()}
        torch.save({"model": kept}, tmp_path / "tad.pth")
        three = {"head.weight": torch.zeros(3, 192), "head.bias": torch.zeros(3)}
        torch.save({"model": kept | three}, tmp_path / "3.pth")
    predictor = open_predictor(tmp_path / "tad.pth", task="anomaly")
    assert (predictor.task, predictor.names.names, predictor.view_fps) == ("anomaly", ["safe", "anomaly"], None)
    norm: Any = predictor.objective.model.fc_norm.weight  # type: ignore[union-attr]
    assert torch.equal(norm, kept["norm.weight"])
    with pytest.raises(CheckpointError, match="3 classes"):
        open_predictor(tmp_path / "3.pth", task="anomaly")
    with pytest.raises(CheckpointError, match="--task anomaly"):
        open_predictor(tmp_path / "tad.pth")
