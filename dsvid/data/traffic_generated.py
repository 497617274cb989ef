"""A small driving set in DoTA's or DADA-2000's layout: cars on a scrolling road; in half of the clips one misbehaves.

Seen from above, everything lives on a torus and starts uniform, and motion does not depend on place: a single frame
has the same distribution before, in and without an anomaly, by construction. An anomaly is a motion: another car
swerves or stops, or the own car does. Slow lane changes are in all clips. Random numbers of a clip depend on (seed,
split, number) only.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dsvid.data.traffic import DADA_FPS, DOTA_ACCIDENT_IDS, DOTA_FPS
from dsvid.data.zip_frames import write_zip
from dsvid.errors import DataError
from dsvid.publish import publish_file, publish_text

SIZE = 64  # pixels, both sides
TENTHS = (44, 56)  # length of a clip in tenths of a second
SPLITS = ("train", "val")
LANE, DASH = 16, 16  # pixels from lane mark to lane mark, from dash to dash: both divide SIZE
LAYOUTS = {"dota": DOTA_FPS, "dada": DADA_FPS}

# (own car, what it does): DoTA's category, DADA's type
KINDS = {
    (False, "swerve"): ("lateral", 24),
    (False, "stop"): ("start_stop_or_stationary", 43),
    (True, "swerve"): ("lateral", 5),
    (True, "stop"): ("start_stop_or_stationary", 11),
}
DADA_HEADER = (
    "video",
    "weather(sunny,rainy,snowy,foggy)1-4",
    "light(day,night)1-2",
    "type",
    "whether an accident occurred (1/0)",
    "abnormal start frame",
    "accident frame",
    "abnormal end frame",
    "total frames",
    "texts",
)

Array = NDArray[np.float64]
Array32 = NDArray[np.float32]


@dataclass(frozen=True)
class Car:
    """A car's centre on the screen in pixels, [T] each, before it is brought back to the torus; its look by number."""

    x: Array
    y: Array
    width: float
    length: float
    look: int


@dataclass(frozen=True)
class Drive:
    """What a clip shows: shift of the road in pixels [T], cars, labels [T] (1 = the step to this frame is anomalous).

    `ego` and `deed` are those of the anomaly; a clip without one carries those of the clip after it, so that every
    group of clips holds both.
    """

    road_x: Array
    road_y: Array
    cars: tuple[Car, ...]
    labels: NDArray[np.int64]
    ego: bool
    deed: str
    night: bool


# ---- motion --------------------------------------------------------------------------------------------------------


def draw_drive(seed: int, split: str, number: int, fps: int = DOTA_FPS) -> Drive:
    """The drive of a clip; odd numbers have an anomaly. Speeds are pixels in a tenth of a second, whatever the rate."""
    ego, deed = list(KINDS)[int(np.random.default_rng((seed, SPLITS.index(split), number // 2, 2)).integers(4))]
    rng = np.random.default_rng((seed, SPLITS.index(split), number, 0))
    tick = 10 / fps
    frames = round(int(rng.integers(*TENTHS, endpoint=True)) / tick)
    inside = _draw_interval(rng, frames, tick) & (number % 2 == 1)
    speed = rng.uniform(2.4, 3.4)
    own_forward, own_side = np.full(frames, speed), _lane_changes(rng, frames, tick)
    cars = []
    for place in range(int(rng.integers(1, 3))):
        forward, side = np.full(frames, speed + rng.uniform(-0.4, 0.4)), _lane_changes(rng, frames, tick)
        if place == 0 and not ego:
            forward, side = _misbehave(rng, deed, inside, forward, side, tick)
        cars.append((forward, side))
    if ego:
        own_forward, own_side = _misbehave(rng, deed, inside, own_forward, own_side, tick)
    shake = rng.normal(scale=0.08, size=(2, frames))
    own_forward, own_side = own_forward + shake[0], own_side + shake[1]
    return Drive(
        road_x=_travel(rng, -own_side, tick),
        road_y=_travel(rng, own_forward, tick),
        cars=tuple(
            Car(
                x=_travel(rng, side - own_side, tick),
                y=_travel(rng, own_forward - forward, tick),
                width=rng.uniform(14, 18),
                length=rng.uniform(20, 26),
                look=int(rng.integers(1 << 30)),
            )
            for forward, side in cars
        ),
        labels=inside.astype(np.int64),
        ego=ego,
        deed=deed,
        night=bool(rng.random() < 0.25),
    )


def _draw_interval(rng: np.random.Generator, frames: int, tick: float) -> NDArray[np.bool_]:
    start = int(rng.uniform(0.2, 0.4) * frames)
    length = round(int(rng.integers(20, 29)) / tick)
    time = np.arange(frames)
    return (time >= start) & (time < start + length)


def _lane_changes(rng: np.random.Generator, frames: int, tick: float) -> Array:
    """Slow sideways speed [T], at 0.3 to 0.6 pixels in a tenth of a second, half of the time."""
    time, side, at = np.arange(frames) * tick, np.zeros(frames), rng.uniform(-20, 10)
    while at < frames * tick:
        last = at + rng.uniform(12, 24)
        side[(time >= at) & (time < last)] = rng.choice([-1, 1]) * rng.uniform(0.3, 0.6)
        at = last + rng.uniform(6, 30)
    return side


def _misbehave(
    rng: np.random.Generator, deed: str, inside: NDArray[np.bool_], forward: Array, side: Array, tick: float
) -> tuple[Array, Array]:
    """(forward, sideways) speeds [T] with the deed in them where `inside`."""
    swerve = rng.choice([-1, 1]) * rng.uniform(3.4, 4.4)
    # to and fro: a swerve to one side for more than a second would be a new lane
    turned = np.cumsum(inside) * tick // rng.uniform(7, 12) % 2 == 1
    if deed == "stop":
        return np.where(inside, 0.0, forward), np.where(inside, 0.0, side)
    return forward, np.where(inside, np.where(turned, -swerve, swerve), side)


def _travel(rng: np.random.Generator, speed: Array, tick: float) -> Array:
    """Places [T] from a uniform start; speed t leads from frame t-1 to frame t."""
    way: Array = rng.uniform(0, SIZE) + np.cumsum(speed) * tick
    return way


# ---- pictures ------------------------------------------------------------------------------------------------------


def render(seed: int, split: str, number: int, drive: Drive) -> NDArray[np.uint8]:
    """All frames of a drive, uint8 [T, SIZE, SIZE, 3]."""
    rng = np.random.default_rng((seed, SPLITS.index(split), number, 1))
    pictures = _shift(_paint_road(rng), drive.road_x, drive.road_y)
    for car in reversed(drive.cars):  # the first one, which may misbehave, is not hidden by another
        _paint_car(pictures, car)
    pictures *= np.float32(0.45 if drive.night else 1.0)
    pictures += rng.normal(scale=2, size=(len(pictures), 1, 1, 1)).astype(np.float32)
    pictures += 2 * rng.standard_normal((*pictures.shape[:3], 1), dtype=np.float32)
    return np.clip(np.rint(pictures), 0, 255).astype(np.uint8)


def _paint_road(rng: np.random.Generator) -> Array32:
    """Patched asphalt with dashed lane marks, float32 [SIZE, SIZE, 3], without seams."""
    rough = rng.normal(size=(16, 16, 1)).repeat(4, axis=0).repeat(4, axis=1) * rng.uniform(9, 14)
    fine = rng.normal(scale=7, size=(SIZE, SIZE, 1))
    road = np.full((SIZE, SIZE, 3), rng.uniform(70, 120)) + rng.normal(scale=4, size=3) + rough + fine
    across, along = np.meshgrid(np.arange(SIZE), np.arange(SIZE))
    road[(across % LANE < 2) & (along % DASH < 9)] = rng.uniform(190, 240)
    return road.astype(np.float32)


def _shift(road: Array32, x: Array, y: Array) -> Array32:
    """The road moved by (x, y) pixels for each frame, [T, SIZE, SIZE, 3], bilinear on the torus."""
    moved = np.empty((len(x), *road.shape), dtype=np.float32)
    ring = np.pad(road, ((0, 1), (0, 1), (0, 0)), mode="wrap")
    for frame, (low_x, low_y) in enumerate(zip(np.floor(-x), np.floor(-y), strict=True)):
        right, down = np.float32(-x[frame] - low_x), np.float32(-y[frame] - low_y)
        across = ring[:, :-1] * (1 - right) + ring[:, 1:] * right
        between = across[:-1] * (1 - down) + across[1:] * down
        moved[frame] = np.roll(between, (-int(low_y) % SIZE, -int(low_x) % SIZE), axis=(0, 1))
    return moved


def _paint_car(pictures: Array32, car: Car) -> None:
    """A bar with spots and a dark windscreen in front, over the pictures in place.

    Spots, not stripes: motion along stripes does not show.
    """
    rng = np.random.default_rng(car.look)
    body, spot = rng.uniform(20, 240, size=(2, 3)).astype(np.float32)
    along, across = rng.uniform(1.5, 3), rng.uniform(1, 2)
    phases = rng.uniform(0, 2 * np.pi, size=2)
    columns, rows = np.arange(-10, 11), np.arange(-14, 15)  # farther from the centre than half of any car
    for picture, x, y in zip(pictures, car.x, car.y, strict=True):
        u = (columns + round(x) - x).astype(np.float32)[None, :]
        v = (rows + round(y) - y).astype(np.float32)[:, None]
        cover = np.clip(car.width / 2 - abs(u) + 0.5, 0, 1) * np.clip(car.length / 2 - abs(v) + 0.5, 0, 1)
        waves = np.sin(2 * np.pi * along * v / car.length + phases[0]) * np.sin(
            2 * np.pi * across * u / car.width + phases[1]
        )
        share = (0.5 + 0.5 * waves)[..., None].astype(np.float32)
        colour = np.where((abs(v + car.length / 4) < 1.5)[..., None], np.float32(15), body + share * (spot - body))
        place = np.ix_((rows + round(y)) % SIZE, (columns + round(x)) % SIZE)
        picture[place] += cover[..., None] * (colour - picture[place])


# ---- files ---------------------------------------------------------------------------------------------------------


def make_set(folder: Path, clips: Mapping[str, int], *, layout: str = "dota", seed: int = 0) -> dict[str, Path]:
    """Write zips, annotations and split lists; returns the lists by split. The same bytes at every call.

    `clips`: how many of `train` and `val`. Raises DataError for what makes no set, OSError where it cannot be written.
    """
    if layout not in LAYOUTS or not clips or not set(clips) <= set(SPLITS) or min(clips.values()) < 2:
        raise DataError(
            "a generated driving set", found=f"layout {layout}, {dict(clips)}",
            expected=f"{' or '.join(LAYOUTS)}; train and val with at least two clips each",
        )  # fmt: skip
    return (_make_dota if layout == "dota" else _make_dada)(folder, clips, seed)


def _make_dota(folder: Path, clips: Mapping[str, int], seed: int) -> dict[str, Path]:
    lists = {}
    for split, count in clips.items():
        names, metadata = [], {}
        for number in range(count):
            drive = draw_drive(seed, split, number)
            name = f"generated-{split}_{number:06d}"
            _pack(folder / "frames" / name / "images.zip", render(seed, split, number, drive), "{:06}.jpg", 0)
            annotation = _dota_annotation(name, drive)
            publish_text(folder / "dataset" / "annotations" / f"{name}.json", json.dumps(annotation) + "\n")
            group = f"{'ego' if drive.ego else 'other'}: {_category(drive)}"
            metadata[name] = {"anomaly_class": group, "num_frames": len(drive.labels), "subset": split}
            names.append(name)
        publish_text(folder / "dataset" / f"metadata_{split}.json", json.dumps(metadata, indent=1) + "\n")
        lists[split] = folder / "dataset" / f"{split}_split.txt"
        publish_text(lists[split], "".join(f"{name}\n" for name in names))
    return lists


def _category(drive: Drive) -> str:
    return KINDS[drive.ego, drive.deed][0]


def _dota_annotation(name: str, drive: Drive) -> dict[str, Any]:
    category = _category(drive)
    number, inside = DOTA_ACCIDENT_IDS[category], np.flatnonzero(drive.labels)
    return {
        "video_name": name,
        "num_frames": len(drive.labels),
        "anomaly_start": int(inside[0]) if len(inside) else None,
        "anomaly_end": int(inside[-1]) + 1 if len(inside) else None,
        "accident_id": number,
        "accident_name": category,
        "ego_involve": drive.ego,
        "night": drive.night,
        "labels": [
            {
                "frame_id": frame,
                "image_path": f"frames/{name}/images/{frame:06}.jpg",
                "accident_id": number * label,
                "accident_name": category if label else "normal",
                "objects": [],
            }
            for frame, label in enumerate(drive.labels.tolist())
        ],
    }


def _make_dada(folder: Path, clips: Mapping[str, int], seed: int) -> dict[str, Path]:
    rows, lists, numbered = [], {}, dict.fromkeys((kind for _, kind in KINDS.values()), 0)
    for split, count in clips.items():
        names = []
        for number in range(count):
            drive = draw_drive(seed, split, number, DADA_FPS)
            kind = KINDS[drive.ego, drive.deed][1]
            numbered[kind] += 1
            names.append(f"{kind}/{numbered[kind]:03d}")
            _pack(folder / "frames" / names[-1] / "images.zip", render(seed, split, number, drive), "{:04}.png", 1)
            inside = np.flatnonzero(drive.labels)
            # frames are numbered from 1 on here, as in the release
            first, last = (int(inside[0]) + 1, int(inside[-1]) + 1) if len(inside) else (-1, -1)
            rows.append([numbered[kind], 1, 2 if drive.night else 1, kind, int(len(inside) > 0),
                         first, first, last, len(drive.labels), f"[CLS]{drive.deed}[SEP]"])  # fmt: skip
        lists[split] = folder / "DADA2K_my_split" / {"train": "training.txt", "val": "validation.txt"}[split]
        publish_text(lists[split], "".join(f"{name}\n" for name in names))
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerows([DADA_HEADER, *rows])
    publish_text(folder / "annotation" / "full_anno.csv", table.getvalue())
    return lists


def _pack(path: Path, pictures: NDArray[np.uint8], name: str, first: int) -> None:
    members = {}
    for number, picture in enumerate(pictures, first):
        data = io.BytesIO()
        Image.fromarray(picture).save(data, "PNG" if name.endswith("png") else "JPEG", quality=90)
        members[name.format(number)] = data.getvalue()
    publish_file(path, lambda out: write_zip(out, members.items()))
