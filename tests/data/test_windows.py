"""Sliding windows: where they start, and which videos a list names."""

from __future__ import annotations

from pathlib import Path

import pytest

from dsvid.data.windows import read_videos, windows
from dsvid.errors import DataError


@pytest.mark.parametrize(
    ("frames", "stride", "expected"),
    [
        (16, 8, [(0, 8, False), (8, 16, False)]),
        (17, 8, [(0, 8, False), (8, 16, False), (16, 17, True)]),
        (15, 8, [(0, 8, False), (8, 15, False)]),  # frame 14 is the last one shown: nothing is repeated
        (14, 8, [(0, 8, False), (8, 14, True)]),
        (12, 2, [(0, 8, False), (2, 10, False), (4, 12, False)]),
        (20, 16, [(0, 8, False), (16, 20, True)]),
        (3, 8, [(0, 3, True)]),
        (1, 1, [(0, 1, True)]),
    ],
)
def test_windows_cover_the_video_and_the_last_one_is_flagged(
    frames: int, stride: int, expected: list[tuple[int, int, bool]]
) -> None:
    found = windows(frames, 4, 2.0, stride)
    assert [(w.start, w.end, w.padded) for w in found] == expected
    for window in found:
        reach = [window.start + 2 * i for i in range(4)]
        shown = [i for i in reach if i < frames]
        assert window.indices.tolist() == shown + shown[-1:] * (4 - len(shown))


def test_seconds_make_even_starts() -> None:
    assert [w.start for w in windows(100, 4, 1.0, 12.5)] == [0, 13, 25, 38, 50, 63, 75, 88]


def test_lists_with_and_without_labels_and_one_video(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "one clip.mp4").write_bytes(b"x")
    (tmp_path / "paths.txt").write_text('# mine\na/one clip.mp4\n"b/one clip.mp4"\n')
    (tmp_path / "labelled.txt").write_text('"a/one clip.mp4" 3\n"b/one clip.mp4" 1\n')
    for name in ("paths.txt", "labelled.txt"):
        manifest = read_videos(str(tmp_path / name))
        assert [manifest[i].path for i in range(2)] == [str(tmp_path / f / "one clip.mp4") for f in ("a", "b")]
    assert len(read_videos(str(tmp_path / "a" / "one clip.mp4"))) == 1


def test_a_line_of_commas_is_named(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("a.mp4\n,\n")
    with pytest.raises(DataError, match="line"):
        read_videos(str(path))
