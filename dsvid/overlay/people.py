"""People's boxes and actions on pictures: boxes move between key frames, labels stay readable."""

from __future__ import annotations

from bisect import bisect_right
from pathlib import Path

from PIL import Image, ImageDraw

from dsvid.overlay.painter import Curve, spread
from dsvid.overlay.placement import Placer, Rect, Wish, common
from dsvid.overlay.text import DARK, block_size, colour_of, draw_block, font_size, shortened, text_width
from dsvid.timeline import Box, KeyFrame, PeopleTimeline, Person

WIDEST = 0.55  # of the frame, for a line of a label


class PeoplePainter:
    """A painter of people."""

    def __init__(self, timeline: PeopleTimeline) -> None:
        self.timeline = timeline
        self._seconds = [key.second for key in timeline.key_frames]
        self._placer = Placer()
        tracks = {person.track for key in timeline.key_frames for person in key.people}
        self._numbered = len(tracks) > 1

    @property
    def heading(self) -> list[str]:
        """Video and where the boxes are from."""
        keys = self.timeline.key_frames
        people = sum(len(key.people) for key in keys)
        return [
            f"{Path(self.timeline.video.path).name}: actions of people",
            f"key frames: {len(keys)}, boxes: {people}, from {self.timeline.boxes_from}",
        ]

    @property
    def curves(self) -> list[Curve]:
        """None."""
        return []

    def moments(self, most: int) -> list[int]:
        """Key frames, those with people first."""
        keys = self.timeline.key_frames
        return spread([key.frame for key in keys if key.people] or [key.frame for key in keys], most)

    def people_at(self, second: float) -> list[tuple[Box, Person]]:
        """Boxes and whose they are: between two key frames of a track they move, else they hold for `reach_s`."""
        after = bisect_right(self._seconds, second)
        before_key = self.timeline.key_frames[after - 1] if after else None
        after_key = self.timeline.key_frames[after] if after < len(self._seconds) else None
        before_key = None if before_key and self._cut_between(before_key.second, second) else before_key
        after_key = None if after_key and self._cut_between(second, after_key.second) else after_key
        before, later = _by_track(before_key), _by_track(after_key)
        shown = []
        for track in sorted(before.keys() | later.keys()):
            old, new = before.get(track), later.get(track)
            if old and new and before_key and after_key:
                share = (second - before_key.second) / (after_key.second - before_key.second)
                shown.append((_between(old.box, new.box, share), old if share < 0.5 else new))
            elif old and before_key and second - before_key.second <= self.timeline.reach_s:
                shown.append((old.box, old))
            elif new and after_key and after_key.second - second < self.timeline.reach_s:
                shown.append((new.box, new))
        return shown

    def _cut_between(self, second: float, later: float) -> bool:
        cuts = self.timeline.cuts_s
        return bisect_right(cuts, second) < bisect_right(cuts, later)

    def paint(self, picture: Image.Image, frame: int, second: float) -> None:
        """Boxes first, then labels: of all actions where they have room, else of the best."""
        people = self.people_at(second)
        width, height = picture.size
        size = font_size(width, height)
        boxes = [_pixels(box, width, height) for box, _ in people]
        draw = ImageDraw.Draw(picture)
        line = max(2, round(min(width, height) / 160))
        for box, (_, person) in zip(boxes, people, strict=True):
            draw.rectangle(box, outline=DARK, width=line + 2)
            inner = (box[0] + 1, box[1] + 1, box[2] - 1, box[3] - 1)
            draw.rectangle(inner, outline=colour_of(person.track), width=line)
        most = max((len(person.actions) for _, person in people), default=0)
        for count in range(most, 0, -1):
            lines = [self._lines(person, count, size, width) for _, person in people]
            wishes = [
                Wish(person.track, box, block_size(text, size))
                for text, box, (_, person) in zip(lines, boxes, people, strict=True)
            ]
            spots, free = self._placer.place(wishes, (width, height))
            if free or count == 1:
                break
        else:
            return
        for spot, wish in zip(spots, wishes, strict=True):
            _leader(draw, spot, wish, line)
        for spot, text, wish in zip(spots, lines, wishes, strict=True):
            draw_block(picture, spot, text, size, colour_of(wish.key))

    def _lines(self, person: Person, count: int, size: int, width: int) -> list[str]:
        most = round(WIDEST * width)
        lines = []
        for place, action in enumerate(person.actions[:count]):
            head = f"{person.track}: " if self._numbered and place == 0 else ""
            tail = f"  {action.score:.2f}"
            lines.append(shortened(head + action.name, size, most - text_width(tail, size)) + tail)
        return lines


def _by_track(key: KeyFrame | None) -> dict[int, Person]:
    return {person.track: person for person in key.people} if key else {}


def _between(old: Box, new: Box, share: float) -> Box:
    x1, y1, x2, y2 = (a + (b - a) * share for a, b in zip(old, new, strict=True))
    return x1, y1, x2, y2


def _pixels(box: Box, width: int, height: int) -> Rect:
    """Pixels of the frame: the first and the last of each side."""
    x1, y1 = round(box[0] * width), round(box[1] * height)
    return x1, y1, max(x1 + 4, round(box[2] * width) - 1), max(y1 + 4, round(box[3] * height) - 1)


def _leader(draw: ImageDraw.ImageDraw, spot: tuple[float, float], wish: Wish, line: int) -> None:
    """A line from a label to its box where they do not touch."""
    near = (wish.box[0] - 2, wish.box[1] - 2, wish.box[2] + 2, wish.box[3] + 2)
    label = (spot[0], spot[1], spot[0] + wish.size[0], spot[1] + wish.size[1])
    if common(label, near) > 0:
        return
    start = ((label[0] + label[2]) / 2, (label[1] + label[3]) / 2)
    end = min(max(start[0], wish.box[0]), wish.box[2]), min(max(start[1], wish.box[1]), wish.box[3])
    draw.line((start, end), fill=colour_of(wish.key), width=line)
