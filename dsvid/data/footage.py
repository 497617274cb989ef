"""Unlabelled driving footage for domain-adaptive pre-training: zips of frames and videos, where the releases put them.

Sources know where their clips lie and mostly their frame rate. How many frames a clip has is read once by
`measure_footage` into an index file, because a million files cannot be opened at the start of every run.
"""

from __future__ import annotations

import csv
import io
import os
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsvid.data.decode import PyavSource, open_clip_source, quiet_decoders, refuse_by_first_bytes, unreadable
from dsvid.data.guarded_work import GivenUp, run_guarded
from dsvid.data.manifest import VIDEO_SUFFIXES, Entry, read_list
from dsvid.data.traffic import DADA_FPS, DOTA_FPS, ZIPS, read_names, read_split, refuse_outside
from dsvid.data.zip_frames import ZipFrames
from dsvid.data.zip_packing import LIMIT_S, Checked, check_zip, one_line, told
from dsvid.errors import DataError
from dsvid.publish import publish_text

UNKNOWN = -1  # number of frames of a clip that was not looked at
INDEX_COLUMNS = ("path", "frames", "fps", "bytes", "problem")
SPLITS = {
    "dota": "train_split.txt",
    "dada": "training.txt",
    "capdata": "training.txt",
    "bdd100k": "all.txt",
    "kinetics": "train.csv",
    "videos": "",
}
_FOLDERS = {"dota": "dataset", "dada": "DADA2K_my_split", "capdata": "CAPDATA_my_split", "bdd100k": "bdd100k_splits"}
_FPS = {"dota": DOTA_FPS, "dada": DADA_FPS, "capdata": 30, "bdd100k": 30}
KINETICS_COLUMNS = ("label", "youtube_id", "time_start", "time_end")


@dataclass(frozen=True)
class Clip:
    """A zip of frames or a video: `frames` is UNKNOWN before it was looked at, `fps` 0 where only the file says it."""

    path: Path
    frames: int
    fps: float

    @property
    def zipped(self) -> bool:
        """Whether it is a zip of frames."""
        return self.path.suffix == ".zip"


class Footage:
    """Clips below a root in flat buffers: their paths' text and 20 bytes a clip; forks share it without copies."""

    def __init__(self, root: Path, source: str) -> None:
        self.root = root
        self.source = source
        self._text = bytearray()
        self._ends = array("q", [0])
        self._frames = array("i")
        self._fps = array("d")

    def __len__(self) -> int:
        return len(self._frames)

    def __getitem__(self, number: int) -> Clip:
        if not 0 <= number < len(self):
            raise IndexError(number)
        return Clip(self.root / self.name(number), self._frames[number], self._fps[number])

    def name(self, number: int) -> str:
        """The path of a clip as the list has it, below the root."""
        return self._text[self._ends[number] : self._ends[number + 1]].decode()

    def append(self, name: str, frames: int, fps: float) -> None:
        self._text += name.encode()
        self._ends.append(len(self._text))
        self._frames.append(frames)
        self._fps.append(fps)

    @property
    def frames(self) -> NDArray[np.int64]:
        """Frames of each clip [C]; 0 where it cannot be read, UNKNOWN before it was looked at."""
        return np.array(self._frames, dtype=np.int64)

    @property
    def fps(self) -> NDArray[np.float64]:
        """Frame rate of each clip [C], 0 where it is unknown."""
        return np.array(self._fps, dtype=np.float64)


# ---- the releases' layouts -----------------------------------------------------------------------------------------


def list_footage(layout: str, root: Path, split: str = "", *, ignore: Path | None = None, fps: float = 0.0) -> Footage:
    """The clips of a layout below `root`, their frames UNKNOWN; no clip is opened or looked for.

    `dota`, `dada`, `capdata`: frames/<clip>/images.zip of the clips in the split list; `bdd100k`: the videos named in
    bdd100k_splits/<split>; `kinetics`: annotations/<split>; `videos`: `root` is a list file or a folder, searched for
    videos and images.zip. `split` defaults to SPLITS; `ignore` lists YouTube ids, names or paths to leave out, one a
    line; `fps` replaces the release's rate, and is needed for zips of `videos`. Raises DataError.
    """
    if layout not in SPLITS:
        raise DataError("layout of footage", found=layout, expected=", ".join(SPLITS))
    left_out = set(read_names(ignore)) if ignore is not None else set()
    split = split or SPLITS[layout]
    rows: Iterable[tuple[str, str]]
    if layout == "videos":
        path = root
        rows, root = _videos(root)
    elif layout == "kinetics":
        path = root / "annotations" / split
        rows = _kinetics(path)
    else:
        path = root / _FOLDERS[layout] / split
        shape = "{}" if layout == "bdd100k" else "frames/{}/images.zip"
        rows = ((name, shape.format(name)) for name in read_split(path))
    footage = Footage(root, str(path))
    for key, name in rows:
        if key not in left_out and name not in left_out:
            whole = name if Path(name).suffix or layout != "bdd100k" else f"{name}.mov"
            footage.append(whole, UNKNOWN, fps or _FPS.get(layout, 0.0))
    if not len(footage):
        raise DataError(f"{path} has no clips", found="none, or all of them ignored", expected="at least one")
    return footage


def _kinetics(path: Path) -> Iterator[tuple[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as handle:
            reader = csv.DictReader(handle)
            missing = [name for name in KINETICS_COLUMNS if name not in (reader.fieldnames or ())]
            if missing:
                raise DataError(f"{path}: columns", found=reader.fieldnames, expected=f"also {', '.join(missing)}")
            for row in reader:
                try:
                    first, last = int(row["time_start"]), int(row["time_end"])
                    name = f"{row['youtube_id']}_{first:06d}_{last:06d}.mp4"
                    whole = f"{path.stem}/{row['label']}/{name}"
                except (TypeError, ValueError) as error:
                    raise DataError(f"{path}, line {reader.line_num}", found=error, expected="whole seconds") from error
                refuse_outside(whole, f"{path}, line {reader.line_num}")
                yield row["youtube_id"], whole
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read", found=error, expected="Kinetics' csv") from error


def _videos(path: Path) -> tuple[list[tuple[str, str]], Path]:
    """(key, path) of videos and zips of a list file or, sorted, below a folder; and the folder that paths start from.

    A list file has a path a line, or the lines that `manifest.read_list` knows for whole videos.
    """
    if path.is_dir():
        found = []
        for folder, below, files in os.walk(path):
            below.sort()
            for name in sorted(files):
                if Path(name).suffix.lower() in VIDEO_SUFFIXES or name == "images.zip":
                    found.append(os.path.relpath(os.path.join(folder, name), path))
        return [(name, name) for name in found], path
    lines = [line for line in read_names(path) if not line.startswith("#")]
    if not lines or Path(lines[0]).suffix.lower() in (*VIDEO_SUFFIXES, ".zip"):
        return [(name, name) for name in lines], path.parent
    listed = read_list(path)
    found = []
    for number in range(len(listed)):
        entry = listed[number]
        if entry.kind == "frames" or entry.total > 0:
            raise DataError(
                f"{path}, line {listed.line_number(number)}: footage is of whole videos and zips",
                found="a folder of frames" if entry.kind == "frames" else "a part of a video",
                fix="dsvid traffic pack FOLDER" if entry.kind == "frames" else "name the whole video",
            )
        found.append(os.path.relpath(entry.path, listed.base))
    return [(name, name) for name in found], listed.base


# ---- the index -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """What a clip's container says: frames (0 where it cannot be read), rate, size, and what is wrong with it."""

    name: str
    frames: int
    fps: float
    size: int
    problem: str = ""


def measure_footage(
    footage: Footage, output: Path, *, jobs: int = 1, exact: bool = False, limit_s: float = LIMIT_S
) -> Iterator[Measured]:
    """Look at every clip, `jobs` at a time, each for `limit_s` at most, and write `output`; yields each as it is done.

    Goes on where it was stopped: what is done is kept in `<output>.part`. What an earlier `output` says is taken over;
    a clip whose size has changed, that had a problem, or that is to have another rate, is looked at again. `exact`
    reads videos whole instead of trusting the count of a container whose end is there. Raises DataError, OSError.
    """
    part = output.with_name(f"{output.name}.part")
    done = {**({} if exact else _read_part(output)), **_read_part(part)}
    kept: dict[str, Measured] = {}
    todo: list[tuple[str, float]] = []
    for number in range(len(footage)):
        name, before, fps = footage.name(number), done.get(footage.name(number)), footage[number].fps
        same = before is not None and before.size == _size(footage.root / name) and fps in (0, before.fps)
        if before is not None and same and not before.problem:
            kept[name] = before
        else:
            todo.append((name, fps))
    output.parent.mkdir(parents=True, exist_ok=True)
    with part.open("a", encoding="utf-8", newline="") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        results = run_guarded(lambda place: _measure(footage.root, exact, todo[place]), range(len(todo)), jobs, limit_s)
        for (name, fps), result in zip(todo, results, strict=True):
            if isinstance(result, GivenUp):
                found = Measured(name, 0, fps, _size(footage.root / name), told(footage.root / name, result))
            else:
                found = result
            kept[found.name] = found
            writer.writerow(_row(found))
            handle.flush()
            yield found
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(INDEX_COLUMNS)
    writer.writerows(_row(kept[footage.name(number)]) for number in range(len(footage)))
    publish_text(output, text.getvalue())
    part.unlink()


def _row(found: Measured) -> tuple[str, int, str, int, str]:
    return found.name, found.frames, f"{found.fps:.6g}", found.size, found.problem


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except (OSError, ValueError):
        return -1


def _read_part(path: Path) -> dict[str, Measured]:
    """What an earlier, stopped call has measured; its last line may be half written."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return {}
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole, encoding="utf-8")
    found = {}
    for row in csv.reader(io.StringIO(whole)):
        try:
            found[row[0]] = Measured(row[0], int(row[1]), float(row[2]), int(row[3]), row[4])
        except (IndexError, ValueError):  # not ours: measured again
            continue
    return found


def _measure(root: Path, exact: bool, item: tuple[str, float]) -> Measured:
    name, fps = item
    path = root / name
    try:
        frames, rate = _count_zip(path) if path.suffix == ".zip" else _count_video(str(path), exact)
        if not (fps or rate):
            raise DataError(f"{path}: its frame rate", found="unknown", expected="--fps")
        return Measured(name, frames, fps or rate, _size(path))
    except DataError as error:
        return Measured(name, 0, fps, _size(path), one_line(error))


def _count_zip(path: Path) -> tuple[int, float]:
    return ZipFrames(1, 1).count(path), 0.0


def _count_video(path: str, exact: bool) -> tuple[int, float]:
    """(frames, rate) as `decode.open_clip_source` numbers them."""
    quiet_decoders()
    if not os.path.isfile(path):
        raise DataError(f"{path}: no such file")
    try:
        refuse_by_first_bytes(path)
        counted = None if exact else _count_by_container(path)
        if counted is not None:
            return counted
        source = PyavSource(path)
        try:
            return source.frames, source.fps or 0.0
        finally:
            source.close()
    except DataError:
        raise
    except Exception as error:  # av.error.*, ValueError, ...
        raise unreadable(path, error) from error


def _count_by_container(path: str) -> tuple[int, float] | None:
    """(frames, rate) by the sample table of an mp4 or mov whose last packet is there; None where it must be counted."""
    import av

    with av.open(path) as container:
        stream: Any = container.streams.best("video")
        if stream is None or "mp4" not in container.format.name.split(","):
            return None
        if not stream.frames or not stream.average_rate or not stream.duration:
            return None
        if next(container.demux(stream)).is_discard:  # an edit list hides frames
            return None
        end = (stream.start_time or 0) + stream.duration
        container.seek(end, stream=stream, backward=True)
        last, hidden = -1, False
        for packet in container.demux(stream):
            if packet.size:
                hidden |= packet.is_discard
                last = max(last, (packet.pts or 0) + (packet.duration or 0))
        rate = float(stream.average_rate)
        frame = 1 / (rate * float(stream.time_base))
        return None if hidden or last < end - frame else (stream.frames, rate)


def read_index(path: Path, root: Path) -> Footage:
    """Clips with their frames and rates from a file that `measure_footage` wrote; their paths start from `root`.

    A clip with a problem has 0 frames, so that it has no windows. Raises DataError with the line.
    """
    footage = Footage(root, str(path))
    try:
        with path.open(newline="", encoding="utf-8") as handle:
            reader = csv.reader(handle)
            if tuple(next(reader, ())) != INDEX_COLUMNS:
                raise DataError(f"{path}: the first line", expected=",".join(INDEX_COLUMNS),
                                fix="make the index with dsvid traffic index")  # fmt: skip
            for row in reader:
                try:
                    name, frames, fps, _, problem = row
                    footage.append(name, 0 if problem else int(frames), float(fps))
                except (ValueError, OverflowError) as error:
                    raise DataError(f"{path}, line {reader.line_num}", found=error,
                                    expected=",".join(INDEX_COLUMNS)) from error  # fmt: skip
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read", found=error, expected="an index of footage") from error
    if not footage.frames.any():
        raise DataError(f"{path}: no clip can be read", found=f"{len(footage)} clips", expected="at least one")
    return footage


def write_video_list(path: Path, footage: Footage) -> int:
    """The videos that can be read as lines `"path" 0 -1`, which `manifest.read_list` knows; returns how many.

    Raises DataError for zips, which are no videos, and where none can be read.
    """
    lines = []
    for number in np.flatnonzero(footage.frames).tolist():
        clip = footage[number]
        if clip.zipped:
            raise DataError(f"{clip.path}: a list is of videos", found="a zip of frames",
                            fix="data.train=footage with the index")  # fmt: skip
        lines.append(f'"{str(clip.path.absolute()).replace(chr(34), chr(34) * 2)}" 0 -1\n')
    publish_text(path, "".join(lines))
    return len(lines)


def read_clip(clip: Clip, positions: NDArray[np.int64], decoder: str, zips: ZipFrames = ZIPS) -> NDArray[np.uint8]:
    """Frames of a clip by place, uint8 RGB [T, H, W, 3]. Raises DataError."""
    if clip.zipped:
        return zips.read(clip.path, positions)
    with open_clip_source(Entry(str(clip.path), -1, 0, -1, "video"), decoder) as source:
        return source.read(positions)


def check_footage(
    footage: Footage, *, jobs: int = 1, decode: bool = True, limit_s: float = LIMIT_S
) -> Iterator[Checked]:
    """Look at every frame of zips; count the frames of videos and decode the first and the last.

    `jobs` clips at a time, each for `limit_s` at most. Without `decode` only directories and containers are read.
    """
    results = run_guarded(lambda number: _check(decode, footage[number].path), range(len(footage)), jobs, limit_s)
    for number, result in enumerate(results):
        path = footage[number].path
        yield Checked(str(path), 0, (told(path, result),)) if isinstance(result, GivenUp) else result


def _check(decode: bool, path: Path) -> Checked:
    if path.suffix == ".zip":
        return check_zip(decode, path)
    try:
        frames, _ = _count_video(str(path), exact=decode)
        if decode:
            read_clip(Clip(path, frames, 0.0), np.array([0, frames - 1]), "pyav")
        return Checked(str(path), frames, ())
    except DataError as error:
        return Checked(str(path), 0, (one_line(error),))
