"""What every test leaves behind is taken away: the rank variables that starting in this process exports."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

RANK_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


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
