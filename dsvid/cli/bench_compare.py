"""`dsvid bench compare OLD NEW`: two results of one benchmark, number by number; what became worse is an error.

Ratios to a baseline of the same run travel between machines; seconds and rates do not, and are compared where the
results come from one machine (`--all`).
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dsvid.errors import DsvidError, RecipeError

# part of a key -> whether a larger number is the better one; the first that fits
_RATIOS = (
    ("ratios", True),
    ("share_of_matmul", True),
    ("times_faster", True),
    ("times_the_byte_floor", False),
    ("peak_over_weights", False),
    ("storage_factor", False),
)
_TIMES = (
    ("clips_per_s", True),
    ("bytes_per_s", True),
    ("gflop_s", True),
    ("ms", False),
    ("seconds", False),
    ("cpu_s", False),
    ("wall_s", False),
)
# ratios that grow with what they are about: seconds over seconds of the baseline
_COSTS = ("save /", "hash /", "verify /", "load /")
_DETAILS = ("repeats", "spread", "settings", "collectives", "model")


class Worse(DsvidError):
    """Numbers of a benchmark became worse."""


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Print the numbers that differ by more than `--by`; raises Worse where one is worse, RecipeError for files that do
    not fit each other.
    """
    old, new = (dict(numbers(_read(path))) for path in (args.old, args.new))
    directions = [*_RATIOS, *(_TIMES if args.all else ())]
    rows: dict[str, float] = {}
    worse = []
    for key in [key for key in old if key in new]:
        better_up = _direction(key, directions)
        if better_up is None or not (old[key] > 0 and new[key] > 0):
            continue
        gain = new[key] / old[key] if better_up else old[key] / new[key]
        rows[key] = gain
        if gain < 1 - args.by or gain > 1 / (1 - args.by):
            word = "better" if gain > 1 else "worse"
            print(f"{key:<60}{old[key]:>12.4g} -> {new[key]:<12.4g}{word} {max(gain, 1 / gain):.2f} times")
            worse += [key] if gain < 1 else []
    if not rows:
        raise RecipeError("nothing to compare", found=f"{args.old} and {args.new}", expected="results of one benchmark")
    print(f"{len(rows)} numbers compared, {len(worse)} worse by more than {args.by:.0%}")
    if worse:
        raise Worse(
            "the benchmark became slower", found=", ".join(worse[:5]), expected=f"within {args.by:.0%} of before"
        )
    return {"gains": rows}


def numbers(value: Any, path: str = "") -> Iterator[tuple[str, float]]:
    """(path of keys, number) of everything in a result but its details."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if name not in _DETAILS:
                yield from numbers(inner, f"{path}.{name}" if path else str(name))
    elif isinstance(value, list):
        for place, inner in enumerate(value):
            yield from numbers(inner, f"{path}[{place}]")
    elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        yield path, float(value)


def _direction(key: str, directions: list[tuple[str, bool]]) -> bool | None:
    parts = key.replace("[", ".").split(".")
    for name, better_up in directions:
        if any(part == name or part.startswith(f"{name}_") or part.endswith(f"_{name}") for part in parts):
            return better_up != (name == "ratios" and any(cost in key for cost in _COSTS))
    return None


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RecipeError(
            f"{path}: no result of a benchmark", found=str(error), fix="dsvid bench … --json FILE"
        ) from error
