"""Videos that several data tests read."""

from __future__ import annotations

from pathlib import Path

import pytest

from dsvid.data.decode import quiet_decoders
from tests.data.numbered_videos import write_video


@pytest.fixture(scope="session", autouse=True)
def _quiet() -> None:
    quiet_decoders()


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of 12 sound videos v00.mp4 .. v11.mp4 (video k shows the numbers 64k .. 64k+29)."""
    folder = tmp_path_factory.mktemp("videos")
    for number in range(12):
        write_video(folder / f"v{number:02}.mp4", 30, 80, 80, offset=64 * number, g=12)
    return folder
