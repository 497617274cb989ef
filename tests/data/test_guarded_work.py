"""Videos that hang or crash cost their own place only."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import time

import pytest

from dsvid.data.guarded_work import GivenUp, run_guarded

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the processes are Linux's")


def test_the_others_go_on_in_their_order() -> None:
    def work(number: int) -> int:
        if number == 3:
            time.sleep(100)
        if number == 5:
            faulthandler.disable()
            os.kill(os.getpid(), signal.SIGSEGV)
        return number * number

    results = list(run_guarded(work, range(40), 2, limit_s=0.6))
    assert [result for result in results if not isinstance(result, GivenUp)] == [
        number * number for number in range(40) if number not in (3, 5)
    ]
    assert isinstance(results[3], GivenUp)
    assert "longer than 0.6 s" in results[3]
    assert isinstance(results[5], GivenUp)
    assert "SIGSEGV" in results[5]


def test_nothing_to_do_is_no_error() -> None:
    assert list(run_guarded(lambda number: number, [], 4, limit_s=1.0)) == []
