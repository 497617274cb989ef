"""Each way in which an entry can be wrong has its cause, and what is right is counted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dsvid.data import video_facts
from dsvid.data.manifest import Entry
from dsvid.data.video_facts import Look, look_at
from tests.data.numbered_videos import write_video


def video(path: Path, start: int = 0, total: int = -1) -> Entry:
    return Entry(str(path), 0, start, total, "video")


def folder(path: Path, total: int) -> Entry:
    return Entry(str(path), 0, -1, total, "frames")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    path = tmp_path / "frames"
    path.mkdir()
    for number in range(1, 6):
        Image.fromarray(np.full((48, 64, 3), 40 * number, np.uint8)).save(path / f"img_{number:05}.jpg")
    return path


def test_what_a_sound_video_is_like(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", 30, 64, 80, g=12, bf=2, x264_params="scenecut=0")
    facts = look_at(video(path), Look(full=True))
    assert (facts.cause, facts.frames, facts.fps, facts.width, facts.height) == ("", 30, 25.0, 80, 64)
    assert (facts.codec, facts.pixels, facts.groups) == ("h264", "yuv420p", [12, 12, 6])
    assert 10 <= facts.reordered <= 20, "two of three frames between key frames at most"
    plain = look_at(video(write_video(tmp_path / "b.mp4", 30, g=30, bf=0, x264_params="scenecut=0")), Look())
    assert (plain.groups, plain.reordered) == ([30], 0)


def test_a_range_counts_its_own_frames(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", 30)
    assert look_at(video(path, 10, 20), Look()).frames == 20
    wrong = look_at(video(path, 10, 21), Look())
    assert (wrong.cause, wrong.text) == (video_facts.TOO_FEW, "the list asks for frames 10 .. 30 of 30")


def _sound_only(path: Path) -> None:
    import av

    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 2048), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def test_every_cause(tmp_path: Path) -> None:
    sound = write_video(tmp_path / "a.mp4", 60, g=12, container_options={"movflags": "+faststart"}).read_bytes()
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("no video\n" * 100)
    (tmp_path / "cut.mp4").write_bytes(sound[: len(sound) // 2])
    late = write_video(tmp_path / "late.mp4", 60, g=12).read_bytes()  # its index comes last
    (tmp_path / "late.mp4").write_bytes(late[: len(late) // 2])
    _sound_only(tmp_path / "sound.mp4")
    found = {
        name: look_at(video(tmp_path / f"{name}.mp4"), Look()).cause
        for name in ("a", "none", "empty", "text", "cut", "late", "sound")
    }
    assert found == {
        "a": "",
        "none": video_facts.MISSING,
        "empty": video_facts.EMPTY,
        "text": video_facts.UNREADABLE,
        "cut": video_facts.CUT_OFF,
        "late": video_facts.CUT_OFF,
        "sound": video_facts.NO_VIDEO,
    }


def test_only_a_full_look_sees_damage_in_the_middle(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", 60, 128, 160, g=60, bf=0)
    blob = bytearray(path.read_bytes())
    start = blob.index(b"mdat") + 4
    middle = start + (blob.index(b"moov") - start) * 2 // 3
    blob[middle : middle + 120] = bytes(120)
    path.write_bytes(blob)
    assert look_at(video(path, 0, 10), Look(full=True)).cause == "", "not in the first frames"
    assert look_at(video(path), Look(full=True)).cause == video_facts.DAMAGED
    blob = bytearray(write_video(path, 60, 128, 160, g=60, bf=0).read_bytes())
    middle = start + (blob.index(b"moov") - start) * 7 // 10
    blob[middle : middle + 2] = b"\xff\xff"
    path.write_bytes(blob)
    assert look_at(video(path), Look()).cause == ""
    assert look_at(video(path), Look(full=True)).text == "1 of 60 frames are patched up by the decoder"


def test_folders_of_pictures(pictures: Path) -> None:
    facts = look_at(folder(pictures, 5), Look(full=True))
    assert (facts.cause, facts.frames, facts.width, facts.height, facts.codec) == ("", 5, 64, 48, "")
    assert look_at(folder(pictures, 6), Look()).cause == video_facts.TOO_FEW
    assert look_at(folder(pictures, 5), Look(frame_name="{:06}.png")).cause == video_facts.TOO_FEW
    (pictures / "img_00003.jpg").write_bytes(b"no picture")
    assert look_at(folder(pictures, 5), Look()).cause == ""
    assert look_at(folder(pictures, 5), Look(full=True)).cause == video_facts.DAMAGED


def test_a_file_that_should_be_a_folder(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", 8)
    assert look_at(folder(path, 8), Look()).cause == video_facts.UNREADABLE
