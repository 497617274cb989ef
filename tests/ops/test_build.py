"""The build: what it records when it fails, and what the loader makes of a missing, broken or stale object."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dsvid.errors import OpError
from dsvid.ops import build, native

# One interpreter for both modes, because importing torch takes seconds.
ASK_BOTH_MODES = """
import os
from dsvid import ops
from dsvid.errors import OpError
for mode in ("auto", "native"):
    os.environ["DSVID_OPS"] = mode
    try:
        print(mode, ops.backend("cpu"), ops.backend_reason("cpu"), sep="|")
    except OpError as error:
        print(mode, "OpError", *str(error).splitlines(), sep="|")
"""
BUILD_CPU = "from dsvid.ops import build; build.find_nvcc = list; import sys; sys.exit(build.main(['--strict']))"


@pytest.fixture
def no_compilers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("CXX", "CUDA_HOME", "CUDA_PATH", "DSVID_BUILD_OPS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    monkeypatch.setattr(build, "find_nvcc", list)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A copy of the package and of csrc/ with nothing built, as a fresh clone has them."""
    ignore = shutil.ignore_patterns("lib", "__pycache__")
    shutil.copytree(build.PACKAGE.parent, tmp_path / "clone" / "dsvid", ignore=ignore)
    shutil.copytree(build.SOURCES, tmp_path / "clone" / "csrc")
    return tmp_path / "clone"


def run_python(clone: Path, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(clone), "OMP_NUM_THREADS": "1", **environ}
    return subprocess.run(
        [sys.executable, *arguments], cwd=clone, env=env, capture_output=True, text=True, timeout=300, check=False
    )


def load_from(folder: Path) -> tuple[object, str]:
    native.load.cache_clear()
    return native.load("cpu", folder)


def test_build_does_not_import_torch() -> None:
    code = "import sys, dsvid.ops.build; sys.exit('torch' in sys.modules)"
    assert run_python(build.PACKAGE.parents[1], "-c", code).returncode == 0


@pytest.mark.usefixtures("no_compilers")
def test_without_a_compiler(tmp_path: Path) -> None:
    report = build.build(tmp_path / "lib")
    assert json.loads((tmp_path / "lib" / "build.json").read_text()) == report
    assert report["cpu"]["status"] == "absent"
    assert "no C++ compiler found" in str(report["cpu"]["reason"])
    library, reason = load_from(tmp_path / "lib")
    assert library is None and "no C++ compiler found" in reason
    assert any("reference" in line for line in build.summarise(report))


def test_syntax_error_is_recorded_and_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not build.find_compiler():
        pytest.skip("no C++ compiler")
    monkeypatch.setattr(build, "find_nvcc", list)
    sources = tmp_path / "csrc"
    shutil.copytree(build.SOURCES, sources)
    broken = sources / "tube_cpu.cpp"
    broken.write_text(broken.read_text() + "\nthis is not C++;\n")
    report = build.build(tmp_path / "lib", sources)
    assert report["cpu"]["status"] == "failed"
    assert "error" in str(report["cpu"]["reason"]) and "tube_cpu.cpp" in str(report["cpu"]["reason"])
    assert report["cpu"]["command"] and report["cpu"]["log"]
    assert sorted(path.name for path in (tmp_path / "lib").iterdir()) == ["build.json"]
    assert load_from(tmp_path / "lib") == (None, report["cpu"]["reason"])


def test_switched_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSVID_BUILD_OPS", "0")
    report = build.build(tmp_path)
    assert "DSVID_BUILD_OPS=0" in str(report["cpu"]["reason"])


def test_no_sources_keeps_what_is_installed(tmp_path: Path) -> None:
    report = build.build(tmp_path / "lib", tmp_path / "nowhere")
    assert "reinstall" in str(report["cpu"]["reason"])
    installed = {"cpu": {"status": "native", "source_hash": "abc", "command": ["c++"]}}
    (tmp_path / "lib" / "build.json").write_text(json.dumps(installed))
    (tmp_path / "lib" / build.library_name("cpu")).touch()
    assert build.build(tmp_path / "lib", tmp_path / "nowhere")["cpu"] == installed["cpu"]


@pytest.mark.usefixtures("no_compilers")
def test_object_outlives_its_compiler_but_not_its_sources(tmp_path: Path) -> None:
    shutil.copytree(build.SOURCES, tmp_path / "csrc")
    made = {"cpu": {"status": "native", "source_hash": build.hash_sources(), "command": ["c++"]}}
    (tmp_path / build.REPORT_NAME).write_text(json.dumps(made))
    (tmp_path / build.library_name("cpu")).touch()
    assert build.build(tmp_path, tmp_path / "csrc")["cpu"] == made["cpu"]
    (tmp_path / "csrc" / "new.h").touch()
    assert build.build(tmp_path, tmp_path / "csrc")["cpu"]["status"] == "absent"


def test_folder_that_cannot_be_written(tmp_path: Path) -> None:
    if not build.find_compiler():
        pytest.skip("no C++ compiler")
    (tmp_path / "file").write_text("")
    report = build.build(tmp_path / "file" / "lib")
    assert report["cpu"]["status"] == "failed" and report["cpu"]["reason"]


@pytest.mark.parametrize(
    ("listed", "flags"),
    [
        ("", ["-arch=all-major"]),
        ("Hopper", ["-arch=all-major"]),
        ("9.0", ["-gencode", "arch=compute_90,code=sm_90"]),
        (
            "8.0;9.0a+PTX",
            [
                *("-gencode", "arch=compute_80,code=sm_80"),
                *("-gencode", "arch=compute_90a,code=sm_90a"),
                *("-gencode", "arch=compute_90a,code=compute_90a"),
            ],
        ),
    ],
)
def test_cuda_architectures(listed: str, flags: list[str]) -> None:
    assert build.cuda_architectures({"TORCH_CUDA_ARCH_LIST": listed}) == flags


def test_nothing_is_compiled_for_the_build_machine_alone(build_report: dict[str, build.Record]) -> None:
    for record in build_report.values():
        assert "-march=native" not in str(record["command"])


@pytest.mark.usefixtures("native_cpu")
def test_up_to_date_objects_are_kept_and_stale_ones_replaced(clone: Path) -> None:
    library = clone / "dsvid" / "ops" / "lib" / build.library_name("cpu")
    assert run_python(clone, "-c", BUILD_CPU).returncode == 0
    first = library.stat().st_mtime_ns
    assert run_python(clone, "-c", BUILD_CPU).returncode == 0
    assert library.stat().st_mtime_ns == first

    header = clone / "csrc" / "tube_math.h"
    header.write_text(header.read_text() + "// changed\n")
    auto, strict = run_python(clone, "-c", ASK_BOTH_MODES).stdout.splitlines()
    assert auto.startswith("auto|reference|stale build")
    assert strict.startswith("native|OpError|") and "stale build" in strict and build.CURE in strict
    assert run_python(clone, "-c", BUILD_CPU).returncode == 0
    assert library.stat().st_mtime_ns != first
    auto, strict = run_python(clone, "-c", ASK_BOTH_MODES).stdout.splitlines()
    assert auto.startswith("auto|native|") and strict.startswith("native|native|")


def test_missing_build_is_the_reference_or_an_error(clone: Path) -> None:
    auto, strict = run_python(clone, "-c", ASK_BOTH_MODES).stdout.splitlines()
    assert auto == f"auto|reference|not built; build it with `{build.CURE}`"
    assert strict.startswith("native|OpError|") and build.CURE in strict


def test_loader_quotes_the_reason_of_the_build(tmp_path: Path) -> None:
    record = {"status": "absent", "reason": "the dog ate the compiler", "command": [], "source_hash": ""}
    (tmp_path / build.REPORT_NAME).write_text(json.dumps({"cpu": record}))
    assert load_from(tmp_path) == (None, "the dog ate the compiler")
    (tmp_path / build.REPORT_NAME).write_text("{ torn")
    assert "not built" in load_from(tmp_path)[1]


def test_native_mode_quotes_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "load", lambda kind: (None, "the dog ate the compiler"))
    native._decide.cache_clear()
    monkeypatch.setenv("DSVID_OPS", "native")
    with pytest.raises(OpError, match="the dog ate the compiler"):
        native.backend("cpu")
    native._decide.cache_clear()


def test_broken_object_is_no_crash(tmp_path: Path) -> None:
    (tmp_path / build.library_name("cpu")).write_bytes(b"not a library")
    library, reason = load_from(tmp_path)
    assert library is None and "cannot be loaded" in reason and build.CURE in reason


def test_modes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSVID_OPS", "reference")
    assert native.backend("cpu") == "reference" and "DSVID_OPS" in native.backend_reason("cpu")
    monkeypatch.setenv("DSVID_OPS", "fast")
    with pytest.raises(OpError, match="fast"):
        native.backend("cpu")
    monkeypatch.setenv("DSVID_OPS", "auto")
    assert native.backend("mps") == "reference"
    assert any(line.startswith("tube op on cpu: ") for line in native.clear_message())
