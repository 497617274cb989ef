"""Work on many videos in processes that may hang or crash in one: that one is given up, the others go on.

Knows nothing of the work.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from dsvid.data.workers import Limits, WorkerDied, Workers, working_on
from dsvid.errors import DataError, DsvidError

Result = TypeVar("Result")
AHEAD = 16  # tasks a process has at most: what goes on while one video is waited for
HANGS, CRASHES = "hangs", "crashes"


class GivenUp(str):
    """Why the work on a video came to no end."""

    @property
    def cause(self) -> str:
        """HANGS or CRASHES."""
        return HANGS if "longer than" in self else CRASHES


@dataclass
class _Raised:
    error: Exception


def run_guarded(
    work: Callable[[int], Result], numbers: Sequence[int], workers: int, limit_s: float, *, ahead: int = AHEAD
) -> Generator[Result | GivenUp, None, None]:
    """`work(number)` for each of `numbers`, in their order; GivenUp where it crashed its process or took > `limit_s`.

    Results that are large: at most `ahead` of them for each process wait for their turn. A limit of 0 is none.
    Elsewhere than on Linux one after the other in this process, without a limit. Raises what `work` raises, where that
    is a DsvidError or an OSError, and DataError where processes are killed from outside again and again.
    """
    if sys.platform != "linux":
        yield from map(work, numbers)
        return

    def make(number: int, given_up: Mapping[int, str]) -> Any:
        if number in given_up:
            return GivenUp(given_up[number])
        try:
            with working_on(number):
                return work(number)
        except (DsvidError, OSError) as error:
            return _Raised(error)

    count = max(1, min(workers, len(numbers)))
    pool = Workers(make, numbers, count=count, ahead=ahead, limits=Limits(key_s=limit_s))
    try:
        for item in pool:
            if isinstance(item, _Raised):
                raise item.error
            yield item
    except WorkerDied as error:
        raise DataError(
            "processes are killed again and again", found=error, fix="fewer of them (--workers, --jobs), more memory"
        ) from error
    finally:
        pool.close()
