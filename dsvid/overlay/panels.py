"""Pictures of one moment side by side, a name above each and a line of words below. Knows pixels, no models."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from dsvid.overlay.text import DARK, GREY, LIGHT, font_size, line_height, shortened, write

LEAST_SIDE = 256  # pixels: smaller pictures are enlarged by a whole number, their pixels stay to be seen
GAP = 8


class Panels:
    """Draws pictures of `side` x `side` pixels, always under the same names; `size` is even, as videos want it."""

    def __init__(self, names: Sequence[str], side: int) -> None:
        self.names = list(names)
        self.side = side * math.ceil(LEAST_SIDE / side)
        self._text = font_size(self.side, 400)
        self._line = line_height(self._text)
        width = GAP + len(self.names) * (self.side + GAP)
        height = 3 * GAP + self.side + 2 * self._line
        self.size = width + width % 2, height + height % 2

    def at(self, pictures: Mapping[str, NDArray[np.uint8]], words: str) -> NDArray[np.uint8]:
        """The panels of one moment, uint8 [h, w, 3]; `pictures` uint8 [S, S, 3] by name."""
        sheet = Image.new("RGB", self.size, DARK)
        draw = ImageDraw.Draw(sheet)
        top = GAP + self._line
        for place, name in enumerate(self.names):
            x = GAP + place * (self.side + GAP)
            write(draw, (x, GAP // 2), shortened(name, self._text, self.side), self._text, LIGHT)
            panel = Image.fromarray(pictures[name]).resize((self.side, self.side), Image.Resampling.NEAREST)
            sheet.paste(panel, (x, top))
        line = shortened(words, self._text, self.size[0] - 2 * GAP)
        write(draw, (GAP, top + self.side + GAP // 2), line, self._text, GREY)
        return np.asarray(sheet)
