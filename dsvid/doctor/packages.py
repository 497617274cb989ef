"""The packages that pyproject.toml names: the version that is there, whether it fits, imports, and what it is for."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsvid.doctor.finding import Finding, Level, first_line

MODULES = {"pillow": "PIL", "pyyaml": "yaml", "flash-attn": "flash_attn", "decord2": "decord"}
# What is lost without those that training can do without, and what to type.
LOST = {
    "timm": "RandAugment of fine-tuning: pip install timm",
    "einops": "nothing, dsvid has no use for it: pip install einops",
    "tensorboard": "the run's tensorboard/ files: pip install tensorboard",
    "decord": "PyAV decodes instead: pip install decord",
    "decord2": "PyAV decodes instead: pip install decord2",
    "flash-attn": "optional; SDPA runs instead: pip install flash-attn --no-build-isolation",
    "transformers": "only for `dsvid bench step`: pip install transformers",
    "torchvision": "only the person detector of `dsvid predict`, and JPEG read faster: pip install torchvision",
    "torchcodec": "only data.decoder=torchcodec: pip install torchcodec",
}
NOT_IMPORTED = ("transformers",)  # a second, for a benchmark alone
OPTIONAL = ("flash-attn", "transformers", "torchvision", "torchcodec")  # no dependency; their absence is no fault


@dataclass(frozen=True)
class Wanted:
    """A package and its bounds, as pip has them ("" for any version)."""

    name: str
    bounds: str


@functools.lru_cache(maxsize=1)
def wanted() -> list[Wanted]:
    """The dependencies that hold on this machine, then the optional packages."""
    needed = [each for each in map(_wanted, _required()) if each is not None]
    extra = {"flash-attn": ">=2.6", "transformers": ">=4.57"}
    return [*needed, *(Wanted(name, extra.get(name, "")) for name in OPTIONAL)]


def _required() -> list[str]:
    """The lines of pyproject.toml where this is a clone, else those of the installed package."""
    project = Path(__file__).resolve().parents[2] / "pyproject.toml"
    try:
        block = re.search(r"^dependencies = \[\n(.*?)^\]", project.read_text(), re.S | re.M)  # tomllib is 3.11's
        if block:
            return re.findall(r'^\s*"([^"]+)"', block[1], re.M)
    except OSError:
        pass
    try:
        lines = importlib.metadata.requires("dsvid") or []
    except importlib.metadata.PackageNotFoundError:
        return []
    return [line for line in lines if "extra ==" not in line]


def _wanted(line: str) -> Wanted | None:
    """The package of a line, None where its condition does not hold here."""
    bare, _, marker = line.partition(";")
    found = re.match(r"\s*([A-Za-z0-9._-]+)\s*(.*)", bare)
    if not found:
        return None
    if marker.strip():
        try:
            from packaging.markers import Marker

            if not Marker(marker.strip()).evaluate():
                return None
        except ImportError:  # both of a pair are shown then
            pass
    return Wanted(found[1], found[2].strip())


def look(package: Wanted) -> Finding:
    """Import a package, and say whether its version fits. Everything that an import can raise is a line."""
    name = package.name
    needed = name not in LOST
    version = _version(name)
    cure = LOST.get(name, f'needed: pip install "{name}{package.bounds}"')
    if name in NOT_IMPORTED and version is not None:
        return _judged(package, version, "; whether it imports is not checked")
    try:
        module = importlib.import_module(MODULES.get(name, name))
    except ModuleNotFoundError as error:
        if version is None:
            level: Level = "stops" if needed else "ok" if name in OPTIONAL else "less"
            return Finding(name, "not installed", level, cure)
        return _broken(name, version, error, needed, cure)
    except BaseException as error:  # a binary of another torch build: OSError, RuntimeError, SystemExit, …
        return _broken(name, version, error, needed, cure)
    return _judged(package, version or str(getattr(module, "__version__", "version not known")))


def _judged(package: Wanted, version: str, more: str = "") -> Finding:
    """Whether a version is within the bounds."""
    name, bounds = package.name, package.bounds
    fits = _fits(version, bounds)
    if fits is None:
        return Finding(name, f"{version} (whether it fits {bounds} is not checked){more}", "unknown")
    if not fits:
        mend = f'not tried with this version: pip install "{name}{bounds}"'
        return Finding(name, f"{version}, outside of {bounds}{more}", "less", mend)
    return Finding(name, (f"{version} ({bounds})" if bounds else version) + more)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except Exception:  # not installed, or metadata that cannot be read
        return None


def _broken(name: str, version: str | None, error: BaseException, needed: bool, cure: str) -> Finding:
    level: Level = "stops" if needed else "less"
    return Finding(name, f"{version or 'found'}, but it does not import: {first_line(error)}", level, cure)


def _fits(version: str, bounds: str) -> bool | None:
    """Whether the version is within the bounds, None where that cannot be told."""
    if not bounds:
        return True
    try:
        specifiers: Any = importlib.import_module("packaging.specifiers")
        return bool(specifiers.SpecifierSet(bounds).contains(version, prereleases=True))
    except Exception:  # no packaging, or a version that is none
        return None
