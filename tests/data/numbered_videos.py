"""Small videos made on the fly; every frame carries its own number as a pattern of bright and dark blocks."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

BITS = 10


def numbered_picture(number: int, height: int, width: int) -> np.ndarray:
    """Ten blocks side by side, block b bright where bit b of the number is set; colours differ along the height."""
    picture = np.full((height, width, 3), 40, dtype=np.uint8)
    edges = np.linspace(0, width, BITS + 1).astype(int)
    for bit in range(BITS):
        if number >> bit & 1:
            picture[:, edges[bit] : edges[bit + 1]] = 215
    picture[height // 2 :, :, 2] = picture[height // 2 :, :, 2] // 2 + 30
    return picture


def read_number(picture: np.ndarray) -> int:
    """The number that `numbered_picture` put into a (lossy) picture."""
    edges = np.linspace(0, picture.shape[1], BITS + 1).astype(int)
    blocks = [picture[:, edges[bit] : edges[bit + 1], 1].mean() for bit in range(BITS)]
    return sum(1 << bit for bit, level in enumerate(blocks) if level > 127)


def write_video(
    path: Path,
    frames: int = 60,
    height: int = 64,
    width: int = 80,
    *,
    codec: str = "libx264",
    container: str | None = None,
    rate: int = 25,
    times: Sequence[int] | None = None,
    pixel_format: str = "yuv420p",
    container_options: dict[str, str] | None = None,
    extra_stream: tuple[int, int] | None = None,
    offset: int = 0,
    **options: object,
) -> Path:
    """Encode numbered pictures; `times` in ms makes a variable rate; `extra_stream` (height, width) goes first."""
    with av.open(str(path), "w", format=container, options=container_options or {}) as output:
        streams = []
        for size in ([extra_stream] if extra_stream else []) + [(height, width)]:
            settings = {name.replace("_", "-"): str(value) for name, value in options.items()}
            if codec == "libx264":
                settings = {"preset": "veryfast", "crf": "18", **settings}
            stream = output.add_stream(codec, rate=rate, options=settings)
            stream.height, stream.width, stream.pix_fmt = size[0], size[1], pixel_format
            stream.codec_context.thread_count = 1
            if times is not None:
                stream.codec_context.time_base = Fraction(1, 1000)
            streams.append((stream, size))
        for number in range(frames):
            for place, (stream, size) in enumerate(streams):
                other = bool(extra_stream) and place == 0
                picture = numbered_picture(1023 - number if other else number + offset, *size)
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                if times is not None:
                    frame.pts, frame.time_base = times[number], Fraction(1, 1000)
                output.mux(stream.encode(frame))
        for stream, _ in streams:
            output.mux(stream.encode(None))
    return path
