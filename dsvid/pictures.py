"""Pictures: rows of frames with a name beside each, confusion matrices, bars. Knows arrays, not models."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
LABEL_WIDTH = 118
GAP = 4


def frame_table(
    rows: dict[str, Pixels],
    *,
    frames: int = 8,
    scale_to: int = 96,
    heads: Sequence[str] = (),
    caption: Sequence[str] = (),
) -> Pixels:
    """Rows {name: uint8 [T, H, W, 3]} -> one picture [h, w, 3]: at most `frames` frames a row, each `scale_to` high.

    `heads`: a word for each of the T frames, written above its column; `caption`: sentences below, broken into lines.
    """
    from PIL import Image, ImageDraw, ImageFont

    height = scale_to
    first = next(iter(rows.values()))
    width = round(first.shape[2] / first.shape[1] * height)
    count = min(frames, first.shape[0])
    picked = np.linspace(0, first.shape[0] - 1, count).round().astype(int)
    text = max(10, round(scale_to / 10))
    font = ImageFont.load_default(size=text)
    label = max(LABEL_WIDTH, round(max(font.getlength(name) for name in rows)) + 3 * GAP)
    wide = label + count * (width + GAP)
    lines = [line for sentence in caption for line in _broken(sentence, font, wide - 2 * GAP)]
    top = GAP + (text + 2 * GAP if len(heads) else 0)
    below = top + len(rows) * (height + GAP)
    sheet = Image.new("RGB", (wide, below + round(1.35 * text * len(lines)) + (GAP if lines else 0)), "white")
    draw = ImageDraw.Draw(sheet)
    for y, (name, clip) in enumerate(rows.items()):
        at = top + y * (height + GAP)
        draw.text((GAP, at + height // 2), name, fill="black", font=font, anchor="lm")
        way = Image.Resampling.NEAREST if height >= clip.shape[1] else Image.Resampling.LANCZOS
        for x, index in enumerate(picked):
            frame = Image.fromarray(clip[index]).resize((width, height), way)
            sheet.paste(frame, (label + x * (width + GAP), at))
    for x, index in enumerate(picked if len(heads) else ()):
        draw.text((label + x * (width + GAP), GAP), heads[index], fill="black", font=font)
    for number, line in enumerate(lines):
        draw.text((GAP, below + round(1.35 * text * number)), line, fill="black", font=font)
    return np.asarray(sheet)


def _broken(sentence: str, font: Any, width: int) -> list[str]:
    """The sentence as lines of at most `width` pixels."""
    lines: list[str] = []
    for word in sentence.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def png_bytes(picture: Pixels) -> bytes:
    """A picture [h, w, 3] as the bytes of a PNG file."""
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(picture).save(out, "PNG", optimize=True)
    return out.getvalue()


def confusion_picture(counts: NDArray[np.int64], names: list[str], *, side: int = 600) -> Pixels:
    """Counts [label, predicted] -> picture [h, w, 3]: rows are labels, white is 0 % and dark blue 100 % of a row.

    `names` are written where there are any, with the percent in each cell where the cells are large enough.
    """
    from PIL import Image, ImageDraw

    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    cell = max(1, side // max(1, len(counts)))
    margin = GAP + max((7 * len(name) for name in names), default=0)
    shade = (255 - shares[..., None] * np.array([223.0, 174.0, 105.0])).astype(np.uint8)
    big = shade.repeat(cell, axis=0).repeat(cell, axis=1)
    sheet = Image.new("RGB", (margin + big.shape[1], big.shape[0] + (22 if names else 0)), "white")
    sheet.paste(Image.fromarray(big), (margin, 0))
    draw = ImageDraw.Draw(sheet)
    for i, name in enumerate(names):
        draw.text((GAP, i * cell + cell // 2 - 6), name, fill="black")
        if cell >= 30:
            for j, share in enumerate(shares[i]):
                if share > 0:
                    ink = "white" if share > 0.5 else "black"
                    draw.text((margin + j * cell + cell // 2 - 9, i * cell + cell // 2 - 6), f"{share:.0%}", fill=ink)
    if names:
        draw.text((margin, big.shape[0] + 6), "rows: label; columns: predicted, in the same order", fill="black")
    return np.asarray(sheet)


def bar_picture(values: dict[str, float], *, title: str, width: int = 640, largest: float = 0.0) -> Pixels:
    """Bars from 0 to 1 with their percent, one a name, in the order given -> picture [h, w, 3]; NaN is a dash.

    With `largest` bars go from 0 to that number, and have their numbers beside them.
    """
    from PIL import Image, ImageDraw

    row, top = 14, 22
    margin = GAP + max((6 * len(name) for name in values), default=0) + GAP
    long = max(1, width - margin - 50)
    sheet = Image.new("RGB", (max(width, margin + 60), top + row * len(values) + GAP), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP, GAP), title, fill="black")
    for line, (name, value) in enumerate(values.items()):
        y = top + line * row
        draw.text((GAP, y), name, fill="black")
        if np.isnan(value):
            draw.text((margin, y), "-", fill="gray")
            continue
        end = margin + round(min(max(value / (largest or 1.0), 0.0), 1.0) * long)
        draw.rectangle((margin, y + 2, end, y + row - 3), fill=(32, 81, 150))
        draw.text((end + GAP, y), f"{value:.4g}" if largest else f"{100 * value:.1f}", fill="black")
    return np.asarray(sheet)


def curve_picture(
    curves: dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]], *, title: str, axes: tuple[str, str]
) -> Pixels:
    """Curves (x, y) in [0, 1] x [0, 1], one a name -> picture [h, w, 3]; values outside are drawn at the edge."""
    from PIL import Image, ImageDraw

    side, left, top = 360, 40, 24
    colours = ((32, 81, 150), (200, 70, 40), (40, 140, 70), (130, 60, 150))
    sheet = Image.new("RGB", (left + side + 16, top + side + 34 + 14 * len(curves)), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP, GAP), title, fill="black")
    draw.rectangle((left, top, left + side, top + side), outline="gray")
    for tick in (0.0, 0.5, 1.0):
        draw.text((left + tick * side - 8, top + side + 4), f"{tick:g}", fill="black")
        draw.text((left - 26, top + (1 - tick) * side - 6), f"{tick:g}", fill="black")
    draw.text((left + side // 2 + 20, top + side + 4), f"{axes[0]} (up: {axes[1]})", fill="black")
    for place, (name, (x, y)) in enumerate(curves.items()):
        colour = colours[place % len(colours)]
        points = zip(np.clip(x, 0, 1), np.clip(y, 0, 1), strict=True)
        draw.line([(left + a * side, top + (1 - b) * side) for a, b in points], fill=colour, width=2)
        draw.text((left, top + side + 20 + 14 * place), name, fill=colour)
    return np.asarray(sheet)


def risk_picture(
    frames: NDArray[np.float64],
    risk: NDArray[np.float64],
    anomaly: NDArray[np.bool_],
    *,
    title: str,
    threshold: float = 0.5,
    width: int = 640,
) -> Pixels:
    """Risk [n] in [0, 1] of frames [n], ascending -> picture [h, w, 3]; behind it a band where `anomaly` holds."""
    from PIL import Image, ImageDraw

    left, top, high = 40, 22, 140
    long = width - left - 12
    first, last = float(frames[0]), float(frames[-1])
    x = left + (frames - first) / max(last - first, 1) * long
    y = top + (1 - np.clip(risk, 0, 1)) * high
    sheet = Image.new("RGB", (width, top + high + 20), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP, GAP), title, fill="black")
    half = float(np.median(np.diff(x))) / 2 if len(x) > 1 else long / 2
    for place in x[anomaly]:
        draw.rectangle((max(left, place - half), top, min(left + long, place + half), top + high), fill="mistyrose")
    for tick in (0.0, 0.5, 1.0):
        draw.text((left - 26, top + (1 - tick) * high - 6), f"{tick:g}", fill="black")
    cut = top + (1 - threshold) * high
    draw.line([(left, cut), (left + long, cut)], fill="gray")
    draw.line(list(zip(x.tolist(), y.tolist(), strict=True)), fill=(32, 81, 150), width=2)
    draw.rectangle((left, top, left + long, top + high), outline="gray")
    draw.text((left, top + high + 4), f"frame {first:g}", fill="black")
    end = f"frame {last:g}"
    draw.text((left + long - 6 * len(end), top + high + 4), end, fill="black")
    return np.asarray(sheet)


def save_png(picture: Pixels, path: Path) -> None:
    """Write a picture [h, w, 3], whole or not at all."""
    from dsvid.publish import publish_file

    publish_file(path, lambda out: out.write(png_bytes(picture)))
