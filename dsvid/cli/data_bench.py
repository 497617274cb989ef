"""`dsvid data bench`: clips a second of a list with every decoder, and what coding it anew or packing it would give.

Measured on some videos from all over the list, by the loader itself; how many cores a GPU needs is not asked here.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dsvid.data.manifest import Entry, Manifest
    from dsvid.data.video_facts import Facts

TEXT = "clips a second of a list with every decoder, and what shorter GOPs or packed shards would give"
EPILOG = """Every number is measured on a few videos of the list, by the loader itself, in turns.
example: dsvid data bench train.csv --workers 2"""
REPEATED = 4  # clips of a decoded video, the other value of data.num_sample that is measured
MOST_FRAMES = 20_000  # of the sample's videos: beyond them coding anew takes too long for a look
LOOK_LIMIT_S = 60.0
LEAST_BATCHES = 4  # of a turn for each process: with fewer, what was begun before the clock started counts too much
LEAST_CLIPS = 64  # of a turn, unless told otherwise
WORTH = 1.3  # times as many clips: less is not worth advice


def add_arguments(parser: argparse.ArgumentParser, cores: int) -> None:
    """The options of `dsvid data bench`."""
    parser.add_argument("list", metavar="LIST", help="a list file, as data.train takes it")
    parser.add_argument("--root", default="", metavar="DIR", help="folder that relative paths of the list start from")
    parser.add_argument("--workers", type=int, default=min(2, cores), metavar="N", help="loader processes (2)")
    parser.add_argument("--videos", type=int, default=8, metavar="N", help="of the list that are read (8)")
    parser.add_argument("--clips", type=int, metavar="K",
                        help="of every turn (64, and at least 32 a loader process)")  # fmt: skip
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="turns; medians count (3)")
    parser.add_argument("--recipe", metavar="R",
                        help="frames, crop and augmentation of this recipe (16 frames at distance 4)")  # fmt: skip
    parser.add_argument("--as-is", action="store_true", help="do not try shorter GOPs and packed shards")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers here too")


def run(args: argparse.Namespace) -> int:
    """Measure, print, advise. Raises DataError, RecipeError, OSError."""
    import torch

    from dsvid.cli.bench_loader import MICRO
    from dsvid.data.decode import quiet_decoders
    from dsvid.data.manifest import read_list
    from dsvid.errors import DataError
    from dsvid.heap import keep_freed_memory

    least_clips = LEAST_BATCHES * MICRO * args.workers
    if args.clips is None:
        args.clips = max(LEAST_CLIPS, least_clips)
    for name, least in (("workers", 1), ("videos", 1), ("repeats", 1), ("clips", least_clips)):
        if getattr(args, name) < least:
            raise DataError(f"--{name}", found=getattr(args, name), expected=f"at least {least}")
    quiet_decoders()
    torch.set_num_threads(1)
    keep_freed_memory()  # as the loader's processes do
    config = _section(args.recipe)
    manifest = read_list(args.list, args.root)
    sample, facts = _sample(manifest, args.videos, config, args.workers)
    with tempfile.TemporaryDirectory(prefix="dsvid-bench-") as folder:
        result = _measure(sample, facts, Path(folder), config, args)
    result["list"], result["entries"], result["read"] = args.list, len(manifest), len(sample)
    _report(result, facts, config, args)
    if args.json:
        from dsvid.publish import publish_json

        publish_json(args.json, result)
    return 0


def _section(recipe: str | None) -> Any:
    """The data section to read by."""
    from dsvid.cli.bench_loader import DISTANCE, FRAMES, SIDE
    from dsvid.errors import DataError
    from dsvid.recipe import DataConfig, load_recipe

    if recipe is None:
        return DataConfig(num_frames=FRAMES, sampling_rate=DISTANCE, input_size=SIDE)
    loaded = load_recipe(recipe)
    if loaded.task not in ("pretrain", "classify"):
        raise DataError(f"--recipe {recipe}", found=f"task: {loaded.task}", expected="one that reads lists of videos")
    return loaded.data.model_copy(update={"root": "", "train_limit": 0, "cache_mb": 0})


def _sample(manifest: Manifest, count: int, config: Any, workers: int) -> tuple[list[Entry], list[Facts]]:
    """Up to `count` entries from all over the list that can be read, and what they are like."""
    from dsvid.data.guarded_work import GivenUp, run_guarded
    from dsvid.data.video_facts import Look, look_at
    from dsvid.errors import DataError

    look, total = Look(False, config.frame_name, config.frame_start), len(manifest)
    tried = sorted({total * place // (2 * count) for place in range(2 * count)})  # twice as many: some may be bad
    tried = tried[::2] + tried[1::2] if total > count else tried
    found: list[tuple[Entry, Facts]] = []
    text = ""
    for number, facts in zip(
        tried, run_guarded(lambda number: look_at(manifest[number], look), tried, workers, LOOK_LIMIT_S), strict=False
    ):
        if isinstance(facts, GivenUp) or facts.cause:
            text = text or f"{manifest.path(number)}: {facts if isinstance(facts, GivenUp) else facts.text}"
        elif len(found) < count:
            found.append((manifest[number], facts))
    if not found:
        raise DataError(f"{manifest.source}: none of {len(tried)} entries can be read", found=text,
                        expected="videos", fix=f"dsvid data check {manifest.source}")  # fmt: skip
    if text:
        print(f"some entries cannot be read and were left out, as {text}; `dsvid data check` finds all of them")
    return [entry for entry, _ in found], [facts for _, facts in found]


# ---- measuring -----------------------------------------------------------------------------------------------------


def _measure(
    sample: list[Entry], facts: list[Facts], folder: Path, config: Any, args: argparse.Namespace
) -> dict[str, Any]:
    from tqdm import tqdm

    from dsvid.cli.bench_loader import through_loader
    from dsvid.data.decoder_choice import choose_decoder
    from dsvid.data.manifest import format_list, read_list

    loose = folder / "loose.csv"
    loose.write_text(format_list(sample), encoding="utf-8")
    names, refused = _decoders() if any(one.codec for one in facts) else (["pyav"], {})
    auto = choose_decoder("auto", sample, frames=config.num_frames, distance=config.sampling_rate)
    base = config.model_copy(update={"decoder": auto[0]})
    arms = {name: (loose, config.model_copy(update={"decoder": name})) for name in names}
    storage: dict[str, float] = {}
    why_not = _why_no_changes(sample, facts, args)
    if not why_not:
        manifest = read_list(loose)
        if all(one.codec for one in facts):
            arms["resized"] = (folder / "resized" / "list.csv", base)
            storage["resized"] = _resize(manifest, folder / "resized", args.workers)
        arms["packed"] = (folder / "packed", base)
        storage["packed"] = _pack(manifest, folder / "packed", args.workers)
    rates: dict[str, list[float]] = {f"{name} {samples}": [] for name in arms for samples in (1, REPEATED)}
    order = [(turn, arm, samples) for turn in range(args.repeats + 1) for arm in arms for samples in (1, REPEATED)]
    for turn, arm, samples in tqdm(order, unit="turn", disable=None, leave=False):
        rate = through_loader(arms[arm][0], samples, turn, args.workers, args.clips, arms[arm][1])
        if turn:  # the first turn fills the system's cache
            rates[f"{arm} {samples}"].append(rate / args.workers)
    medians = {
        name: {str(samples): statistics.median(rates[f"{name} {samples}"]) for samples in (1, REPEATED)}
        for name in arms
    }
    return {"workers": args.workers, "clips": args.clips, "clips_per_s_a_process": medians, "turns": rates,
            "auto": list(auto), "not_installed": refused, "storage": storage, "not_tried": why_not}  # fmt: skip


def _decoders() -> tuple[list[str], dict[str, str]]:
    """Decoders that can be used here, and why the others cannot."""
    import torch

    from dsvid.data.decode import ON_GPU
    from dsvid.data.decoder_choice import choose_decoder
    from dsvid.errors import DataError

    names, refused = [], {}
    for name in ("pyav", "decord", "torchcodec", *([ON_GPU] if torch.cuda.is_available() else [])):
        try:
            names.append(choose_decoder(name)[0])
        except DataError as error:
            refused[name] = str(error.found)
    return names, refused


def _why_no_changes(sample: list[Entry], facts: list[Facts], args: argparse.Namespace) -> str:
    if args.as_is:
        return "--as-is"
    frames = sum(sum(one.groups) or one.frames for one in facts)
    return (
        f"{frames} frames of {len(sample)} videos take too long here (--videos fewer)" if frames > MOST_FRAMES else ""
    )


def _resize(manifest: Manifest, out: Path, workers: int) -> float:
    """The list coded anew as `dsvid data resize` does, and how many times the room of the videos that takes."""
    from dsvid.data.video_resize import ResizeOptions, Resizing

    made = Resizing(manifest, out, ResizeOptions()).run(workers, 600.0)
    return sum(one.after for one in made) / max(1, sum(one.before for one in made))


def _pack(manifest: Manifest, out: Path, workers: int) -> float:
    """The same for `dsvid data pack`."""
    from dsvid.data.shard_packing import Packing
    from dsvid.data.shard_samples import PackOptions
    from dsvid.data.shards import open_shards

    Packing(manifest, out, PackOptions()).run(workers)
    size: dict[str, int] = open_shards(out).about["bytes"]
    return size["after"] / max(1, size["before"])


# ---- the report ----------------------------------------------------------------------------------------------------

SHOWN = {
    "pyav": "PyAV",
    "torchcodec_cuda": "torchcodec, NVDEC",
    "resized": "after `data resize`",
    "packed": "after `data pack`",
}


def _report(result: dict[str, Any], facts: list[Facts], config: Any, args: argparse.Namespace) -> None:
    print(f"{result['read']} of {result['entries']} entries, {config.num_frames} frames at distance "
          f"{config.sampling_rate}, {args.workers} loader processes, medians of {args.repeats} turns of "
          f"{args.clips} clips")  # fmt: skip
    print(f"{'clips a second and process':<28}{'num_sample=1':>14}{f'num_sample={REPEATED}':>14}{'room':>8}")
    for name, rates in result["clips_per_s_a_process"].items():
        room = f"{result['storage'][name]:>6.1f} x" if name in result["storage"] else ""
        print(f"{SHOWN.get(name, name):<28}{rates['1']:>14.1f}{rates[str(REPEATED)]:>14.1f}{room}")
    for name, why in result["not_installed"].items():
        print(f"{name} cannot be used here: {why}")
    groups = [length for one in facts for length in one.groups]
    result["gop_median"], result["gop_longest"] = (statistics.median(groups), max(groups)) if groups else (None, None)
    if groups:
        print(f"GOP length: median {result['gop_median']:g}, longest {result['gop_longest']} frames")
    result["advice"] = advise(result)
    for line in result["advice"]:
        print(f"- {line}")


def advise(result: dict[str, Any]) -> list[str]:
    """What to do, in words: the decoder, several clips of a video, other files."""
    rates = result["clips_per_s_a_process"]
    name, why = result["auto"]
    lines = [f"data.decoder=auto takes {name} ({why})"]
    loose = rates.get(name) or next(iter(rates.values()))
    now = loose["1"]
    more = loose[str(REPEATED)] / now
    if more >= WORTH:
        lines.append(f"data.num_sample={REPEATED} gives {more:.1f} times the clips from these files; they come from "
                     "fewer videos a batch")  # fmt: skip
    tools = {"resized": "`dsvid data resize` (short side 320, a key frame every 12 frames)",
             "packed": "`dsvid data pack` (short side 256, JPEG)"}  # fmt: skip
    for arm, tool in tools.items():
        if arm in rates:
            times = rates[arm]["1"] / now
            verdict = "" if times >= WORTH else ": not worth it"
            lines.append(f"{tool} gives {times:.1f} times the clips and takes {result['storage'][arm]:.1f} times the "
                         f"room{verdict}")  # fmt: skip
    if result["not_tried"]:
        lines.append(f"other files were not tried: {result['not_tried']}")
    return lines
