"""One video read from front to back in constant memory: upright pictures with their times, and the clips among them.

For one video of any length, where `decode` serves clips out of many: here pixels are made square where a size
is asked for. Knows no model. Legend: T frames of a clip.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dsvid.data.decode import DEFAULT_FPS, Frames, PyavSource, refuse_by_first_bytes, unreadable
from dsvid.errors import DataError

Ints = NDArray[np.int64]
Size = tuple[int, int]


class VideoStream:
    """An open video: `frames`, `fps`, `seconds` of every frame after the first, `width` and `height` when upright, as
    stored; `reached`: the last frame that `pictures` gave; `notes` say what was odd."""

    def __init__(self, path: str, source: PyavSource) -> None:
        self.path = path
        self._source = source
        self.frames = source.frames
        self.fps = source.fps or DEFAULT_FPS
        self.seconds = source.seconds()
        self.reached = -1
        self._lost: set[int] = set()
        self._cause: object = None
        self._notes = [source.note] if source.note else []
        if source.fps is None:
            self._notes.append(f"the file states no frame rate: {DEFAULT_FPS:g} frames a second are assumed")
        first = next(iter(source.decode_from(0)), None)
        if first is None:
            raise DataError(f"{path}: no frame can be decoded")
        self._turns = round((getattr(first[1], "rotation", 0) or 0) / 90) % 4
        stored = first[1].width, first[1].height
        self.width, self.height = stored[::-1] if self._turns % 2 else stored
        if self._turns:
            self._notes.append(f"turned by {90 * self._turns} degrees counterclockwise, as its rotation tag says")

    @property
    def notes(self) -> list[str]:
        """What was odd so far."""
        if not self._lost:
            return list(self._notes)
        words = f"{len(self._lost)} of {self.frames} frames, between {min(self._lost)} and {max(self._lost)}"
        return [*self._notes, f"{words}, cannot be decoded ({self._cause})"]

    @property
    def duration_s(self) -> float:
        """Seconds from the first frame to the end of the last."""
        return float(self.seconds[-1]) + 1.0 / self.fps

    @property
    def shown_size(self) -> Size:
        """(width, height) with square pixels: the longer side in pixels is kept or grows."""
        aspect = self._source.pixel_aspect()
        aspect = 1 / aspect if self._turns % 2 else aspect
        if aspect >= 1:
            return round(self.width * aspect), self.height
        return self.width, round(Fraction(self.height) / aspect)

    def frame_at(self, second: float) -> int:
        """The frame whose time is nearest to `second`."""
        right = int(np.searchsorted(self.seconds, second))
        near = range(max(0, right - 1), min(right + 1, self.frames))
        return min(near, key=lambda number: abs(float(self.seconds[number]) - second))

    def pictures(self, size: Size | None = None) -> Iterator[tuple[int, Frames]]:
        """(frame number, uint8 [H, W, 3]) in the order shown, scaled to `size` (width, height) where it is given.

        Pictures that cannot be decoded, up to the next key frame, are left out with a note. Raises DataError where
        there are none at all.
        """
        width, height = size or (self.width, self.height)
        stored = (height, width) if self._turns % 2 else (width, height)
        self.reached = -1
        begin: int | None = 0
        while begin is not None:
            try:
                for number, frame in self._source.decode_from(begin):
                    if number >= max(begin, self.reached + 1):  # not what an open group shows before it
                        picture = frame.to_ndarray(width=stored[0], height=stored[1], format="rgb24")
                        self.reached = number
                        yield number, np.ascontiguousarray(np.rot90(picture, self._turns))
                return
            except DataError:
                raise
            except Exception as error:  # FFmpeg's errors of damaged packets
                begin = self._after_damage(error, begin)

    def _after_damage(self, error: Exception, begun: int) -> int | None:
        """The key frame to go on with; what is left out is noted."""
        cause = unreadable(self.path, error)
        following = self._source.key_after(max(self.reached, begun))
        if self.reached < 0 and following is None:
            raise cause from error
        self._lost.update(range(self.reached + 1, self.frames if following is None else following))
        self._cause = self._cause or cause.found
        return following


@contextmanager
def open_stream(path: Path | str) -> Iterator[VideoStream]:
    """Open a video file. Raises DataError with the cause where it is none."""
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path}: no such video", expected="a video file")
    if path.is_dir():
        raise DataError(f"{path} is a folder", expected="a video file")
    try:
        refuse_by_first_bytes(str(path))
        source: Any = PyavSource(str(path))
    except DataError:
        raise
    except Exception as error:  # av.error.*, OSError, ...
        raise unreadable(str(path), error) from error
    try:
        try:
            stream = VideoStream(str(path), source)
        except DataError:
            raise
        except Exception as error:
            raise unreadable(str(path), error) from error
        yield stream
    finally:
        source.close()


def clips_of(
    pictures: Iterable[tuple[int, Frames]], wanted: Sequence[Ints], prepare: Callable[[Frames], Tensor]
) -> Iterator[tuple[int, list[Tensor]]]:
    """(place in `wanted`, its T pictures, prepared) as soon as the last one is there.

    `wanted` are ascending frame numbers of each clip, the clips in the order of their first and last frames. A picture
    is prepared once, and held only as long as a clip needs it, or as the last one before. A missing frame is replaced
    by the last one before it that any clip wants, at the very beginning by the first one after it; clips of which no
    frame is there are left out.
    """
    held: dict[int, Tensor] = {}
    active: deque[int] = deque()
    begun = 0
    for number, picture in pictures:
        while begun < len(wanted) and wanted[begun][0] <= number:
            active.append(begun)
            begun += 1
        if any(number in wanted[place] for place in active):
            held[number] = prepare(picture)
        while active and wanted[active[0]][-1] <= number:
            yield from _picked(active.popleft(), wanted, held)
        needed = wanted[active[0]][0] if active else number + 1
        for old in [other for other in held if other < needed][:-1]:
            del held[old]
    for place in active:
        yield from _picked(place, wanted, held)


def _picked(place: int, wanted: Sequence[Ints], held: dict[int, Tensor]) -> Iterator[tuple[int, list[Tensor]]]:
    frames, there = wanted[place], sorted(held)
    if not held.keys().isdisjoint(frames.tolist()):
        before = np.maximum(np.searchsorted(there, frames, side="right") - 1, 0)
        yield place, [held[there[int(index)]] for index in before]
