"""One video from front to back: upright, square, in time; clips among its pictures; what is written plays."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from dsvid.data.decode import open_clip_source
from dsvid.data.manifest import Entry
from dsvid.data.stream import clips_of, open_stream
from dsvid.data.video_writer import open_writer
from dsvid.errors import DataError


def write(
    path: Path, frames: int, *, size: tuple[int, int] = (64, 48), fps: int = 10, turn: int = 0,
    aspect: Fraction | None = None, times: list[float] | None = None, codec: str = "libx264",
) -> Path:  # fmt: skip
    """A white corner on the upper left, and a grey that tells the frame."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=fps, options={"g": "7"})
        stream.width, stream.height = size
        stream.pix_fmt = "bgr0" if codec == "ffv1" else "yuv420p"
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        if turn:
            stream.set_display_rotation(turn)
        for number in range(frames):
            picture = np.full((size[1], size[0], 3), 10 + 3 * number, np.uint8)
            picture[: size[1] // 3, : size[0] // 3] = 255
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            if times:
                frame.pts, frame.time_base = round(times[number] * 1000), Fraction(1, 1000)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def test_every_frame_once_in_order_and_as_the_clip_reader_has_it(tmp_path: Path) -> None:
    path = write(tmp_path / "v.mp4", 30)
    with open_stream(path) as stream, open_clip_source(Entry(str(path), -1, 0, -1, "video"), "pyav") as source:
        pictures = list(stream.pictures())
        assert [number for number, _ in pictures] == list(range(30)) and stream.reached == 29
        assert np.array_equal(np.stack([picture for _, picture in pictures]), source.read(range(30)))
        assert (stream.frames, stream.fps, stream.width, stream.height) == (30, 10.0, 64, 48)
        assert stream.duration_s == pytest.approx(3.0) and not stream.notes
        assert [number for number, _ in stream.pictures()] == list(range(30))  # again, from the start


@pytest.mark.parametrize(("turn", "corner"), [(90, "lower left"), (-90, "upper right"), (180, "lower right")])
def test_rotation_tags_are_applied(tmp_path: Path, turn: int, corner: str) -> None:
    with open_stream(write(tmp_path / "v.mp4", 3, turn=turn)) as stream:
        assert (stream.width, stream.height) == ((64, 48) if turn == 180 else (48, 64))
        assert "rotation tag" in stream.notes[0]
        for picture in (next(iter(stream.pictures()))[1], next(iter(stream.pictures(stream.shown_size)))[1]):
            assert picture.shape[:2] == (stream.height, stream.width)
            halves = {"upper": picture[:8], "lower": picture[-8:]}
            row = halves[corner.split()[0]].mean(axis=(0, 2))
            assert (row[:8].mean() > 200) == (corner.split()[1] == "left")
            assert (row[-8:].mean() > 200) == (corner.split()[1] == "right")


def test_pixels_that_are_not_square_are_made_so(tmp_path: Path) -> None:
    with open_stream(write(tmp_path / "v.mp4", 3, aspect=Fraction(3, 2))) as stream:
        assert (stream.width, stream.height) == (64, 48) and stream.shown_size == (96, 48)
        assert next(iter(stream.pictures(stream.shown_size)))[1].shape == (48, 96, 3)
    with open_stream(write(tmp_path / "w.mp4", 3, aspect=Fraction(3, 2), turn=90)) as stream:
        assert stream.shown_size == (48, 96)


def test_times_are_the_file_s_own(tmp_path: Path) -> None:
    times = [0.0, 0.1, 0.5, 0.6, 2.0]
    with open_stream(write(tmp_path / "v.mkv", 5, times=times)) as stream:
        assert stream.seconds.tolist() == pytest.approx(times, abs=2e-3)
        assert [stream.frame_at(second) for second in (0.0, 0.34, 0.56, 1.4, 99.0)] == [0, 2, 3, 4, 4]


def test_clips_hold_the_pictures_asked_for_and_no_more_are_kept() -> None:
    prepared: list[int] = []

    def prepare(picture: np.ndarray) -> torch.Tensor:
        prepared.append(int(picture[0, 0, 0]))
        return torch.from_numpy(picture)

    pictures = ((number, np.full((1, 1, 3), number, np.uint8)) for number in range(20))
    wanted = [np.array(each) for each in ([0, 0, 2], [1, 3, 5], [4, 6, 8], [18, 20, 22], [25, 26, 27])]
    found = {place: [int(p[0, 0, 0]) for p in clip] for place, clip in clips_of(pictures, wanted, prepare)}
    # 20 and 22 are not there: the one before is shown; the last clip begins after the end
    assert found == {0: [0, 0, 2], 1: [1, 3, 5], 2: [4, 6, 8], 3: [18, 18, 18]}
    assert prepared == [0, 1, 2, 3, 4, 5, 6, 8, 18]


def test_frames_that_are_not_there_are_replaced_by_the_one_before_and_clips_without_any_are_left_out() -> None:
    pictures = [(number, np.full((1, 1, 3), number, np.uint8)) for number in [*range(3, 9), *range(25, 40)]]
    wanted = [np.arange(start, start + 8, 2) for start in (0, 8, 16, 24, 32)]
    clips = clips_of(pictures, wanted, torch.from_numpy)
    found = {place: [int(p[0, 0, 0]) for p in clip] for place, clip in clips}
    # 4 is later than 0 and 2, and there is none before; 16 to 22 are all lost; 8 is the last one before 24
    assert found == {0: [4, 4, 4, 6], 1: [8, 8, 8, 8], 3: [8, 26, 28, 30], 4: [32, 34, 36, 38]}


def test_long_videos_take_no_more_memory() -> None:
    alive = 0
    most = 0

    class Counted(torch.Tensor):
        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    def prepare(picture: np.ndarray) -> torch.Tensor:
        nonlocal alive, most
        alive += 1
        most = max(most, alive)
        return torch.zeros(1).as_subclass(Counted)

    pictures = ((number, np.zeros((1, 1, 3), np.uint8)) for number in range(2000))
    wanted = [np.arange(start, start + 16, 4) for start in range(0, 1980, 8)]
    assert sum(1 for _ in clips_of(pictures, wanted, prepare)) == len(wanted)
    assert most < 12


def test_what_is_no_video_is_an_error_with_the_cause(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("hello")
    (tmp_path / "list.m3u8").write_text("#EXTM3U\nhttp://x/y.ts\n")
    for name, words in {
        "none.mp4": "no such video", "empty.mp4": "0 bytes", "text.mp4": "cannot be decoded", ".": "is a folder",
        "list.m3u8": "playlist",
    }.items():  # fmt: skip
        with pytest.raises(DataError, match=words), open_stream(tmp_path / name):
            pass


@pytest.mark.parametrize(
    ("damaged", "left", "words"),
    [
        (range(20, 40), range(20), "20 of 40 frames, between 20 and 39"),
        (range(9, 11), [*range(9), *range(14, 40)], "5 of 40 frames, between 9 and 13"),
    ],
)
def test_damaged_pictures_are_left_out_aloud(tmp_path: Path, damaged: range, left: Iterable[int], words: str) -> None:
    path = write(tmp_path / "v.mkv", 40, codec="ffv1")
    with av.open(str(path)) as container:
        places = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    content = bytearray(path.read_bytes())
    for place, size in (places[number] for number in damaged):
        content[place + 20 : place + size] = b"\xff" * (size - 20)
    path.write_bytes(content)
    with open_stream(path) as stream:
        assert [number for number, _ in stream.pictures()] == list(left)
        assert len(stream.notes) == 1 and words in stream.notes[0]
        assert [number for number, _ in stream.pictures()] == list(left) and len(stream.notes) == 1


def test_after_damage_an_open_group_gives_nothing_before_its_key_frame(tmp_path: Path) -> None:
    path = tmp_path / "v.mkv"
    groups = "open-gop=1:keyint=10:min-keyint=10:bframes=3:b-adapt=0:scenecut=0"
    rng = np.random.default_rng(0)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=10, options={"x264-params": groups})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(40):
            picture = rng.integers(0, 255, (48, 64, 3), dtype=np.uint8)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode(None))
    with av.open(str(path)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    content = bytearray(path.read_bytes())
    for place, size in packets[5:7]:
        content[place + 10 : place + size] = b"\0" * (size - 10)
    path.write_bytes(content)
    with open_stream(path) as opened:
        numbers = [number for number, _ in opened.pictures()]
        # frame 9 comes behind key frame 10 in the file, and needs what is lost
        assert (
            numbers[-30:] == list(range(10, 40)) and max(numbers[:-30]) < 5 and "cannot be decoded" in opened.notes[0]
        )


def test_what_is_written_plays_in_browsers_and_looks_the_same(tmp_path: Path) -> None:
    colours = [(200, 40, 40), (30, 160, 70), (40, 60, 210)]
    with open_writer(tmp_path / "out", 10.0, 64, 48) as writer:
        for number in range(12):
            writer.add(
                np.full((48, 64, 3), colours[number // 4], np.uint8), [0.0, 0.1, 0.15, 0.4][number % 4] + number // 4
            )
    content = (tmp_path / "out").read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")  # the index first: it plays while it loads
    with open_stream(tmp_path / "out") as stream:
        assert stream.seconds[:5].tolist() == pytest.approx([0, 0.1, 0.15, 0.4, 1.0])
        for number, picture in stream.pictures():
            assert np.abs(picture.mean(axis=(0, 1)) - colours[number // 4]).max() < 6
    with av.open(str(tmp_path / "out")) as container:
        context = container.streams.video[0].codec_context
        assert (context.name, context.pix_fmt) == ("h264", "yuv420p")
        assert context.colorspace == context.color_primaries == 1  # bt709, as it was written
    with pytest.raises(DataError, match="even"), open_writer(tmp_path / "odd", 10.0, 65, 48):
        pass
