"""A timeline as the HTML page of `dsvid predict -o FILE.html`. Knows each task's words, and no HTML."""

from __future__ import annotations

from pathlib import Path

from dsvid.report.prediction_page import Shown, prediction_page
from dsvid.report.writing import publish_page
from dsvid.show import painter_of
from dsvid.timeline import ClipTimeline, PeopleTimeline, RiskTimeline, Timeline, clock

WHAT = {"classify": "classes of clips", "detect": "people and their actions", "anomaly": "risk of every frame"}
MOST_ACTIONS = 10


def write_page(path: Path, timeline: Timeline, sheet: bytes, weights: Path) -> None:
    """Write the page, whole or not at all. `sheet`: the contact sheet, a PNG. Raises DsvidError."""
    video = timeline.video
    facts = [
        ("What", WHAT[timeline.task]),
        ("Length", f"{clock(video.duration_s)} ({video.frames} frames)"),
        ("Frames a second", f"{video.fps:.5g}"),
        ("Pixels", f"{video.width} × {video.height}"),
        ("Weights", str(weights)),
        *_facts(timeline),
    ]
    curves = [(each.name, list(each.seconds), list(each.values)) for each in painter_of(timeline).curves]
    shown = Shown(
        facts=facts,
        notes=timeline.notes,
        sheet=sheet,
        sheet_words=f"Frames of the video with what the model says of them; {_summary(timeline)}",
        lines=timeline.table(),
        bars_title=_BARS.get(timeline.task, ""),
        bars=_bars(timeline),
        curves=curves,
        curves_title="Risk" if timeline.task == "anomaly" else "Scores of the best classes",
        threshold=timeline.threshold if isinstance(timeline, RiskTimeline) else None,
    )
    publish_page(path, prediction_page(Path(video.path).name, shown))


_BARS = {"classify": "The whole video", "detect": "Actions, at their highest"}


def _bars(timeline: Timeline) -> list[tuple[str, float]]:
    if isinstance(timeline, ClipTimeline):
        return [(each.name, each.score) for each in timeline.best]
    if isinstance(timeline, PeopleTimeline):
        highest: dict[str, float] = {}
        for each in (action for key in timeline.key_frames for person in key.people for action in person.actions):
            highest[each.name] = max(each.score, highest.get(each.name, 0.0))
        return sorted(highest.items(), key=lambda pair: -pair[1])[:MOST_ACTIONS]
    return []


def _facts(timeline: Timeline) -> list[tuple[str, str]]:
    if isinstance(timeline, RiskTimeline):
        at = clock(float(timeline.seconds[timeline.highest]))
        return [
            ("Highest risk", f"{timeline.risk[timeline.highest]:.3f} at {at}"),
            ("Mean risk", f"{timeline.risk.mean():.3f}"),
            ("Alarms", f"{len(timeline.alarms())} at {timeline.threshold:g} or above"),
        ]
    if isinstance(timeline, PeopleTimeline):
        people = {person.track for key in timeline.key_frames for person in key.people}
        return [("People", str(len(people))), ("Boxes from", timeline.boxes_from)]
    assert isinstance(timeline, ClipTimeline)
    return [("Clips", str(len(timeline.clips)))]


def _summary(timeline: Timeline) -> str:
    if isinstance(timeline, ClipTimeline):
        return f"the whole video: {timeline.best[0].name} {timeline.best[0].score:.0%}"
    return ", ".join(f"{name.lower()}: {value}" for name, value in _facts(timeline))
