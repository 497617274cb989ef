"""A list -> a folder of packed shards: many videos at a time, in the list's order, resumable; then the index.

A shard is written beside its place and renamed when it is full; what the index will say of it stands beside it
(`shard-000000.npz`) until all shards are there. Knows no codec: samples come from `shard_samples`. Read by `shards`.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from dsvid.data.folder_lock import locked
from dsvid.data.guarded_work import GivenUp, run_guarded
from dsvid.data.manifest import Manifest
from dsvid.data.shard_samples import BLOCK, PackOptions, Sample, bad_sample, listed_path, pack_sample, source_bytes
from dsvid.data.shards import (
    ANEW,
    BAD,
    FORMAT,
    FRAME,
    FRAMES,
    INDEX,
    PATHS,
    SAMPLE,
    SAMPLES,
    UNFINISHED,
    VERSION,
    Table,
    open_shards,
    read_about,
    shard_name,
)
from dsvid.documents import DocumentError, read_json
from dsvid.errors import DataError
from dsvid.publish import publish_file, publish_json

ESTIMATED_FROM = 3  # videos that are packed for the estimate of the room needed
ESTIMATE_LIMIT_S = 120.0  # for each of them: it is only an estimate
LIMIT_S = 1800.0  # for one video
RESULTS_AHEAD = 2  # finished videos a process that wait for their turn: each is megabytes
SHARD_END = bytes(2 * BLOCK)


@dataclass
class Part:
    """What the index says of one shard, or of samples at the end that no shard holds: its lines of samples.npy
    (`first` counted from the part's own frames), how many it has of frames.npy, causes of bad samples by number, bytes
    of the shard (0: no shard), samples with a remark.
    """

    samples: Table
    frames: int
    bad: dict[int, str]
    size: int
    notes: int = 0


class Packing:
    """One list on its way into a folder. Raises DataError where the folder holds something else."""

    def __init__(self, manifest: Manifest, folder: Path, options: PackOptions) -> None:
        if manifest.packed:
            raise DataError(f"{manifest.source}: packed already", expected="a list of videos or folders of frames")
        self.manifest, self.folder, self.options = manifest, folder, options.checked()
        self.purpose: dict[str, Any] = {
            "format": FORMAT,
            "version": VERSION,
            "list": {"name": Path(manifest.source).name, "sha256": manifest.sha256, "entries": len(manifest)},
            "options": asdict(self.options),
        }
        self.parts: list[Part] = []
        self.finished = self._look()

    @property
    def done(self) -> int:
        """Samples that need not be packed any more."""
        return len(self.manifest) if self.finished else sum(len(part.samples) for part in self.parts)

    def estimate_bytes(self, limit_s: float = LIMIT_S) -> int:
        """Bytes that the samples still to be packed will need, by a few of them; 0 where none of those can be read."""
        first, count = self.done, len(self.manifest) - self.done
        chosen = sorted({first + count * place // ESTIMATED_FROM for place in range(ESTIMATED_FROM)})
        with closing(self._pack(chosen if count else [], 1, min(limit_s, ESTIMATE_LIMIT_S))) as samples:
            tried = list(samples)
        sizes = [len(sample.data) for sample in tried if not sample.error]
        return sum(sizes) * count // len(sizes) if sizes else 0

    def check_room(self, needed: int) -> int:
        """Free bytes where the shards will lie. Raises DataError where they are fewer than `needed`."""
        place = next(path for path in (self.folder.absolute(), *self.folder.absolute().parents) if path.exists())
        free = shutil.disk_usage(place).free
        if free < needed:
            raise DataError(f"{self.folder}: no room on the disk", found=f"{free / 1e9:.2f} GB free",
                            expected=f"about {needed / 1e9:.2f} GB",
                            fix="another disk, a smaller --short-side or --quality, or --fps")  # fmt: skip
        return free

    def run(
        self, jobs: int = 1, tell: Callable[[Sample], object] = lambda _: None, *, limit_s: float = LIMIT_S
    ) -> None:
        """Pack what is missing, `jobs` videos at a time, each for `limit_s` at most; `tell` hears of each sample when
        it is written.

        The index is written last. Raises DataError, also where no video of the list can be read; OSError.
        """
        if jobs < 1:
            raise DataError("--jobs", found=jobs, expected="at least 1")
        if self.finished:
            self._tidy()  # where a call was stopped at the very end
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with locked(self.folder):
            self.finished = self._look()  # another call may have gone on since
            if self.finished:
                return
            self._clear()
            publish_json(self.folder / UNFINISHED, self._place())
            with closing(self._pack(range(self.done, len(self.manifest)), jobs, limit_s)) as samples:
                while (part := self._next_part(samples, tell)) is not None:
                    self.parts.append(part)
            self._write_index()
            self.finished = True

    def _pack(self, numbers: Sequence[int], jobs: int, limit_s: float) -> Generator[Sample, None, None]:
        """The samples in their order; of one whose video hangs or crashes its process there is its `error` only."""
        with tempfile.TemporaryDirectory() as scratch:  # one for all: a process that is killed tidies up nothing
            work = partial(pack_sample, self.manifest, self.options, scratch=scratch)
            with closing(run_guarded(work, numbers, jobs, limit_s, ahead=RESULTS_AHEAD)) as results:
                for number, result in zip(numbers, results, strict=True):
                    yield bad_sample(self.manifest, number, result) if isinstance(result, GivenUp) else result

    # ---- shards ----------------------------------------------------------------------------------------------------

    def _next_part(self, samples: Iterator[Sample], tell: Callable[[Sample], object]) -> Part | None:
        """Fill one shard; None when there are no more samples."""
        taken: list[Sample] = []

        def take() -> Iterator[Sample]:
            for sample in samples:
                taken.append(sample)
                yield sample

        first = next((sample for sample in take() if not sample.error), None)  # no shard for bad samples alone
        if first is None:
            for sample in taken:
                tell(sample)
            return _part(taken, 0) if taken else None
        number = sum(part.size > 0 for part in self.parts)
        limit = self.options.shard_mb * 10**6

        def write(out: BinaryIO) -> None:
            size = 0
            for sample in chain(taken[:], take()):
                _put(sample, number, size)
                out.write(sample.data)
                size += len(sample.data)
                sample.data = b""
                tell(sample)
                if size >= limit:
                    break
            out.write(SHARD_END)

        path = self.folder / shard_name(number)
        publish_file(path, write)
        part = _part(taken, path.stat().st_size)
        rows = np.concatenate([sample.rows for sample in taken])
        publish_file(path.with_suffix(".npz"), partial(_write_part, part, rows))
        return part

    def _write_index(self) -> None:
        bad = {number: cause for part in self.parts for number, cause in part.bad.items()}
        if len(bad) == len(self.manifest):
            raise DataError(f"{self.manifest.source}: no video can be read", found=next(iter(bad.values())),
                            expected="videos that can be decoded", fix="--root says where they are")  # fmt: skip
        samples = np.concatenate([part.samples for part in self.parts])
        ends = np.cumsum([0, *(part.frames for part in self.parts)])
        starts = np.repeat(ends[:-1], [len(part.samples) for part in self.parts])
        samples["first"] += starts
        frames = int(ends[-1])
        paths = [listed_path(self.manifest, number) for number in range(len(self.manifest))]
        lines = [json.dumps({"sample": number, "path": paths[number], "error": bad[number]}) for number in sorted(bad)]
        publish_file(self.folder / SAMPLES, lambda out: np.save(out, samples))
        publish_file(self.folder / FRAMES, lambda out: self._write_frames(out, frames))
        publish_file(self.folder / PATHS, lambda out: out.write("".join(f"{path}\n" for path in paths).encode()))
        publish_file(self.folder / BAD, lambda out: out.write("".join(f"{line}\n" for line in lines).encode()))
        sizes = [part.size for part in self.parts if part.size]
        about = self.purpose | {
            "counts": {
                "samples": len(samples),
                "bad": len(bad),
                "remarks": sum(part.notes for part in self.parts),
                "frames": frames,
                "source_frames": int(samples["frames"].sum()),
            },
            "bytes": {"before": _packed_bytes(samples, paths), "after": sum(sizes)},
            "files": {name: _facts(self.folder / name) for name in (SAMPLES, FRAMES, PATHS, BAD)},
            "shards": sizes,
        }
        publish_json(self.folder / INDEX, about)
        self._tidy()

    def _write_frames(self, out: BinaryIO, frames: int) -> None:
        """frames.npy from what stands beside the shards: for a large list too much to be held."""
        about = {"descr": np.lib.format.dtype_to_descr(FRAME), "fortran_order": False, "shape": (frames,)}
        np.lib.format.write_array_header_1_0(out, about)
        for shard in range(sum(part.size > 0 for part in self.parts)):
            with np.load((self.folder / shard_name(shard)).with_suffix(".npz"), allow_pickle=False) as content:
                out.write(content["frames"].tobytes())

    def _tidy(self) -> None:
        """Remove what only an unfinished packing needs."""
        (self.folder / UNFINISHED).unlink(missing_ok=True)
        for left in self.folder.glob("shard-*.npz"):
            left.unlink()

    # ---- what is there already -------------------------------------------------------------------------------------

    def _look(self) -> bool:
        """Take over what an earlier call has done; whether it has done all."""
        if self.folder.exists() and not self.folder.is_dir():
            raise DataError(f"{self.folder}: a file", expected="a folder, or nothing")
        if (self.folder / INDEX).is_file():
            about = read_about(self.folder)
            self._same(about, self.purpose)
            for shard, size in enumerate(about["shards"]):
                self._whole(shard, size)
            self._unchanged(open_shards(self.folder).samples)
            return True
        if (self.folder / UNFINISHED).is_file():
            self._take_over()
        elif self.folder.is_dir() and (others := self._others()):
            raise DataError(f"{self.folder}: not empty, and not packed by this command",
                            found=", ".join(others[:5]), fix="name another folder")  # fmt: skip
        return False

    def _others(self) -> list[str]:
        return sorted(item.name for item in self.folder.iterdir() if not item.name.startswith(f".{UNFINISHED}-"))

    def _take_over(self) -> None:
        path = self.folder / UNFINISHED
        try:
            before = read_json(path)
        except (OSError, DocumentError) as error:
            raise DataError(f"{path}: cannot be read", found=error, fix=f"remove {self.folder}") from error
        parts: list[Part] = []
        while (part := _read_part(self.folder / shard_name(len(parts)), self.done_in(parts))) is not None:
            parts.append(part)
        if parts:  # where nothing is finished there is nothing that could not fit
            self._same(before if isinstance(before, dict) else {}, self._place())
            self._unchanged(np.concatenate([part.samples for part in parts]))
        self.parts = parts

    @staticmethod
    def done_in(parts: list[Part]) -> int:
        """Samples in the parts."""
        return sum(len(part.samples) for part in parts)

    def _place(self) -> dict[str, Any]:
        """What must not change until all is packed: also where the videos are."""
        return self.purpose | {"root": str(self.manifest.base)}

    def _same(self, before: dict[str, Any], now: dict[str, Any]) -> None:
        for key, word in (
            ("version", "version of dsvid"),
            ("list", "list"),
            ("options", "options"),
            ("root", "--root"),
        ):
            if before.get(key) == now.get(key) or (key == "list" and _sha(before) == _sha(now)):
                continue
            one, other = _differing(before.get(key), now.get(key))
            raise DataError(f"{self.folder}: another {word} was packed here" if word[-1] != "s" else
                            f"{self.folder}: other {word} were packed here", found=one, expected=other,
                            fix="name another folder, or remove this one")  # fmt: skip

    def _whole(self, shard: int, size: int) -> None:
        path = self.folder / shard_name(shard)
        found = path.stat().st_size if path.is_file() else None
        if found != size:
            raise DataError(f"{path}: not the shard that was packed",
                            found="nothing there" if found is None else f"{found} bytes", expected=f"{size} bytes",
                            fix=ANEW)  # fmt: skip

    def _unchanged(self, samples: Table) -> None:
        """Whether the sources that are still there are those that were packed, by their sizes."""
        for number in np.flatnonzero(samples["shard"] >= 0).tolist():
            before, now = int(samples["source_bytes"][number]), source_bytes(self.manifest[number])
            if now not in (0, before):
                raise DataError(f"{self.manifest.path(number)}: changed since it was packed into {self.folder}",
                                found=f"{now} bytes", expected=f"{before} bytes",
                                fix="name another folder, or remove this one")  # fmt: skip

    def _clear(self) -> None:
        """Remove what stopped calls left: half-written files, and shards behind one that was lost."""
        for path in [*self.folder.glob("shard-*.tar"), *self.folder.glob("shard-*.npz")]:
            if path.stem not in {shard_name(shard)[:-4] for shard in range(len(self.parts))}:
                path.unlink()
        for name in ("shard-*", INDEX, SAMPLES, FRAMES, PATHS, BAD, UNFINISHED):
            for left in self.folder.glob(f".{name}-*"):
                left.unlink()


def _packed_bytes(samples: Table, paths: list[str]) -> int:
    """Bytes of the sources of what was packed; a file of which several parts were listed counts once."""
    sizes = samples["source_bytes"].tolist()
    packed = (samples["shard"] >= 0).tolist()
    return sum({path: size for path, size, there in zip(paths, sizes, packed, strict=True) if there}.values())


def _put(sample: Sample, shard: int, offset: int) -> None:
    """Say where in the shard a sample lies."""
    if not sample.error:
        sample.row["shard"], sample.row["offset"] = shard, offset
        sample.rows["offset"][sample.rows["size"] > 0] += offset
        sample.row["rows_crc"] = zlib.crc32(sample.rows.tobytes())


def _part(taken: list[Sample], size: int) -> Part:
    samples = np.concatenate([sample.row for sample in taken])
    samples["first"] = np.cumsum([0, *(len(sample.rows) for sample in taken)])[:-1]
    bad = {sample.number: sample.error for sample in taken if sample.error}
    return Part(
        samples, sum(len(sample.rows) for sample in taken), bad, size, sum(bool(sample.note) for sample in taken)
    )


def _write_part(part: Part, rows: Table, out: BinaryIO) -> None:
    facts = {"bad": {str(number): cause for number, cause in part.bad.items()}, "size": part.size, "notes": part.notes}
    text = np.frombuffer(json.dumps(facts).encode(), dtype=np.uint8)
    np.savez(out, samples=part.samples, frames=rows, facts=text)


def _read_part(shard: Path, first: int) -> Part | None:
    """What stands beside a finished shard; None where one is not whole, or not of the samples from `first` on."""
    try:
        with np.load(shard.with_suffix(".npz"), allow_pickle=False) as content:
            facts = json.loads(content["facts"].tobytes())
            bad = {int(number): cause for number, cause in facts["bad"].items()}
            rows = content["frames"]
            part = Part(content["samples"], len(rows), bad, facts["size"], facts["notes"])
        whole = shard.stat().st_size == part.size and part.samples.dtype == SAMPLE and rows.dtype == FRAME
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile):
        return None
    return part if whole and all(number >= first for number in bad) else None


def _facts(path: Path) -> dict[str, Any]:
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}


def _sha(purpose: dict[str, Any]) -> object:
    about = purpose.get("list")
    return about.get("sha256") if isinstance(about, dict) else None


def _differing(one: Any, other: Any) -> tuple[str, str]:
    """What two settings say, where they are tables only of the keys that differ."""
    if not isinstance(one, dict) or not isinstance(other, dict):
        return str(one), str(other)
    keys = [key for key in {**one, **other} if one.get(key) != other.get(key)]
    return tuple(", ".join(f"{key} {table.get(key)}" for key in keys) for table in (one, other))  # type: ignore[return-value]
