"""A thread prepares items ahead of whoever uses them, and hands on what is raised."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator

import pytest

from dsvid.data.device_copy import ON_DEVICE
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


def test_a_thread_is_ahead_of_its_user_and_ends_with_close():
    taken = []

    def items() -> Iterator[int]:
        for item in itertools.count():
            taken.append(item)
            yield item

    thread = InThread(items(), lambda item: item)
    assert next(iter(thread)) == 0
    deadline = time.monotonic() + 20
    while len(taken) < ON_DEVICE and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.2)
    assert len(taken) == ON_DEVICE, "one in use, one ready, one in the thread's hands"
    thread.close()
    assert not thread._thread.is_alive() and list(thread) == []
