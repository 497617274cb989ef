"""Curves as inline SVG with axes, levels, bands and marks. Knows numbers and their names, no runs.

The drawing stretches with the page, its texts do not: they are HTML laid around it. Lines differ by their dashes too.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from dsvid.report.markup import Markup, bullets, joined, tag
from dsvid.report.series import Points, axis_range, log_helps, points, smoothed, smoothing_window, thinned, ticks
from dsvid.report.words import counted, short, tick, times

WIDTH, HEIGHT = 1000, 400  # units of the drawing; it is stretched to its place
FEW = 20  # points below which no median is drawn, and each point is shown
LABEL_ROOM = 0.045  # share of the width that the letter of a mark needs
MOST_TOLD = 8  # letters in a legend
DASHES = ("", "7 4", "2 4", "10 4 2 4", "1 3", "14 5")


@dataclass(frozen=True)
class Curve:
    """A named row of points; `place` chooses colour and dashes.

    `smooth`: the running median is drawn over the thin raw line.
    """

    name: str
    line: Points
    place: int = 0
    smooth: bool = False


@dataclass(frozen=True)
class Mark:
    """A vertical line at `x`: a letter for it, and what happened."""

    x: float
    letter: str
    words: str


@dataclass(frozen=True)
class Chart:
    """What is drawn: curves over a common x axis. `levels`: (height, words); `band`: (x, low, high) at some x.

    `linear`: never a logarithmic axis. `tell_marks`: the legend says what the marks are; one chart of a page is enough.
    """

    key: str
    title: str
    curves: Sequence[Curve]
    unit: str = ""
    x_name: str = "step"
    levels: Sequence[tuple[float, str]] = ()
    band: Sequence[tuple[float, float, float]] = ()
    band_words: str = ""
    marks: Sequence[Mark] = ()
    from_zero: bool = False
    linear: bool = False
    wide: bool = False
    tell_marks: bool = False
    notes: Sequence[str] = field(default=())


@dataclass(frozen=True)
class _Scale:
    """Numbers to shares of the drawing, 0 at the left and at the bottom."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float
    log: bool

    def across(self, x: float) -> float:
        return (x - self.x_low) / (self.x_high - self.x_low)

    def up(self, y: float) -> float:
        if not self.log:
            return (y - self.y_low) / (self.y_high - self.y_low)
        low, high = math.log(self.y_low), math.log(self.y_high)
        return (math.log(max(y, 1e-300)) - low) / (high - low)

    def place(self, x: float, y: float) -> str:
        return f"{WIDTH * self.across(x):.1f},{HEIGHT * (1 - min(1.2, max(-0.2, self.up(y)))):.1f}"


def curve(name: str, xs: Sequence[float], ys: Sequence[float | None], place: int = 0, *, smooth: bool = True) -> Curve:
    """A curve of the numbers that there are."""
    return Curve(name, points(xs, ys), place, smooth)


def draw(chart: Chart) -> Markup:
    """The chart as a figure; a sentence in its place where there is no number to draw."""
    drawn = [one for one in chart.curves if one.line]
    head = tag("h3", chart.title + (f", {chart.unit}" if chart.unit else ""), id=chart.key)
    if not drawn:
        return tag("figure", joined([head, tag("p", "No number is recorded.", class_="quiet")]), class_="chart")
    scale = _scale(chart, drawn)
    texts = [*_axis_texts(scale, chart.x_name), *_mark_letters(chart, scale)]
    plot = tag(
        "div", joined([_svg(chart, drawn, scale), *texts]), class_="plot", role="img", aria_label=_told(chart, drawn)
    )
    legend = tag("figcaption", _legend(chart, drawn, scale))
    kind = "chart wide" if chart.wide else "chart"
    return tag("figure", joined([head, plot, legend]), class_=kind, aria_labelledby=chart.key)


def _scale(chart: Chart, drawn: Sequence[Curve]) -> _Scale:
    xs = [x for one in drawn for x, _ in one.line]
    ys = [y for one in drawn for _, y in one.line]
    near = [height for height, _ in chart.levels if 0.5 * min(ys) <= height <= 1.5 * max(ys)]
    log = log_helps(ys) and not (chart.from_zero or chart.linear)
    beside = [height for x, *heights in chart.band for height in heights if min(xs) <= x <= max(xs)]
    low, high = axis_range([*ys, *near, *beside], log=log)
    if chart.from_zero:
        low, high = 0.0, max(high, *(1.15 * height for height, _ in chart.levels)) if chart.levels else high
    room = 0.012 * (max(xs) - min(xs)) or 1.0  # a point at the end is seen whole
    return _Scale(min(xs) - room, max(xs) + room, low, high, log)


# ---- the drawing ---------------------------------------------------------------------------------------------------


def _svg(chart: Chart, drawn: Sequence[Curve], scale: _Scale) -> Markup:
    parts = [_grid(scale), *([_band(chart, scale)] if _within(chart.band, scale) else [])]
    parts += [_level(height, scale) for height, _ in chart.levels if 0 <= scale.up(height) <= 1]
    parts += [_vertical(mark.x, scale) for mark in chart.marks if 0 <= scale.across(mark.x) <= 1]
    parts += [path for one in drawn for path in _paths(one, scale)]
    return Markup(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none"'
        f' aria-hidden="true" focusable="false">{"".join(parts)}</svg>'
    )


def _grid(scale: _Scale) -> str:
    heights = [HEIGHT * (1 - scale.up(y)) for y in ticks(scale.y_low, scale.y_high, log=scale.log)]
    return f'<path class="grid" d="{"".join(f"M0,{y:.1f}H{WIDTH}" for y in heights)}M0,{HEIGHT}H{WIDTH}"/>'


def _level(height: float, scale: _Scale) -> str:
    return f'<path class="level" d="M0,{HEIGHT * (1 - scale.up(height)):.1f}H{WIDTH}"/>'


def _vertical(x: float, scale: _Scale) -> str:
    return f'<path class="mark" d="M{WIDTH * scale.across(x):.1f},0V{HEIGHT}"/>'


def _band(chart: Chart, scale: _Scale) -> str:
    there = _within(chart.band, scale)
    upper = [scale.place(x, high) for x, _, high in there]
    lower = [scale.place(x, low) for x, low, _ in reversed(there)]
    return f'<polygon class="band" points="{" ".join([*upper, *lower])}"/>'


def _within(band: Sequence[tuple[float, float, float]], scale: _Scale) -> list[tuple[float, float, float]]:
    """The band inside the x axis, cut where it leaves it; empty where none of it is seen."""
    if not band:
        return []
    xs = sorted({x for x, _, _ in band if scale.x_low <= x <= scale.x_high} | {scale.x_low, scale.x_high})
    first, last = band[0][0], band[-1][0]
    seen = [(x, *_between(band, x)) for x in xs if first <= x <= last]
    return seen if len(seen) > 1 else []


def _between(band: Sequence[tuple[float, float, float]], x: float) -> tuple[float, float]:
    right = next(at for at, one in enumerate(band) if one[0] >= x)
    (x1, low1, high1), (x2, low2, high2) = band[max(0, right - 1)], band[right]
    share = (x - x1) / (x2 - x1) if x2 > x1 else 0.0
    return low1 + share * (low2 - low1), high1 + share * (high2 - high1)


def _paths(one: Curve, scale: _Scale) -> list[str]:
    dash = f' stroke-dasharray="{DASHES[one.place % len(DASHES)]}"' if one.place % len(DASHES) else ""
    colour = f"c{one.place % 6}"
    clear = [(x, y) for x, y in one.line if not scale.log or y > 0]
    if len(clear) < FEW or not one.smooth:
        thin = thinned(clear)
        dots = "".join(f"M{scale.place(x, y)}h0" for x, y in thin) if len(clear) < FEW else ""
        shown = [f'<path class="line {colour}"{dash} d="{_way(thin, scale)}"/>']
        return [*shown, f'<path class="dots {colour}" d="{dots}"/>'] if dots else shown
    middle = thinned(smoothed(clear, smoothing_window(len(clear))))
    return [
        f'<path class="raw {colour}" d="{_way(thinned(clear), scale)}"/>',
        f'<path class="line {colour}"{dash} d="{_way(middle, scale)}"/>',
    ]


def _way(line: Points, scale: _Scale) -> str:
    return "M" + "L".join(scale.place(x, y) for x, y in line) if line else ""


# ---- the texts around it -------------------------------------------------------------------------------------------


def _axis_texts(scale: _Scale, x_name: str) -> list[Markup]:
    ys = ticks(scale.y_low, scale.y_high, log=scale.log)
    xs = [x for x in ticks(scale.x_low, scale.x_high, most=4) if x == int(x) and x >= 0]
    texts = [
        tag("span", tick(y, y if scale.log else scale.y_high), class_="y", style=f"bottom:{100 * scale.up(y):.2f}%")
        for y in ys
    ]
    texts += [tag("span", tick(x, scale.x_high), class_="x", style=f"left:{100 * scale.across(x):.2f}%") for x in xs]
    return [*texts, tag("span", x_name, class_="x-name")]


def _mark_letters(chart: Chart, scale: _Scale) -> list[Markup]:
    texts: list[Markup] = []
    free = -1.0
    for mark in sorted(chart.marks, key=lambda one: one.x):
        at = scale.across(mark.x)
        if 0 <= at <= 1 and at >= free:
            texts.append(tag("span", mark.letter, class_="letter", style=f"left:{100 * at:.2f}%"))
            free = at + LABEL_ROOM
    return texts


def _told(chart: Chart, drawn: Sequence[Curve]) -> str:
    """The chart in words."""
    return f"Chart of {chart.title} by {chart.x_name}. " + " ".join(_told_curve(one, chart.x_name) for one in drawn)


def _told_curve(one: Curve, x_name: str) -> str:
    (x1, y1), (x2, y2) = one.line[0], one.line[-1]
    lowest, highest = min(one.line, key=lambda p: p[1]), max(one.line, key=lambda p: p[1])
    return (
        f"{one.name}: {short(y1)} at {x_name} {short(x1, 9)}, {short(y2)} at {x_name} {short(x2, 9)}; lowest "
        f"{short(lowest[1])} at {short(lowest[0], 9)}, highest {short(highest[1])} at {short(highest[0], 9)}."
    )


def _legend(chart: Chart, drawn: Sequence[Curve], scale: _Scale) -> Markup:
    smooth = [one for one in drawn if one.smooth and len(one.line) >= FEW]
    items: list[Markup] = []
    if len(drawn) > 1:
        items += [joined([_swatch(f"line c{one.place % 6}", DASHES[one.place % len(DASHES)]), tag("span", one.name)])
                  for one in drawn]  # fmt: skip
    items += [
        joined([_swatch("level"), tag("span", f"{short(height)}: {words}")])
        for height, words in chart.levels
        if 0 <= scale.up(height) <= 1
    ]
    if _within(chart.band, scale):
        items.append(joined([_swatch("band"), tag("span", chart.band_words)]))
    items += [joined([_swatch("mark"), tag("span", words)]) for words in _told_marks(chart, scale) if chart.tell_marks]
    notes = list(chart.notes)
    if smooth:
        windows = sorted({smoothing_window(len(one.line)) for one in smooth})
        notes.insert(0, f"Thin: every line. Thick: median of {' or '.join(map(str, windows))} lines.")
    if scale.log:
        notes.append("Logarithmic axis.")
    notes += _outside(drawn, scale)
    return joined(
        [*([bullets(items, class_="legend")] if items else []), *([tag("p", " ".join(notes))] if notes else [])]
    )


def _told_marks(chart: Chart, scale: _Scale) -> list[str]:
    """What the letters mean, a line a letter."""
    groups: dict[str, list[Mark]] = {}
    for mark in sorted(chart.marks, key=lambda one: one.x):
        if 0 <= scale.across(mark.x) <= 1:
            groups.setdefault(mark.letter, []).append(mark)
    told = []
    for letter, group in groups.items():
        more = f", and {times(len(group) - 1)} more, the last at {short(group[-1].x, 9)}" if len(group) > 1 else ""
        told.append(f"{letter}: {group[0].words}{more}")
    return told if len(told) <= MOST_TOLD else [*told[:MOST_TOLD], f"and {len(told) - MOST_TOLD} more, listed below"]


def _outside(drawn: Sequence[Curve], scale: _Scale) -> list[str]:
    """What an axis without its outliers leaves out."""
    checks: list[tuple[str, Callable[[float], bool]]] = [
        ("above", lambda y: y > scale.y_high),
        ("below", lambda y: y < scale.y_low and (y > 0 or not scale.log)),
    ]
    told = []
    for word, is_out in checks:
        out = [(x, y) for one in drawn for x, y in one.line if is_out(y)]
        if out:
            far = max(out, key=lambda p: p[1]) if word == "above" else min(out, key=lambda p: p[1])
            told.append(
                f"{counted(len(out), 'point')} {word} the axis, the farthest {short(far[1])} at {short(far[0], 9)}."
            )
    return told


def _swatch(kind: str, dash: str = "") -> Markup:
    stroke = f' stroke-dasharray="{dash}"' if dash else ""
    shape = '<rect class="band" width="28" height="12"/>' if kind == "band" else (
        f'<path class="{html.escape(kind)}"{stroke} d="{"M14,0V12" if kind == "mark" else "M0,6H28"}"/>'
    )  # fmt: skip
    return Markup(
        f'<svg xmlns="http://www.w3.org/2000/svg" class="swatch" viewBox="0 0 28 12" aria-hidden="true">{shape}</svg>'
    )
