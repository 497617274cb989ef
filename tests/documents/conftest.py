"""The reader's folder, made once; each document works in a copy of its own."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.documents.reader import make_folder, take_apart_a_checkpoint, use_this_host
from tests.documents.running import make_runs


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reader")
    make_folder(folder)
    make_runs(folder)
    take_apart_a_checkpoint(folder)
    return folder


def _copy_or_link(source: str, target: str) -> None:
    """What is never written in place, as dsvid publishes its files by renaming, need not be there twice."""
    if Path(source).suffix in (".pt", ".pth", ".safetensors", ".mp4", ".zip"):
        os.link(source, target)
    else:
        shutil.copy2(source, target)


@pytest.fixture()
def reader(prepared: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(prepared, tmp_path / "reader", symlinks=True, copy_function=_copy_or_link))


@pytest.fixture()
def reader_with_one_host(reader: Path) -> Path:
    use_this_host(reader)
    return reader


@pytest.fixture(scope="session")
def done_already() -> Callable[[list[str]], bool]:
    """Whether the same words, in any order, were asked for: what stands in several documents is run once."""
    seen: set[tuple[str, ...]] = set()

    def ask(words: list[str]) -> bool:
        key = tuple(sorted(words))
        again = key in seen
        seen.add(key)
        return again

    return ask
