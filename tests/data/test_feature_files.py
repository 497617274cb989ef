"""Files of features: every video has one of its own, and what is written comes back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dsvid.data.feature_files import KEYS, output_names, read_arrays, write_arrays
from dsvid.data.windows import read_videos
from dsvid.errors import DataError


def names_of(folder: Path, text: str) -> list[str]:
    (folder / "l.txt").write_text(text)
    return output_names(read_videos(str(folder / "l.txt")), ".npz")


def test_a_file_lies_where_its_video_does(tmp_path: Path) -> None:
    assert names_of(tmp_path, "a/one clip.mp4\nb/one clip.mp4\n") == ["a/one clip.npz", "b/one clip.npz"]
    assert output_names(read_videos(str(tmp_path / "a" / "one clip.mp4")), ".npz") == ["one clip.npz"]


def test_names_stay_apart(tmp_path: Path) -> None:
    names = names_of(tmp_path, "x.mp4 0 5\nx.mp4 5 5\nx.avi 0 -1\ny.mp4 0 -1\ny.mp4 0 -1\n../out/z.mp4 0 -1\n")
    assert len(set(names)) == 6
    assert names[:3] == ["x.mp4.0-5.npz", "x.mp4.5-10.npz", "x.avi.npz"]
    assert not any(name.startswith(("/", "..")) for name in names)


@pytest.mark.parametrize(
    ("listed", "expected"),
    [
        (["d/a", "d/a", "d/a.2"], ["d/a", "d/a.3", "d/a.2"]),
        (["d/a.2", "d/a", "d/a"], ["d/a.2", "d/a", "d/a.3"]),
        (["a", "a", "a", "a.2", "a.2"], ["a", "a.3", "a.4", "a.2", "a.2.2"]),
    ],
)
def test_a_number_is_never_another_video_s_name(listed: list[str], expected: list[str], tmp_path: Path) -> None:
    assert names_of(tmp_path, "".join(f"{name}\n" for name in listed)) == [f"{name}.npz" for name in expected]


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_what_is_written_comes_back_and_damage_is_named(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / "deep" / f"v{suffix}"
    arrays = {key: np.arange(3, dtype=np.float32) for key in KEYS}
    write_arrays(path, arrays, {"fps": 10})
    found, facts = read_arrays(path)
    assert facts == {"fps": 10} and all(np.array_equal(found[key], arrays[key]) for key in KEYS)
    assert [item.name for item in path.parent.iterdir()] == [path.name]
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match=f"v{suffix}"):
        read_arrays(path)
