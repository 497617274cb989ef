"""Videos that hang or crash cost their own place only."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import time

import pytest

from dsvid.data.guarded_work import GivenUp, run_guarded
from dsvid.errors import DataError

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
    assert "longer than 0.6 s" in results[3] and results[3].cause == "hangs"
    assert isinstance(results[5], GivenUp)
    assert "SIGSEGV" in results[5] and results[5].cause == "crashes"


@pytest.mark.parametrize("error", [DataError("what", found=3, fix="mend it"), OSError(28, "No space left", "a")])
def test_errors_that_a_user_can_mend_arrive_as_themselves(error: Exception) -> None:
    def work(number: int) -> int:
        if number == 2:
            raise error
        return number

    results = run_guarded(work, range(4), 2, limit_s=5.0)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(type(error)) as caught:
        next(results)
    assert str(caught.value) == str(error)


def test_nothing_to_do_is_no_error() -> None:
    assert list(run_guarded(lambda number: number, [], 4, limit_s=1.0)) == []
