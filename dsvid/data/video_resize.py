"""The videos of a list -> small H.264 files with key frames close together, in a folder of the same relative paths.

A file has its name only when it is whole; a record beside them says which video each was made from. Prints nothing.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dsvid.data import augment
from dsvid.data.decode import PyavSource, refuse_by_first_bytes
from dsvid.data.folder_lock import locked
from dsvid.data.guarded_work import GivenUp, run_guarded
from dsvid.data.manifest import Entry, Manifest, format_list
from dsvid.data.shard_samples import MAX_FPS, SPARE_FPS, thin
from dsvid.data.video_facts import MISSING
from dsvid.data.video_writer import open_writer
from dsvid.data.zip_packing import one_line
from dsvid.documents import DocumentError, read_json
from dsvid.errors import DataError
from dsvid.publish import publish_json, publish_path, publish_text

LIST, BAD, ABOUT = "list.csv", "bad.jsonl", "resize.json"
RECORD = "made.jsonl"  # a row for each file: its name, and path, size and time of the video it was made from
SCRATCH_MARK = ".mp4-"  # in the names of files that are being written


@dataclass(frozen=True)
class ResizeOptions:
    """How videos are coded anew; `gop` frames from key frame to key frame, `fps` None keeps every frame."""

    short_side: int = 320
    gop: int = 12
    crf: int = 20
    fps: float | None = None

    def check(self) -> None:
        """Raise DataError for values that make no sense."""
        for name, value, least, most in (
            ("--short-side", self.short_side, 16, 1 << 14),
            ("--gop", self.gop, 1, 100_000),
            ("--crf", self.crf, 0, 51),
        ):
            if not least <= value <= most:
                raise DataError(name, found=value, expected=f"{least} .. {most}")
        if self.short_side % 2:
            raise DataError("--short-side", found=self.short_side, expected="an even number, as H.264 has them")
        if self.fps is not None and not 0 < self.fps <= MAX_FPS:
            raise DataError("--fps", found=self.fps, expected=f"frames a second, more than 0, at most {MAX_FPS}")


@dataclass(frozen=True)
class Made:
    """What became of one video: `error` "" = written (or there already); bytes before and after."""

    path: str
    error: str = ""
    already: bool = False
    before: int = 0
    after: int = 0


class Resizing:
    """One list on its way into a folder. Raises DataError where the list or the folder cannot be used for that."""

    def __init__(self, manifest: Manifest, folder: Path, options: ResizeOptions) -> None:
        options.check()
        if manifest.packed:
            raise DataError(f"{manifest.source}: packed shards", expected="a list of videos")
        self.manifest, self.folder, self.options = manifest, folder, options
        self.entries = [manifest[number] for number in range(len(manifest))]
        self._refuse_what_fits_not()
        self.targets = target_names([entry.path for entry in self.entries], manifest.base)
        self.videos = list(self.targets)
        self._refuse_sources_as_targets()
        self._refuse_other_options()
        self._record = _read_record(self.folder / RECORD)
        self._refuse_other_sources()

    def _refuse_what_fits_not(self) -> None:
        for number, entry in enumerate(self.entries):
            place = f"{self.manifest.source}, line {self.manifest.line_number(number)}"
            # of a path without a suffix the list does not say what it is, unless it has a number of pictures
            if entry.kind == "frames" and (entry.total > 0 or os.path.isdir(entry.path)):
                file = os.path.isfile(entry.path)
                raise DataError(f"{place}: a {'file where the list promises a ' * file}folder of pictures",
                                expected="videos only", fix="" if file else "dsvid data pack takes it")  # fmt: skip
            if entry.total > 0 and self.options.fps is not None:
                raise DataError(f"{place}: a range of frames", found=f"--fps {self.options.fps:g}",
                                expected="the frames keep their numbers", fix="leave --fps out")  # fmt: skip

    def _refuse_sources_as_targets(self) -> None:
        sources = {os.path.realpath(path) for path in self.videos}
        for name in self.targets.values():
            if os.path.realpath(self.folder / name) in sources:
                raise DataError(f"{self.folder}: {name} would replace a video of the list", fix="another folder")
        if Path(self.manifest.source).resolve() == (self.folder / LIST).resolve():
            raise DataError(f"{self.folder / LIST} is the list itself", fix="another folder")

    def _refuse_other_options(self) -> None:
        if self.folder.exists() and not self.folder.is_dir():
            raise DataError(f"{self.folder} is a file", expected="a folder, or nothing there")
        about = self.folder / ABOUT
        if not about.exists():
            if self.folder.is_dir() and any(self.folder.iterdir()):
                raise DataError(f"{self.folder} is not empty", found="files of something else", fix="another folder")
            return
        try:
            found = read_json(about)["options"]
        except (DocumentError, OSError, KeyError, TypeError) as error:
            raise DataError(f"{about} cannot be read", found=error, fix="another folder") from error
        if found != asdict(self.options):
            raise DataError(f"{self.folder}: begun with other options", found=found, expected=asdict(self.options),
                            fix="the same options, or another folder")  # fmt: skip

    def _refuse_other_sources(self) -> None:
        for path, name in self.targets.items():
            known, source = self._record.get(name), os.path.realpath(path)
            if known is not None and known[0] != source:
                fix = f"another folder; to replace what is there, remove {self.folder / RECORD}"
                raise DataError(
                    f"{self.folder}: {name} was made from another video", found=known[0], expected=source, fix=fix
                )

    def run(self, workers: int, limit_s: float, tell: Callable[[Made], object] = lambda _: None) -> list[Made]:
        """Code what is missing anew, `workers` videos at a time, each for `limit_s` at most; then the list.

        `tell` hears of each video in the order of the list. Raises DataError, also where none could be read; OSError.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with locked(self.folder):
            publish_json(self.folder / ABOUT, {"options": asdict(self.options)})
            self._clear()
            rows = "".join(_record_row(name, source) for name, source in self._record.items())
            publish_text(self.folder / RECORD, rows)  # half a row of a call that was killed goes
            made = []
            results = run_guarded(self._make, range(len(self.videos)), workers, limit_s)
            for path, result in zip(self.videos, results, strict=True):
                made.append(Made(path, error=str(result)) if isinstance(result, GivenUp) else result)
                tell(made[-1])
            self._clear()
            self._publish(made)
        return made

    def _clear(self) -> None:
        for scratch in self.folder.rglob(f".*{SCRATCH_MARK}*"):  # of processes that were killed
            if scratch.is_file():
                scratch.unlink(missing_ok=True)

    def _make(self, number: int) -> Made:
        path = self.videos[number]
        target = self.folder / self.targets[path]
        try:
            facts = os.stat(path)
        except (OSError, ValueError):
            return Made(path, error=MISSING)
        source = (os.path.realpath(path), facts.st_size, facts.st_mtime_ns)
        if self._record.get(self.targets[path]) == source:
            with suppress(OSError):
                return Made(path, already=True, before=facts.st_size, after=target.stat().st_size)
        try:
            publish_path(target, lambda scratch: resize_video(path, scratch, self.options))
        except DataError as error:
            return Made(path, error=one_line(error).removeprefix(f"{path}: "))
        _append(self.folder / RECORD, _record_row(self.targets[path], source))
        return Made(path, before=facts.st_size, after=target.stat().st_size)

    def _publish(self, made: list[Made]) -> None:
        bad = {one.path: one.error for one in made if one.error}
        rows: list[dict[str, Any]] = []
        good: list[Entry] = []
        for number, entry in enumerate(self.entries):
            if entry.path in bad:
                line = self.manifest.line_number(number)
                rows.append({"line": line, "path": entry.path, "error": bad[entry.path]})
            else:
                good.append(Entry(self.targets[entry.path], entry.label, entry.start, entry.total, "video"))
        publish_text(self.folder / BAD, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        if not good:
            (self.folder / LIST).unlink(missing_ok=True)
            raise DataError(f"{self.manifest.source}: no video could be read", found=next(iter(bad.values())),
                            expected="videos", fix=f"see {self.folder / BAD}")  # fmt: skip
        publish_text(self.folder / LIST, format_list(good))


def target_names(paths: list[str], base: Path) -> dict[str, str]:
    """Each video -> its path in the new folder: as below `base`, or below what all videos have in common; .mp4."""
    plain = {path: os.path.normpath(path) for path in paths}
    root = os.path.normpath(base)
    if any(not PurePath(path).is_relative_to(root) for path in plain.values()):
        root = os.path.commonpath([os.path.dirname(path) for path in plain.values()])
    full = {path: os.path.relpath(each, root) for path, each in plain.items()}
    # videos may differ by their endings only, or by a letter case that a file system does not tell apart
    alike = Counter(_stem(name) for name in {*full.values()})
    names = {path: os.path.splitext(name)[0] if alike[_stem(name)] == 1 else name for path, name in full.items()}
    if len({name.casefold() for name in names.values()}) < len({*full.values()}):  # a.avi, a.mp4 and a.avi.mkv
        names = full
    return {path: f"{name}.mp4" for path, name in names.items()}


def _stem(name: str) -> str:
    return os.path.splitext(name)[0].casefold()


# ---- the record ----------------------------------------------------------------------------------------------------

Source = tuple[str, int, int]  # real path, bytes, time of its last change in ns


def _read_record(path: Path) -> dict[str, Source]:
    """File name -> what it was made from; a row that is not understood does not count: that file is made again."""
    found: dict[str, Source] = {}
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return found
    for line in lines:
        with suppress(ValueError, KeyError, TypeError, OverflowError):
            row = json.loads(line)
            name, source, size, changed = row["name"], row["source"], row["bytes"], row["mtime_ns"]
            if isinstance(name, str) and isinstance(source, str):
                found[name] = (source, int(size), int(changed))
    return found


def _record_row(name: str, source: Source) -> str:
    return json.dumps({"name": name, "source": source[0], "bytes": source[1], "mtime_ns": source[2]}) + "\n"


def _append(path: Path, row: str) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(handle, row.encode())  # in one piece: several processes append
    finally:
        os.close(handle)


# ---- one video -----------------------------------------------------------------------------------------------------


def resize_video(path: str, target: Path, options: ResizeOptions) -> None:
    """Write `target`: upright pictures of even sides, their short side at most `short_side`, at their own times.

    Raises DataError where a frame cannot be decoded: the others would change their numbers.
    """
    index = _open(path)
    try:
        seconds = index.seconds()
        kept = np.arange(index.frames) if options.fps is None else thin(seconds, options.fps)
        pictures = _pictures(index, kept, options.short_side)
        try:
            first = next(pictures)
        except StopIteration:
            raise DataError(f"{path}: no frame can be decoded") from None
        rate = options.fps or index.fps or SPARE_FPS
        height, width = first.shape[:2]
        with open_writer(target, rate, width, height, key_every=options.gop, threads=1, crf=options.crf) as writer:
            writer.add(first, float(seconds[kept[0]]))
            for place, picture in enumerate(pictures, start=1):
                writer.add(picture, float(seconds[kept[place]]))
    finally:
        index.close()
    _check_length(target, path, len(kept))


def _open(path: str) -> PyavSource:
    try:
        if os.path.isdir(path):
            raise DataError(f"{path}: a folder of pictures", expected="a video")
        refuse_by_first_bytes(path)
        return PyavSource(path)
    except DataError:
        raise
    except Exception as error:  # av.error.*
        raise DataError(f"{path}: cannot be read", found=f"{type(error).__name__}: {error}") from error


def _pictures(index: PyavSource, kept: NDArray[np.int64], short_side: int) -> Iterator[NDArray[np.uint8]]:
    """The kept frames in order, all of one size."""
    size: tuple[int, int] | None = None
    ahead = index.decode_from(0, set(kept.tolist()))
    for number in kept.tolist():
        try:
            picture, _ = index.advance(ahead, number)
        except Exception as error:  # av.error.*
            raise DataError(f"{index.path}: frame {number} of {index.frames} cannot be decoded", found=error) from error
        if picture is None:
            raise DataError(f"{index.path}: frame {number} of {index.frames} cannot be decoded (damaged or cut off)")
        shape = (picture.shape[0], picture.shape[1])
        if shape != (size := size or shape):
            raise DataError(f"{index.path}: pictures of different sizes", found=f"{shape} and {size}")
        wanted = even_size(*shape, short_side)
        yield augment.resize(torch.from_numpy(np.ascontiguousarray(picture))[None], *wanted)[0].numpy()


def even_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """(height, width) with the short side at most `short_side`, both even and as near to the shape as that allows."""
    scale = min(1.0, short_side / min(height, width))
    return (max(2, 2 * round(height * scale / 2)), max(2, 2 * round(width * scale / 2)))


def _check_length(target: Path, path: str, frames: int) -> None:
    index = PyavSource(str(target))
    index.close()
    if index.frames != frames:
        raise DataError(f"{path}: the encoder lost frames", found=index.frames, expected=frames)
