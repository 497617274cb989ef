"""What drawing needs of each task: a painter. `painter_of` chooses it; a further task adds one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from PIL import Image

from dsvid.overlay.text import Colour


@dataclass(frozen=True)
class Curve:
    """Values from 0 to 1 over seconds."""

    name: str
    colour: Colour
    seconds: Sequence[float]
    values: Sequence[float]


class Painter(Protocol):
    """Draws one timeline on the pictures of its video, which come in order."""

    @property
    def heading(self) -> list[str]:
        """Lines above the contact sheet."""

    @property
    def curves(self) -> list[Curve]:
        """What runs below the video; none: nothing does."""

    def moments(self, most: int) -> list[int]:
        """At most so many frames that show the video best, ascending."""

    def paint(self, picture: Image.Image, frame: int, second: float) -> None:
        """Draw what belongs to a frame onto its picture, of any size."""


def spread(numbers: Sequence[int], most: int) -> list[int]:
    """At most `most` of the numbers, evenly chosen, the first and the last among them."""
    if len(numbers) <= most:
        return list(numbers)
    if most == 1:
        return [numbers[len(numbers) // 2]]
    return [numbers[round(place * (len(numbers) - 1) / (most - 1))] for place in range(most)]
