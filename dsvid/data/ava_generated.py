"""A small data set in AVA's format: figures that move over a still background, their boxes and actions known exactly.

Around every key frame each figure has one motion (left, right, up, down, grow, shrink, still); half-way between two key
frames all figures are drawn anew, so that a place says nothing of the motion. A single key frame therefore looks the
same for every motion. The second kind of action, near another figure, is a matter of the key frame alone. Random
numbers of a video depend on (seed, split, number) only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsvid.data.ava_annotations import annotations_from_csv, annotations_json, write_json
from dsvid.data.builtin import FPS, write_clip
from dsvid.data.made_once import cache_folder, made_once
from dsvid.errors import DataError
from dsvid.publish import publish_text

WIDTH, HEIGHT = 96, 80
FIRST_SECOND = 900  # of every video; the key frames are at the seconds after it
MOTIONS = {1: "left", 2: "right", 3: "up", 4: "down", 5: "grow", 6: "shrink", 7: "still"}
NEAR = 64  # its class number, in AVA's range of classes between people
NAMES = {**MOTIONS, NEAR: "near another figure"}
NEAR_PIXELS = 26.0  # between the centres: half of the figures have one so near
HALF = FPS // 2  # frames of one motion before and after a key frame
SPLITS = ("train", "val")
BUILTIN = {"train": 100, "val": 30}
VERSION = "1"  # raise it with every change that alters a byte: old caches are then left alone
_STEPS = {1: (-1, 0), 2: (1, 0), 3: (0, -1), 4: (0, 1)}
_MARGIN = 24  # pixels from the edge at a key frame: the fastest and largest figure stays inside of the frame

Array32 = NDArray[np.float32]


@dataclass(frozen=True)
class Figure:
    """An ellipse around one key frame: centre and half axes there in pixels, motion, pixels a frame, growth a frame."""

    x: float
    y: float
    half_width: float
    half_height: float
    motion: int
    speed: float
    growth: float
    look: int

    def at(self, frames: float) -> tuple[float, float, float, float]:
        """(x, y, half width, half height) so many frames after the key frame."""
        dx, dy = _STEPS.get(self.motion, (0, 0))
        turn = {5: 1.0, 6: -1.0}.get(self.motion, 0.0)
        scale = math.exp(turn * self.growth * frames)
        return (
            self.x + dx * self.speed * frames,
            self.y + dy * self.speed * frames,
            self.half_width * scale,
            self.half_height * scale,
        )

    def box(self, frames: float = 0.0) -> tuple[float, float, float, float]:
        """x1, y1, x2, y2 in pixels, the edges of the ellipse."""
        x, y, a, b = self.at(frames)
        return x - a, y - b, x + a, y + b


def draw_figures(seed: int, split: str, number: int, seconds: int) -> list[list[Figure]]:
    """The figures around each of `seconds` key frames and, first, of the start of the video; 2 or 3 each, apart."""
    rng = np.random.default_rng((seed, SPLITS.index(split), number, 0))
    scenes = []
    for _ in range(seconds):
        figures: list[Figure] = []
        for _ in range(int(rng.integers(2, 4))):
            for _ in range(100):
                figure = _draw_figure(rng)
                if all(_apart(figure, other) for other in figures):
                    figures.append(figure)
                    break
        scenes.append(figures)
    return scenes


def _draw_figure(rng: np.random.Generator) -> Figure:
    return Figure(
        x=rng.uniform(_MARGIN, WIDTH - _MARGIN),
        y=rng.uniform(_MARGIN, HEIGHT - _MARGIN),
        half_width=rng.uniform(8, 12),
        half_height=rng.uniform(8, 12),
        motion=int(rng.integers(1, 8)),
        speed=rng.uniform(1.0, 1.8),
        growth=rng.uniform(0.04, 0.07),
        look=int(rng.integers(1 << 30)),
    )


def _apart(one: Figure, other: Figure) -> bool:
    """Whether the boxes do not touch at the key frame."""
    return (
        abs(one.x - other.x) > one.half_width + other.half_width
        or abs(one.y - other.y) > one.half_height + other.half_height
    )


def actions(figures: Sequence[Figure]) -> list[list[int]]:
    """The classes of each figure of a key frame."""
    found = []
    for figure in figures:
        distances = [math.hypot(figure.x - other.x, figure.y - other.y) for other in figures if other is not figure]
        found.append([figure.motion, *([NEAR] if min(distances, default=math.inf) < NEAR_PIXELS else [])])
    return found


def render(seed: int, split: str, number: int, scenes: Sequence[Sequence[Figure]]) -> NDArray[np.uint8]:
    """All frames of a video, uint8 [seconds * FPS, HEIGHT, WIDTH, 3]; the key frame of scene k is frame k * FPS."""
    ground = _background(np.random.default_rng((seed, SPLITS.index(split), number, 1)))
    pictures = np.empty((len(scenes) * FPS, HEIGHT, WIDTH, 3), dtype=np.float32)
    for place in range(len(pictures)):
        scene = min((place + HALF) // FPS, len(scenes) - 1)
        pictures[place] = ground
        for figure in scenes[scene]:
            _paint(pictures[place], figure, place - scene * FPS)
    return np.clip(np.rint(pictures), 0, 255).astype(np.uint8)


def _background(rng: np.random.Generator) -> Array32:
    """Darker blocks and noise that stand still."""
    cells = rng.uniform(30, 110, size=(10, 12, 3)).repeat(8, axis=0).repeat(8, axis=1)
    ground: Array32 = (cells + rng.normal(scale=6, size=(HEIGHT, WIDTH, 1))).astype(np.float32)
    return ground


def _paint(picture: Array32, figure: Figure, frames: float) -> None:
    """A bright striped ellipse whose stripes move and grow with it."""
    rng = np.random.default_rng(figure.look)
    colours = rng.uniform(140, 255, size=(2, 3))
    turn, waves = rng.uniform(0, math.pi), rng.uniform(1.5, 3)
    x, y, a, b = figure.at(frames)
    u = (np.arange(WIDTH)[None, :] - x) / a
    v = (np.arange(HEIGHT)[:, None] - y) / b
    cover = np.clip((1 - np.hypot(u, v)) * min(a, b) + 0.5, 0, 1)[..., None]
    stripe = np.sin(math.pi * waves * (u * math.cos(turn) + v * math.sin(turn)))[..., None] > 0
    picture += (cover * (np.where(stripe, *colours) - picture)).astype(np.float32)


# ---- files ---------------------------------------------------------------------------------------------------------


def make_set(
    folder: Path, videos: Mapping[str, int], *, seconds: int = 5, whole: bool = False, seed: int = 0
) -> dict[str, Path]:
    """Write videos and annotations as AVA's are laid out; returns the paths by name. The same bytes at every call.

    `videos`: how many of `train` and `val`. One-second files lie in `clips/trainval/<video>/<second>.mp4`, with `whole`
    one file of each video in `videos/`. Person boxes of `val` are the true ones, slightly moved, and as many wrong ones
    below the seed's threshold. One key frame of `val` is excluded. Raises DataError for sizes that make no set.
    """
    if seconds < 2 or not set(videos) <= set(SPLITS) or min(videos.values(), default=0) < 1:
        raise DataError(
            "a generated set of AVA's format", found=f"{dict(videos)}, {seconds} seconds",
            expected="train and val with at least one video each, of at least 2 seconds",
        )  # fmt: skip
    paths = _paths(folder, videos, whole)
    names = {split: [f"_{split[:1]}-{number:08d}" for number in range(count)] for split, count in videos.items()}
    everyone = [name for split in videos for name in names[split]]
    publish_text(paths["video_list"], "".join(f"{name}.mp4\n" for name in everyone))
    publish_text(
        paths["labels"], "".join(f'item {{\n  name: "{name}"\n  id: {label}\n}}\n' for label, name in NAMES.items())
    )
    sizes = dict.fromkeys(everyone, (WIDTH, HEIGHT))
    for split in videos:
        rows = []
        for number, name in enumerate(names[split]):
            scenes = draw_figures(seed, split, number, seconds)
            _write_video(paths["clips"], name, render(seed, split, number, scenes), whole)
            rows += _rows(name, scenes)
        publish_text(paths[f"{split}_gt"], "".join(rows))
        keys = range(FIRST_SECOND + 1, FIRST_SECOND + seconds)
        annotations = annotations_from_csv(paths[f"{split}_gt"], everyone, sizes, seconds=keys)
        # seconds are given for every video of the list, but this split has its own only
        write_json(paths[f"{split}_annotations"], annotations_json(annotations))
        last = f"{names[split][-1]},{FIRST_SECOND + seconds - 1:04d}\n"
        publish_text(paths[f"{split}_excluded"], last if split == "val" else "")
        if split == "val":
            write_json(paths["people"], _people(annotations_json(annotations), seed))
    return paths


def prepare(log: Callable[[str], None] | None = None) -> dict[str, Path]:
    """The paths of the set that recipes call `builtin`: 130 videos, made once per machine. Raises DataError."""

    def make(folder: Path) -> None:
        make_set(folder, BUILTIN)

    root = made_once(cache_folder() / f"figures-{VERSION}", make, what="built-in figures", log=log)
    return _paths(root, BUILTIN, whole=False)


def _paths(folder: Path, videos: Mapping[str, int], whole: bool) -> dict[str, Path]:
    paths = {
        "clips": folder / ("videos" if whole else "clips/trainval"),
        "labels": folder / "annotations" / "action_list.pbtxt",
        "video_list": folder / "annotations" / "video_names.txt",
    }
    for split in videos:
        stem = folder / "annotations" / f"ava_{split}_v2.2"
        paths[f"{split}_gt"] = stem.with_name(f"{stem.name}.csv")
        paths[f"{split}_annotations"] = stem.with_name(f"{stem.name}_min.json")
        paths[f"{split}_excluded"] = folder / "annotations" / f"ava_{split}_excluded_timestamps_v2.2.csv"
    if "val" in videos:
        paths["people"] = folder / "boxes" / "ava_val_det_person_bbox.json"
    return paths


def _write_video(clips: Path, name: str, pictures: NDArray[np.uint8], whole: bool) -> None:
    (clips if whole else clips / name).mkdir(parents=True, exist_ok=True)
    if whole:
        write_clip(clips / f"{name}.mp4", pictures)
        return
    for second in range(len(pictures) // FPS):
        write_clip(clips / name / f"{FIRST_SECOND + second}.mp4", pictures[second * FPS : (second + 1) * FPS])


def _rows(name: str, scenes: Sequence[Sequence[Figure]]) -> list[str]:
    rows = []
    for second, figures in enumerate(scenes[1:], FIRST_SECOND + 1):
        for person, (figure, labels) in enumerate(zip(figures, actions(figures), strict=True)):
            x1, y1, x2, y2 = figure.box()
            box = f"{x1 / WIDTH:.3f},{y1 / HEIGHT:.3f},{(x2 + 1) / WIDTH:.3f},{(y2 + 1) / HEIGHT:.3f}"
            rows += [f"{name},{second:04d},{box},{label},{person}\n" for label in labels]
    return rows


def _people(content: dict[str, Any], seed: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng((seed, len(SPLITS)))
    entries = []
    for person in content["annotations"]:
        x, y, w, h = person["bbox"] + rng.normal(scale=0.5, size=4)
        true = [x, y, w, h], rng.uniform(0.85, 0.99)
        wrong = [*rng.uniform(0, (WIDTH - 24, HEIGHT - 24)), *rng.uniform(10, 24, size=2)], rng.uniform(0.1, 0.7)
        for box, score in (true, wrong):
            entries.append(
                {
                    "image_id": person["image_id"],
                    "category_id": 1,
                    "bbox": [round(float(value), 2) for value in box],
                    "score": round(float(score), 4),
                }
            )
    return entries


def still(figure: Figure) -> Figure:
    """The same figure without its motion; its key frame is the same."""
    return replace(figure, motion=7)
