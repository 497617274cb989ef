"""`dsvid data check`: says which lines of a list are bad and why, and what its videos are like."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsvid.cli.fault_bar import FaultBar

if TYPE_CHECKING:
    from dsvid.data.list_check import ListCheck, Survey

TEXT = "opens every entry of a list, says which lines are bad and why, and what the videos are like"
EPILOG = """exit code: 0 every line is good, 1 some are bad, 2 wrong use or no list.
examples: dsvid data check train.csv
          dsvid data check train.csv --num-classes 400 -o train.clean.csv"""
SHOWN = 6  # most frequent values of a distribution


def add_arguments(parser: argparse.ArgumentParser, cores: int) -> None:
    """The options of `dsvid data check`."""
    parser.add_argument("list", metavar="LIST", help="a list file, as data.train takes it, or packed shards")
    parser.add_argument("--root", default="", metavar="DIR", help="folder that relative paths of the list start from")
    parser.add_argument("--full", action="store_true", help="decode every frame, not only the first and the last")
    parser.add_argument("-o", "--output", type=Path, metavar="CSV",
                        help="write the good lines as they are, what is wrong to CSV.bad.jsonl; "
                             "a call that was stopped goes on (CSV.state.jsonl)")  # fmt: skip
    parser.add_argument("--num-classes", type=int, default=0, metavar="N", help="labels must be in 0 .. N-1")
    parser.add_argument("--num-frames", type=int, default=16, metavar="N", help="of a clip (16)")
    parser.add_argument("--sampling-rate", type=int, default=4, metavar="N", help="distance of its frames (4)")
    parser.add_argument("--drop-short", action="store_true",
                        help="videos of fewer frames than both make are bad, not only named")  # fmt: skip
    parser.add_argument("--allow-duplicates", action="store_true", help="the same entry twice is named, not bad")
    parser.add_argument("--limit", type=float, default=60.0, metavar="S",
                        help="seconds for one video; with --full allow more for long ones (60)")  # fmt: skip
    parser.add_argument("--workers", type=int, default=cores, metavar="N", help="processes (all cores)")
    parser.add_argument("--frame-name", default="img_{:05}.jpg", metavar="NAME", help="of frame folders' pictures")
    parser.add_argument("--frame-start", type=int, default=1, metavar="N", help="number of their first picture")


def run(args: argparse.Namespace) -> int:
    """Check, print, write. Returns 1 where lines are bad. Raises DataError, OSError."""
    from dsvid.data.decode import quiet_decoders
    from dsvid.data.list_check import ListCheck, Rules
    from dsvid.data.video_facts import Look

    check_values(args, ("workers", "num_frames", "sampling_rate"), ("num_classes", "frame_start"))
    rules = Rules(Look(args.full, args.frame_name, args.frame_start), args.num_frames, args.sampling_rate,
                  args.num_classes, args.drop_short, args.allow_duplicates, args.limit)  # fmt: skip
    check = ListCheck(args.list, args.root, rules, args.output)
    quiet_decoders()
    with FaultBar(check.entries, "entry", most=None) as bar:
        already = check.run(args.workers, lambda faults: bar.tell(*map(str, faults)))
    if already:
        print(f"{already} of {len(check.manifest)} entries were known from a call that was stopped")
    written = check.publish()
    _summarise(check)
    if args.output is not None:
        _say_what_was_written(check, written)
    return 1 if check.bad else 0


def check_values(args: argparse.Namespace, at_least_1: tuple[str, ...], at_least_0: tuple[str, ...] = ()) -> None:
    """Raise DataError where a number makes no sense; a limit, where there is one, has to be more than 0."""
    from dsvid.errors import DataError

    for least, names in ((1, at_least_1), (0, at_least_0)):
        for name in names:
            if getattr(args, name) < least:
                raise DataError(f"--{name.replace('_', '-')}", found=getattr(args, name), expected=f"at least {least}")
    if not getattr(args, "limit", 1) > 0:
        raise DataError("--limit", found=args.limit, expected="seconds, more than 0")


def _summarise(check: ListCheck) -> None:
    causes = Counter(fault.cause for fault in check.faults if fault.bad)
    remarks = Counter(fault.cause for fault in check.faults if not fault.bad)
    print(f"{check.manifest.source}: {check.entries} entries, {check.entries - check.bad} good, {check.bad} bad"
          + _listed(": ", causes) + _listed("; good, but named: ", remarks))  # fmt: skip
    if check.survey.entries:
        _describe(check.survey)
        _say_decoder(check)


def _listed(before: str, counts: Counter[str]) -> str:
    return before + ", ".join(f"{count} {cause}" for cause, count in counts.most_common()) if counts else ""


def _describe(survey: Survey) -> None:
    rates: Counter[str] = Counter()
    for rate, count in survey.fps.items():
        rates[f"{rate:g}" if rate else "not known"] += count
    lines = [
        ("frames", _range(survey.frames)),
        ("frames/s", _shares(rates)),
        ("size", _shares(survey.sizes)),
        ("codec", _shares(survey.codecs)),
    ]
    if survey.groups:
        lines += [("GOP length", f"{_range(survey.groups)} frames from key frame to key frame")]
    if survey.coded:
        lines += [("B-frames", f"{survey.reordered / survey.coded:.0%} of the frames")]
    for name, text in lines:
        if text:
            print(f"  {name:<11} {text}")


def _shares(counts: Counter[Any]) -> str:
    total = sum(counts.values())
    shown = [f"{value} ({count / total:.0%})" for value, count in counts.most_common(SHOWN)]
    return ", ".join(shown) + (f", {len(counts) - SHOWN} others" if len(counts) > SHOWN else "")


def _range(counts: Counter[int]) -> str:
    values, half, passed = sorted(counts), sum(counts.values()) / 2, 0
    for median in values:
        passed += counts[median]
        if passed >= half:
            break
    return f"{values[0]} to {values[-1]}, median {median}" if len(values) > 1 else str(values[0])


def _say_decoder(check: ListCheck) -> None:
    from dsvid.data.decoder_choice import VIDEOS, choose_decoder

    if check.manifest.packed or not check.survey.codecs:
        return
    rules, step = check.rules, max(1, len(check.good) // VIDEOS)
    some = [check.manifest[number] for number in check.good[::step]][:VIDEOS]
    name, why = choose_decoder("auto", some, frames=rules.num_frames, distance=rules.sampling_rate)
    print(f"  decoder     data.decoder=auto takes {name} ({why})")
    for reason, count in check.survey.not_decord.most_common(SHOWN) if name == "decord" else ():
        print(f"              PyAV for {count} entries: {reason}")


def _say_what_was_written(check: ListCheck, written: Path | None) -> None:
    from dsvid.data.list_check import bad_path

    assert check.output is not None
    if written is None:
        print(f"no good line: {check.output} was not written; what is wrong: {bad_path(check.output)}")
        return
    print(f"{written}: {len(check.good)} good lines; what is wrong with the others: {bad_path(check.output)}")
    if check.output.absolute().parent != check.manifest.base and not check.all_absolute:
        print(f"its relative paths start from {check.manifest.base}: data.root={check.manifest.base}")
