"""Which boxes of successive key frames are the same person: geometry alone. Boxes are shares of the frame."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dsvid.timeline import Box

Boxes = NDArray[np.float64]
LEAST = 0.25  # of the overlap below


def overlaps(one: Boxes, other: Boxes) -> NDArray[np.float64]:
    """Intersection over union [n, m] of boxes [n, 4] and [m, 4]."""
    low = np.maximum(one[:, None, :2], other[None, :, :2])
    high = np.minimum(one[:, None, 2:], other[None, :, 2:])
    inner = np.prod(np.clip(high - low, 0, None), axis=2)
    areas = [np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) for boxes in (one, other)]
    union = areas[0][:, None] + areas[1][None, :] - inner
    shares: NDArray[np.float64] = inner / np.maximum(union, 1e-12)
    return shares


def doubled(boxes: Boxes) -> Boxes:
    """Boxes of twice the size about the same centres: people walk their own width in a second, so that theirs would not
    meet."""
    centre, half = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    return np.concatenate([centre - half, centre + half], axis=1)


def link(frames: Sequence[Sequence[Box]], joined: Sequence[bool]) -> list[list[int]]:
    """Track numbers, from 1 on, of the boxes of each key frame; `joined[i]`: whether frame i may go on with i - 1.

    Pairs of the highest overlap first, each box once; a box without a pair begins a track.
    """
    tracks: list[list[int]] = []
    newest = 0
    for place, boxes in enumerate(frames):
        own = [0] * len(boxes)
        before = frames[place - 1] if place and joined[place] else []
        if before and boxes:
            shares = overlaps(doubled(np.array(before)), doubled(np.array(boxes)))
            for flat in np.argsort(-shares, axis=None, kind="stable"):
                old, new = divmod(int(flat), len(boxes))
                if shares[old, new] < LEAST:
                    break
                if not own[new] and tracks[-1][old] not in own:
                    own[new] = tracks[-1][old]
        for new, track in enumerate(own):
            if not track:
                newest += 1
                own[new] = newest
        tracks.append(own)
    return tracks
