"""Compiles csrc/ to plain shared objects: `python -m dsvid.ops.build` in a clone, and setup.py at installation.

Standard library only and loadable by file path: it runs before torch is installed. It never raises for a failed
compilation: what happened stands in `build.json` beside the objects, and the loader quotes it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
SOURCES = PACKAGE.parents[1] / "csrc"
LIBRARY_FOLDER = PACKAGE / "lib"
REPORT_NAME = "build.json"
KINDS = ("cpu", "cuda")
CURE = "python -m dsvid.ops.build"
COMPILE_LIMIT_S = 600

Record = dict[str, object]


def library_name(kind: str) -> str:
    return f"libdsvid_{kind}.so"


def hash_sources(sources: Path = SOURCES) -> str:
    """16 hex digits over names and contents of csrc/, compiled into the objects; empty where csrc/ is not there."""
    digest = hashlib.sha256()
    files = sorted(path for path in sources.glob("*") if path.suffix in {".h", ".cpp", ".cu"})
    for path in files:
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16] if files else ""


def read_report(folder: Path = LIBRARY_FOLDER) -> dict[str, Record]:
    """What the last build said of each kind; empty where there was none or the file cannot be read."""
    try:
        report = json.loads((folder / REPORT_NAME).read_text())
    except (OSError, ValueError):
        return {}
    return report if isinstance(report, dict) else {}


def build(folder: Path = LIBRARY_FOLDER, sources: Path = SOURCES, *, force: bool = False) -> dict[str, Record]:
    """Compile what is missing or stale into `folder` and return the report that build.json then holds.

    Each record has `status` (native, absent: not tried or no compiler, failed), `reason`, `command`, `source_hash`.
    """
    before = read_report(folder)
    source_hash = hash_sources(sources)
    report: dict[str, Record] = {}
    for kind in KINDS:
        current = before.get(kind, {})
        command = [str(part) for part in _plan_command(kind, sources, source_hash)]
        # An installed copy has no sources: then what was installed is all there can be.
        keep = not source_hash or (not force and _is_current(current, command, source_hash))
        if keep and current.get("status") == "native" and (folder / library_name(kind)).is_file():
            report[kind] = current
        else:
            report[kind] = _build_one(kind, folder, sources, source_hash, command)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write_atomically(folder / REPORT_NAME, json.dumps(report, indent=1) + "\n")
    except OSError as error:
        print(f"dsvid: cannot write {folder / REPORT_NAME}: {error}", file=sys.stderr)
    return report


def _is_current(record: Record, command: list[str], source_hash: str) -> bool:
    # Without a command (no compiler any more, DSVID_BUILD_OPS=0) the object that is there is still the right one.
    return record.get("source_hash") == source_hash and (not command or record.get("command") == command)


def _plan_command(kind: str, sources: Path, source_hash: str) -> list[str]:
    compiler = find_compiler() if kind == "cpu" else find_nvcc()
    if not compiler or not source_hash or os.environ.get("DSVID_BUILD_OPS") == "0":
        return []
    # No -march=native: the machine that compiles is often not the one that trains. The kernels choose at run time.
    # No fused multiply-add: rounding is part of the specification (reference.py), the same on every processor.
    shared = ["-std=c++17", "-O3", f'-DDSVID_SOURCE_HASH="{source_hash}"']
    if kind == "cpu":
        flags = ["-shared", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off"]
        return [*compiler, *shared, *flags, str(sources / "tube_cpu.cpp"), str(sources / "resize_cpu.cpp")]
    host = ["-Xcompiler", "-fPIC,-fvisibility=hidden,-ffp-contract=off"]
    flags = ["-shared", "-fmad=false", "-cudart", "static", *host]
    return [*compiler, *shared, *flags, *cuda_architectures(os.environ), str(sources / "tube_cuda.cu")]


def find_compiler() -> list[str]:
    """The C++ compiler as a command: $CXX, or the first of c++, g++, clang++ on PATH; empty where there is none."""
    for candidate in (shlex.split(os.environ.get("CXX", "")), ["c++"], ["g++"], ["clang++"]):
        path = shutil.which(candidate[0]) if candidate else None
        if path:
            return [path, *candidate[1:]]
    return []


def find_nvcc() -> list[str]:
    """nvcc (it may be a wrapper script) from $CUDA_HOME, $CUDA_PATH, PATH or /usr/local/cuda; empty where none is."""
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    places = [str(Path(home) / "bin" / "nvcc") for home in homes] + ["nvcc", "/usr/local/cuda/bin/nvcc"]
    found = next((path for path in map(shutil.which, places) if path), None)
    return [found] if found else []


def cuda_architectures(environ: Mapping[str, str]) -> list[str]:
    """nvcc's flags for torch's TORCH_CUDA_ARCH_LIST ("8.0;9.0+PTX"); every major one where it is unset or has names."""
    listed = environ.get("TORCH_CUDA_ARCH_LIST", "").replace(";", " ").split()
    flags: list[str] = []
    for entry in listed:
        match = re.fullmatch(r"(\d+)\.(\d+)([af]?)(\+PTX)?", entry)
        if not match:
            return ["-arch=all-major"]
        number = "".join(match.group(1, 2, 3))
        flags += ["-gencode", f"arch=compute_{number},code=sm_{number}"]
        if match.group(4):
            flags += ["-gencode", f"arch=compute_{number},code=compute_{number}"]
    return flags or ["-arch=all-major"]


def _build_one(kind: str, folder: Path, sources: Path, source_hash: str, command: list[str]) -> Record:
    record: Record = {"status": "absent", "reason": "", "command": command, "source_hash": source_hash}
    record["machine"] = platform.machine()
    if os.environ.get("DSVID_BUILD_OPS") == "0":
        record["reason"] = f"DSVID_BUILD_OPS=0 when it was built; build it with `{CURE}`"
    elif not source_hash:
        record["reason"] = f"no sources at {sources}: an installed copy has none; reinstall dsvid from source"
    elif not command and kind == "cpu":
        record["reason"] = f"no C++ compiler found (looked for $CXX, c++, g++, clang++); install one, then `{CURE}`"
    elif not command:
        record["reason"] = f"no nvcc found (looked in $CUDA_HOME, $CUDA_PATH, PATH, /usr/local/cuda); then `{CURE}`"
    else:
        _compile(record, command, folder / library_name(kind))
    return record


def _compile(record: Record, command: list[str], library: Path) -> None:
    partial = ""
    try:
        library.parent.mkdir(parents=True, exist_ok=True)
        # Compiled beside its place and then renamed: several ranks or nodes may build at once, and none needs a lock
        # that a killed build would leave behind.
        handle, partial = tempfile.mkstemp(dir=library.parent, prefix=".partial-", suffix=".so")
        os.close(handle)
        done = subprocess.run(
            [*command, "-o", partial], capture_output=True, text=True, timeout=COMPILE_LIMIT_S, check=False
        )
        if done.returncode:
            record.update(status="failed", reason=_first_error(done.stderr, done.returncode), log=done.stderr[-8000:])
            return
        os.chmod(partial, 0o755)
        os.replace(partial, library)
        record.update(status="native", reason="")
    except (OSError, subprocess.TimeoutExpired) as error:
        record.update(status="failed", reason=str(error))
    finally:
        if partial and os.path.exists(partial):
            os.unlink(partial)


def _first_error(log: str, code: int) -> str:
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    for line in lines:
        if "error" in line.lower():
            return line
    return lines[-1] if lines else f"the compiler ended with code {code} and no message"


def _write_atomically(path: Path, text: str) -> None:
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=".partial-", suffix=path.suffix)
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
        os.chmod(partial, 0o644)
        os.replace(partial, path)
    except OSError:
        os.unlink(partial)
        raise


def summarise(report: Mapping[str, Record]) -> list[str]:
    """One line per kind: what there is, or why it is not there."""
    lines = []
    for kind, record in report.items():
        status = "native" if record.get("status") == "native" else f"reference ({record.get('reason')})"
        lines.append(f"dsvid tube op, {kind}: {status}")
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Build in place and print the result. Exit code 0 unless --strict and the cpu object is not there."""
    parser = argparse.ArgumentParser(prog=CURE, description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--force", action="store_true", help="compile although the objects are up to date")
    parser.add_argument("--strict", action="store_true", help="exit code 1 if the cpu object could not be built")
    chosen = parser.parse_args(arguments)
    report = build(force=chosen.force)
    print("\n".join(summarise(report)))
    return 1 if chosen.strict and report["cpu"].get("status") != "native" else 0


if __name__ == "__main__":
    raise SystemExit(main())
