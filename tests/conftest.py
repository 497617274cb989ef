"""What every test leaves behind is taken away: the rank variables that starting in this process exports."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
BY_THEMSELVES = {"faults", "cluster", "documents"}
RANK_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What `make test` runs side by side: files, because their tests share what is costly to make. Never two that watch
    the clock, or that start launchers, which all take the same port.
    """
    for item in items:
        place = item.path.relative_to(TESTS)
        item.add_marker(pytest.mark.xdist_group("launchers" if place.parts[0] in BY_THEMSELVES else str(place)))


@pytest.fixture(autouse=True)
def no_rank_is_inherited() -> Iterator[None]:
    """A child that inherited RANK would take itself for a rank."""
    before = {name: os.environ.get(name) for name in RANK_VARIABLES}
    yield
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
