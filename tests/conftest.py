"""What every test leaves behind is taken away: the rank variables that starting in this process exports."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
STARTS_RANKS = {"distributed", "faults", "cluster"}
RANK_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What `make test` runs side by side: files, because their tests share what is costly to make; never two tests that
    start ranks, which take all cores and watch the clock.
    """
    for item in items:
        place = item.path.relative_to(TESTS)
        item.add_marker(pytest.mark.xdist_group("ranks" if place.parts[0] in STARTS_RANKS else str(place)))


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
