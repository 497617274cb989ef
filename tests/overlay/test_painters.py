"""What is drawn where: boxes between key frames, bars, curves, tiles."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFont

from dsvid.errors import DataError
from dsvid.overlay.clips import ClipPainter
from dsvid.overlay.painter import Curve, spread
from dsvid.overlay.people import PeoplePainter
from dsvid.overlay.sheet import Sheet
from dsvid.overlay.strip import Strip
from dsvid.overlay.text import (
    PALETTE,
    block_size,
    check_font,
    colour_of,
    draw_block,
    drawable,
    ink_on,
    shortened,
    text_width,
)
from dsvid.timeline import Clip, ClipTimeline, KeyFrame, PeopleTimeline, Person, Score, Video

VIDEO = Video("some/v.mp4", 100, 10.0, 10.0, 400, 300)


def person(track: int, box: tuple[float, float, float, float], name: str = "walk") -> Person:
    return Person(track, box, 1.0, (Score(12, name, 0.9), Score(79, "talk", 0.4)))


def people(*keys: tuple[float, list[Person]], cuts: tuple[float, ...] = ()) -> PeopleTimeline:
    frames = [KeyFrame(round(10 * second), second, tuple(each)) for second, each in keys]
    return PeopleTimeline(VIDEO, frames, 0.5, "a test", list(cuts))


def test_boxes_move_between_key_frames_and_hold_at_the_ends() -> None:
    old, new = (0.0, 0.0, 0.2, 0.4), (0.4, 0.2, 0.6, 0.6)
    painter = PeoplePainter(people((1.0, [person(1, old, "walk")]), (2.0, [person(1, new, "run"), person(2, old)])))
    shown = {second: painter.people_at(second) for second in (0.4, 0.6, 1.25, 1.75, 2.4, 2.6)}
    assert not shown[0.4] and not shown[2.6]
    assert [box for box, _ in shown[0.6]] == [old]
    ((box, who),) = shown[1.25]
    assert box == pytest.approx((0.1, 0.05, 0.3, 0.45)) and who.actions[0].name == "walk"
    (moving, who), (held, other) = shown[1.75]
    assert moving == pytest.approx((0.3, 0.15, 0.5, 0.55)) and who.actions[0].name == "run"
    assert held == old and other.track == 2
    assert len(shown[2.4]) == 2


def test_no_box_is_shown_beyond_a_cut() -> None:
    box = (0.0, 0.0, 0.2, 0.4)
    painter = PeoplePainter(people((1.0, [person(1, box)]), (2.0, [person(2, box)]), cuts=(1.3,)))
    shown = {second: [who.track for _, who in painter.people_at(second)] for second in (1.0, 1.2, 1.3, 1.4, 1.6, 2.0)}
    assert shown == {1.0: [1], 1.2: [1], 1.3: [], 1.4: [], 1.6: [2], 2.0: [2]}


def test_a_box_is_drawn_where_it_belongs_in_the_colour_of_its_track() -> None:
    picture = Image.new("RGB", (800, 600), (10, 10, 10))
    painter = PeoplePainter(people((0.0, [person(3, (0.25, 0.5, 0.5, 0.75))])))
    painter.paint(picture, 0, 0.0)
    pixels = np.asarray(picture).astype(int)
    drawn = (np.abs(pixels - colour_of(3)).sum(axis=2) < 30) & (np.arange(600)[:, None] >= 298)
    rows, columns = np.nonzero(drawn)
    assert abs(rows.max() - 449) <= 3 and abs(columns.min() - 200) <= 3
    column = drawn[:, columns.max()]
    assert abs(columns.max() - 399) <= 3 and column.sum() > 130
    label = pixels[220:298, 200:330]
    assert (np.abs(label - colour_of(3)).sum(axis=2) < 30).mean() > 0.4  # a filled background
    assert (np.abs(label - ink_on(colour_of(3))).sum(axis=2) < 60).any()  # and text on it


def test_text_fits_its_block_and_long_names_end_in_dots() -> None:
    name = "watch (e.g., TV) with a very long explanation behind it"
    short = shortened(name, 20, 200)
    assert short.endswith("…") and text_width(short, 20) <= 200 and shortened("sit", 20, 200) == "sit"
    picture = Image.new("RGB", (400, 200), (1, 2, 3))
    size = block_size([short, "sit"], 20)
    draw_block(picture, (30, 40), [short, "sit"], 20, PALETTE[2])
    changed = np.argwhere((np.asarray(picture) != (1, 2, 3)).any(axis=2))
    assert changed.min(axis=0).tolist() == [40, 30]
    assert (changed.max(axis=0) + 1).tolist() == [40 + size[1], 30 + size[0]]


def test_names_in_other_scripts_are_drawn_as_far_as_the_font_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DSVID_FONT", raising=False)
    assert drawable("sauté + 走… “x”") == "saute + ?… “x”"
    assert text_width("é", 20) == text_width("e", 20)
    own = tmp_path / "own.ttf"
    own.write_bytes(ImageFont.load_default(size=10).path.getvalue())
    monkeypatch.setenv("DSVID_FONT", str(own))
    check_font()
    assert drawable("sauté") == "sauté" and text_width("e", 20) > 0
    monkeypatch.setenv("DSVID_FONT", str(tmp_path / "none.ttf"))
    with pytest.raises(DataError, match=r"none.ttf cannot be used"):
        check_font()


def test_every_colour_can_be_written_on() -> None:
    def light(colour: tuple[int, ...]) -> float:
        shares = [c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
        return 0.2126 * shares[0] + 0.7152 * shares[1] + 0.0722 * shares[2]

    for colour in PALETTE:
        low, high = sorted((light(colour), light(ink_on(colour))))
        assert (high + 0.05) / (low + 0.05) >= 3.0, colour  # WCAG's least for large text


def clips() -> ClipTimeline:
    best = [(Score(0, "a", 0.7), Score(1, "b", 0.3)), (Score(1, "b", 0.8), Score(0, "a", 0.2))]
    found = [Clip(50 * i, 50 * i + 50, 5.0 * i, 5.0 * i + 5, False, each) for i, each in enumerate(best)]
    return ClipTimeline(VIDEO, found, (Score(1, "b", 0.55), Score(0, "a", 0.45)), [[0.3, 0.8], [0.7, 0.2]])


def test_bars_are_those_of_the_clip_and_as_long_as_its_scores() -> None:
    painter = ClipPainter(clips())
    for frame, first, share in ((10, 1, 0.7), (48, 1, 0.7), (90, 0, 0.8)):
        picture = Image.new("RGB", (800, 600), (90, 90, 90))
        painter.paint(picture, frame, frame / 10)
        pixels = np.asarray(picture).astype(int)
        bars = [(np.abs(pixels - colour_of(place)).sum(axis=2) < 10).sum(axis=1) for place in (0, 1)]
        track = (pixels == (70, 72, 76)).all(axis=2).sum(axis=1) + bars[0] + bars[1]
        row = int(np.flatnonzero(bars[first])[0])
        assert bars[first].max() / track[row] == pytest.approx(share, abs=0.02)
        assert row < np.flatnonzero(bars[1 - first])[0]  # the best on top
    assert [curve.name for curve in painter.curves] == ["b", "a"] and painter.moments(9) == [25, 75]


def test_a_strip_shows_values_and_the_moment() -> None:
    curve = Curve("risk", PALETTE[4], [0.0, 10.0], [0.0, 1.0])
    strip = Strip([curve], 10.0, 600, 160, 16)
    still, marked = (np.asarray(strip.at(second)).astype(int) for second in (None, 5.0))
    own = np.abs(still - PALETTE[4]).sum(axis=2) < 60
    own[:40] = False  # the legend
    columns = np.flatnonzero(own.any(axis=0))
    middle = [np.flatnonzero(own[:, column]).mean() for column in columns]
    assert middle[0] - middle[-1] > 60 and np.all(np.diff(middle) <= 0.6)  # it rises to the right
    line = np.flatnonzero((marked != still).any(axis=(0, 2)))
    assert abs(line.mean() - (columns[0] + columns[-1]) / 2) < 8


def test_a_sheet_has_its_frames_and_their_times() -> None:
    painter = ClipPainter(clips())
    sheet = Sheet(painter, 10.0, (800, 600))
    assert sheet.wanted == [25, 75]
    for frame in sheet.wanted:
        sheet.add(Image.new("RGB", (800, 600), (0, 200, 0)), frame, frame / 10)
    picture = np.asarray(sheet.finish())
    green = (picture == (0, 200, 0)).all(axis=2)
    assert green.sum() > 2 * 0.4 * 560 * 350 and picture.shape[1] > 2 * 480


def test_moments_are_spread() -> None:
    assert (
        spread(list(range(100)), 4) == [0, 33, 66, 99] and spread([5, 6], 4) == [5, 6] and spread([1, 2, 3], 1) == [2]
    )
    timeline = people((0.0, []), (1.0, [person(1, (0, 0, 1, 1))]), (2.0, []))
    assert PeoplePainter(timeline).moments(12) == [10]
