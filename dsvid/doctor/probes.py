"""What torch, the native code and the decoders really do here: each is run once, on something tiny.

For `child`: whatever happens in here happens in a process of its own. Never starts torch.distributed.
"""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dsvid.data.decode import import_decord, import_torchcodec
from dsvid.doctor.finding import Finding, Level, first_line

Probe = Callable[[], Iterator[Finding]]
DTYPES = ("float32", "bfloat16", "float16")
TOKENS, HEAD = 1568, 64  # of a released ViT on 16 frames of 224 x 224


def devices() -> Iterator[Finding]:
    """Every GPU that torch sees, or that there is none."""
    import torch

    built = torch.version.cuda or torch.version.hip
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            facts = torch.cuda.get_device_properties(index)
            yield Finding(f"cuda:{index}", f"{facts.name}, {facts.total_memory / 1e9:.0f} GB, CUDA {built} of torch")
        return
    threads = f"training runs on the CPU, {torch.get_num_threads()} threads"
    if built and Path("/proc/driver/nvidia/version").exists():
        yield Finding(
            "cuda", f"a driver is loaded, but torch sees no device; {threads}", "less",
            "GPUs: check nvidia-smi and CUDA_VISIBLE_DEVICES; a torch newer than the driver sees none",
        )  # fmt: skip
    elif Path("/proc/driver/nvidia/version").exists():
        yield Finding("cuda", f"torch is built without CUDA; {threads}", "less",
                      "GPUs: pip install torch, the build of your CUDA (https://pytorch.org)")  # fmt: skip
    else:
        yield Finding("cuda", f"no device visible; {threads}")


def attention() -> Iterator[Finding]:
    """The backend of each dtype on each kind of device, run once."""
    import torch

    from dsvid.models.attention import attend, choose_backend

    for kind in _kinds():
        said: list[str] = []
        level: Level = "ok"
        for name in DTYPES:
            dtype = getattr(torch, name)
            backend = choose_backend("auto", kind, dtype, TOKENS, HEAD)
            try:
                q = torch.ones(1, 1, 16, HEAD, dtype=dtype, device=kind, requires_grad=True)
                torch.autograd.backward(attend(q, q, q, backend).sum())
                said.append(f"{backend} in {name}")
            except Exception as error:  # a kernel that this device or build does not have
                said.append(f"{backend} in {name} fails: {first_line(error)}")
                level = "less"
        cure = "" if level == "ok" else "model.attention=math, or a precision that works"
        yield Finding("attention", f"{kind}: {', '.join(said)}", level, cure)


def compute() -> Iterator[Finding]:
    """Matrix products of each dtype on each kind of device, run once; and whether bf16 is fast."""
    import torch

    from dsvid.runtime import fast_bf16

    for kind in _kinds():
        works, fails = [], []
        for name in DTYPES:
            try:
                a = torch.ones(32, 32, dtype=getattr(torch, name), device=kind)
                assert float((a @ a)[0, 0]) == 32.0
                works.append(name)
            except Exception as error:
                fails.append(f"{name} fails: {first_line(error)}")
        value = f"{kind}: {', '.join([*works, *fails])}"
        if kind == "cpu" and not fast_bf16() and "cuda" not in _kinds():
            yield Finding("compute", f"{value}; no bf16 arithmetic in this CPU", "less",
                          "several times slower in bf16: ds.bf16.enabled=false")  # fmt: skip
        elif kind == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
            yield Finding("compute", f"{value}; no bf16 arithmetic in this GPU", "less",
                          "slow in bf16: ds.bf16.enabled=false ds.fp16.enabled=true")  # fmt: skip
        else:
            yield Finding("compute", value, "less" if fails else "ok")


def native_ops() -> Iterator[Finding]:
    """Which code runs the tube op and the resampling of the loader."""
    from dsvid import ops
    from dsvid.ops import build, native

    for kind in _kinds():
        runs, why = ops.backend(kind), ops.backend_reason(kind)
        line = f"tube op on {kind}: {runs} ({why})"
        if runs == "native" or why.startswith("DSVID_OPS"):
            yield Finding("op", line)
        else:
            yield Finding("op", line, "less", f"slower, same numbers: {build.CURE}")
    resizes = native.resizes()
    yield Finding("op", f"resampling of the loader: {'native' if resizes else 'torch (the same bytes, slower)'}")


def cuda_compiler() -> Iterator[Finding]:
    """nvcc as DeepSpeed looks for it to build its own kernels, and against torch's CUDA."""
    import torch

    from dsvid.ops.build import find_nvcc

    found = find_nvcc()
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    use = "only for the CUDA op of csrc/ and for DeepSpeed's own kernels (offload)"
    if home and not Path(home).is_dir():
        yield Finding("nvcc", f"CUDA_HOME={home} is no folder", "less", "unset CUDA_HOME, or the folder of the toolkit")
        return
    if not found:
        missing: Level = "less" if torch.version.cuda else "ok"
        cure = f"install the CUDA toolkit {torch.version.cuda}, export CUDA_HOME=…" if torch.version.cuda else ""
        yield Finding("nvcc", f"not found ({use})", missing, cure)
        return
    told = subprocess.run([found[0], "--version"], capture_output=True, text=True, timeout=20, check=False)
    release = re.search(r"release (\d+\.\d+)", told.stdout)
    version = release[1] if release else "version not known"
    value = f"{found[0]}, {version}; CUDA_HOME {home or 'not set'}; torch's CUDA: {torch.version.cuda or 'none'}"
    if torch.version.cuda and release and release[1].split(".")[0] != torch.version.cuda.split(".")[0]:
        cure = f"DeepSpeed builds no kernels with another major version: toolkit {torch.version.cuda}"
        yield Finding("nvcc", value, "less", cure)
    else:
        yield Finding("nvcc", value)


def decoders() -> Iterator[Finding]:
    """Each decoder on a clip that is encoded here; training needs one."""
    from dsvid.data.decode import quiet_decoders

    quiet_decoders()
    with tempfile.TemporaryDirectory(prefix="dsvid-env-") as folder:
        clip = Path(folder) / "clip.mp4"
        try:
            _encode(clip)
        except Exception as error:
            why = f"not checked: PyAV cannot encode a clip to try: {first_line(error)}"
            yield Finding(
                "decoder", why, "unknown", "no mp4 from `dsvid predict` and no generated clips: pip install av"
            )
            return
        working = []
        for name, lost in (("pyav", ""), ("decord", "PyAV decodes instead: pip install decord"),
                           ("torchcodec", "only data.decoder=torchcodec: pip install torchcodec")):  # fmt: skip
            problem = _decodes(name, clip)
            if problem is None:
                working.append(name)
                yield Finding("decoder", f"{name}: reads H.264")
            elif name == "pyav":
                yield Finding("decoder", f"pyav: {problem}", "less", "whole videos in `dsvid predict`: pip install av")
            else:
                absent = "No module named" in problem
                yield Finding("decoder", f"{name}: {'not installed' if absent else problem}",
                              "ok" if absent else "less", lost)  # fmt: skip
        if not working:
            yield Finding("decoder", "none reads a video", "stops", "pip install av")


def _encode(path: Path) -> None:
    from dsvid.data.builtin import write_clip

    write_clip(path, np.arange(8, dtype=np.uint8)[:, None, None, None] * np.full((8, 64, 64, 3), 20, np.uint8))


def _decodes(name: str, clip: Path) -> str | None:
    """None where the decoder gives the pictures of the clip, else why not."""
    from dsvid.data.decode import open_clip_source
    from dsvid.data.manifest import Entry

    try:
        {"pyav": lambda: importlib.import_module("av"), "decord": import_decord, "torchcodec": import_torchcodec}[
            name
        ]()
        with open_clip_source(Entry(str(clip), -1, 0, -1, "video"), name) as source:
            if source.note:  # PyAV read it in place of the other
                return source.note
            pictures = source.read(np.array([0, 7]))
        levels = pictures.reshape(2, -1).mean(axis=1)
        if abs(levels[0]) > 8 or abs(levels[1] - 140) > 8:
            return f"wrong pictures: levels {levels.round(1).tolist()}, not 0 and 140"
    except Exception as error:
        cause: BaseException = error.__cause__ or error
        return first_line(cause)
    return None


def jpeg() -> Iterator[Finding]:
    """What reads JPEG, as frame folders, zips and packed shards are."""
    import io

    from PIL import Image

    from dsvid.data.picture import decode_picture, decoder_name

    out = io.BytesIO()
    Image.new("RGB", (16, 16), (200, 100, 50)).save(out, "JPEG", quality=95)
    pixels = decode_picture(memoryview(bytearray(out.getvalue())))
    wrong = np.abs(pixels.reshape(-1, 3).mean(axis=0) - (200, 100, 50)).max() > 6
    if wrong:
        yield Finding(
            "jpeg", f"{decoder_name()} gives wrong colours", "less", "frame folders and shards: another build"
        )
    else:
        yield Finding("jpeg", f"{decoder_name()} reads JPEG")


def _kinds() -> list[str]:
    import torch

    return ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


PROBES: dict[str, Any] = {
    "devices": devices,
    "attention": attention,
    "compute": compute,
    "native_ops": native_ops,
    "cuda_compiler": cuda_compiler,
    "decoders": decoders,
    "jpeg": jpeg,
}
