"""Work on many items in processes of their own, results in the order of the items. Knows nothing of the work."""

from __future__ import annotations

import ctypes
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from dsvid.errors import DataError

Item = TypeVar("Item")
Result = TypeVar("Result")
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def run_parallel(
    work: Callable[[Item], Result], items: Iterable[Item], jobs: int, *, ahead: int = 0
) -> Iterator[Result]:
    """`work` on every item, in their order, `jobs` at a time. Raises DataError where a process died.

    Results that are large: at most `ahead` of them (0: all) wait for their turn.
    """
    if jobs <= 1:
        yield from map(work, items)
        return
    try:
        # the work goes to each process once: with it may go the metadata of thousands of clips
        with ProcessPoolExecutor(jobs, initializer=_set_work, initargs=(work,)) as pool:
            if not ahead:
                yield from pool.map(_do_work, items, chunksize=4)
                return
            waiting: deque[Future[Result]] = deque()
            for item in items:
                waiting.append(pool.submit(_do_work, item))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise DataError("a helper process died", found=error, fix="--jobs 1, or more memory") from error


_work: Callable[[Any], Any] | None = None


def _set_work(work: Callable[[Any], Any]) -> None:
    global _work
    _work = work
    if sys.platform == "linux":
        # nobody else would end this process when the caller is killed
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _do_work(item: Any) -> Any:
    assert _work is not None
    return _work(item)
