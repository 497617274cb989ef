"""Zips of frames: packed from folders of pictures, and checked frame by frame, many at a time.

Knows where labels say which frames there are, and nothing else of them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dsvid.data.decode import FRAME_SUFFIXES
from dsvid.data.guarded_work import GivenUp, run_guarded
from dsvid.data.traffic import ClipReader, open_labels
from dsvid.data.zip_frames import ZipFrames, is_picture, natural_key, write_zip
from dsvid.errors import DataError
from dsvid.publish import publish_file

LIMIT_S = 600.0  # for one clip

# ---- pack ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Packed:
    """What became of a folder of pictures: the zip, its frames, whether it was there already."""

    archive: Path
    frames: int
    already: bool


def find_folders(root: Path) -> list[tuple[Path, Path]]:
    """(folder that holds pictures, its zip) below a root: `a/images/*.jpg` and `a/*.jpg` both go to `a/images.zip`."""
    found = []
    for folder, below, files in os.walk(root):
        below.sort()
        if any(is_picture(name) for name in files):
            path = Path(folder)
            found.append((path, (path.parent if path.name == "images" else path) / "images.zip"))
    if not found:
        raise DataError(f"{root}: no folder with pictures", expected=", ".join(sorted(FRAME_SUFFIXES)))
    claimed: dict[Path, Path] = {}
    for folder_path, archive in found:
        if archive in claimed:
            raise DataError(f"{archive}: two folders would go into it", found=f"{claimed[archive]} and {folder_path}")
        claimed[archive] = folder_path
    return found


def pack_folder(folder: Path, archive: Path) -> Packed:
    """Write the pictures of a folder into a zip, stored, in natural order; the folder is kept.

    Other files (Thumbs.db) are left out. A zip that is there already is kept if it holds these pictures, else it is an
    error. Raises DataError.
    """
    names = sorted(filter(is_picture, os.listdir(folder)), key=natural_key)
    if archive.exists():
        zips = ZipFrames(1, 1)
        differing = [name for name in names if (folder / name).stat().st_size != zips.size(archive, name)]
        if differing or zips.count(archive) != len(names):
            raise DataError(
                f"{archive} is there already with other pictures than {folder}",
                found=f"{zips.count(archive)} pictures, {len(names)} in the folder, "
                f"of other size: {', '.join(differing[:3]) or 'none'}",
                fix="remove the one that is wrong",
            )
        return Packed(archive, len(names), already=True)
    publish_file(archive, lambda out: write_zip(out, ((name, (folder / name).read_bytes()) for name in names)))
    return Packed(archive, len(names), already=False)


def pack_all(root: Path, jobs: int = 1) -> Iterator[Packed]:
    """Pack every folder of pictures below a root, in their order. Raises DataError, OSError."""
    pairs = find_folders(root)
    # copied, not decoded: it takes what the disk takes
    results = run_guarded(lambda place: pack_folder(*pairs[place]), range(len(pairs)), jobs, limit_s=0)
    for (folder, _), result in zip(pairs, results, strict=True):
        if isinstance(result, GivenUp):
            raise DataError(told(folder, result))
        yield result


# ---- check ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Checked:
    """What was found in a clip: how many frames, and its faults, each naming file and member."""

    name: str
    frames: int
    faults: tuple[str, ...]


def check_clips(
    layout: str, root: Path, split: str, *, jobs: int = 1, decode: bool = True, limit_s: float = LIMIT_S
) -> Iterator[Checked]:
    """Look at every clip of a labelled list: its annotation, its zip, whether both name the same frames, every frame.

    `jobs` clips at a time, each for `limit_s` at most. Without `decode` only the directories of the zips are read.
    Raises DataError where the list itself is broken.
    """
    names, read = open_labels(layout, root, split)
    results = run_guarded(lambda place: _check_labelled(read, decode, names[place]), range(len(names)), jobs, limit_s)
    for name, result in zip(names, results, strict=True):
        yield Checked(name, 0, (told(name, result),)) if isinstance(result, GivenUp) else result


def _check_labelled(read: ClipReader, decode: bool, name: str) -> Checked:
    try:
        clip = read(name)
    except DataError as error:
        return Checked(name, 0, (one_line(error),))
    found = check_zip(decode, clip.archive)
    if not found.frames:
        return Checked(name, 0, found.faults)
    in_zip = set(ZipFrames(1, 1).names(clip.archive))
    faults = [_names_differ(clip.archive, "missing from the zip", set(clip.frames) - in_zip),
              _names_differ(clip.archive, "without a label", in_zip - set(clip.frames))]  # fmt: skip
    return Checked(name, found.frames, (*clip.disagreements, *filter(None, faults), *found.faults))


def _names_differ(archive: Path, what: str, names: set[str]) -> str:
    shown = sorted(names, key=natural_key)
    more = f" and {len(shown) - 5} more" if len(shown) > 5 else ""
    return f"{archive}: {len(shown)} frames {what}: {', '.join(shown[:5])}{more}" if shown else ""


def check_zip(decode: bool, archive: Path) -> Checked:
    """Every frame of a zip by itself; without `decode` its directory only."""
    zips = ZipFrames(1, 1)
    try:
        names = zips.names(archive)
    except DataError as error:
        return Checked(str(archive), 0, (one_line(error),))
    faults: list[str] = []
    size: tuple[int, ...] | None = None
    for name in names if decode else ():
        try:
            shape = zips.read(archive, [name]).shape[1:3]
        except DataError as error:
            faults.append(one_line(error))
            continue
        size = size or shape
        if shape != size:
            faults.append(f"{archive}: frame {name}: {shape[1]} x {shape[0]} pixels, others {size[1]} x {size[0]}")
    return Checked(str(archive), len(names), tuple(faults))


def told(what: object, given_up: GivenUp) -> str:
    """What is said of a clip on which the work came to no end."""
    return f"{what}: {given_up.cause}: {given_up}"


def one_line(error: DataError) -> str:
    """An error without its line breaks."""
    return " ".join((error.what if error.found is None else f"{error.what}: {error.found}").split())
