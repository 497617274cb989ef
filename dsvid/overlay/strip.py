"""Curves over the time of a video, with a line that moves along: what runs below the picture."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw

from dsvid.overlay.painter import Curve
from dsvid.overlay.text import DARK, GREY, LIGHT, line_height, shortened, text_width, write
from dsvid.timeline import clock

FINER = 3  # lines are drawn so much larger and scaled down, because Pillow's have hard edges


class Strip:
    """A picture of curves of `width` x `height`; `at` marks a moment."""

    def __init__(self, curves: Sequence[Curve], duration_s: float, width: int, height: int, size: int) -> None:
        self.duration_s = max(duration_s, 1e-9)
        self.width, self.height = width, height
        pad, small = max(4, size // 2), max(10, round(0.8 * size))
        left = 2 * pad + text_width("100%", small)
        bottom = height - line_height(small) - pad
        self._area = (left, pad + line_height(size) + small, width - 2 * pad, bottom)
        self._picture = self._lines(curves, max(2.0, size / 7))
        self._legend(curves, size, pad)
        self._axes(small)

    def at(self, second: float | None) -> Image.Image:
        """The curves, with a line at `second`."""
        picture = self._picture.copy()
        if second is not None:
            _, top, _, bottom = self._area
            x = self._x(second)
            ImageDraw.Draw(picture).line((x, top - 3, x, bottom + 3), fill=LIGHT, width=2)
        return picture

    def _x(self, second: float) -> float:
        left, _, right, _ = self._area
        return left + (right - left) * min(max(second / self.duration_s, 0.0), 1.0)

    def _y(self, value: float) -> float:
        _, top, _, bottom = self._area
        return bottom - (bottom - top) * min(max(value, 0.0), 1.0)

    def _lines(self, curves: Sequence[Curve], width: float) -> Image.Image:
        picture = Image.new("RGB", (FINER * self.width, FINER * self.height), DARK)
        draw = ImageDraw.Draw(picture)
        left, _, right, _ = self._area
        for value in (0.0, 0.5, 1.0):
            y = FINER * self._y(value)
            draw.line((FINER * left, y, FINER * right, y), fill=(62, 64, 70), width=FINER)
        for curve in reversed(curves):  # the first one on top
            ends = [(0.0, curve.values[0]), *zip(curve.seconds, curve.values, strict=True),
                    (self.duration_s, curve.values[-1])]  # fmt: skip
            points = [(FINER * self._x(second), FINER * self._y(value)) for second, value in ends]
            draw.line(points, fill=curve.colour, width=round(FINER * width), joint="curve")
        return picture.resize((self.width, self.height), Image.Resampling.LANCZOS)

    def _axes(self, size: int) -> None:
        draw = ImageDraw.Draw(self._picture)
        left, _, _, bottom = self._area
        for value in (0.0, 0.5, 1.0):
            write(draw, (left - 4, self._y(value)), f"{value:.0%}", size, GREY, "rm")
        for second, anchor in ((0.0, "la"), (self.duration_s / 2, "ma"), (self.duration_s, "ra")):
            write(draw, (self._x(second), bottom + 4), clock(second), size, GREY, anchor)

    def _legend(self, curves: Sequence[Curve], size: int, pad: int) -> None:
        draw = ImageDraw.Draw(self._picture)
        dot = round(0.6 * size)
        gap = dot + 2 * size
        room = self.width - 2 * pad
        share = room // max(1, len(curves)) - gap
        if sum(text_width(curve.name, size) + gap for curve in curves) <= room:
            share = room
        x = float(pad)
        for curve in curves:
            y = pad + line_height(size) / 2
            name = shortened(curve.name, size, share)
            draw.rectangle((x, y - dot / 2, x + dot, y + dot / 2), fill=curve.colour)
            write(draw, (x + dot + size / 3, y), name, size, LIGHT, "lm")
            x += gap + text_width(name, size)
