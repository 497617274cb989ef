"""Text on filled backgrounds, and the colours of tracks and classes.

Pillow's own font has little more than ASCII; the variable DSVID_FONT names a font file for other scripts.
"""

from __future__ import annotations

import functools
import os
import unicodedata
from collections.abc import Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from dsvid.errors import DataError

Colour = tuple[int, int, int]
# Far apart for most eyes, and on most pictures: the colours of Okabe and Ito, and four more
PALETTE: tuple[Colour, ...] = (
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (213, 94, 0), (204, 121, 167), (0, 92, 178),
    (178, 223, 138), (150, 60, 160), (200, 200, 200), (140, 86, 75),
)  # fmt: skip
DARK: Colour = (22, 24, 28)
LIGHT: Colour = (245, 245, 245)
GREY: Colour = (150, 152, 156)
EXTRA = "…°±·«»‘’“”™©"  # what Pillow's font has besides ASCII


def colour_of(number: int) -> Colour:
    """A colour for track or place `number`; neighbours differ."""
    return PALETTE[number % len(PALETTE)]


def ink_on(colour: Colour) -> Colour:
    """Dark or light, whichever is read better on a colour."""
    red, green, blue = colour
    return DARK if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else LIGHT


@functools.lru_cache(maxsize=32)
def font_of(size: int, file: str = "") -> Any:
    """The font of DSVID_FONT (`file`), else Pillow's own. Raises DataError where the file is no font."""
    if not file:
        return ImageFont.load_default(size=size)
    try:
        return ImageFont.truetype(file, size)
    except OSError as error:
        raise DataError(
            f"DSVID_FONT={file} cannot be used", found=str(error), expected="a .ttf or .otf file"
        ) from error


def _own_font() -> str:
    return os.environ.get("DSVID_FONT", "")


def check_font() -> None:
    """Raise DataError where DSVID_FONT is no font."""
    font_of(20, _own_font())


def drawable(text: str) -> str:
    """The text as it can be drawn: Pillow's own font takes letters without their accents, and ? for other scripts."""
    if _own_font() or text.isascii():
        return text
    bare = (c if c in EXTRA else unicodedata.normalize("NFKD", c).encode("ascii", "ignore").decode() for c in text)
    return "".join(each or ("" if unicodedata.combining(c) else "?") for each, c in zip(bare, text, strict=True))


def write(
    draw: ImageDraw.ImageDraw, spot: tuple[float, float], text: str, size: int, fill: Colour, anchor: str = "la"
) -> None:
    """A line of text at a place; `anchor` is Pillow's."""
    draw.text(spot, drawable(text), fill=fill, font=font_of(size, _own_font()), anchor=anchor)


def font_size(width: int, height: int) -> int:
    """A size in pixels that can be read on a picture of this size."""
    return max(11, round(min(width, height) / 26))


def text_width(text: str, size: int) -> int:
    """Pixels that a line takes."""
    return int(font_of(size, _own_font()).getlength(drawable(text)) + 0.999)


def line_height(size: int) -> int:
    """Pixels from one line to the next."""
    return round(1.3 * size)


def shortened(text: str, size: int, width: int) -> str:
    """The text, or as much of its beginning as `width` takes, and three dots."""
    if text_width(text, size) <= width:
        return text
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        if text_width(text[:middle].rstrip() + "…", size) <= width:
            low = middle
        else:
            high = middle - 1
    return text[:low].rstrip() + "…"


def block_size(lines: Sequence[str], size: int) -> tuple[int, int]:
    """(width, height) of lines on a background."""
    pad = max(2, size // 4)
    return max(text_width(line, size) for line in lines) + 2 * pad, line_height(size) * len(lines) + pad


def draw_block(
    picture: Image.Image, spot: tuple[float, float], lines: Sequence[str], size: int, colour: Colour
) -> None:
    """Lines on a filled background whose upper left corner is `spot`."""
    draw = ImageDraw.Draw(picture)
    (width, height), pad = block_size(lines, size), max(2, size // 4)
    x, y = round(spot[0]), round(spot[1])
    draw.rectangle((x, y, x + width - 1, y + height - 1), fill=colour)
    for number, line in enumerate(lines):
        middle = y + pad / 2 + line_height(size) * (number + 0.5)
        write(draw, (x + pad, middle), line, size, ink_on(colour), "lm")
