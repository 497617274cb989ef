"""What a model says of a video as one HTML page that stands alone. Knows plain data, no models and no tasks."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from dsvid.report.curves import Chart, curve, draw
from dsvid.report.markup import Markup, bullets, folded, joined, picture_of, table, tag
from dsvid.report.page import whole_page


@dataclass(frozen=True)
class Shown:
    """What stands on the page: `facts` names and values; `bars` names and shares 0 to 1, under `bars_title`; `curves`
    (name, seconds, values 0 to 1), with the level `threshold` where there is one; `sheet` the bytes of a PNG; `lines`
    everything as a text.
    """

    facts: Sequence[tuple[str, str]]
    notes: Sequence[str]
    sheet: bytes
    sheet_words: str
    lines: str
    bars_title: str = ""
    bars: Sequence[tuple[str, float]] = ()
    curves: Sequence[tuple[str, Sequence[float], Sequence[float]]] = ()
    curves_title: str = ""
    threshold: float | None = None


def prediction_page(name: str, shown: Shown) -> str:
    """The page."""
    pairs = joined(tag("div", joined([tag("dt", key), tag("dd", value)])) for key, value in shown.facts)
    body = [
        tag("dl", pairs, class_="figures"),
        *([bullets(shown.notes)] if shown.notes else []),
        *_bars(shown),
        *_chart(shown),
        tag("h2", "Frames"),
        tag("figure", picture_of(shown.sheet, shown.sheet_words), class_="card"),
        tag("h2", "Everything"),
        folded("The table of the terminal", tag("pre", tag("code", shown.lines), tabindex="0")),
    ]
    head = [tag("p", "What a model says of a video", class_="quiet"), tag("h1", name)]
    return whole_page(f"Predicted: {name}", head, body, time.time())


def _bars(shown: Shown) -> list[Markup]:
    if not shown.bars:
        return []
    rows = [
        (label, f"{share:.1%}", tag("meter", f"{share:.1%}", min="0", max="1", value=f"{share:.4f}", aria_label=label))
        for label, share in shown.bars
    ]
    return [
        tag("h2", shown.bars_title),
        table("The highest first", ("Class", "Score", "Of 100 %"), rows, class_="bars"),
    ]


def _chart(shown: Shown) -> list[Markup]:
    lines = [curve(name, xs, ys, place, smooth=False) for place, (name, xs, ys) in enumerate(shown.curves)]
    if not any(len(xs) > 1 for _, xs, _ in shown.curves):
        return []
    levels = [(shown.threshold, f"{shown.threshold:g}: an alarm from here on")] if shown.threshold is not None else []
    chart = Chart("chart-scores", shown.curves_title, lines, x_name="second", levels=levels, from_zero=True,
                  linear=True, wide=True)  # fmt: skip
    return [tag("h2", "Over time"), tag("div", draw(chart), class_="charts")]
