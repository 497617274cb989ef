"""Builds the native op of csrc/ during installation, where a compiler is found; everything else is in pyproject.toml.

A failed or missing compiler never fails the installation: the op then runs on its plain-torch reference and says so.
"""

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import setuptools
from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

if int(setuptools.__version__.split(".")[0]) < 77:
    sys.exit(
        f"dsvid: setuptools >= 77 is needed to build it, found {setuptools.__version__};"
        " run `pip install -U setuptools`, or drop --no-build-isolation"
    )

ROOT = Path(__file__).resolve().parent


def load_builder() -> ModuleType:
    """dsvid/ops/build.py by its path: importing the package would need torch, which a build environment has not."""
    spec = importlib.util.spec_from_file_location("dsvid_ops_build", ROOT / "dsvid" / "ops" / "build.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class BuildNativeOp(build_ext):
    """Hands over to dsvid/ops/build.py: into the source tree for an editable installation, else into the wheel."""

    def run(self) -> None:
        builder = load_builder()
        base = ROOT if self.inplace else Path(self.build_lib)
        report = builder.build(base / "dsvid" / "ops" / "lib", ROOT / "csrc")
        for line in builder.summarise(report):
            print(line)  # `announce` is silent under pip, even with -v

    def get_source_files(self) -> list[str]:
        return [os.path.relpath(path, ROOT) for path in sorted((ROOT / "csrc").glob("*"))]

    def get_outputs(self) -> list[str]:
        folder = Path(self.build_lib) / "dsvid" / "ops" / "lib"
        return [str(path) for path in sorted(folder.glob("*"))]

    def get_output_mapping(self) -> dict[str, str]:
        return {}


class PlatformWheel(bdist_wheel):
    """Tags the wheel py3-none-<platform>: the objects are plain C, so one wheel serves every Python and torch."""

    def get_tag(self) -> tuple[str, str, str]:
        return ("py3", "none", super().get_tag()[2])


setup(
    # No sources: setuptools only runs build_ext where there is an extension, and compiling is build.py's.
    ext_modules=[Extension("dsvid.ops.native_op", sources=[])],
    cmdclass={"build_ext": BuildNativeOp, "bdist_wheel": PlatformWheel},
)
