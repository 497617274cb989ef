"""`dsvid features LIST --weights W --out DIR`: sliding-window features, one file a video; many ranks, resumable.

Ranks share nothing but the folder: each takes every world-th video, so one that dies costs its share and no more.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsvid.errors import CheckpointError, DataError, RecipeError

if TYPE_CHECKING:
    import torch

    from dsvid.data.manifest import Manifest
    from dsvid.data.windows import Part, Plan
    from dsvid.runtime import Ranks

SETTINGS = "features.json"
BAD = "bad_clips.jsonl"
PROGRESS_S = 10.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the subcommand."""
    parser.add_argument("list", metavar="LIST", help="a list of videos (labels are not needed), one video, or builtin")
    parser.add_argument("--weights", type=Path, required=True, help="weights of any family that dsvid knows")
    parser.add_argument("--family", default="auto", help="family of the weights (default: auto)")
    parser.add_argument("--out", type=Path, required=True, help="folder for the feature files")
    stride = parser.add_mutually_exclusive_group()
    stride.add_argument("--stride-frames", type=int, default=None, metavar="N",
                        help="start a window every N frames (default: one after the other)")  # fmt: skip
    stride.add_argument("--stride-s", type=float, default=None, metavar="S", help="start a window every S seconds")
    parser.add_argument("--sampling-rate", type=int, default=None, metavar="N",
                        help="distance of a window's frames (default: as trained, else 4)")  # fmt: skip
    parser.add_argument("--view-fps", type=float, default=None, metavar="F", help="sample at this rate instead")
    parser.add_argument("--short-side", type=int, default=None, metavar="PX",
                        help="scale to this short side, then crop (default: as trained, else the crop)")  # fmt: skip
    parser.add_argument("--format", choices=("npz", "safetensors"), default="npz")
    parser.add_argument("--batch", type=int, default=8, metavar="N", help="windows in one forward")
    parser.add_argument("--dtype", choices=("fp32", "fp16"), default="fp32",
                        help="of the stored features; fp16 also computes in fp16 on a GPU")  # fmt: skip
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="processes that decode (0: this one)")
    parser.add_argument("--decoder", choices=("auto", "decord", "pyav", "torchcodec"), default="auto")
    parser.add_argument("--frame-name", default="img_{:05}.jpg", metavar="NAME", help="files of a folder of frames")
    parser.add_argument("--frame-start", type=int, default=1, metavar="N", help="number of a folder's first file")
    parser.add_argument("overrides", nargs="*", metavar="a=b", help="for the model: num_heads=6, num_frames=32, …")
    parser.epilog = "example: dsvid features videos.txt --weights runs/ft/weights --out features --stride-frames 16"


def run(args: argparse.Namespace) -> int:
    """Extract this rank's share; returns 2 where no video of the list could be read."""
    from dsvid.data.decoder_choice import choose_decoder
    from dsvid.data.feature_files import output_names
    from dsvid.data.windows import read_videos
    from dsvid.runtime import log, pick_device, read_ranks, start_log

    _check(args)
    ranks = read_ranks()
    start_log(ranks)
    manifest = read_videos(args.list)
    decoder, _ = choose_decoder(args.decoder)
    model, plan, settings = _prepare(args)
    settle_settings(args.out, settings)
    files = [args.out / name for name in output_names(manifest, f".{args.format}")]
    own = list(range(ranks.rank, len(manifest), ranks.world))
    missing = [number for number in own if not _is_whole(files[number])]
    log.info("features  %d videos, %d of them done before, to %s", len(own), len(own) - len(missing), args.out)
    device = pick_device(ranks)
    extractor = Extractor(model.to(device).eval(), device, settings)
    bad = BadVideos(args.out / BAD, ranks.rank)
    done = windows = 0
    for video, finished, seconds in videos(manifest, missing, plan, decoder, args.workers, extractor):
        if isinstance(finished, str):
            bad.add(manifest[video].path, finished)
        else:
            extractor.write(files[video], manifest[video].path, finished)
            done, windows = done + 1, windows + len(finished.features)
        if seconds:
            seen = done + bad.count
            log.info("features  %d of %d videos, %.1f windows/s, %d unreadable", seen, len(missing), windows / seconds,
                     bad.count)  # fmt: skip
    say = log.info if ranks.first else log.warning
    say("features  %d videos written, %d done before, %d unreadable%s", done, len(own) - len(missing), bad.count,
        f" ({args.out / BAD})" if bad.count else "")  # fmt: skip
    return 2 if bad.count and nothing_worked(manifest, files, bad, ranks) else 0


def _check(args: argparse.Namespace) -> None:
    for name in ("workers", "frame_start"):
        if getattr(args, name) < 0:
            raise RecipeError(f"--{name.replace('_', '-')} is negative", found=getattr(args, name))
    for name in ("stride_frames", "stride_s", "batch", "sampling_rate", "view_fps", "short_side"):
        value = getattr(args, name)
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise RecipeError(f"--{name.replace('_', '-')} must be positive", found=value, expected="a number above 0")
    try:
        numbered = args.frame_name.format(1) != args.frame_name.format(2)
    except (ValueError, LookupError, AttributeError):
        numbered = False
    if not numbered:
        raise RecipeError("--frame-name has no place for a number", found=args.frame_name, expected="as img_{:05}.jpg")
    if args.out.exists() and not args.out.is_dir():
        raise DataError(f"--out {args.out} is a file", expected="a folder")


# ---- model and settings --------------------------------------------------------------------------------------------


def _prepare(args: argparse.Namespace) -> tuple[Any, Plan, dict[str, Any]]:
    """The model, how videos are cut, and all that makes two feature files comparable."""
    from dsvid.cli.overrides import model_overrides
    from dsvid.data.windows import Plan
    from dsvid.runtime import log
    from dsvid.weights.card import read_card

    overrides = model_overrides(args.overrides)
    model, report = _load(args.weights, args.family, dict(overrides))
    log.info("weights   from %s\n          %s", args.weights, "\n          ".join(report.lines()))
    card, grid = read_card(args.weights), model.grid
    plan = Plan(
        num_frames=grid.frames,
        input_size=grid.height,
        short_side=args.short_side or card.short_side(grid.height),
        sampling_rate=args.sampling_rate or card.sampling_rate,
        view_fps=args.view_fps or (None if args.sampling_rate else card.input.get("view_fps")),
        stride=args.stride_frames or 0,
        stride_s=args.stride_s or 0.0,
        batch=args.batch,
        frame_name=args.frame_name,
        frame_start=args.frame_start,
    )
    if plan.short_side < plan.input_size:
        raise RecipeError("--short-side is less than the crop", found=plan.short_side, expected=f">= {plan.input_size}")
    settings = {
        "format": 1, "weights": str(args.weights), "weights_sha256": _fingerprint(args.weights),
        "family": report.family, "overrides": overrides, "num_frames": plan.num_frames,
        "sampling_rate": plan.sampling_rate, "view_fps": plan.view_fps,
        "stride_frames": plan.stride, "stride_s": plan.stride_s,
        "input_size": plan.input_size, "short_side": plan.short_side, "mean": list(card.mean), "std": list(card.std),
        "dtype": args.dtype, "frame_name": plan.frame_name, "frame_start": plan.frame_start,
    }  # fmt: skip
    return model, plan, settings


def _load(path: Path, family: str, overrides: dict[str, Any]) -> tuple[Any, Any]:
    """A model with `forward_features`: of pre-training weights the encoder."""
    from dsvid.weights.load import load_model

    if overrides.get("task") == "pretrain":
        raise RecipeError("an autoencoder has no features of a whole clip", found="task=pretrain", fix="leave it out")
    classes = overrides.pop("num_classes", None)
    model, report = load_model(path, family, classes, **overrides)
    if hasattr(model, "forward_features"):
        return model, report
    return load_model(path, family, 0, **overrides)


def _fingerprint(path: Path) -> str:
    """SHA-256 of the file, or of the weights of a folder or run folder."""
    import hashlib

    from dsvid.weights.card import WEIGHT_NAMES

    folders = (path, path / "weights")
    paths = [path] if path.is_file() else [f / name for f in folders for name in WEIGHT_NAMES if (f / name).is_file()]
    digest = hashlib.sha256()
    for one in paths:
        with one.open("rb") as handle:
            while block := handle.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


def settle_settings(out: Path, settings: dict[str, Any]) -> None:
    """Write the settings into a new folder. Raises CheckpointError where the folder's features were made otherwise."""
    from dsvid.publish import publish_text

    path = out / SETTINGS
    text = json.dumps(settings, indent=2) + "\n"
    try:
        if not path.is_file():
            out.mkdir(parents=True, exist_ok=True)
            publish_text(path, text)  # ranks that come here together write the same
            return
        before = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"--out {out} cannot be used", found=str(error), fix="another --out") from error
    now = json.loads(text)
    other = [
        f"{key}: {before.get(key)!r} there, {now.get(key)!r} here"
        for key in {**now, **before}
        if key != "weights" and before.get(key) != now.get(key)
    ]
    if other:
        raise CheckpointError(
            f"--out {out} holds features that were made otherwise",
            found="; ".join(other[:4]),
            expected="the settings of its features.json",
            fix="another --out",
        )


# ---- features ------------------------------------------------------------------------------------------------------


class Finished:
    """All windows of one video, gathered part by part."""

    def __init__(self) -> None:
        self.features: list[Any] = []
        self.windows: list[Any] = []
        self.facts: dict[str, Any] = {}


class Extractor:
    """Clips -> features, and features -> file."""

    def __init__(self, model: Any, device: torch.device, settings: dict[str, Any]) -> None:
        import torch

        self.model, self.device, self.settings = model, device, settings
        self.mean = torch.tensor(settings["mean"], device=device).view(1, 3, 1, 1, 1)
        self.std = torch.tensor(settings["std"], device=device).view(1, 3, 1, 1, 1)
        self.half = settings["dtype"] == "fp16" and device.type == "cuda"

    def __call__(self, clips: torch.Tensor) -> torch.Tensor:
        """uint8 [n, T, S, S, 3] -> fp32 [n, D] on the CPU."""
        import torch

        video = clips.to(self.device, non_blocking=True).permute(0, 4, 1, 2, 3).float().div_(255)
        video = (video - self.mean) / self.std
        with torch.inference_mode(), torch.autocast(self.device.type, torch.float16, enabled=self.half):
            features: torch.Tensor = self.model.forward_features(video).float().cpu()
        return features

    def write(self, path: Path, video: str, finished: Finished) -> None:
        """One file. Raises DataError where the disk refuses."""
        import numpy as np

        from dsvid.data.feature_files import write_arrays

        rows = finished.windows
        fps = finished.facts["fps"] or float("nan")
        start, end = np.array([w.start for w in rows], np.int64), np.array([w.end for w in rows], np.int64)
        kind = np.float16 if self.settings["dtype"] == "fp16" else np.float32
        arrays = {
            "features": np.stack(finished.features).astype(kind),
            "start_frame": start, "end_frame": end, "start_s": start / fps, "end_s": end / fps,
            "padded": np.array([w.padded for w in rows], bool),
        }  # fmt: skip
        try:
            write_arrays(path, arrays, {"path": video, **finished.facts, **self.settings})
        except OSError as error:
            raise DataError(
                f"{path} cannot be written", found=str(error), fix="free space, then start again"
            ) from error


def videos(
    manifest: Manifest, numbers: list[int], plan: Plan, decoder: str, workers: int, extractor: Extractor
) -> Iterator[tuple[int, Finished | str, float]]:
    """(video, its features or its error, seconds so far where it is time for a line of progress)."""
    import time

    started = said = time.monotonic()
    open_videos: dict[int, Finished] = {}
    for part in _parts(manifest, numbers, plan, decoder, workers):
        finished = open_videos.setdefault(part.number, Finished())
        if part.clips is not None:
            finished.features += list(extractor(part.clips).numpy())
            finished.windows += part.windows
            finished.facts = part.facts
        if not part.last:
            continue
        del open_videos[part.number]
        now = time.monotonic()
        due = now - said > PROGRESS_S
        said = now if due else said
        yield part.number, part.error or finished, now - started if due else 0.0


def _parts(manifest: Manifest, numbers: list[int], plan: Plan, decoder: str, workers: int) -> Iterator[Part]:
    import sys

    from torch.utils.data import DataLoader

    from dsvid.data.decode import quiet_decoders
    from dsvid.data.windows import WindowClips, start_worker

    quiet_decoders()
    workers = min(workers, len(numbers))
    loader: DataLoader[Any] = DataLoader(
        WindowClips(manifest, numbers, plan, decoder),
        batch_size=None,
        collate_fn=_as_it_is,
        num_workers=workers,
        prefetch_factor=2 if workers else None,
        worker_init_fn=start_worker if workers else None,
        multiprocessing_context=("fork" if sys.platform == "linux" else "spawn") if workers else None,
    )
    yield from loader


def _as_it_is(item: Any) -> Any:
    return item


def _is_whole(path: Path) -> bool:
    from dsvid.data.feature_files import read_arrays
    from dsvid.runtime import log

    if not path.is_file():
        return False
    try:
        read_arrays(path)
    except DataError as error:
        log.warning("made again: %s", str(error).partition("\n")[0])
        return False
    return True


# ---- unreadable videos ---------------------------------------------------------------------------------------------


class BadVideos:
    """Appends to bad_clips.jsonl, which the ranks share; a video that was bad before is not listed twice."""

    def __init__(self, path: Path, rank: int) -> None:
        self.path, self.rank, self.count = path, rank, 0

    def known(self) -> set[str]:
        """Paths in the file."""
        if not self.path.is_file():
            return set()
        return {json.loads(line)["path"] for line in self.path.read_text(encoding="utf-8").splitlines() if line}

    def add(self, video: str, error: str) -> None:
        """Count and record a video."""
        import os
        import time

        from dsvid.runtime import log

        self.count += 1
        log.warning("unreadable: %s", error)
        if video in self.known():
            return
        record = {"path": video, "frames": None, "error": error, "rank": self.rank, "time": round(time.time(), 3)}
        # one write in append mode: ranks may share the file
        handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(handle, (json.dumps(record) + "\n").encode())
        finally:
            os.close(handle)


def nothing_worked(manifest: Manifest, files: list[Path], bad: BadVideos, ranks: Ranks) -> bool:
    """Whether the whole list failed, as far as all ranks' files tell: then the last rank to end says so, too."""
    from dsvid.runtime import log

    known = bad.known()
    failed = not any(path.is_file() for path in files) and all(
        manifest[number].path in known for number in range(len(manifest))
    )
    if failed:
        log.warning("[rank %d] no video of the list could be read", ranks.rank)
    return failed
