"""Windows and labels of traffic anomaly data, and what a broken data set says."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dsvid.data import traffic
from dsvid.errors import DataError


@pytest.mark.parametrize(("source", "view", "length", "step"), [(10, 10, 16, 1), (30, 10, 16, 3), (30, 5, 8, 4)])
@pytest.mark.parametrize("frames", [15, 16, 45, 46, 47, 60, 200])
def test_windows_end_on_the_last_frame_and_stay_inside(source, view, length, step, frames):
    cut = traffic.windows(frames, length=length, source_fps=source, view_fps=view, step=step)
    span = source // view * (length - 1) + 1
    assert cut.shape == (max(0, (frames - span) // step + 1) if frames >= span else 0, length)
    if len(cut):
        assert cut[-1, -1] == frames - 1 and cut.min() >= 0
        assert (np.diff(cut, axis=1) == source // view).all() and (np.diff(cut[:, 0]) == step).all()


def test_a_late_first_window_gets_another_at_the_start():
    how = {"length": 16, "source_fps": 30, "view_fps": 10, "step": 16}
    assert traffic.windows(60, **how)[:, 0].tolist() == [14]
    assert traffic.windows(60, with_start=True, **how)[:, 0].tolist() == [14, 0]
    assert traffic.windows(51, with_start=True, **how)[:, 0].tolist() == [5]


def test_a_rate_that_does_not_divide_is_an_error_with_those_that_do():
    with pytest.raises(DataError, match=r"view_fps=4[\s\S]*\[1, 2, 5, 10\]"):
        traffic.windows(60, length=8, source_fps=10, view_fps=4, step=1)


def slow_time_to_anomaly(labels: list[int], fps: int, before: float, after: float) -> list[float]:
    inside = [place for place, label in enumerate(labels) if label]
    times = []
    for place, label in enumerate(labels):
        ahead = min((other - place for other in inside if other > place), default=10**9)
        behind = min((place - other for other in inside if other < place), default=10**9)
        if label or not inside:
            times.append(0.0)
        elif ahead <= int(before * fps):
            times.append(-ahead / fps)
        else:
            times.append(behind / fps if behind <= int(after * fps) else -100.0)
    return times


@pytest.mark.parametrize("share", [0.0, 0.02, 0.2, 1.0])
def test_time_to_the_anomaly_is_that_of_searching(share):
    for seed in range(20):
        labels = (np.random.default_rng(seed).random(120) < share).astype(int).tolist()
        for limits in ((2.0, 1.0), (0.5, 1.5)):
            times = traffic.time_to_anomaly(labels, 10, *limits)
            assert times.tolist() == slow_time_to_anomaly(labels, 10, *limits)
            risk = traffic.smooth_risk(labels, times, *limits)
            assert (risk[np.array(labels) == 1] == 1).all() and (risk[times == -100] == 0).all()
            assert ((risk >= 0) & (risk <= 1)).all() and risk.dtype == np.float32


def dota(folder: Path, frames: int = 20) -> Path:
    annotations = folder / "dataset" / "annotations"
    annotations.mkdir(parents=True)
    labels = [{"image_path": f"x/{k:06}.jpg", "accident_id": 3 * (8 <= k < 12)} for k in range(frames)]
    labels = labels[5:] + labels[:5]  # sorted by number when read
    (annotations / "clip.json").write_text(json.dumps({"ego_involve": True, "night": False, "labels": labels}))
    (folder / "dataset" / "half_train_split.txt").write_text("clip\n\n")
    (folder / "frames" / "clip").mkdir(parents=True)
    with zipfile.ZipFile(folder / "frames" / "clip" / "images.zip", "w") as content:
        for number in range(frames):
            data = io.BytesIO()
            Image.new("RGB", (24, 16), (10 * number, 0, 0)).save(data, "JPEG")
            content.writestr(f"{number:06}.jpg", data.getvalue())
    return folder


def test_frames_are_read_from_the_zip_in_the_order_of_the_window(tmp_path):
    (clip,) = traffic.read_dota(dota(tmp_path), "half_train_split.txt")
    assert clip.labels.tolist() == [0] * 8 + [1] * 4 + [0] * 8 and clip.ego and not clip.night and clip.category == ""
    cut = traffic.cut_windows([clip, clip], length=8, view_fps=10, step=6)
    assert cut.clip.tolist() == [0, 0, 0, 1, 1, 1] and cut.frames[:3, -1].tolist() == [7, 13, 19]
    assert cut.label.tolist() == [0, 0, 0] * 2 and cut.ttc_s[:3].tolist() == [-0.1, 0.2, 0.8]
    pictures = traffic.read_frames(clip, cut.frames[1])
    assert pictures.shape == (8, 16, 24, 3) and pictures.dtype == np.uint8
    assert abs(pictures[:, 0, 0, 0].astype(int) - 10 * cut.frames[1]).max() <= 3


def test_what_is_broken_is_named(tmp_path):
    root = dota(tmp_path)
    (clip,) = traffic.read_dota(root, "half_train_split.txt")
    with pytest.raises(DataError, match="nowhere.txt"):
        traffic.read_dota(root, "nowhere.txt")
    clip.archive.write_bytes(b"no zip")
    with pytest.raises(DataError, match=r"images\.zip"):
        traffic.read_frames(clip, [0])
    with zipfile.ZipFile(clip.archive, "w") as content:
        content.writestr("000001.jpg", b"no picture")
    for position in (0, 1):  # not there; not a picture
        with pytest.raises(DataError, match=f"00000{position}.jpg"):
            traffic.read_frames(clip, [position])
    (root / "dataset" / "annotations" / "clip.json").write_text('{"labels": [{"image_path": "a/b.jpg"}]}')
    with pytest.raises(DataError, match=r"clip\.json[\s\S]*image_path and accident_id"):
        traffic.read_dota(root, "half_train_split.txt")


def test_a_dada_clip_needs_one_row_of_the_table(tmp_path):
    (tmp_path / "annotation").mkdir()
    (tmp_path / "DADA2K_my_split").mkdir()
    header = 'video,type,abnormal start frame,abnormal end frame,"light(day,night)1-2"\n'
    table = tmp_path / "annotation" / "full_anno.csv"
    (tmp_path / "DADA2K_my_split" / "training.txt").write_text("10/003\n")
    for rows, found in (("4,10,1,2,1\n", "0"), ("3,10,1,2,1\n3,10,1,2,1\n", "2")):
        table.write_text(header + rows)
        with pytest.raises(DataError, match=rf"10/003[\s\S]*found:    {found}"):
            traffic.read_dada(tmp_path, "training.txt")
    table.write_text(header + "3,10,one,2,1\n")
    with pytest.raises(DataError, match=r"full_anno\.csv: row 2"):
        traffic.read_dada(tmp_path, "training.txt")


def test_names_of_frames_are_small_and_a_sequence():
    names = traffic.FrameNames([0, 7, 12, 1_000_000], 6, ".jpg")
    assert list(names) == ["000000.jpg", "000007.jpg", "000012.jpg", "1000000.jpg"] and len(names) == 4
    assert names[-1] == "1000000.jpg" and names[1:3] == ("000007.jpg", "000012.jpg") and names[np.int64(1)] == names[1]
    assert "000012.jpg" in names and "12.jpg" not in names
    with pytest.raises(IndexError):
        names[4]


def test_irregular_names_of_dada_are_kept(tmp_path):
    (tmp_path / "annotation").mkdir()
    (tmp_path / "DADA2K_my_split").mkdir()
    (tmp_path / "DADA2K_my_split" / "training.txt").write_text("10/003\n")
    header = 'video,type,abnormal start frame,abnormal end frame,"light(day,night)1-2"\n'
    (tmp_path / "annotation" / "full_anno.csv").write_text(header + "3,10,2,2,2\n")
    (tmp_path / "frames" / "10" / "003").mkdir(parents=True)
    data = io.BytesIO()
    Image.new("RGB", (8, 8)).save(data, "PNG")
    for names in (["images_0001.png", "images_0002.png", "images_0010.png"], ["0001.png", "0002.png"]):
        with zipfile.ZipFile(tmp_path / "frames" / "10" / "003" / "images.zip", "w") as content:
            for name in reversed(names):
                content.writestr(name, data.getvalue())
        traffic.ZIPS.close()  # the file is replaced while it is open
        (clip,) = traffic.read_dada(tmp_path, "training.txt")
        assert list(clip.frames) == names and clip.labels.tolist() == [0, 1, 0][: len(names)] and clip.night
        assert traffic.read_frames(clip, [1]).shape == (1, 8, 8, 3)
