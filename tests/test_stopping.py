"""What asks a process to stop, and what a wait does then."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dsvid import stopping
from dsvid.recipe import duration_s
from dsvid.runtime import Ranks
from dsvid.stopping import Stopped, Stopping, launcher_of, process_age_s


def nothing(_: str) -> None:
    return None


@pytest.mark.parametrize("number", stopping.SIGNALS)
def test_a_signal_sets_a_flag_and_a_second_changes_nothing(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with Stopping() as stop:
        stop.check()
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.asked == number.name
        with pytest.raises(Stopped, match=f"{number.name}, noticed by rank 0 on"):
            stop.check()
    assert signal.getsignal(number) is before


def test_a_wait_is_left_in_the_middle_and_items_are_not_lost_before() -> None:
    def source() -> Iterator[int]:
        yield 1
        yield 2
        threading.Timer(0.2, os.kill, [os.getpid(), signal.SIGTERM]).start()
        try:
            time.sleep(60)
        except Exception as error:  # as a decoder would: it must not get hold of what ends the wait
            raise AssertionError from error

    phases: list[str] = []
    with Stopping() as stop:
        items = stop.watched(source(), phases.append, "val ")
        start = time.monotonic()
        assert [next(items), next(items)] == [1, 2]
        with pytest.raises(Stopped):
            next(items)
        assert time.monotonic() - start < 5
    assert phases == ["val data", "val agreement", "val forward"] * 2 + ["val data", "val agreement"]


def test_an_error_of_the_source_comes_through_and_a_later_signal_interrupts_nothing() -> None:
    def source() -> Iterator[int]:
        raise ValueError("a bad list")
        yield 1

    with Stopping() as stop:
        with pytest.raises(ValueError, match="a bad list"):
            next(stop.watched(source(), nothing))
        os.kill(os.getpid(), signal.SIGTERM)
        assert list(range(3)) == [0, 1, 2] and stop.asked == "SIGTERM"


def test_without_a_request_everything_passes() -> None:
    with Stopping() as stop:
        assert list(stop.watched(iter([None, 0, 3]), nothing)) == [None, 0, 3]


def test_the_time_and_the_stop_file_ask_as_signals_do(tmp_path: Path) -> None:
    file = tmp_path / "stop"
    file.touch()
    for source, more in ((stopping.STOP_FILE, {"stop_file": file}), (stopping.MAX_TIME, {"max_time_s": 0.1})):
        with Stopping() as stop:
            stop.listen(**more)  # type: ignore[arg-type]
            assert stop._wait(iter(lambda: time.sleep(0.05), 0)) is not None
            deadline = time.monotonic() + 10
            while not stop.asked:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            assert stop.asked == source
    assert not file.exists()


def test_who_stopped_the_run_is_kept_until_the_next_start(tmp_path: Path) -> None:
    stop, stopped = tmp_path / "stop", tmp_path / "stopped"
    stop.write_text("dsvid launch: save and end\n")
    assert stopping.taken(stop) and not stopped.exists(), "a signal passed on: the job is queued again"
    assert not stopping.taken(stop) and not stopped.exists()
    stop.write_text("maintenance\n")
    assert stopping.taken(stop) and not stop.exists()
    assert stopped.read_text().startswith("the stop file of ") and stopped.read_text().endswith(": maintenance\n")
    Stopping().listen(stop_file=stop)
    assert not stopped.exists()


def test_a_source_that_fails_is_looked_at_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file server that lost its handle raises ESTALE from `exists`; later requests must still be seen."""
    failures, said = [OSError(116, "Stale file handle")] * 3, []
    real = stopping.taken

    def taken(path: Path) -> bool:
        if failures:
            raise failures.pop()
        return real(path)

    monkeypatch.setattr(stopping, "taken", taken)
    monkeypatch.setattr(stopping, "POLL_S", 0.05)
    monkeypatch.setattr(stopping.log, "warning", lambda *words: said.append(words))
    (tmp_path / "stop").touch()
    with Stopping() as stop:
        stop.listen(stop_file=tmp_path / "stop")
        deadline = time.monotonic() + 10
        while not stop.asked:
            assert time.monotonic() < deadline
            time.sleep(0.02)
    assert stop.asked == stopping.STOP_FILE and not failures and len(said) == 1


def test_the_stop_file_is_rank_0_s() -> None:
    with Stopping() as stop:
        stop.ranks = Ranks(1, 2, 1)
        stop.listen(stop_file=Path("/"))
        assert stopping.STOP_FILE not in stop._sources


def test_of_several_requests_the_lowest_rank_s_is_told() -> None:
    words = {}
    for rank, asked in ((0, ""), (2, "SIGTERM"), (5, stopping.LAUNCHER_GONE)):
        stop = Stopping()
        stop.ranks, stop.asked = Ranks(rank, 8, 0), asked
        words[rank] = stop._word()
    assert words[0] == 0 < words[5] < words[2]
    stop = Stopping()
    stop.ranks, stop._word = Ranks(0, 8, 0), lambda: max(words.values())  # type: ignore[method-assign]
    with pytest.raises(Stopped, match=r"^SIGTERM, noticed by rank 2$"):
        stop.check()


def test_times_are_read() -> None:
    for text, seconds in {"": 0, "23h30m": 84600, "90m": 5400, "45s": 45, "90": 90, "1d2h": 93600, "0.5": 0.5}.items():
        assert duration_s(text) == seconds
    for wrong in ("h", "5x", "1h 5m", "-3", "1m2h"):
        with pytest.raises(ValueError, match="23h30m"):
            duration_s(wrong)


def test_the_age_of_a_process_counts_from_its_start() -> None:
    code = "import time; time.sleep(1); from dsvid.stopping import process_age_s; print(process_age_s())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) > 1 and process_age_s() > 0


def test_only_deepspeed_s_launcher_is_watched(tmp_path: Path) -> None:
    """A rank that outlives the program which started its launcher sees another grandparent."""
    assert launcher_of(os.getpid()) is None
    program = tmp_path / "deepspeed" / "launcher"
    program.mkdir(parents=True)
    rank = "import os, time\nfrom dsvid.stopping import launcher_of\nfirst = launcher_of(os.getpid())\nassert first\n"
    rank += f"open({str(tmp_path / 'up')!r}, 'w').close()\n"
    rank += "while launcher_of(os.getpid()) == first:\n    time.sleep(0.05)\n"
    rank += f"open({str(tmp_path / 'noticed')!r}, 'w').close()\n"
    (tmp_path / "rank.py").write_text(rank)
    (program / "launch.py").write_text(
        f"import subprocess, sys; subprocess.run([sys.executable, {str(tmp_path / 'rank.py')!r}])"
    )
    runner = f"import subprocess, sys; subprocess.run([sys.executable, {str(program / 'launch.py')!r}])"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    process = subprocess.Popen([sys.executable, "-c", runner], env=environment)
    deadline = time.monotonic() + 60
    while not (tmp_path / "up").exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    process.terminate()
    process.wait()
    while not (tmp_path / "noticed").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
