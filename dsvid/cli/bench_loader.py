"""`dsvid bench loader`: clips a second of the loader, against bare decoders, packed shards and repeated sampling.

Every arm reads 16 frames at distance 4 in as many processes; the starts of processes are not counted. Arms take turns,
medians are compared. What the loader gives is finished: decoded, cropped, resized and handed over to the trainer.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

FRAMES, DISTANCE, SIDE = 16, 4, 224  # what the published recipes read of a video
SPAN = (FRAMES - 1) * DISTANCE + 1
SAMPLES = 4  # clips of a decoded video where several are cut from it
MICRO = 8  # clips of a batch
LEAST_MEMORY = 400  # clips, for a slope that means something
FASTEST_DECODER = "fastest bare decoder"
# arm -> the arm that it is compared with, if with any
ARMS = {
    "bare decord": "",  # called in a loop, frames as they are
    "bare PyAV": "",  # seek, decode, convert the frames wanted
    "loader": FASTEST_DECODER,  # multi-scale crop, 224 x 224, handed over
    "loader, 4 of a video": "loader",  # data.num_sample=4
    "bare JPEG": "",  # the packed frames' bytes in memory, decoded in a loop
    "packed frames": "bare JPEG",  # frames of the packed shards, without crop and hand-over
    "packed loader": "loader",
}
# where a GPU is there; they never ran
GPU_ARMS = {
    "loader, NVDEC": "loader",  # data.decoder=torchcodec_cuda
    "packed loader, nvJPEG": "packed loader",  # data.jpeg_decoder=gpu
}


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure, print and return the numbers. Raises DataError for videos that cannot be read."""
    from dsvid.data.decode import quiet_decoders
    from dsvid.errors import DataError
    from dsvid.heap import keep_freed_memory

    for name, value, least in (
        ("--workers", args.workers, 1),
        ("--clips", args.clips, MICRO * args.workers),
        ("--repeats", args.repeats, 1),
        ("--memory", args.memory, LEAST_MEMORY if args.memory else 0),
    ):
        if value < least:
            raise DataError(name, found=value, expected=f"at least {least}")
    quiet_decoders()
    torch.set_num_threads(1)
    keep_freed_memory()  # as the loader's processes do; here for all arms
    with tempfile.TemporaryDirectory(prefix="dsvid-bench-") as folder:
        videos = [path.resolve() for path in args.videos] or make_videos(Path(folder))
        loose = Path(folder) / "loose.csv"
        loose.write_text("".join(f"{path} 0\n" for path in videos), encoding="utf-8")
        packed, storage = _pack(loose, Path(folder) / "packed")
        arms = _arms(videos, loose, packed, args)
        rates: dict[str, list[float]] = {name: [] for name in arms}
        for repeat in range(args.repeats + 1):
            for name, arm in arms.items():
                rate = arm(repeat)
                if repeat:  # the first turn fills the system's cache
                    rates[name].append(rate)
        memory = measure_memory(loose, args.memory, args.workers) if args.memory else {}
    return report(args, rates, memory, storage, measure_crop())


# ---- the data ------------------------------------------------------------------------------------------------------


def make_videos(folder: Path, count: int = 4, seconds: int = 10) -> list[Path]:
    """Videos of 340 x 256 at 30 frames a second: a camera over a textured ground with things that move on it."""
    from dsvid.data.video_writer import open_writer

    paths = []
    for number in range(count):
        rng = np.random.default_rng(number)
        ground = np.zeros((512, 680, 3), dtype=np.float32)
        for cell in (4, 16, 64):  # texture at several scales, as in pictures of the world
            coarse = rng.normal(scale=6 * cell**0.5, size=(512 // cell, 680 // cell + 1, 3))
            ground += coarse.repeat(cell, axis=0).repeat(cell, axis=1)[:512, :680].astype(np.float32)
        ground += 110
        paths.append(folder / f"scene-{number}.mp4")
        places, speeds = rng.uniform(40, 200, size=(6, 2)), rng.uniform(-1.5, 1.5, size=(6, 2))
        colours = rng.uniform(20, 235, size=(6, 3))
        with open_writer(paths[-1], 30.0, 340, 256, key_every=12, threads=1) as writer:
            for frame in range(30 * seconds):
                top, left = 128 + round(100 * np.sin(frame / 70)), 170 + round(150 * np.cos(frame / 90))
                picture = ground[top : top + 256, left : left + 340].copy()
                for place, speed, colour in zip(places + frame * speeds, speeds, colours, strict=True):
                    y, x = (int(abs((value + 500) % 1000 - 500) % 200) for value in place)
                    picture[y : y + 40, x : x + 56] = colour + 10 * speed[0]
                noisy = picture + rng.normal(scale=3, size=(256, 340, 1))
                writer.add(np.clip(np.rint(noisy), 0, 255).astype(np.uint8), frame / 30)
    return paths


def _pack(loose: Path, out: Path) -> tuple[Path, float]:
    """The list as packed shards, and how many times the room of the loose videos they take."""
    from dsvid.data.manifest import open_split
    from dsvid.data.shard_packing import Packing
    from dsvid.data.shard_samples import PackOptions

    manifest = open_split(str(loose), "train", "")
    Packing(manifest, out, PackOptions()).run(1, lambda sample: None)
    source = sum(os.path.getsize(manifest.path(number)) for number in range(len(manifest)))
    return out, sum(path.stat().st_size for path in out.iterdir() if path.is_file()) / source


# ---- the arms ------------------------------------------------------------------------------------------------------

Arm = Callable[[int], float]  # number of the turn -> clips a second


def _arms(videos: list[Path], loose: Path, packed: Path, args: argparse.Namespace) -> dict[str, Arm]:
    from dsvid.data.reader import ClipReader

    lengths = [_length(path) for path in videos]
    pictures = _jpegs(packed)
    reader = ClipReader(_config(packed), "train")

    def starts(rng: np.random.Generator) -> tuple[Path, NDArray[np.int64]]:
        number = int(rng.integers(len(videos)))
        first = int(rng.integers(max(1, lengths[number] - SPAN + 1)))
        return videos[number], np.minimum(first + DISTANCE * np.arange(FRAMES), lengths[number] - 1)

    def jpeg(rng: np.random.Generator) -> object:
        return decode_jpegs(pictures, int(rng.integers(len(pictures))))

    def packed_frames(rng: np.random.Generator) -> object:
        return reader.frames(int(rng.integers(reader.size)), rng)

    def bare(read: Callable[[np.random.Generator], object]) -> Arm:
        return lambda turn: in_processes(read, turn, args.workers, args.clips // args.workers)

    def loader(source: Path, samples: int = 1, **how: Any) -> Arm:
        return lambda turn: through_loader(source, samples, turn, args.workers, args.clips, **how)

    arms: dict[str, Arm] = {}
    try:
        import decord  # noqa: F401

        arms["bare decord"] = bare(lambda rng: read_by_decord(*starts(rng)))
    except Exception:  # not installed here: PyAV is
        pass
    return {
        **arms,
        "bare PyAV": bare(lambda rng: read_by_pyav(*starts(rng))),
        "loader": loader(loose),
        "loader, 4 of a video": loader(loose, SAMPLES),
        "bare JPEG": bare(jpeg),
        "packed frames": bare(packed_frames),
        "packed loader": loader(packed),
        **{name: loader(packed if "packed" in name else loose, **how) for name, how in _gpu_arms().items()},
    }


def _gpu_arms() -> dict[str, dict[str, Any]]:
    """What `through_loader` is told for those of GPU_ARMS that can be used here."""
    from dsvid.data.decode import ON_GPU
    from dsvid.data.decoder_choice import choose_decoder
    from dsvid.data.device_jpegs import check_device
    from dsvid.errors import DataError

    if not torch.cuda.is_available():
        return {}
    arms: dict[str, dict[str, Any]] = {}
    gpu = torch.device("cuda", torch.cuda.current_device())
    with suppress(DataError):  # without torchcodec
        choose_decoder(ON_GPU)
        arms["loader, NVDEC"] = {"decoder": ON_GPU, "device": gpu}
    with suppress(DataError):  # without torchvision
        check_device(gpu)
        arms["packed loader, nvJPEG"] = {"jpeg_decoder": "gpu", "device": gpu}
    return arms


def _config(source: Path, samples: int = 1, workers: int = 0, base: Any = None) -> Any:
    from dsvid.recipe import DataConfig

    if base is not None:
        return base.model_copy(update={"train": str(source), "num_sample": samples, "num_workers": workers})

    return DataConfig(train=str(source), num_frames=FRAMES, sampling_rate=DISTANCE, input_size=SIDE,
                      num_sample=samples, num_workers=workers)  # fmt: skip


def _length(path: Path) -> int:
    from dsvid.data.decode import open_clip_source
    from dsvid.data.manifest import Entry

    with open_clip_source(Entry(str(path), -1, 0, -1, "video"), "pyav") as source:
        return source.frames


def read_by_decord(path: Path, wanted: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Frames as its documentation shows it; one thread, as in a loader's process."""
    import decord

    reader = decord.VideoReader(str(path), ctx=decord.cpu(0), num_threads=1)
    frames: NDArray[np.uint8] = reader.get_batch(wanted).asnumpy()
    return frames


def read_by_pyav(path: Path, wanted: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Frames of a constant rate as PyAV's documentation shows it: seek, decode all, convert those wanted."""
    import av

    with av.open(str(path)) as container:
        stream = container.streams.best("video")
        assert stream is not None and stream.average_rate and stream.time_base
        stream.codec_context.thread_count = 1
        container.seek(int(wanted[0] / stream.average_rate / stream.time_base), stream=stream)
        found = {}
        for frame in container.decode(stream):
            number = round(float((frame.pts - (stream.start_time or 0)) * stream.time_base * stream.average_rate))
            if number in wanted:
                found[number] = frame.to_ndarray(format="rgb24")
            if number >= wanted[-1]:
                break
        if len(found) < len(set(wanted.tolist())):
            raise ValueError(f"{path}: only {len(found)} frames are where a constant rate has them")
        return np.stack([found[number] for number in wanted.tolist()])


def _jpegs(packed: Path) -> list[list[memoryview]]:
    """The frames of packed videos, as bytes in memory."""
    import tarfile

    videos: dict[str, list[memoryview]] = {}
    for shard in sorted(packed.glob("*.tar")):
        with tarfile.open(shard) as tar:
            for member in tar:
                if member.name.endswith((".jpg", ".jpeg")):
                    handle = tar.extractfile(member)
                    assert handle is not None
                    key = member.name.split(".")[0]
                    videos.setdefault(key, []).append(memoryview(bytearray(handle.read())))
    return list(videos.values())


def decode_jpegs(pictures: list[list[memoryview]], number: int) -> NDArray[np.uint8]:
    """A clip of one video's pictures by the fastest decoder that is installed."""
    from dsvid.data.picture import decode_picture

    frames = pictures[number]
    return np.stack([decode_picture(frames[min(DISTANCE * place, len(frames) - 1)]) for place in range(FRAMES)])


def in_processes(read: Callable[[np.random.Generator], object], turn: int, workers: int, clips: int) -> float:
    """Clips a second of a bare loop in `workers` processes that start at once. Raises DataError where one fails."""
    context = multiprocessing.get_context("fork")

    def work(number: int, connection: Any) -> None:
        torch.set_num_threads(1)
        rng = np.random.default_rng((turn, number))
        try:
            read(rng)  # what is loaded and looked at once only
            connection.send("")
            connection.recv()
            for _ in range(clips):
                read(rng)
            connection.send("")
        except Exception as error:
            connection.send(f"{type(error).__name__}: {error}")
        os._exit(0)

    pipes = [context.Pipe() for _ in range(workers)]
    processes = [
        context.Process(target=work, args=(number, theirs), daemon=True) for number, (_, theirs) in enumerate(pipes)
    ]
    try:
        for process in processes:
            process.start()
        _hear(pipes, processes)
        since = time.perf_counter()
        for ours, _ in pipes:
            ours.send("go")
        _hear(pipes, processes)
        return workers * clips / (time.perf_counter() - since)
    finally:
        for process in processes:
            process.kill()
            process.join()


def _hear(pipes: list[Any], processes: list[Any]) -> None:
    """Wait for a word of every process: an empty one, or what went wrong."""
    from dsvid.errors import DataError

    for (ours, _), process in zip(pipes, processes, strict=True):
        while not ours.poll(0.02) and process.is_alive():
            pass
        text = ours.recv() if ours.poll() else f"exit code {process.exitcode}"
        if text:
            raise DataError("a process that reads failed", found=text, expected="videos that every arm can read")


def through_loader(
    source: Path,
    samples: int,
    turn: int,
    workers: int,
    clips: int,
    base: Any = None,
    device: torch.device | None = None,
    **settings: Any,
) -> float:
    """Clips a second that a trainer on `device` gets which does nothing with them.

    `base` is a data section instead of the usual one, `settings` are keys of it that are others.
    """
    from dsvid.data.loader import TrainLoader

    config = _config(source, samples, workers, base).model_copy(update=settings)
    loader = TrainLoader(config, seed=turn, batch_total=MICRO, batch_micro=MICRO, device=device)
    batches = iter(loader)
    # as many as may be ready before the clock starts: what is counted is made while it runs
    for _ in range(workers * loader.reader.config.prefetch + 1):
        next(batches)
    since = time.perf_counter()
    for _ in islice(batches, clips // MICRO):
        pass
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds = time.perf_counter() - since
    loader.close()
    return clips // MICRO * MICRO / seconds


# ---- the crop -----------------------------------------------------------------------------------------------------


def measure_crop(repeats: int = 25) -> dict[str, Any]:
    """A box of 16 frames resized to 224 x 224: ours against the originals' chain, CPU seconds of one thread in turns.

    Their chain: each frame through PIL (crop, bilinear resize), all stacked, to floats in [0, 1], channels first.
    """
    from PIL import Image

    from dsvid.data import augment
    from dsvid.sections import IMAGENET_MEAN, IMAGENET_STD

    clip = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (FRAMES, 256, 340, 3), dtype=np.uint8))
    top, left, height, width = 16, 60, 224, 192

    def ours() -> torch.Tensor:
        return augment.resize(augment.crop(clip, top, left, height, width), SIDE, SIDE)

    def by_pil() -> list[NDArray[np.uint8]]:
        box = (left, top, left + width, top + height)
        pictures = (Image.fromarray(frame.numpy()) for frame in clip)
        return [np.asarray(one.crop(box).resize((SIDE, SIDE), Image.Resampling.BILINEAR)) for one in pictures]

    def chain() -> torch.Tensor:
        return torch.from_numpy(np.stack(by_pil())).permute(3, 0, 1, 2).contiguous().float().div(255)

    def normalised() -> torch.Tensor:  # what follows there; here it is the op's work, on the tokens that are used
        mean, std = (torch.tensor(each).view(3, 1, 1, 1) for each in (IMAGENET_MEAN, IMAGENET_STD))
        return chain().sub_(mean).div_(std)

    arms: dict[str, Callable[[], object]] = {
        "ours": ours, "PIL alone": by_pil, "PIL chain": chain, "PIL chain, normalised": normalised,
    }  # fmt: skip
    spent: dict[str, list[float]] = {name: [] for name in arms}
    for repeat in range(repeats + 2):
        for name, arm in arms.items():
            since = time.thread_time()
            arm()
            if repeat >= 2:
                spent[name].append(time.thread_time() - since)
    levels = int((ours().int() - torch.from_numpy(np.stack(by_pil())).int()).abs().max())
    return {"ms": {name: 1e3 * statistics.median(each) for name, each in spent.items()}, "levels_from_pil": levels}


# ---- memory --------------------------------------------------------------------------------------------------------


def measure_memory(source: Path, clips: int, workers: int) -> dict[str, Any]:
    """Private memory of the trainer and its loader processes over so many clips, and its slope over the later half."""
    from dsvid.data.loader import TrainLoader
    from dsvid.data.workers import private_mb

    loader = TrainLoader(_config(source, 1, workers), seed=0, batch_total=MICRO, batch_micro=MICRO)
    counts, memory, handles = [], [], []
    for number, _ in enumerate(islice(loader, clips // MICRO)):
        if number % 5 == 0:
            counts.append(number * MICRO)
            memory.append(sum(private_mb(pid) for pid in [os.getpid(), *(one.pid for one in loader.processes)]))
            handles.append(len(os.listdir("/proc/self/fd")))
    loader.close()
    half = len(counts) // 2
    slope, noise = _line(np.array(counts[half:]), np.array(memory[half:]))
    return {"clips": clips, "mb_first": memory[half], "mb_last": memory[-1], "mb_per_1000_clips": 1000 * slope,
            "noise_mb": noise, "open_files": [min(handles[1:]), max(handles[1:])]}  # fmt: skip


def _line(x: NDArray[Any], y: NDArray[Any]) -> tuple[float, float]:
    """Slope of the least-squares line and the standard deviation around it."""
    slope, at_zero = np.polyfit(x, y, 1)
    return float(slope), float(np.std(y - (slope * x + at_zero)))


# ---- the report ----------------------------------------------------------------------------------------------------


def report(
    args: argparse.Namespace,
    rates: dict[str, list[float]],
    memory: dict[str, Any],
    storage: float,
    crop: dict[str, Any],
) -> dict[str, Any]:
    """Print the table and return its numbers."""
    medians = {name: statistics.median(each) for name, each in rates.items()}
    fastest = max((name for name in medians if name in ("bare decord", "bare PyAV")), key=lambda name: medians[name])
    ratios, videos = {}, [str(path) for path in args.videos]
    print(f"16 frames at distance 4, {args.workers} processes, medians of {args.repeats} turns of {args.clips} clips; "
          f"{len(videos) or 4} {'given' if videos else 'generated'} videos")  # fmt: skip
    print(f"{'':<24}{'clips/s':>9}{'spread':>17}{'a process':>11}")
    for name, baseline in (ARMS | GPU_ARMS).items():
        if name not in medians:
            continue
        each = rates[name]
        line = (
            f"{name:<24}{medians[name]:>9.1f}{min(each):>9.1f}–{max(each):<7.1f}{medians[name] / args.workers:>11.1f}"
        )
        other = fastest if baseline == FASTEST_DECODER else baseline
        if other:
            ratios[f"{name} / {other}"] = medians[name] / medians[other]
            line += f"   {medians[name] / medians[other]:.2f} x {other}"
        print(line)
    print(f"packed shards (JPEG, quality 90, every frame): {storage:.1f} times the room of the videos")
    ms = crop["ms"]
    print(
        f"crop and resize of 16 frames: {ms['ours']:.2f} ms; PIL chain {ms['PIL chain']:.2f}, "
        f"{ms['PIL chain'] / ms['ours']:.1f} times, with normalisation {ms['PIL chain, normalised']:.2f}, "
        f"{ms['PIL chain, normalised'] / ms['ours']:.1f} times; {crop['levels_from_pil']} level(s) from PIL"
    )
    if memory:
        print(
            f"memory over {memory['clips']} clips: {memory['mb_per_1000_clips']:+.1f} MB a thousand clips in the later "
            f"half, {memory['noise_mb']:.1f} MB around the line; open files {memory['open_files']}"
        )
    return {
        "workers": args.workers,
        "clips": args.clips,
        "videos": videos or "generated",
        "clips_per_s": medians,
        "fastest_bare_decoder": fastest,
        "ratios": ratios,
        "storage_factor": storage,
        "crop": crop,
        "memory": memory,
        "repeats": rates,
    }
