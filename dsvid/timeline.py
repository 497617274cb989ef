"""What a model says of a video over time, as plain data: clips with their classes, people with their actions.

Knows no model and no drawing. A further task adds a timeline of its own: `task`, `video`, `notes`, `to_json`, `table`.
"""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

FORMAT = {"format": "dsvid-predict", "version": 1}
NAME_WIDTH = 32  # characters, in a table
LISTED = 20  # intervals, in a table
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Video:
    """The video of a timeline; `width` and `height` as stored, when upright."""

    path: str
    frames: int
    fps: float
    duration_s: float
    width: int
    height: int


@dataclass(frozen=True)
class Score:
    """A class by number and name, and how much the model gives it, 0 to 1."""

    number: int
    name: str
    score: float


class Names:
    """Class numbers (0, 1, … where none are given) and names by column of the model's output; columns without a name
    are shown by number, or, where `only_named`, never."""

    def __init__(
        self, names: Sequence[str], classes: int, *, numbers: Sequence[int] = (), only_named: bool = False
    ) -> None:
        self.numbers = list(numbers or range(classes))
        assert len(self.numbers) == classes, (len(self.numbers), classes)
        named = [*names, *[""] * (classes - len(names))]
        self.names = [name or f"class {number}" for name, number in zip(named, self.numbers, strict=True)]
        self.shown = np.array([not only_named or (i < len(names) and bool(names[i])) for i in range(classes)])

    def best(self, scores: NDArray[np.floating], count: int, least: float = 0.0) -> tuple[Score, ...]:
        """The `count` highest of scores [C], of those with at least `least`, but always the highest."""
        order = np.argsort(np.where(self.shown, -scores, np.inf), kind="stable")
        order = order[: min(count, int(self.shown.sum()))]
        kept = [int(i) for place, i in enumerate(order) if place == 0 or scores[i] >= least]
        return tuple(Score(self.numbers[i], self.names[i], float(scores[i])) for i in kept)


class Timeline(Protocol):
    """What every task gives."""

    @property
    def task(self) -> str: ...

    video: Video
    notes: list[str]

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready object."""

    def table(self) -> str:
        """Lines for a terminal."""


# ---- classification ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Clip:
    """Frames [start, end) and the best classes there; `padded`: the video ends before the clip does."""

    start: int
    end: int
    start_s: float
    end_s: float
    padded: bool
    best: tuple[Score, ...]


@dataclass
class ClipTimeline:
    """Clips in order; `best` of the whole video (the mean over its clips); `curves`: those classes' scores, clip by
    clip."""

    video: Video
    clips: list[Clip]
    best: tuple[Score, ...]
    curves: list[list[float]]
    notes: list[str] = field(default_factory=list)
    task: str = "classify"

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready object."""
        clips = [
            {"start_frame": c.start, "end_frame": c.end, "start_s": _round(c.start_s), "end_s": _round(c.end_s),
             "padded": c.padded, "top": _scores(c.best)}
            for c in self.clips
        ]  # fmt: skip
        return {**_head(self), "top": _scores(self.best), "clips": clips}

    def table(self) -> str:
        """The whole video first, then each clip."""
        rows = [["whole video", *_cells(self.best)]]
        if len(self.clips) > 1:
            rows += [[f"{clock(c.start_s)} - {clock(c.end_s)}", *_cells(c.best)] for c in self.clips]
        return _columns(rows)


# ---- detection -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Person:
    """One person at a key frame: `box` x1, y1, x2, y2 in shares of the frame; one `track` is one person."""

    track: int
    box: Box
    score: float
    actions: tuple[Score, ...]


@dataclass(frozen=True)
class KeyFrame:
    """The people at one frame."""

    frame: int
    second: float
    people: tuple[Person, ...]


@dataclass
class PeopleTimeline:
    """Key frames in order; `reach_s`: how long before and after a key frame its boxes hold, within a shot; `cuts_s`:
    where new shots begin."""

    video: Video
    key_frames: list[KeyFrame]
    reach_s: float
    boxes_from: str
    cuts_s: list[float] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    task: str = "detect"

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready object."""
        frames = [
            {
                "frame": key.frame,
                "second": _round(key.second),
                "people": [
                    {"track": p.track, "box": [_round(v) for v in p.box], "score": _round(p.score),
                     "actions": _scores(p.actions)}
                    for p in key.people
                ],
            }
            for key in self.key_frames
        ]  # fmt: skip
        return {
            **_head(self),
            "boxes_from": self.boxes_from,
            "cuts_s": [_round(s) for s in self.cuts_s],
            "key_frames": frames,
        }

    def table(self) -> str:
        """A line for each person of each key frame."""
        rows = []
        for key in self.key_frames:
            if not key.people:
                rows.append([clock(key.second), "nobody"])
            rows += [[clock(key.second), f"person {p.track}", *_cells(p.actions)] for p in key.people]
        return _columns(rows)


# ---- anomaly -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Alarm:
    """Frames [start, end) whose risk is at the threshold or above; `peak` is the highest of them, at `peak_s`."""

    start: int
    end: int
    start_s: float
    end_s: float
    peak: float
    peak_s: float


@dataclass
class RiskTimeline:
    """The risk [n] of the judged frames [n], ascending, at their seconds [n]; each holds until the next judged frame.

    `realtime`: seconds of video for each second of computing. `window` says in words what a frame is judged by.
    """

    video: Video
    frames: NDArray[np.int64]
    seconds: NDArray[np.float64]
    risk: NDArray[np.float64]
    threshold: float
    window: str
    realtime: float
    notes: list[str] = field(default_factory=list)
    task: str = "anomaly"

    @property
    def highest(self) -> int:
        """The place of the highest risk, the first of several."""
        return int(np.argmax(self.risk))

    def at(self, frame: int) -> float:
        """The risk that holds at a frame: that of the last judged one, before the first of the first."""
        return float(self.risk[max(0, int(np.searchsorted(self.frames, frame, side="right")) - 1)])

    def alarms(self) -> list[Alarm]:
        """Where the risk is at the threshold or above, in order."""
        over = np.concatenate([[False], self.risk >= self.threshold, [False]])
        begins, ends = np.flatnonzero(over[1:] & ~over[:-1]), np.flatnonzero(over[:-1] & ~over[1:])
        frames = np.append(self.frames, self.video.frames)
        seconds = np.append(self.seconds, self.video.duration_s)
        found = []
        for begin, end in zip(begins.tolist(), ends.tolist(), strict=True):
            peak = begin + int(np.argmax(self.risk[begin:end]))
            found.append(
                Alarm(int(frames[begin]), int(frames[end]), float(seconds[begin]), float(seconds[end]),
                      float(self.risk[peak]), float(seconds[peak]))
            )  # fmt: skip
        return found

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready object."""
        rows = zip(self.frames.tolist(), self.seconds.tolist(), self.risk.tolist(), strict=True)
        alarms = [
            {"start_frame": a.start, "end_frame": a.end, "start_s": _round(a.start_s), "end_s": _round(a.end_s),
             "peak": _round(a.peak), "peak_s": _round(a.peak_s)}
            for a in self.alarms()
        ]  # fmt: skip
        return {
            **_head(self),
            "window": self.window,
            "realtime_factor": _round(self.realtime),
            "threshold": self.threshold,
            "mean": _round(self.risk.mean()),
            "highest": {"frame": int(self.frames[self.highest]), "second": _round(self.seconds[self.highest]),
                        "risk": _round(self.risk[self.highest])},
            "intervals": alarms,
            "scores": [{"frame": frame, "second": _round(s), "risk": _round(risk)} for frame, s, risk in rows],
        }  # fmt: skip

    def table(self) -> str:
        """Mean, highest, and where the threshold is reached, the highest intervals where there are many."""
        alarms, name = self.alarms(), f"risk >= {self.threshold:g}"
        rows = [
            ["mean risk", f"{self.risk.mean():.3f}", f"{len(self.frames)} of {self.video.frames} frames judged"],
            ["highest", f"{self.risk[self.highest]:.3f}", f"at {clock(float(self.seconds[self.highest]))}"],
        ]
        shown = sorted(sorted(alarms, key=lambda a: -a.peak)[:LISTED], key=lambda a: a.start)
        rows += [[name, f"{a.peak:.3f}", f"at {clock(a.peak_s)}, {clock(a.start_s)} - {clock(a.end_s)}"] for a in shown]
        if len(alarms) > LISTED:
            rows.append([name, "", f"and {len(alarms) - LISTED} intervals with lower peaks (-o FILE.json has all)"])
        return _columns(rows if alarms else [*rows, [name, "never"]])


# ---- words ---------------------------------------------------------------------------------------------------------


def clock(second: float) -> str:
    """`1:02.5`, with hours where there are any."""
    tenths = round(second * 10)
    minutes, rest = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    shown = f"{minutes}:{rest // 10:02d}.{rest % 10}"
    return f"{hours}:{shown.zfill(7)}" if hours else shown


def _head(timeline: Timeline) -> dict[str, Any]:
    video = asdict(timeline.video) | {"path": os.fspath(timeline.video.path)}
    video |= {key: _round(video[key]) for key in ("fps", "duration_s")}
    return {**FORMAT, "task": timeline.task, "video": video, "notes": timeline.notes}


def _scores(best: Iterable[Score]) -> list[dict[str, Any]]:
    return [{"class": each.number, "label": each.name, "score": _round(each.score)} for each in best]


def _cells(best: Iterable[Score]) -> list[str]:
    return [f"{textwrap.shorten(each.name, NAME_WIDTH, placeholder='…')} {each.score:.3f}" for each in best]


def _round(value: float) -> float:
    return round(float(value), 5)


def _columns(rows: Sequence[Sequence[str]]) -> str:
    count = max((len(row) for row in rows), default=0)
    widths = [max((len(row[i]) for row in rows if i < len(row)), default=0) for i in range(count)]
    return "\n".join("  ".join(f"{cell:<{widths[i]}}" for i, cell in enumerate(row)).rstrip() for row in rows)
