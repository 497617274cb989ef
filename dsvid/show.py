"""A timeline and its video -> a contact sheet (PNG) and a video (MP4), in one reading, in constant memory.

Knows neither models nor how a task is drawn: `overlay` has a painter for each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from PIL import Image

from dsvid.data.decode import Frames
from dsvid.data.stream import VideoStream
from dsvid.data.video_writer import VideoWriter, open_writer
from dsvid.errors import DataError
from dsvid.overlay.clips import ClipPainter
from dsvid.overlay.painter import Painter
from dsvid.overlay.people import PeoplePainter
from dsvid.overlay.risk import RiskPainter
from dsvid.overlay.sheet import Sheet
from dsvid.overlay.strip import Strip
from dsvid.overlay.text import font_size
from dsvid.publish import publish_file, publish_path
from dsvid.timeline import ClipTimeline, PeopleTimeline, RiskTimeline, Timeline

Pictures = Iterable[tuple[int, Frames]]
LEAST_SIDE = 480  # pixels: smaller videos are enlarged, so that labels can be read
STRIP = 0.3  # of the shorter side, for the curves below


def painter_of(timeline: Timeline) -> Painter:
    """A fresh painter of the task; it remembers where labels were, so each output has its own."""
    if isinstance(timeline, ClipTimeline):
        return ClipPainter(timeline)
    if isinstance(timeline, RiskTimeline):
        return RiskPainter(timeline)
    assert isinstance(timeline, PeopleTimeline), type(timeline)
    return PeoplePainter(timeline)


def output_size(shown: tuple[int, int]) -> tuple[int, int]:
    """Even sides, the shorter of at least LEAST_SIDE."""
    scale = max(1.0, LEAST_SIDE / min(shown))
    width, height = (max(2, 2 * round(side * scale / 2)) for side in shown)
    return width, height


def show(
    timeline: Timeline, stream: VideoStream, *, png: Path | None = None, mp4: Path | None = None,
    watched: Callable[[Pictures], Pictures] = lambda pictures: pictures,
) -> None:  # fmt: skip
    """Write what is asked for, each whole or not at all. Raises DataError where it cannot be written."""
    try:
        sheet = Sheet(painter_of(timeline), timeline.video.duration_s, output_size(stream.shown_size)) if png else None
        if mp4:
            publish_path(mp4, lambda scratch: _draw(timeline, stream, sheet, scratch, watched))
        elif sheet:
            _draw(timeline, stream, sheet, None, watched)
        if png and sheet:
            picture = sheet.finish()
            publish_file(png, lambda out: picture.save(out, format="PNG"))
    except OSError as error:
        raise DataError(
            f"{mp4 or png} cannot be written", found=error.strerror or str(error), fix="free space, or another -o"
        ) from error


def _draw(
    timeline: Timeline, stream: VideoStream, sheet: Sheet | None, mp4: Path | None,
    watched: Callable[[Pictures], Pictures],
) -> None:  # fmt: skip
    size = output_size(stream.shown_size)
    wanted = set(sheet.wanted) if sheet else set()
    last = stream.frames if mp4 else max(wanted, default=-1)
    painter = painter_of(timeline)
    strip = _strip(painter, timeline.video.duration_s, size)
    with ExitStack() as stack:
        writer: VideoWriter | None = None
        if mp4:
            height = size[1] + (strip.height if strip else 0)
            writer = stack.enter_context(open_writer(mp4, stream.fps, size[0], height))
        for frame, pixels in watched(stream.pictures(size)):
            second = float(stream.seconds[frame])
            picture = Image.fromarray(pixels)
            if sheet and frame in wanted:
                sheet.add(picture, frame, second)
            if writer:
                painter.paint(picture, frame, second)
                writer.add(np.asarray(_with_strip(picture, strip, second)), second)
            if frame >= last:
                break


def _strip(painter: Painter, duration_s: float, size: tuple[int, int]) -> Strip | None:
    curves = painter.curves
    text = font_size(*size)
    height = 2 * round(max(STRIP * min(size), 7 * text) / 2)
    return Strip(curves, duration_s, size[0], height, text) if curves else None


def _with_strip(picture: Image.Image, strip: Strip | None, second: float) -> Image.Image:
    if strip is None:
        return picture
    whole = Image.new("RGB", (picture.width, picture.height + strip.height))
    whole.paste(picture, (0, 0))
    whole.paste(strip.at(second), (0, picture.height))
    return whole
