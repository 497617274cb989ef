"""A thread prepares items ahead of whoever uses them, and hands on what is raised."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator

import pytest

from dsvid.data.in_thread import InThread


def test_a_thread_prepares_the_items_and_hands_on_what_is_raised():
    def items() -> Iterator[int]:
        yield from range(5)
        raise OSError("at the end")

    thread, seen = InThread(items(), lambda item: item * 10), []
    with pytest.raises(OSError, match="at the end"):
        for item in thread:
            seen.append(item)
    assert seen == [0, 10, 20, 30, 40]
    assert list(InThread(range(3), str)) == ["0", "1", "2"]


def test_a_thread_is_two_ahead_and_ends_with_close():
    taken = []

    def items() -> Iterator[int]:
        for item in itertools.count():
            taken.append(item)
            yield item

    thread = InThread(items(), lambda item: item)
    assert next(iter(thread)) == 0
    time.sleep(0.3)
    assert len(taken) <= 5
    thread.close()
    assert not thread._thread.is_alive() and list(thread) == []
