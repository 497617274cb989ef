"""Which boxes of successive key frames are the same person: geometry alone. Boxes are shares of the frame."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dsvid.metrics.ava import overlaps
from dsvid.timeline import Box

Boxes = NDArray[np.float64]
LEAST = 0.25  # of the overlap below


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
            old_boxes, new_boxes = doubled(np.array(before)), doubled(np.array(boxes))
            pairs = overlaps(old_boxes.repeat(len(boxes), axis=0), np.tile(new_boxes, (len(before), 1)))
            shares = pairs.reshape(len(before), len(boxes))
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
