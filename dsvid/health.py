"""Is the training still sane? Steps whose numbers are not finite, losses that jump, and when to go back.

Every judgement is the same on all ranks: it rests on numbers that they share. Knows no engine and no loop.
"""

from __future__ import annotations

import json
import math
import platform
import statistics
import time
from collections import deque
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from dsvid.runtime import Ranks, gather, log, tolerated

Verdict = Literal["go on", "go back"]
WINDOW = 64  # losses that the running median is taken of
ENOUGH = 16  # below this many there is no saying what is usual


class Diverged(RuntimeError):
    """The numbers of the run went bad and going back did not help, or could not be done."""


@dataclass
class Own:
    """What this rank saw in one optimizer step: the mean loss of each micro-batch and the clips it came from."""

    losses: list[float]
    clips: list[list[str]] = field(default_factory=list)
    rank: int = 0
    host: str = ""


class Health:
    """Counts what went wrong in a row; writes `events.jsonl` (rank 0).

    `bad_steps`: so many steps in a row without finite numbers mean "go back"; 0 = the first one does.
    `spike_factor`: a loss this many times the running median is said aloud, once per jump; 0 = never looked at.
    `spike_back`: such a jump means "go back" too. `skipped`: steps' worth of clips that were left out so far.
    """

    def __init__(
        self,
        events: Path,
        ranks: Ranks,
        *,
        bad_steps: int,
        spike_factor: float = 0.0,
        spike_back: bool = False,
        skipped: int = 0,
    ) -> None:
        self.events, self.ranks = events, ranks
        self.bad_steps, self.spike_factor, self.spike_back = bad_steps, spike_factor, spike_back
        self.skipped = skipped
        self.in_a_row = 0
        self.went_back_to: int | None = None
        self._usual: deque[float] = deque(maxlen=WINDOW)
        self._jumping = False

    def step_skipped(self, step: int, own: Own, *, grad_norm: float, scaled: bool) -> Verdict:
        """A step changed nothing because its gradient was not finite. A collective, of ranks that all know it.

        `scaled` (fp16): with finite losses it is the loss scale that was too high, which is no fault of the data.
        """
        own.rank, own.host = self.ranks.rank, platform.node()
        told = [rank for rank in gather(own) if not all(map(math.isfinite, rank.losses))]
        if scaled and not told:
            return "go on"
        self.in_a_row += 1
        self.tell("skipped step", step, grad_norm=grad_norm, in_a_row=self.in_a_row, ranks=[asdict(o) for o in told])
        where = "; ".join(
            f"loss {loss} on rank {one.rank} ({one.host}): {', '.join(clips[:4])}"
            for one in told
            for loss, clips in zip(one.losses, one.clips, strict=True)
            if not math.isfinite(loss)
        )
        if self.ranks.first:
            cause = where or "the losses are finite, the gradient is not"
            log.warning("step %d was skipped, its gradient is not finite (%d in a row): %s", step, self.in_a_row, cause)
        return "go back" if self.in_a_row >= max(1, self.bad_steps) else "go on"

    def step_taken(self, step: int, loss: float) -> Verdict:
        """A step was applied; `loss` is the mean over all ranks, the same on each."""
        self.in_a_row = 0
        if not math.isfinite(loss):
            # The weights took a step all the same: what they are now is not known.
            self.tell("loss not finite in a step that was applied", step, loss=loss)
            return "go back"
        usual = statistics.median(self._usual) if len(self._usual) >= ENOUGH else math.inf
        jumped = self.spike_factor > 0 and loss > self.spike_factor * usual
        if not jumped:
            self._usual.append(loss)
            self._jumping = False
            return "go on"
        if not self._jumping:
            self.tell("loss jumped", step, loss=loss, usual=usual)
            if self.ranks.first:
                log.warning("step %d: the loss jumped to %.4g, usual is %.4g", step, loss, usual)
        self._jumping = True
        return "go back" if self.spike_back else "go on"

    def went_back(self, step: int, to: int) -> None:
        """The run went back from `step` to the checkpoint `to`; the clips between are left out from now on.

        Raises Diverged where it went back there before.
        """
        if self.went_back_to == to:
            raise Diverged(
                f"step {step}: the numbers went bad again after going back to step {to} and leaving out the clips"
                f" between; lower the learning rate, or look at the clips named in {self.events}"
            )
        self.went_back_to = to
        self.skipped += step - to
        self.in_a_row = 0
        self._jumping = False
        self.tell("went back", step, to=to, steps_of_clips_left_out=self.skipped)
        if self.ranks.first:
            log.warning("back from step %d to the checkpoint of step %d; the clips between are left out", step, to)

    def tell(self, kind: str, step: int, **facts: Any) -> None:
        """A line in events.jsonl. Rank 0 writes."""
        if not self.ranks.first:
            return
        row = {"kind": kind, "step": step, "time": round(time.time(), 3), **facts}
        with tolerated(self.events.name), self.events.open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(_plain(row)) + "\n")


def _plain(value: Any) -> Any:
    """JSON has no NaN: numbers that are not finite become text."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list) else value
