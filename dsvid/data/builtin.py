"""The built-in clips: small H.264 files of eight classes that differ by motion only, made once per machine.

Every state of the camera lives on a circle or a torus and starts uniform, so a single frame has the same distribution
in every class; opposite classes are time reversals of each other. Random numbers of a clip depend on its number alone:
train clip i has number i, val clip i 2*10^6 + i, test clip i 3*10^6 + i. Labels cycle: clip number modulo 8.
"""

from __future__ import annotations

import math
import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from dsvid.data.made_once import cache_folder, made_once
from dsvid.errors import DataError

CLASSES = ("left", "right", "up", "down", "cw", "ccw", "zoomin", "zoomout")
REVERSED = (1, 0, 3, 2, 5, 4, 7, 6)  # class of the same clip played backwards
COUNTS = {"train": 1600, "val": 200, "test": 400}
FIRST_NUMBER = {"train": 0, "val": 2_000_000, "test": 3_000_000}
LABELLED = 160  # the first 160 training clips hold 20 of each class
VERSION = "2"  # raise it with every change that alters a pixel: old caches are then left alone

SIZE = 80  # decord 0.6.0 cannot read widths 48 and 72
FRAMES = 20
FPS = 12
CANVAS = 192
ZOOM_HALF = 0.5 * math.log(2.2)  # log-zoom lives on the circle [-ZOOM_HALF, ZOOM_HALF)

Array = NDArray[np.float64]
Array32 = NDArray[np.float32]  # pictures: half the cost of float64


@dataclass(frozen=True)
class Scene:
    """What one clip shows: appearance by `number`, motion by the arrays, each [FRAMES].

    x, y: canvas pixel under the centre of the frame; angle in rad, log_zoom (greater = nearer); brightness in levels;
    sprite_*: the foreground shape that crosses the screen, in screen pixels and rad.
    """

    number: int
    label: int
    x: Array
    y: Array
    angle: Array
    log_zoom: Array
    brightness: Array
    sprite_x: Array
    sprite_y: Array
    sprite_angle: Array


def draw_scene(number: int, label: int) -> Scene:
    """The scene of a clip; a pure function of its number and label."""
    rng = np.random.default_rng((number, 0))
    steps = FRAMES - 1
    shake = rng.normal(size=(3, steps)) * np.array([[0.25], [0.25], [0.004]])
    start_x, start_y = rng.uniform(0, CANVAS, size=2)
    start_angle, heading, sprite_start = rng.uniform(-math.pi, math.pi, size=3)
    start_zoom = rng.uniform(-ZOOM_HALF, ZOOM_HALF)
    pan, roll = rng.uniform(1.2, 3.2), math.radians(rng.uniform(3, 7))
    zoom, spin = math.log(1 + rng.uniform(0.03, 0.06)), rng.uniform(-0.1, 0.1)
    sprite_speed = rng.uniform(0, 2.5)
    sprite_xy = rng.uniform(0, SIZE, size=2)
    brightness = rng.normal(size=FRAMES) * 2

    name = CLASSES[label]
    turn = {"cw": -roll, "ccw": roll}.get(name, 0.0)
    nearer = {"zoomin": zoom, "zoomout": -zoom}.get(name, 0.0)
    # the camera goes the other way than the content: content to the left = camera to the right
    side, rise = {"left": (pan, 0.0), "right": (-pan, 0.0), "up": (0.0, pan), "down": (0.0, -pan)}.get(name, (0.0, 0.0))
    time_axis = np.arange(FRAMES, dtype=np.float64)
    angle = start_angle + np.concatenate([[0.0], np.cumsum(turn + shake[2])])
    log_zoom: Array = (start_zoom + nearer * time_axis + ZOOM_HALF) % (2 * ZOOM_HALF) - ZOOM_HALF
    # the angle half-way between two frames keeps the law of motion the same when time runs backwards
    between, scale = (angle[1:] + angle[:-1]) / 2, math.exp(-start_zoom)
    step_x = scale * (np.cos(between) * side - np.sin(between) * rise) + shake[0]
    step_y = scale * (np.sin(between) * side + np.cos(between) * rise) + shake[1]
    return Scene(
        number=number,
        label=label,
        x=start_x + np.concatenate([[0.0], np.cumsum(step_x)]),
        y=start_y + np.concatenate([[0.0], np.cumsum(step_y)]),
        angle=angle,
        log_zoom=log_zoom,
        brightness=brightness,
        sprite_x=sprite_xy[0] + math.cos(heading) * sprite_speed * time_axis,
        sprite_y=sprite_xy[1] + math.sin(heading) * sprite_speed * time_axis,
        sprite_angle=sprite_start + spin * time_axis,
    )


def play_backwards(scene: Scene) -> Scene:
    """The same scene with time reversed: a scene of the opposite class."""
    arrays = {
        name: getattr(scene, name)[::-1].copy()
        for name in ("x", "y", "angle", "log_zoom", "brightness", "sprite_x", "sprite_y", "sprite_angle")
    }
    return replace(scene, label=REVERSED[scene.label], **arrays)


def render(scene: Scene, frames: Sequence[int] = tuple(range(FRAMES))) -> NDArray[np.uint8]:
    """The pictures of a scene, uint8 [len(frames), SIZE, SIZE, 3]."""
    rng = np.random.default_rng((scene.number, 1))
    picked = np.asarray(frames)
    pictures = _look_through_camera(_paint_canvas(rng), scene, picked)
    _draw_sprite(pictures, scene, picked, rng)
    pictures += scene.brightness[picked, None, None, None].astype(np.float32)
    return np.clip(np.rint(pictures), 0, 255).astype(np.uint8)


def _paint_canvas(rng: np.random.Generator) -> Array32:
    """A periodic picture, float32 [CANVAS, CANVAS, 3] in levels: smooth noise and 14 striped shapes."""
    cells = int(rng.integers(10, 20))
    noise = (rng.normal(size=(cells, cells, 1)) + 0.5 * rng.normal(size=(cells, cells, 3))).astype(np.float32)
    # plain indexing and not a matrix product: BLAS would start its own threads in every helper process
    place = np.arange(CANVAS) * cells / CANVAS
    low = place.astype(int)
    share = (place - low).astype(np.float32)[:, None, None]
    rows = noise[low] * (1 - share) + noise[(low + 1) % cells] * share
    columns = rows.transpose(1, 0, 2)
    smooth = (columns[low] * (1 - share) + columns[(low + 1) % cells] * share).transpose(1, 0, 2)
    canvas: Array32 = (rng.uniform(60, 190, size=3)).astype(np.float32) + rng.uniform(18, 32) * smooth
    for _ in range(14):
        _paint_shape(canvas, rng)
    return canvas


def _paint_shape(canvas: Array32, rng: np.random.Generator) -> None:
    """Paint one shape that no small turn maps to itself, in two-colour sine stripes, across the seams of the canvas."""
    radius = rng.uniform(8, 20)
    centre = rng.uniform(0, CANVAS, size=2)
    half = math.ceil(radius * 2.2)
    base = np.floor(centre).astype(int)
    axis = np.arange(-half, half + 1)
    turn = rng.uniform(-math.pi, math.pi)
    dy = (axis + base[0] - centre[0])[:, None].astype(np.float32)
    dx = (axis + base[1] - centre[1])[None, :].astype(np.float32)
    u = (dx * math.cos(turn) + dy * math.sin(turn)) / radius
    v = (dy * math.cos(turn) - dx * math.sin(turn)) / radius
    kind = rng.integers(4)
    if kind == 0:
        edge = _blob_edge(u, v, rng)
    elif kind == 1:
        edge = np.hypot(u, v / rng.uniform(0.35, 0.55))
    else:
        squeeze = math.sqrt(rng.uniform(1.7, 2.3))
        u, v = u / squeeze, v * squeeze
        triangle = np.maximum(v * 2, np.maximum(0.866 * u - 0.5 * v, -0.866 * u - 0.5 * v) * 2)
        edge = triangle if kind == 2 else np.maximum(abs(u), abs(v))
    cover = np.clip((1 - edge) * radius + 0.5, 0, 1)[..., None]

    first = rng.uniform(20, 235, size=3)
    second = np.clip(first + rng.choice([-1, 1], size=3) * rng.uniform(40, 90, size=3), 0, 255)
    slope, wavelength = rng.uniform(-math.pi, math.pi), rng.uniform(5, 10)
    wave = (dx * math.cos(slope) + dy * math.sin(slope)) * (2 * math.pi / wavelength) + rng.uniform(0, 2 * math.pi)
    middle, swing = ((first + second) / 2).astype(np.float32), ((second - first) / 2).astype(np.float32)
    colour = middle + swing * np.sin(wave)[..., None]
    window = np.ix_((axis + base[0]) % CANVAS, (axis + base[1]) % CANVAS)
    under = canvas[window]
    canvas[window] = under + cover * (colour - under)


def _blob_edge(u: Array32, v: Array32, rng: np.random.Generator) -> Array32:
    bearing = np.arctan2(v, u)
    reach = np.ones_like(bearing)
    for harmonic in (1, 2, 3):
        reach += rng.uniform(0.1, 0.25) * np.cos(harmonic * bearing + rng.uniform(0, 2 * math.pi))
    return np.asarray(np.hypot(u, v) / np.maximum(reach, 0.3), dtype=np.float32)


def _look_through_camera(canvas: Array32, scene: Scene, frames: NDArray[np.int64]) -> Array32:
    """Bilinear window on the periodic canvas for each frame, float32 [n, SIZE, SIZE, 3]."""
    # torch's sampler is 20 times faster than numpy indexing here, and the two are the bulk of a clip's cost
    ring = np.pad(canvas, ((0, 1), (0, 1), (0, 0)), mode="wrap")
    offsets = np.arange(SIZE) - (SIZE - 1) / 2
    scale = np.exp(-scene.log_zoom[frames])[:, None, None]
    cosine = np.cos(scene.angle[frames])[:, None, None] * scale
    sine = np.sin(scene.angle[frames])[:, None, None] * scale
    u, v = offsets[None, None, :], offsets[None, :, None]
    position = np.empty((len(frames), SIZE, SIZE, 2), dtype=np.float32)
    position[..., 0] = (scene.x[frames, None, None] + cosine * u) - sine * v
    position[..., 1] = (scene.y[frames, None, None] + sine * u) + cosine * v
    position -= np.floor(position * (1 / CANVAS)) * CANVAS
    grid = torch.from_numpy(position) * (2 / CANVAS) - 1
    source = torch.from_numpy(ring).permute(2, 0, 1)[None].expand(len(frames), -1, -1, -1)
    seen = torch.nn.functional.grid_sample(source, grid, mode="bilinear", padding_mode="border", align_corners=True)
    return np.ascontiguousarray(seen.permute(0, 2, 3, 1).numpy())


def _draw_sprite(pictures: Array32, scene: Scene, frames: NDArray[np.int64], rng: np.random.Generator) -> None:
    """Paint the two-tone foreground shape over the pictures, in place; the screen is its torus."""
    radius = rng.uniform(6, 11)
    half = math.ceil(radius * 1.8)
    axis = np.arange(-half, half + 1)
    base_x, base_y = np.floor(scene.sprite_x[frames]).astype(int), np.floor(scene.sprite_y[frames]).astype(int)
    dx = ((axis[None, :] + (base_x - scene.sprite_x[frames])[:, None]) / radius).astype(np.float32)[:, None, :]
    dy = ((axis[None, :] + (base_y - scene.sprite_y[frames])[:, None]) / radius).astype(np.float32)[:, :, None]
    angle = scene.sprite_angle[frames].astype(np.float32)[:, None, None]
    cosine, sine = np.cos(angle), np.sin(angle)
    u, v = dx * cosine + dy * sine, dy * cosine - dx * sine
    cover = np.clip((1 - _blob_edge(u, v, rng)) * radius + 0.5, 0, 1)[..., None]
    tones = rng.uniform(20, 235, size=(2, 3)).astype(np.float32)
    colour = np.where((u > 0)[..., None], tones[0], tones[1])
    rows = ((axis[None, :] + base_y[:, None]) % SIZE)[:, :, None]
    columns = ((axis[None, :] + base_x[:, None]) % SIZE)[:, None, :]
    place = (np.arange(len(frames))[:, None, None], rows, columns)
    under = pictures[place]
    pictures[place] = under + cover * (colour - under)


def write_clip(path: Path, pictures: NDArray[np.uint8]) -> None:
    """Encode uint8 [T, SIZE, SIZE, 3] as H.264 (veryfast, crf 23, a key frame every 12 frames, one thread)."""
    import av

    with av.open(str(path), "w") as container:
        # without mbtree: x264's vector code for it gives other bytes from run to run at this picture size
        options = {"crf": "23", "preset": "veryfast", "g": "12", "threads": "1", "x264-params": "no-mbtree=1"}
        stream = container.add_stream("libx264", rate=FPS, options=options)
        stream.width, stream.height, stream.pix_fmt = pictures.shape[2], pictures.shape[1], "yuv420p"
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


# ---- the cache folder ----------------------------------------------------------------------------------------------


def prepare(
    cache_dir: str | Path | None = None,
    workers: int | None = None,
    *,
    counts: dict[str, int] | None = None,
    log: Callable[[str], None] | None = None,
) -> Path:
    """The data-set root with train.csv, val.csv, test.csv and the clips; made at the first call on a machine.

    Safe when many processes call it together (`made_once`). `counts` (clips per split) makes a smaller set of its own
    for tests. Raises DataError where the cache cannot be written or a helper died.
    """
    parent = Path(cache_dir) if cache_dir is not None else cache_folder()
    sizes = dict(COUNTS) if counts is None else counts
    suffix = "" if sizes == COUNTS else "-" + "-".join(str(sizes[split]) for split in COUNTS)
    make = partial(_make, counts=sizes, workers=workers or _usable_cores())
    try:
        return made_once(
            parent / f"builtin-{VERSION}{suffix}", make, what=f"{sum(sizes.values())} built-in clips", log=log
        )
    except BrokenProcessPool as error:
        raise DataError(
            "a helper process died while it made the built-in clips",
            found=str(error),
            fix="start again; if it happens again, look for an out-of-memory kill in the kernel log",
        ) from error


def list_for(split: str) -> Path:
    """The list file of a split of the built-in clips, made if needed."""
    return prepare() / f"{split}.csv"


def _usable_cores() -> int:
    try:
        return max(1, min(8, len(os.sched_getaffinity(0))))
    except AttributeError:
        return max(1, min(8, os.cpu_count() or 1))


def _make(folder: Path, counts: dict[str, int], workers: int) -> None:
    jobs: list[tuple[int, int, str]] = []
    for split, count in counts.items():
        (folder / split).mkdir()
        names = [f"{split}/{i:05}.mp4" for i in range(count)]
        lines = [f"{name} {i % len(CLASSES)}\n" for i, name in enumerate(names)]
        (folder / f"{split}.csv").write_text("".join(lines), encoding="utf-8")
        jobs += [(FIRST_NUMBER[split] + i, i % len(CLASSES), name) for i, name in enumerate(names)]
    (folder / "classes.txt").write_text("".join(f"{name}\n" for name in CLASSES), encoding="utf-8")
    if workers == 1:
        for job in jobs:
            _make_clip(folder, job)
    else:
        # fork: a fresh interpreter needs 3 s to import torch, a third of all the work; the children use one thread
        # and neither CUDA nor a process group, so nothing of the parent's threads is needed in them
        kinds = multiprocessing.get_all_start_methods()
        context = multiprocessing.get_context("fork" if "fork" in kinds else "spawn")
        with ProcessPoolExecutor(workers, mp_context=context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            for _ in pool.map(partial(_make_clip, folder), jobs, chunksize=16):
                pass


def _make_clip(folder: Path, job: tuple[int, int, str]) -> None:
    number, label, name = job
    write_clip(folder / name, render(draw_scene(number, label)))
