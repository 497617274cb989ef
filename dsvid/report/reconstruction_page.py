"""What an autoencoder rebuilds of a video as one HTML page that stands alone. Knows plain data, no models."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from dsvid.report.curves import Chart, curve, draw
from dsvid.report.markup import Markup, bullets, joined, picture_of, table, tag
from dsvid.report.page import whole_page
from dsvid.report.words import short

MOST_ROWS = 40


@dataclass(frozen=True)
class ShownClip:
    """A clip with its picture, the bytes of a PNG."""

    title: str
    picture: bytes
    alt: str


@dataclass(frozen=True)
class Losses:
    """The loss of each clip, at its middle second, and that of the true mean of each patch."""

    seconds: Sequence[float]
    loss: Sequence[float]
    of_mean: Sequence[float]


def reconstruction_page(
    name: str, facts: Sequence[tuple[str, str]], told: Sequence[str], clips: Sequence[ShownClip], losses: Losses
) -> str:
    """The page: `facts` are names and values, `told` the sentences that say what the pictures are."""
    now = time.time()
    pairs = joined(tag("div", joined([tag("dt", key), tag("dd", value)])) for key, value in facts)
    shown = [
        joined(
            [
                tag("h3", clip.title, style="margin-top:1.6rem"),
                tag("figure", picture_of(clip.picture, clip.alt), class_="card"),
            ]
        )
        for clip in clips
    ]
    body = [
        tag("dl", pairs, class_="figures"),
        bullets(told),
        tag("h2", "Clips"),
        *shown,
        tag("h2", "How well each clip is rebuilt"),
        *_chart(losses),
        _table(losses),
    ]
    head = [tag("p", "What an autoencoder rebuilds", class_="quiet"), tag("h1", name)]
    return whole_page(f"Rebuilt: {name}", head, body, now)


def _chart(losses: Losses) -> list[Markup]:
    if len(losses.seconds) < 2:
        return []
    curves = [
        curve("rebuilt by the model", losses.seconds, losses.loss, 0, smooth=False),
        curve("the true mean of each patch alone", losses.seconds, losses.of_mean, 1, smooth=False),
    ]
    chart = Chart("chart-loss", "Loss of the hidden patches", curves, x_name="second", from_zero=True, linear=True,
                  wide=True)  # fmt: skip
    return [tag("div", draw(chart), class_="charts")]


def _table(losses: Losses) -> Markup:
    rows = list(zip(losses.seconds, losses.loss, losses.of_mean, strict=True))
    cut = f"; the first {MOST_ROWS} of {len(rows)} (-o FILE.json has all)" if len(rows) > MOST_ROWS else ""
    cells = [(f"{second:.1f}", short(loss), short(mean)) for second, loss, mean in rows[:MOST_ROWS]]
    return table(f"Each clip{cut}", ("Middle, s", "Loss", "Loss of the mean alone"), cells, class_="numbers")
