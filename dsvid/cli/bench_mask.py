"""`dsvid bench mask`: the fused tube-masking op against the textbook chain and against this machine's memory floor.

Arms take turns, so that a change of the machine's load meets all of them; medians are compared.
"""

from __future__ import annotations

import argparse
import ctypes
import platform
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from dsvid import ops
from dsvid.errors import OpError
from dsvid.ops import reference
from dsvid.tokens import TubeletGrid, masked_sites

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TUBELET = 2
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# The plain-torch arms take hundreds of times longer than the op: they get fewer turns.
SLOW_ARM_SHARE = 5

Arm = Callable[[], object]


def run(args: argparse.Namespace) -> dict[str, object]:
    """Measure, print and return medians in ms per clip and the two ratios. Raises OpError where the arms disagree."""
    grid = TubeletGrid(args.frames, args.size, args.size, TUBELET, args.patch)
    masked = masked_sites(grid, args.ratio)
    threads_before = torch.get_num_threads()
    torch.set_num_threads(args.threads)
    try:
        arms = _make_arms(grid, masked, args.batch, DTYPES[args.dtype])
        times = _take_turns(arms, max(1, args.repeats), use_cpu_time=args.threads == 1)
    finally:
        torch.set_num_threads(threads_before)
    floor = min("floor (libc)", "floor (torch)", key=lambda name: statistics.median(times[name]))
    medians = {name: statistics.median(each) * 1e3 / args.batch for name, each in times.items()}
    result: dict[str, object] = {
        "settings": {
            name: value
            for name, value in vars(args).items()
            if isinstance(value, int | float | str) and name != "command"
        },
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "op": f"{ops.backend('cpu')} ({ops.backend_reason('cpu')})",
        "clock": "CPU time of the thread" if args.threads == 1 else "wall",
        "ms_per_clip": medians,
        "spread": {name: [min(each) * 1e3 / args.batch, max(each) * 1e3 / args.batch] for name, each in times.items()},
        "times_faster_than_textbook": medians["textbook chain"] / medians["op"],
        "times_the_byte_floor": medians["op"] / medians[floor],
    }
    _print(result, floor)
    return result


def _make_arms(grid: TubeletGrid, masked: int, batch: int, dtype: torch.dtype) -> dict[str, Arm]:
    generator = torch.Generator().manual_seed(0)
    size = (batch, grid.frames, grid.height, grid.width, 3)
    clip = torch.randint(0, 256, size, dtype=torch.uint8, generator=generator)
    seeds = torch.arange(batch)
    mask = ops.tube_mask(seeds, grid, masked)

    def fused(out: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
        plan = ops.plan_tokens(seeds, grid, masked)
        return ops.gather_tokens(
            clip, plan.visible, plan.targets, grid,
            mean=MEAN, std=STD, norm_pix=True, dtype=dtype, target_dtype=dtype, out=out,
        )  # fmt: skip

    def plain_torch() -> tuple[Tensor, Tensor]:
        visible, decoded, _ = reference.plan_tokens(seeds, grid.t, grid.h, grid.w, masked, 0)
        return reference.gather_tokens(clip, visible, decoded, grid.tubelet, grid.patch, MEAN, STD, True, dtype, dtype)

    out = fused(None)
    tolerance = 1e-4 if dtype == torch.float32 else 4e-2
    _compare(out, textbook_chain(clip, mask, grid, dtype), "the textbook chain", tolerance)
    _compare(out, plain_torch(), "the plain-torch reference", 0.0)
    return {
        "op": lambda: fused(out),
        "op, fresh buffers": lambda: fused(None),
        "floor (libc)": _libc_floor(clip, out),
        "floor (torch)": _torch_floor(clip, out),
        "plain-torch reference": plain_torch,
        "textbook chain": lambda: textbook_chain(clip, mask, grid, dtype),
    }


def textbook_chain(clip: Tensor, mask: Tensor, grid: TubeletGrid, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """What VideoMAE's pre-training loop does for one batch, in its order: visible patches and targets as the op gives.

    Normalise the whole clip to float; undo that for the target; cut all tokens; mean and unbiased variance of every
    token and channel; then index with the mask. Drawing the mask is not part of this arm (in the op's arm it is).
    """
    b, g = clip.shape[0], grid
    mean, std = (torch.tensor(each).view(1, 3, 1, 1, 1) for each in (MEAN, STD))
    video = (clip.permute(0, 4, 1, 2, 3).float() / 255.0 - mean) / std
    pixels = video * std + mean
    cut = pixels.reshape(b, 3, g.t, g.tubelet, g.h, g.patch, g.w, g.patch).permute(0, 2, 4, 6, 3, 5, 7, 1)
    tokens = cut.reshape(b, g.tokens, g.pixels, 3)
    deviation = tokens.var(dim=2, unbiased=True, keepdim=True).sqrt() + 1e-6
    normalised = (tokens - tokens.mean(dim=2, keepdim=True)) / deviation
    targets = normalised.reshape(b, g.tokens, g.values)[mask].reshape(b, -1, g.values)
    # Indexing the strided view copies the visible patches alone: the kindest way to do it with plain torch.
    strided = video.reshape(b, 3, g.t, g.tubelet, g.h, g.patch, g.w, g.patch).permute(0, 2, 4, 6, 1, 3, 5, 7)
    patches = strided[~mask.reshape(b, g.t, g.h, g.w)].reshape(b, -1, g.values)
    return patches.to(dtype), targets.to(dtype)


def _compare(out: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor], name: str, tolerance: float) -> None:
    for mine, theirs in zip(out, other, strict=True):
        difference = (mine.float() - theirs.float()).abs().max().item()
        if not difference <= tolerance:
            raise OpError(f"bench mask: the op and {name} disagree", found=difference, expected=f"<= {tolerance}")


def _libc_floor(clip: Tensor, out: tuple[Tensor, Tensor]) -> Arm:
    """Move exactly the bytes that the op must: copy the clip, fill the rest of as many bytes as the op writes."""
    written = sum(each.numel() * each.element_size() for each in out)
    target = torch.empty(written, dtype=torch.uint8)
    source, start, copied = clip.data_ptr(), target.data_ptr(), min(clip.numel(), written)

    def move() -> None:
        ctypes.memmove(start, source, copied)
        ctypes.memset(start + copied, 0, target.numel() - copied)

    return move


def _torch_floor(clip: Tensor, out: tuple[Tensor, Tensor]) -> Arm:
    written = sum(each.numel() * each.element_size() for each in out)
    target = torch.empty(written, dtype=torch.uint8)
    copied = min(clip.numel(), written)
    head, tail, source = target[:copied], target[copied:], clip.view(-1)[:copied]

    def move() -> None:
        head.copy_(source)
        tail.fill_(0)

    return move


def _take_turns(arms: dict[str, Arm], repeats: int, use_cpu_time: bool) -> dict[str, list[float]]:
    # Other work on the machine stretches the wall clock; with one thread the CPU clock of that thread does not see it.
    clock = time.thread_time if use_cpu_time else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in arms}
    slow = {"plain-torch reference", "textbook chain"}
    for arm in arms.values():
        arm()
    for turn in range(repeats):
        for name, arm in arms.items():
            if name in slow and turn % SLOW_ARM_SHARE:
                continue
            start = clock()
            arm()
            times[name].append(clock() - start)
    return times


def _print(result: dict[str, object], floor: str) -> None:
    medians, spread = result["ms_per_clip"], result["spread"]
    assert isinstance(medians, dict) and isinstance(spread, dict)
    print(f"tube op: {result['op']}; clock: {result['clock']}; {result['machine']}, torch {result['torch']}")
    assert isinstance(result["settings"], dict)
    print("settings: " + ", ".join(f"{name} {value}" for name, value in result["settings"].items()))
    for name, value in medians.items():
        low, high = spread[name]
        print(f"  {name:<24}{value:9.3f} ms/clip   ({low:.3f} to {high:.3f})   op x {value / medians['op']:.2f}")
    print(f"{result['times_faster_than_textbook']:.1f} times faster than the textbook chain")
    print(f"{result['times_the_byte_floor']:.2f} times the byte floor ({floor}: the same bytes, copied and filled)")
