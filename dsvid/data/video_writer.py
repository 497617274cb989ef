"""Pictures -> an mp4 that browsers play: H.264, yuv420p, even sides, the pictures' own times. Knows no model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsvid.errors import DataError

TICKS = 90_000  # of time in a second
CRF = 20
_BT709, _LIMITED = 1, 1  # FFmpeg's numbers of the colour matrix and range


class VideoWriter:
    """Encodes pictures of one size as they come."""

    def __init__(
        self,
        container: Any,
        fps: float,
        width: int,
        height: int,
        *,
        key_every: int = 0,
        threads: int = 0,
        crf: int = CRF,
    ) -> None:
        if width % 2 or height % 2:
            raise DataError("an mp4 for browsers has even sides", found=f"{width} x {height}")
        self._container = container
        rate = Fraction(fps).limit_denominator(1001)
        # a picture two seconds after the last key frame at most, so that players can jump
        options = {"crf": str(crf), "preset": "veryfast", "g": str(key_every or max(1, round(2 * fps)))}
        try:
            self._stream = container.add_stream("libx264", rate=rate, options=options)
        except ValueError as error:  # an FFmpeg of the system's, built without it
            raise DataError("PyAV has no H.264 encoder (libx264)", found=str(error), fix="pip install av") from error
        self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "yuv420p"
        context = self._stream.codec_context
        context.thread_count = threads
        context.time_base = Fraction(1, TICKS)
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        context.color_range = _LIMITED
        self._last = -1

    def add(self, picture: NDArray[np.uint8], second: float) -> None:
        """A picture uint8 [H, W, 3], shown from `second` on."""
        import av

        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
        frame = frame.reformat(format="yuv420p", dst_colorspace="ITU709")
        self._last = max(self._last + 1, round(second * TICKS))
        frame.pts, frame.time_base = self._last, Fraction(1, TICKS)
        self._container.mux(self._stream.encode(frame))

    def finish(self) -> None:
        """Encode what is still held back."""
        self._container.mux(self._stream.encode(None))


@contextmanager
def open_writer(
    path: Path, fps: float, width: int, height: int, *, key_every: int = 0, threads: int = 0, crf: int = CRF
) -> Iterator[VideoWriter]:
    """Write `path`; whoever publishes it renames it. Its index comes first, so that players start at once.

    `key_every` frames there is a key frame at least (0: every 2 s); one thread writes the same bytes on every machine.
    Raises DataError where the pictures cannot be encoded, OSError where the file cannot be written.
    """
    import av

    try:
        with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
            writer = VideoWriter(container, fps, width, height, key_every=key_every, threads=threads, crf=crf)
            yield writer
            writer.finish()
    except av.FFmpegError as error:
        if isinstance(error, OSError):
            raise
        raise DataError(f"{width} x {height} pixels cannot be encoded as H.264", found=str(error)) from error
