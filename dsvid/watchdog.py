"""Where this rank is (phase, step, clips), and what becomes of a run in which nothing moves any more.

A thread looks once a second. Where a phase lasts too long it writes the stacks of all threads, asks the other ranks
where they are, names those that are behind, and ends the process. Knows no engine and no data.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import platform
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, TypeVar

from dsvid.rollcall import RollCall
from dsvid.runtime import flush_log, log

Batch = TypeVar("Batch", bound=Mapping[str, Any])
TICK_S = 1.0
ASK_TICKS = 2  # the store is asked whether somebody called every so many ticks
FIRST_STEP = 3  # the first step may take so many times longer: kernels are compiled, files are opened
SECOND_TIER_S = 5.0  # how much later the C timer fires where Python itself cannot run
ANSWER_S = 5.0
HOLD_S = 2.0  # how long rank 0 goes on holding the store that the others still read
LAST_S = ANSWER_S + HOLD_S + 8.0  # a rank that gives up has ended after so long, whatever its files and the store do
LONG_PHASES = ("start", "save", "publish", "end")
# Frames of these files wait for other ranks: a rank inside one is not the one that the others wait for.
COLLECTIVES = (f"torch{os.sep}distributed{os.sep}", f"deepspeed{os.sep}comm{os.sep}")


class Watch:
    """Where this rank is. `step` counts finished optimizer steps, `saved` those that the newest checkpoint holds.

    `spent` are the seconds in each phase. `begin` starts the watchdog, `end` ends it. The phases come in the same order
    on every rank, so the number of phases entered so far tells which rank is behind.
    """

    def __init__(self) -> None:
        self.step = self.saved = 0
        self.phase, self.since, self.entered = "start", time.monotonic(), 0
        self.clips: Mapping[str, Any] = {}
        self.spent: dict[str, float] = {}
        self.steps_here = 0
        self._thread: _Watchdog | None = None
        self._stragglers: Stragglers | None = None

    def enter(self, phase: str) -> None:
        """Say what begins now."""
        now = time.monotonic()
        self.spent[self.phase] = self.spent.get(self.phase, 0.0) + now - self.since
        patient = self.phase.startswith(LONG_PHASES)
        self.phase, self.since, self.entered = phase, now, self.entered + 1
        if patient and self._thread is not None:
            self._thread.arm()  # at once: what holds the interpreter next would leave the long timer standing

    def finish_step(self, step: int) -> int:
        """Count a finished optimizer step; returns it."""
        self.step, self.steps_here = step, self.steps_here + 1
        return step

    def begin(self, roll: RollCall, folder: Path, *, limit_s: float, long_s: float) -> None:
        """Start the watchdog: `limit_s` for a phase (0 = none), `long_s` for a save or load; stacks into `folder`."""
        self._stragglers = Stragglers(roll)
        self._thread = _Watchdog(self, roll, folder, limit_s, long_s)
        self._thread.start()

    def end(self) -> None:
        """End the watchdog, where one was started."""
        if self._thread is not None:
            self._thread.stop()
            self._thread = None

    def seen(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The same batches; which clips were last is remembered."""
        for batch in batches:
            self.clips = batch
            yield batch

    def slow_ranks(self, gather: Callable[[list[float]], list[list[float]]]) -> list[str]:
        """Lines on ranks that are slow in their own work, mostly none. `gather` is a collective: call it every step."""
        slow = self._stragglers
        if slow is None or slow.roll.ranks.world == 1 or self.step % slow.STEPS:
            return []
        return slow.judge(gather(slow.own(self.spent)))

    def limit_of(self, limit_s: float, long_s: float) -> float:
        """Seconds that the present phase may last."""
        if self.phase.startswith(LONG_PHASES):
            return long_s
        return limit_s if self.steps_here else FIRST_STEP * limit_s


class _Watchdog(threading.Thread):
    def __init__(self, watch: Watch, roll: RollCall, folder: Path, limit_s: float, long_s: float) -> None:
        super().__init__(name="dsvid-watchdog", daemon=True)
        self.watch, self.roll, self.limit_s, self.long_s = watch, roll, limit_s, long_s
        name = f"stall-rank-{roll.ranks.rank:05d}"
        self.path = folder / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}.txt"  # a restart keeps what the last stall left
        self.ended = threading.Event()
        self.file: IO[str] | None = None
        if limit_s:
            folder.mkdir(parents=True, exist_ok=True)
            remove_unused(folder, name)
            self.file = self.path.open("w", encoding="utf-8")  # open already: the second tier cannot open one
            self.file.write(f"rank {roll.ranks.rank} on {platform.node()}, pid {os.getpid()}\n")
            self.file.flush()

    def run(self) -> None:
        ticks = 0
        while not self.ended.wait(TICK_S):
            ticks += 1
            if self.file is not None:
                left = self.watch.limit_of(self.limit_s, self.long_s) - (time.monotonic() - self.watch.since)
                if left < 0:
                    self.give_up(f"nothing moved for {time.monotonic() - self.watch.since:.0f} s")
                self.arm()
            if ticks % ASK_TICKS == 0 and self.roll.called():
                self.answer()

    def arm(self) -> None:
        """Set the second tier: a timer in C, set again and again, because that needs the interpreter."""
        if self.file is not None:
            left = self.watch.limit_of(self.limit_s, self.long_s) - (time.monotonic() - self.watch.since)
            faulthandler.dump_traceback_later(max(left, 0.0) + SECOND_TIER_S, exit=True, file=self.file)

    def stop(self) -> None:
        self.ended.set()
        self.join(2 * ANSWER_S)
        if self.file is not None:
            faulthandler.cancel_dump_traceback_later()
            self.file.close()
            self.path.unlink(missing_ok=True)

    def answer(self) -> None:
        """Another rank called: tell where this one is, and end with the others where they gave up."""
        answers = self.roll.call({"lost": True, **self.state()}, answer_s=0)
        self.roll.hear(answers)
        if any(answer.get("gave_up") for answer in answers.values()):
            self.give_up("another rank gave up")
        self.ended.wait(ANSWER_S)  # else the call was for a lost rank: this one meets its own error, or its launcher

    def state(self) -> dict[str, Any]:
        """Where this rank is, as the others see it."""
        watch = self.watch
        return {
            "phase": watch.phase,
            "step": watch.step,
            "entered": watch.entered,
            "waits": waits_for_others(),
            "for_s": round(time.monotonic() - watch.since, 1),
            "clips": last_clips(watch.clips),
            "gave_up": False,
        }

    def give_up(self, why: str) -> None:
        """Write this rank's stacks, name those that are behind, and end the process with 1."""
        if self.ended.is_set():
            return
        # What follows may fail or hang (a full disk, a file server that is gone): the end is settled before it.
        last = threading.Timer(LAST_S, os._exit, [1])
        last.daemon = True
        last.start()
        if self.file is not None:  # and where Python cannot run
            faulthandler.dump_traceback_later(LAST_S + SECOND_TIER_S, exit=True, file=self.file)
        state = {**self.state(), "gave_up": True}
        where = self.write(why, state)
        answers = self.roll.call({"lost": True, **state}, ANSWER_S)
        text = verdict(self.roll, answers)
        level = logging.ERROR if self.roll.ranks.rank == min(answers) else logging.INFO  # one voice
        log.log(level, "watchdog: %s; the stacks of all threads are %s", text, where)
        flush_log()
        if self.roll.ranks.first:
            time.sleep(HOLD_S)
        os._exit(1)

    def write(self, why: str, state: dict[str, Any]) -> str:
        """Write the stacks of all threads, to standard error where no file can be written; returns where they are."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = self.file or self.path.open("w", encoding="utf-8")
            file.write(f"{why}\nphase {state['phase']!r} for {state['for_s']} s, {state['step']} steps finished\n")
            file.write(f"last clips: {json.dumps(state['clips'])}\n\n")
            file.flush()
            faulthandler.dump_traceback(file, all_threads=True)
            os.fsync(file.fileno())
        except OSError as error:
            with suppress(OSError, ValueError, RuntimeError):
                faulthandler.dump_traceback(all_threads=True)
            return f"on standard error: {self.path} cannot be written ({error.strerror})"
        return f"in {self.path.parent}"


def remove_unused(folder: Path, name: str) -> None:
    """Remove the files of starts that were killed before they stalled: their first line is all they have."""
    for path in folder.glob(f"{name}-*.txt"):
        with suppress(OSError):
            if path.read_bytes().count(b"\n") <= 1:
                path.unlink()


def waits_for_others() -> bool:
    """Whether the main thread is inside a collective."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    while frame is not None:
        if any(part in frame.f_code.co_filename for part in COLLECTIVES):
            return True
        frame = frame.f_back
    return False


def last_clips(batch: Mapping[str, Any]) -> list[int]:
    """Indices in the list of the clips of a batch; at most 32."""
    index = batch.get("index")
    return [int(value) for value in index[:32]] if index is not None and index.device.type == "cpu" else []


def verdict(roll: RollCall, answers: Mapping[int, Mapping[str, Any]]) -> str:
    """Who holds the run up: those that do not answer, else those that are behind, else those in no collective."""
    missing = [rank for rank in range(roll.ranks.world) if rank not in answers]
    if missing:
        return f"{roll.name(missing)} did not answer: dead, or native code holds the process"
    placed = {rank: answer for rank, answer in answers.items() if "entered" in answer}
    if not placed:
        return "no rank can say where it is"
    least = min(answer["entered"] for answer in placed.values())
    behind = [rank for rank, answer in sorted(placed.items()) if answer["entered"] == least]
    behind = [rank for rank in behind if not placed[rank]["waits"]] or behind
    at = placed[behind[0]]
    where = f"phase {at['phase']!r} for {at['for_s']:.0f} s, {at['step']} steps finished, clips {at['clips'][:8]}"
    if len(behind) == roll.ranks.world > 1:
        return f"no rank moves: {where}"
    return f"{roll.name(behind)} holds the run up: {where}"


# ---- stragglers ----------------------------------------------------------------------------------------------------


class Stragglers:
    """Names a rank that is slow in its own work, once: `WINDOWS` windows in a row at `TIMES` the median or more.

    A rank's own work are the phases in which it waits for no other: data and forward. `RELEVANT`: the share of a step
    that the excess must make.
    """

    PHASES = ("data", "forward")
    STEPS, WINDOWS, TIMES, RELEVANT = 5, 3, 2.0, 0.1

    def __init__(self, roll: RollCall) -> None:
        self.roll = roll
        self.said: set[int] = set()
        self._row: dict[int, int] = {}
        self._before: dict[str, float] = {}
        self._at = time.monotonic()

    def own(self, spent: Mapping[str, float]) -> list[float]:
        """Seconds since the last call: in all, and in each of PHASES."""
        now = time.monotonic()
        row = [now - self._at, *(spent.get(name, 0.0) - self._before.get(name, 0.0) for name in self.PHASES)]
        self._before, self._at = dict(spent), now
        return row

    def judge(self, rows: list[list[float]]) -> list[str]:
        """A line for each rank that has been slow for long enough; `rows`: what `own` gave on every rank."""
        work = [sum(row[1:]) for row in rows]
        usual = statistics.median_low(work)
        lines = []
        for rank, own in enumerate(work):
            slow = own >= self.TIMES * usual and own - usual >= self.RELEVANT * rows[rank][0]
            self._row[rank] = self._row.get(rank, 0) + 1 if slow else 0
            if self._row[rank] >= self.WINDOWS and rank not in self.said:
                self.said.add(rank)
                lines.append(self._line(rank, rows, own / max(usual, 1e-9)))
        return lines

    def _line(self, rank: int, rows: list[list[float]], times: float) -> str:
        excess = [
            rows[rank][place] - statistics.median_low(row[place] for row in rows)
            for place in range(1, len(self.PHASES) + 1)
        ]
        place = excess.index(max(excess))
        own, usual = rows[rank][place + 1], statistics.median_low(row[place + 1] for row in rows)
        own_ms, usual_ms = own / self.STEPS * 1e3, usual / self.STEPS * 1e3
        return (
            f"{self.roll.name([rank])} is slow: {times:.1f} times the usual work of its own for "
            f"{self.WINDOWS * self.STEPS} steps, in {self.PHASES[place]}: {own_ms:.0f} ms a step, others {usual_ms:.0f}"
        )
