"""Work on many videos in processes that may hang or crash in one: that one is given up, the others go on.

`parallel` is for work that ends; this is for files nobody has looked at yet. Knows nothing of the work.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from dsvid.data.workers import Limits, WorkerDied, Workers, working_on
from dsvid.errors import DataError

Result = TypeVar("Result")
AHEAD = 16  # tasks a process has at most: what goes on while one video is waited for


class GivenUp(str):
    """Why the work on a video came to no end."""


def run_guarded(
    work: Callable[[int], Result], numbers: Sequence[int], workers: int, limit_s: float
) -> Iterator[Result | GivenUp]:
    """`work(number)` for each of `numbers`, in their order; GivenUp where it crashed its process or took > `limit_s`.

    Elsewhere than on Linux one after the other in this process, without a limit. Raises DataError where processes are
    killed from outside again and again.
    """
    if sys.platform != "linux":
        yield from map(work, numbers)
        return

    def make(number: int, given_up: Mapping[int, str]) -> Any:
        if number in given_up:
            return GivenUp(given_up[number])
        with working_on(number):
            return work(number)

    pool = Workers(make, numbers, count=min(workers, max(1, len(numbers))), ahead=AHEAD, limits=Limits(key_s=limit_s))
    try:
        yield from pool
    except WorkerDied as error:
        raise DataError(
            "processes are killed again and again", found=error, fix="fewer --workers, more memory"
        ) from error
    finally:
        pool.close()
