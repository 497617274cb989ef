"""An iterator's items prepared by a thread while the one before is used: how batches are sent to a GPU."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any


class InThread:
    """The items of an iterator, each prepared by a thread while the one before is used; one is ready at most."""

    def __init__(self, items: Iterable[Any], prepare: Callable[[Any], Any]) -> None:
        self._ready: queue.Queue[tuple[str, Any]] = queue.Queue(maxsize=1)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._work, args=(items, prepare), name="items", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[Any]:
        while True:
            kind, value = self._ready.get()
            if kind == "end":
                return
            if kind == "error":
                raise value
            yield value

    def close(self) -> None:
        """Stop the thread; whoever waits for an item gets no more."""
        self._stopped.set()
        self._thread.join(timeout=5)
        with suppress(queue.Empty):
            while True:
                self._ready.get_nowait()
        self._ready.put(("end", None))

    def _work(self, items: Iterable[Any], prepare: Callable[[Any], Any]) -> None:
        try:
            for item in items:
                if not self._put("item", prepare(item)):
                    return
            self._put("end", None)
        except BaseException as error:
            self._put("error", error)

    def _put(self, kind: str, value: Any) -> bool:
        while not self._stopped.is_set():
            with suppress(queue.Full):
                self._ready.put((kind, value), timeout=0.1)
                return True
        return False
