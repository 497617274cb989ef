"""Lists made from traffic data: splits, halves of them, the table of frames that per-category measures join with.

Knows the layouts of DoTA, DADA-2000 and CAP-DATA. What is written appears whole or not at all.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from dsvid.data.traffic import DOTA_METADATA, TrafficClip, open_labels, read_object
from dsvid.data.zip_frames import natural_key
from dsvid.errors import DataError
from dsvid.publish import publish_text

TABLE_COLUMNS = ("", "clip", "filename", "cat", "ego", "night", "clip_lvl_cat", "clip_lvl_ego")
SPLIT_LISTS = {
    "dota": ("dataset/train_split.txt", "dataset/val_split.txt"),
    "dada": ("DADA2K_my_split/training.txt", "DADA2K_my_split/validation.txt"),
    "capdata": ("CAPDATA_my_split/training.txt", "CAPDATA_my_split/validation.txt"),
}


# ---- split lists ---------------------------------------------------------------------------------------------------


def make_split(layout: str, root: Path, *, val_share: float | None = None, seed: int = 0) -> dict[Path, list[str]]:
    """Clip names of the two lists of a layout (see SPLIT_LISTS); writes nothing.

    DoTA's come from its metadata unless `val_share` is given; others, and those, by chance: that share of every
    category (rounded), the same for the same seed whatever the order of the file system. Raises DataError.
    """
    lists = [root / name for name in SPLIT_LISTS[layout]]
    if layout == "dota" and val_share is None:
        return {path: list(read_object(root / "dataset" / DOTA_METADATA[path.name])) for path in lists}
    share = 0.0 if val_share is None else val_share
    if not 0 <= share < 1:
        raise DataError("the share of validation", found=share, expected="from 0 to below 1")
    groups = _clips_by_category(layout, root)
    train: list[str] = []
    val: list[str] = []
    for category in sorted(groups):
        names = sorted(groups[category], key=natural_key)
        chosen = set(_draw(len(names), round(share * len(names)), seed, category))
        for place, name in enumerate(names):
            (val if place in chosen else train).append(name)
    return dict(zip(lists, (sorted(train, key=natural_key), sorted(val, key=natural_key)), strict=True))


def _clips_by_category(layout: str, root: Path) -> dict[int, list[str]]:
    groups: dict[int, list[str]] = {}
    if layout == "dota":
        for path in (root / "dataset" / "annotations").glob("*.json"):
            number = read_object(path).get("accident_id")
            groups.setdefault(number if isinstance(number, int) else 0, []).append(path.stem)
    else:
        for path in (root / "frames").glob("*/*/images.zip"):
            kind, video = path.parts[-3:-1]
            groups.setdefault(int(kind) if kind.isdigit() else 0, []).append(f"{kind}/{video}")
    if not groups:
        place = "dataset/annotations/*.json" if layout == "dota" else "frames/<type>/<video>/images.zip"
        raise DataError(f"{root}: no clips", expected=place, fix="name the folder that holds them")
    return groups


def halve_split(layout: str, root: Path, split: str, *, seed: int = 0) -> list[str]:
    """Half of the clips of a list, rounded down, by chance within each category; a category of one clip stays whole.

    In the order of the list; the choice does not depend on that order. Raises DataError.
    """
    names, read = open_labels(layout, root, split)
    groups: dict[int, list[str]] = {}
    for name in names:
        groups.setdefault(read(name).kind, []).append(name)
    kept: set[str] = set()
    for category, members in groups.items():
        ordered = sorted(members)
        kept.update(ordered[place] for place in _draw(len(ordered), max(1, len(ordered) // 2), seed, category))
    return [name for name in names if name in kept]


def _draw(count: int, wanted: int, seed: int, category: int) -> list[int]:
    places: list[int] = np.random.default_rng((seed, category)).permutation(count)[:wanted].tolist()
    return places


def write_list(path: Path, names: Iterable[str]) -> None:
    """One name a line."""
    publish_text(path, _lines(names))


def write_lists(lists: Mapping[Path, Sequence[str]], *, replace: bool) -> None:
    """The lists of a split, an empty one not at all; with `replace` it is removed where it is there.

    Raises DataError, before any is written, where another list is there and must not be replaced: two lists of
    different splits would share clips.
    """
    for path, names in lists.items():
        if not replace and path.exists() and path.read_bytes() != _lines(names).encode():
            raise DataError(f"{path} is there already with other clips", expected="no list", fix="--force replaces it")
    for path, names in lists.items():
        if names:
            write_list(path, names)
        elif path.exists():
            path.unlink()


def _lines(names: Iterable[str]) -> str:
    return "".join(f"{name}\n" for name in names)


# ---- the table of frames -------------------------------------------------------------------------------------------


def write_table(path: Path, clips: Iterable[TrafficClip]) -> tuple[int, int]:
    """One row a frame for `metrics.anomaly_groups`; returns how many clips and frames.

    `cat` is the accident's number in anomalous frames, else 0; `ego` is 1 in anomalous frames of clips with ego;
    `clip_lvl_cat` is DoTA's code, DADA-2000's type.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(TABLE_COLUMNS)
    count = row = 0
    for clip in clips:
        count += 1
        category = clip.category or clip.kind
        for name, label in zip(clip.frames, clip.labels.tolist(), strict=True):
            flags = (clip.kind * label, int(clip.ego) * label, int(clip.night))
            writer.writerow((row, clip.name, Path(name).name, *flags, category, clip.ego))
            row += 1
    publish_text(path, text.getvalue())
    return count, row
