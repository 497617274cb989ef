"""A contact sheet: a heading, painted frames with their times, the curves of the whole video below."""

from __future__ import annotations

import math

from PIL import Image, ImageDraw

from dsvid.overlay.painter import Painter
from dsvid.overlay.strip import Strip
from dsvid.overlay.text import DARK, GREY, LIGHT, line_height, shortened, write
from dsvid.timeline import clock

MOST = 12
TILE_AREA = 560 * 350  # pixels, whatever the shape
GAP, TEXT = 12, 16


class Sheet:
    """Takes the frames that it wants, of a video of `size`, as they come."""

    def __init__(self, painter: Painter, duration_s: float, size: tuple[int, int]) -> None:
        self._painter, self._duration_s = painter, duration_s
        self.wanted = painter.moments(MOST)
        scale = math.sqrt(TILE_AREA / (size[0] * size[1]))
        self._tile = max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
        self._tiles: list[tuple[Image.Image, float]] = []

    def add(self, picture: Image.Image, frame: int, second: float) -> None:
        """A frame of `wanted`."""
        tile = picture.resize(self._tile, Image.Resampling.LANCZOS)
        self._painter.paint(tile, frame, second)
        self._tiles.append((tile, second))

    def finish(self) -> Image.Image:
        """The sheet of the frames that came."""
        columns = self._columns()
        rows = math.ceil(len(self._tiles) / columns)
        width, height = self._tile
        full = max(2 * GAP + columns * (width + GAP) - GAP, 640)
        line, caption = line_height(TEXT), line_height(TEXT)
        top = GAP + line * len(self._painter.heading) + GAP
        curves = self._painter.curves
        strip = 190 if curves else 0
        sheet = Image.new("RGB", (full, top + rows * (height + caption + GAP) + strip), DARK)
        draw = ImageDraw.Draw(sheet)
        for number, text in enumerate(self._painter.heading):
            shown = shortened(text, TEXT, full - 2 * GAP)
            write(draw, (GAP, GAP + line * number), shown, TEXT, GREY if number else LIGHT)
        for number, (tile, second) in enumerate(self._tiles):
            x = GAP + number % columns * (width + GAP)
            y = top + number // columns * (height + caption + GAP)
            sheet.paste(tile, (x, y))
            write(draw, (x, y + height + 2), clock(second), TEXT - 2, GREY)
        if curves:
            picture = Strip(curves, self._duration_s, full, strip, TEXT).at(None)
            sheet.paste(picture, (0, sheet.height - strip))
        return sheet

    def _columns(self) -> int:
        """The number that makes the sheet wide rather than high, without a nearly empty last row."""
        count = len(self._tiles)
        most = 3 if self._tile[0] >= self._tile[1] else 5
        if count <= most:
            return max(1, count)
        return min(range(max(2, most - 1), most + 1), key=lambda columns: (-count % columns, -columns))
