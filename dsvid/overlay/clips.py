"""The best classes of each clip as bars on pictures, and as curves over the video."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw

from dsvid.overlay.painter import Curve, spread
from dsvid.overlay.text import (
    DARK,
    GREY,
    LIGHT,
    Colour,
    colour_of,
    font_size,
    line_height,
    shortened,
    text_width,
    write,
)
from dsvid.timeline import Clip, ClipTimeline, Score

CURVES = 4
WIDTH = 0.5  # of the picture, for the panel


class ClipPainter:
    """A painter of classes over time."""

    def __init__(self, timeline: ClipTimeline) -> None:
        self.timeline = timeline
        self._colours: dict[int, Colour] = {
            score.number: colour_of(place) for place, score in enumerate(timeline.best[:CURVES])
        }

    @property
    def heading(self) -> list[str]:
        """Video and its best classes."""
        best = ",  ".join(f"{score.name} {score.score:.0%}" for score in self.timeline.best[:3])
        return [
            f"{Path(self.timeline.video.path).name}: {best}",
            "mean over its clips: " + str(len(self.timeline.clips)),
        ]

    @property
    def curves(self) -> list[Curve]:
        """The best classes of the video, where it has several clips."""
        clips = self.timeline.clips
        if len(clips) < 2:
            return []
        middle = [(clip.start_s + clip.end_s) / 2 for clip in clips]
        named = zip(self.timeline.best[:CURVES], self.timeline.curves, strict=False)
        return [Curve(score.name, self._colours[score.number], middle, values) for score, values in named]

    def moments(self, most: int) -> list[int]:
        """The middle frames of the clips; of a single clip several frames."""
        clips = self.timeline.clips
        if len(clips) == 1:
            last = clips[0].end - 1
            return sorted({round(clips[0].start + (last - clips[0].start) * place / 3) for place in range(4)})
        return spread(sorted({(clip.start + clip.end) // 2 for clip in clips}), most)

    def clip_at(self, frame: int) -> Clip:
        """The clip whose middle is nearest."""
        return min(self.timeline.clips, key=lambda clip: abs(clip.start + clip.end - 2 * frame))

    def paint(self, picture: Image.Image, frame: int, second: float) -> None:
        """A panel of bars in the lower left corner."""
        width, height = picture.size
        size = font_size(width, height)
        row, pad = line_height(size) + 3, max(4, size // 3)
        best = self.clip_at(frame).best
        best = best[: max(1, int(0.6 * height - 2 * pad) // row)]
        box = (pad, height - 2 * pad - row * len(best), pad + round(max(WIDTH * width, min(width - 2 * pad, 220))),
               height - pad)  # fmt: skip
        shade(picture, box)
        for place, score in enumerate(best):
            top = box[1] + pad / 2 + place * row
            self._bar(picture, (box[0] + pad, top, box[2] - pad, top + row - 3), score, size)

    def _bar(self, picture: Image.Image, place: tuple[float, float, float, float], score: Score, size: int) -> None:
        draw = ImageDraw.Draw(picture)
        x1, y1, x2, y2 = place
        number = f"{score.score:.0%}"
        colour = self._colours.get(score.number, GREY)
        draw.rectangle((x1, y2 - 3, x2, y2 - 1), fill=(70, 72, 76))
        draw.rectangle((x1, y2 - 3, x1 + (x2 - x1) * min(max(score.score, 0.0), 1.0), y2 - 1), fill=colour)
        middle = (y1 + y2 - 4) / 2
        write(draw, (x2, middle), number, size, LIGHT, "rm")
        room = round(x2 - x1 - text_width("100%", size) - size / 2)
        write(draw, (x1, middle), shortened(score.name, size, room), size, LIGHT, "lm")


def shade(picture: Image.Image, box: tuple[int, int, int, int]) -> None:
    """Darken a part of a picture so that light text can be read on it."""
    part = picture.crop(box)
    picture.paste(Image.blend(part, Image.new("RGB", part.size, DARK), 0.78), box)
