"""The risk of each frame: a number and a bar whose colour goes from calm to alarm, and the curve over the video."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from dsvid.overlay.clips import shade
from dsvid.overlay.painter import Curve
from dsvid.overlay.text import GREY, LIGHT, Colour, font_size, line_height, shortened, text_width, write
from dsvid.timeline import RiskTimeline, clock

Values = NDArray[np.float64]
CALM: Colour = (0, 158, 115)
WARNING: Colour = (240, 228, 66)
ALARM: Colour = (226, 60, 30)
CURVE: Colour = (86, 180, 233)
FINEST = 1200  # points of a curve: more than any strip has columns
NAMED = 4  # intervals in the heading


class RiskPainter:
    """A painter of risk."""

    def __init__(self, timeline: RiskTimeline) -> None:
        self.timeline = timeline

    @property
    def heading(self) -> list[str]:
        """Video, highest and mean, and the highest intervals."""
        line, alarms = self.timeline, sorted(self.timeline.alarms(), key=lambda alarm: -alarm.peak)
        when = ", ".join(
            f"{clock(a.start_s)} - {clock(a.end_s)} ({a.peak:.2f})"
            for a in sorted(alarms[:NAMED], key=lambda a: a.start)
        )
        more = f" and {len(alarms) - NAMED} more" if len(alarms) > NAMED else ""
        top = line.highest
        return [
            f"{Path(line.video.path).name}: highest risk {line.risk[top]:.2f} at {clock(float(line.seconds[top]))}, "
            f"mean {line.risk.mean():.2f}",
            f"{line.threshold:g} or more: {when or 'never'}{more}",
        ]

    @property
    def curves(self) -> list[Curve]:
        """The risk, as steps where it holds, and the threshold."""
        line = self.timeline
        seconds, values = _thinned(line.seconds, line.risk)
        if len(line.frames) < line.video.frames / 2:  # it holds between judged frames
            seconds, values = np.repeat(seconds, 2)[1:], np.repeat(values, 2)[:-1]
        ends = [0.0, line.video.duration_s]
        return [
            Curve("risk", CURVE, seconds.tolist(), values.tolist()),
            Curve(f"threshold {line.threshold:g}", GREY, ends, [line.threshold] * 2),
        ]

    def moments(self, most: int) -> list[int]:
        """Frames at the highest peaks, apart from each other; the rest one after the other where the gap is largest."""
        line = self.timeline
        chosen = _peaks(line.risk, line.seconds, (most + 1) // 2, line.video.duration_s / most)
        gap = np.abs(line.seconds[:, None] - line.seconds[chosen]).min(axis=1)
        while len(chosen) < min(most, len(line.frames)):
            chosen.append(int(np.argmax(gap)))
            gap = np.minimum(gap, np.abs(line.seconds - line.seconds[chosen[-1]]))
        return [int(line.frames[place]) for place in sorted(chosen)]

    def paint(self, picture: Image.Image, frame: int, second: float) -> None:
        """A number and a bar in the upper left corner; a border in the colour of alarm from the threshold on."""
        risk, threshold = self.timeline.at(frame), self.timeline.threshold
        width, height = picture.size
        size = round(1.4 * font_size(width, height))
        pad, bar = max(4, size // 3), max(5, size // 2)
        words = shortened(f"risk {risk:.2f}", size, width - 4 * pad)
        right = min(3 * pad + max(text_width(words, size), round(0.25 * width)), width - pad)
        box = (pad, pad, right, 3 * pad + line_height(size) + bar)
        colour = colour_of_risk(risk, threshold)
        shade(picture, box)
        draw = ImageDraw.Draw(picture)
        write(draw, (2 * pad, box[1] + pad / 2 + line_height(size) / 2), words, size, colour, "lm")
        x1, x2, y2 = 2 * pad, box[2] - pad, box[3] - pad
        draw.rectangle((x1, y2 - bar, x2, y2), fill=(70, 72, 76))
        draw.rectangle((x1, y2 - bar, x1 + (x2 - x1) * min(max(risk, 0.0), 1.0), y2), fill=colour)
        mark = x1 + (x2 - x1) * threshold
        draw.line((mark, y2 - bar - 2, mark, y2 + 2), fill=LIGHT, width=2)
        if risk >= threshold:
            draw.rectangle((0, 0, width - 1, height - 1), outline=ALARM, width=max(3, min(width, height) // 80))


def colour_of_risk(risk: float, threshold: float) -> Colour:
    """From calm at 0 over a warning shortly before the threshold to alarm at the threshold and above."""
    if risk >= threshold:
        return ALARM
    share = max(risk, 0.0) / threshold
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(CALM, WARNING, strict=True))
    return red, green, blue


def _peaks(values: Values, seconds: Values, most: int, apart_s: float) -> list[int]:
    """Places of the highest local maxima that are at least `apart_s` from each other, the highest first."""
    padded = np.concatenate([[-np.inf], values, [-np.inf]])
    tops = np.flatnonzero((values >= padded[:-2]) & (values >= padded[2:]))
    chosen: list[int] = []
    for place in tops[np.argsort(-values[tops], kind="stable")].tolist():
        if len(chosen) == most:
            break
        if all(abs(seconds[place] - seconds[other]) >= apart_s for other in chosen):
            chosen.append(place)
    return chosen


def _thinned(seconds: Values, values: Values) -> tuple[Values, Values]:
    """At most FINEST points, the lowest and the highest of each stretch among them."""
    if len(values) <= FINEST:
        return seconds, values
    kept = [0, len(values) - 1]
    for part in np.array_split(np.arange(len(values)), FINEST // 2 - 1):
        kept += [int(part[np.argmin(values[part])]), int(part[np.argmax(values[part])])]
    places = np.unique(kept)
    return seconds[places], values[places]
