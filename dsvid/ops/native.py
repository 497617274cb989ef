"""Loads the shared objects of csrc/ and calls them; decides once per device type between native and reference.

DSVID_OPS=auto takes the native build where there is one, `reference` never, `native` makes a missing or stale one an
error. Callers have checked every argument (checks.py): the C side trusts its pointers. No state but the loaded objects,
so it is safe under threads and after a fork.
"""

from __future__ import annotations

import ctypes
import os
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from dsvid.errors import OpError
from dsvid.ops import build
from dsvid.ops.checks import bad_index

MODES = ("auto", "native", "reference")
LANES = {"auto": 0, "portable": 1, "avx2": 2, "avx512": 3, "avx512_bf16": 4}
# The CUDA plan kernel keeps 9 bytes per site in shared memory, of which every card gives 48 KiB without asking.
CUDA_PLAN_SITES = 5120
_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_OK, _NO_MEMORY, _BAD_INDEX, _BAD_ARGUMENT, _CUDA_ERROR = 0, 1, 2, 3, 1000

Scale = tuple[tuple[float, ...], ...]


class _PlanArgs(ctypes.Structure):
    """dsvid_plan_args of csrc/tube.h, field for field."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("seeds", "visible", "decoded", "n_targets")),
        *((name, ctypes.c_int64) for name in ("batch", "t", "h", "w", "masked_sites", "cell_drop", "decoded_stride")),
    )


class _GatherArgs(ctypes.Structure):
    """dsvid_gather_args of csrc/tube.h, field for field."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("clip", "visible", "targets", "patches_out", "targets_out")),
        *((name, ctypes.c_int64) for name in ("batch", "n_visible", "n_targets")),
        *((name, ctypes.c_int64) for name in ("frames", "height", "width", "tubelet", "patch")),
        *((name, ctypes.c_float * 3) for name in ("whole", "frac", "inv")),
        *((name, ctypes.c_int32) for name in ("norm_pix", "patches_dtype", "targets_dtype", "lanes")),
    )


@cache
def load(kind: str, folder: Path = build.LIBRARY_FOLDER) -> tuple[ctypes.CDLL | None, str]:
    """The shared object of a kind ("cpu" or "cuda"), or None and the reason why it cannot be used."""
    path = folder / build.library_name(kind)
    record = build.read_report(folder).get(kind, {})
    if not path.is_file():
        return None, str(record.get("reason") or f"not built; build it with `{build.CURE}`")
    try:
        library = ctypes.CDLL(str(path))
        library.dsvid_source_hash.restype = ctypes.c_char_p
        compiled = library.dsvid_source_hash().decode()
    except (OSError, AttributeError) as error:
        return None, f"{path} cannot be loaded ({error}); build it again with `{build.CURE} --force`"
    expected = build.hash_sources() or str(record.get("source_hash"))
    if compiled != expected:
        why = f"; the last build failed: {record['reason']}" if record.get("reason") else ""
        return None, f"stale build (compiled from {compiled}, csrc is {expected}){why}; `{build.CURE}`"
    if kind == "cuda":
        library.dsvid_cuda_error_text.restype = ctypes.c_char_p
    return library, ""


@cache
def _decide(device_type: str, mode: str) -> tuple[str, str]:
    if mode not in MODES:
        raise OpError("DSVID_OPS has an unknown value", found=mode, expected="auto, native or reference")
    if mode == "reference":
        return "reference", "DSVID_OPS=reference"
    if device_type not in build.KINDS:
        library, reason = None, f"no native kernel for device type {device_type}"
    else:
        library, reason = load(device_type)
    if library is not None:
        return "native", _describe(library, device_type)
    if mode == "native":
        raise OpError(
            f"DSVID_OPS=native, but the tube op has no usable native build for {device_type}",
            found=reason,
            expected=f"{build.LIBRARY_FOLDER / build.library_name(device_type)}, built from this csrc/",
            fix=f"{build.CURE}   (or DSVID_OPS=auto)",
        )
    return "reference", reason


def _describe(library: ctypes.CDLL, kind: str) -> str:
    if kind == "cuda":
        return "CUDA kernel"
    best = next(name for name in reversed(LANES) if library.dsvid_has_lanes(LANES[name]))
    return f"{best} kernel"


def _mode() -> str:
    return os.environ.get("DSVID_OPS", "") or "auto"


def backend(device_type: str) -> str:
    """ "native" or "reference" for tensors of this device type. Raises OpError where DSVID_OPS=native cannot be had."""
    return _decide(device_type, _mode())[0]


def backend_reason(device_type: str) -> str:
    """Which native kernel runs, or why the reference does."""
    return _decide(device_type, _mode())[1]


def clear_message() -> list[str]:
    """The lines to print once at start: what runs the tube op on each device type of this machine, and the cure."""
    types = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    return [f"tube op on {kind}: {backend(kind)} ({backend_reason(kind)})" for kind in types]


def runs_plan(device_type: str, sites: int) -> bool:
    """Whether the native plan kernel takes this many sites."""
    return backend(device_type) == "native" and (device_type != "cuda" or sites <= CUDA_PLAN_SITES)


def plan_tokens(
    seeds: Tensor,
    grid: tuple[int, int, int],
    masked_sites: int,
    cell_drop: int,
    lists: tuple[Tensor, Tensor, Tensor],
) -> None:
    """Fill the lists (visible, decoded, n_targets) of contiguous int64 seeds [B]."""
    arguments = _PlanArgs(
        seeds.data_ptr(),
        *(each.data_ptr() for each in lists),
        seeds.shape[0],
        *grid,
        masked_sites,
        cell_drop,
        lists[1].shape[1],
    )
    _call("dsvid_plan", seeds.device, arguments)


def gather_tokens(
    clip: Tensor,
    lists: tuple[Tensor, Tensor],
    tubelet_and_patch: tuple[int, int],
    scale: Scale,
    norm_pix: bool,
    outputs: tuple[Tensor, Tensor],
    lanes: str = "auto",
) -> None:
    """Fill the outputs (patches, targets) of a contiguous clip and contiguous lists (visible, targets).

    `lanes` forces an instruction set of the CPU kernel (tests). Raises OpError for an index outside [0, N).
    """
    whole, frac, inv = ((ctypes.c_float * 3)(*part) for part in scale)
    arguments = _GatherArgs(
        clip.data_ptr(),
        *(each.data_ptr() for each in (*lists, *outputs)),
        clip.shape[0],
        lists[0].shape[1],
        lists[1].shape[1],
        *clip.shape[1:4],
        *tubelet_and_patch,
        whole,
        frac,
        inv,
        int(norm_pix),
        *(_DTYPES[each.dtype] for each in outputs),
        LANES[lanes],
    )
    tubelet, patch = tubelet_and_patch
    tokens = clip.shape[1] // tubelet * (clip.shape[2] // patch) * (clip.shape[3] // patch)
    _call("dsvid_gather", clip.device, arguments, tokens)


def _call(name: str, device: torch.device, arguments: ctypes.Structure, tokens: int = 0) -> None:
    library = load(device.type)[0]
    assert library is not None
    wrong_index = ctypes.c_int64(0)
    if device.type == "cuda":
        with torch.cuda.device(device):
            stream = ctypes.c_void_p(torch.cuda.current_stream(device).cuda_stream)
            result = getattr(library, name + "_cuda")(ctypes.byref(arguments), stream)
    elif name == "dsvid_gather":
        result = library.dsvid_gather_cpu(ctypes.byref(arguments), ctypes.byref(wrong_index))
    else:
        result = library.dsvid_plan_cpu(ctypes.byref(arguments))
    if result == _BAD_INDEX:
        raise bad_index(wrong_index.value, tokens)
    _check(name, library, result)


def resizes() -> bool:
    """Whether csrc's resampling runs here: there is a build, and the processor has its instructions."""
    return backend("cpu") == "native" and _processor_resizes()


@cache
def _processor_resizes() -> bool:
    library = load("cpu")[0]
    return library is not None and bool(library.dsvid_has_resize())


def resize(arguments: ctypes.Structure) -> None:
    """Run csrc's resampling; the structure and what it points to are resample.py's."""
    library = load("cpu")[0]
    assert library is not None
    _check("dsvid_resize_cpu", library, library.dsvid_resize_cpu(ctypes.byref(arguments)))


def _check(name: str, library: ctypes.CDLL, result: int) -> None:
    if result == _OK:
        return
    if result >= _CUDA_ERROR:
        raise OpError(f"{name}: CUDA error", found=library.dsvid_cuda_error_text(result).decode())
    problem = {_NO_MEMORY: "out of memory", _BAD_ARGUMENT: "arguments that the kernel does not take"}
    raise OpError(f"{name} failed", found=problem.get(result, f"code {result}"))
