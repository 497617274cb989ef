"""Nothing half-written ever stands under the final name, and nothing is left beside it."""

from __future__ import annotations

from pathlib import Path

import pytest

from dsvid.publish import publish_file, publish_folder


def test_a_file_appears_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.bin"
    publish_file(path, lambda out: out.write(b"one"))
    publish_file(path, lambda out: out.write(b"two"))
    assert path.read_bytes() == b"two" and [p.name for p in path.parent.iterdir()] == ["file.bin"]
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_file_that_fails_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")

    def fail(out: object) -> None:
        out.write(b"half")  # type: ignore[attr-defined]
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        publish_file(path, fail)
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["file.bin"]


def test_a_folder_is_swapped_in_or_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "w"
    publish_folder(folder, lambda scratch: (scratch / "a").write_text("1") and None)
    publish_folder(folder, lambda scratch: (scratch / "b").write_text("2") and None)
    assert [p.name for p in folder.iterdir()] == ["b"]

    def fail(scratch: Path) -> None:
        (scratch / "c").write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        publish_folder(folder, fail)
    assert [p.name for p in folder.iterdir()] == ["b"] and [p.name for p in tmp_path.iterdir()] == ["w"]
