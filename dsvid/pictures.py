"""Pictures of clips: rows of frames with a name beside each. Knows uint8 arrays, not models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
LABEL_WIDTH = 118
GAP = 4


def frame_table(rows: dict[str, Pixels], *, frames: int = 8, scale_to: int = 96) -> Pixels:
    """Rows {name: uint8 [T, H, W, 3]} -> one picture [h, w, 3]: at most `frames` frames a row, each `scale_to` high."""
    from PIL import Image, ImageDraw

    height = scale_to
    first = next(iter(rows.values()))
    width = round(first.shape[2] / first.shape[1] * height)
    count = min(frames, first.shape[0])
    picked = np.linspace(0, first.shape[0] - 1, count).round().astype(int)
    size = (LABEL_WIDTH + count * (width + GAP), len(rows) * (height + GAP) + GAP)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for y, (name, clip) in enumerate(rows.items()):
        top = GAP + y * (height + GAP)
        draw.text((GAP, top + height // 2 - 6), name, fill="black")
        for x, index in enumerate(picked):
            frame = Image.fromarray(clip[index]).resize((width, height), Image.Resampling.NEAREST)
            sheet.paste(frame, (LABEL_WIDTH + x * (width + GAP), top))
    return np.asarray(sheet)


def save_png(picture: Pixels, path: Path) -> None:
    """Write a picture [h, w, 3]."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)
