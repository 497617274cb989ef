"""What a run's numbers mean, in plain sentences: its state, its loss, what limits it, what went wrong.

Every judgement names its number; what is not known is said.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dsvid.report.lines import number
from dsvid.report.reading import Run
from dsvid.report.reference import chance, loss_levels
from dsvid.report.series import known, median, trend
from dsvid.report.words import counted, duration, one_line, percent, short, times

Tone = Literal["good", "attention", "bad", "plain"]
State = Literal["running", "finished", "stopped", "failed", "ended", "not started"]
WAIT_LIMIT = 0.05  # share of a step that waits for data, above which reading limits it (docs/performance.md)
RECENT = 0.2  # share of the lines that "now" is
SLOWER = 0.8  # of the usual speed: below it a run is said to have become slower
# name in metrics.jsonl -> (what it is called, its unit); the first one that a run has is the one it is judged by
SCORES = {
    "top1": ("top-1", "%"), "top5": ("top-5", "%"), "mean_class": ("mean over classes", "%"), "mAP": ("mAP", ""),
    "auroc": ("AUROC", ""), "ap": ("AP", ""), "auc_mcc": ("AUC-MCC", ""),
}  # fmt: skip
TITLES: dict[State, str] = {
    "running": "Running", "finished": "Finished", "stopped": "Stopped", "failed": "Failed",
    "ended": "Ended without a word", "not started": "No step yet",
}  # fmt: skip


@dataclass(frozen=True)
class Sentence:
    """A sentence of the verdict, and whether it is good news."""

    tone: Tone
    text: str


@dataclass(frozen=True)
class Speed:
    """Medians over the last fifth of the lines; shares and rates are None where no line tells them."""

    step_s: float | None
    clips_per_s: float | None
    usual_clips_per_s: float | None
    wait: float | None
    wait_all: float | None
    mfu: float | None


def state_of(run: Run) -> State:
    """Where the run stands."""
    if run.holder.alive:
        return "running"
    stop = run.stop_step
    if run.weights_step is not None and (run.weights_step >= stop if stop else run.ending.kind == "done"):
        return "failed" if run.ending.kind == "failed" else "finished"
    if run.ending.kind in ("stopped", "failed"):
        return "stopped" if run.ending.kind == "stopped" else "failed"
    return "ended" if run.step else "not started"


def verdict(run: Run) -> list[Sentence]:
    """The sentences at the top of a report, the state first."""
    told = [state_sentence(run)]
    if run.training.steps:
        told += [loss_sentence(run), *score_sentences(run), *limit_sentences(run)]
    return [*told, fault_sentence(run)]


def state_sentence(run: Run) -> Sentence:
    """Where the run stands and how that is known."""
    state, stop = state_of(run), run.stop_step
    of = f" of {stop:,}" if stop else ""
    at = f"step {run.step:,}{of}"
    if state == "running":
        left = seconds_left(run)
        rest = f", about {duration(left)} left" if left is not None else ""
        return Sentence("good", f"Running: {at}{rest} ({run.holder.words}).")
    if state == "finished":
        return Sentence("good", f"Finished: {at}, weights are published.")
    if state == "stopped":
        return Sentence("attention", f"Stopped at {at}: {run.ending.words}. It goes on where it is started again.")
    if state == "failed":
        return Sentence("bad", f"Failed at {at}: {one_line(run.ending.words, 300)}")
    if state == "not started":
        return Sentence("attention", f"No step yet: {run.holder.words}.")
    if stop and run.step >= stop:
        return Sentence("attention", f"All {stop:,} steps are done, but no weights of the last one are published.")
    return Sentence("bad", f"Ended without a word at {at}: {run.holder.words}.")


def loss_sentence(run: Run) -> Sentence:
    """Is the loss going down?"""
    found = trend(run.training["loss"])
    if found is None:
        count = len(known(run.training["loss"]))
        return Sentence("plain", f"Too few lines to say where the loss goes ({count}).")
    lines = f"from {short(found.first)} to {short(found.last)} (means of the first and the last tenth of the lines)"
    late = {"falling": "and is still falling", "rising": "and rises over the last third", "flat": "and is flat now"}
    lower = found.last < found.first
    tone: Tone = "bad" if found.late == "rising" else "good" if lower else "attention"
    text = f"The loss went {'down' if lower else 'up'} {lines} {late[found.late]}."
    for level in loss_levels(run.recipe)[:1] if run.recipe is not None else []:
        if found.last > 0.985 * level.value:
            tone = "attention" if tone == "good" and found.late != "falling" else tone
            text += f" It is no lower than what needs no learning: {level.words}."
    return Sentence(tone, text)


def score_sentences(run: Run) -> list[Sentence]:
    """The best and the last validation, and the final test, by the first score that the run has."""
    for name, (title, unit) in SCORES.items():
        rows = [(value, int(one["step"]), bool(one.get("final"))) for one in run.evaluations
                if (value := number(one.get(name))) is not None]  # fmt: skip
        validations, finals = [row for row in rows if not row[2]], [row for row in rows if row[2]]
        told = []
        if validations:
            best, step, _ = max(validations, key=lambda row: row[0])
            last = max(validations, key=lambda row: row[1])
            then = f", {scored(last[0], unit)} at step {last[1]:,}" if last[1] != step else ""
            told.append(
                _judged(run, name, best, f"Validation: {title} {scored(best, unit)} at step {step:,} is the best{then}")
            )
        if finals:
            told.append(_judged(run, name, finals[-1][0], f"Final test: {title} {scored(finals[-1][0], unit)}"))
        if told:
            return told
    return []


def _judged(run: Run, name: str, value: float, words: str) -> Sentence:
    level = chance(run.recipe, name) if run.recipe is not None else None
    if level is not None and value < 1.1 * level.value:
        return Sentence("attention", f"{words}. That is about what guessing gives ({short(level.value)}).")
    return Sentence("plain", f"{words}.")


def scored(value: float | None, unit: str) -> str:
    """A score with its unit."""
    return f"{value:.1f} %" if unit == "%" and value is not None else short(value)


def speed_of(run: Run) -> Speed:
    """How fast the run is now."""
    rows = run.training
    recent = max(5, int(RECENT * len(rows.steps)))
    return Speed(
        step_s=median(known(rows["step_s"][-recent:])),
        clips_per_s=median(known(rows["clips_per_s"][-recent:])),
        usual_clips_per_s=median(known(rows["clips_per_s"])),
        wait=wait_share(run, recent),
        wait_all=wait_share(run, len(rows.steps)),
        mfu=median(known(rows["mfu"][-recent:])),
    )


def wait_share(run: Run, lines: int) -> float | None:
    """Seconds of waiting for data over seconds of the step, summed over the last lines."""
    pairs = zip(run.training["data_s"][-lines:], run.training["step_s"][-lines:], strict=True)
    both = [(data, step) for data, step in pairs if data is not None and step is not None]
    total = sum(step for _, step in both)
    return sum(data for data, _ in both) / total if total > 0 else None


def limit_sentences(run: Run) -> list[Sentence]:
    """What limits the speed: reading or computing, and whether the run has become slower."""
    speed = speed_of(run)
    told = []
    if speed.wait is None:
        return [Sentence("plain", "What limits the speed is not known: no line tells how long a step waits for data.")]
    waits = f"{percent(speed.wait)} of a step is waiting for data"
    if speed.wait > WAIT_LIMIT:
        workers = f" (now {run.recipe.data.num_workers})" if run.recipe is not None else ""
        told.append(
            Sentence("attention", f"Reading limits the speed: {waits}. Try more data.num_workers{workers} first.")
        )
    else:
        mfu = "" if speed.mfu is None else f"; it reaches {percent(speed.mfu)} of the devices' peak FLOP/s (MFU)"
        told.append(Sentence("good", f"Computing limits the speed, not reading: {waits}{mfu}."))
    now, usual = speed.clips_per_s, speed.usual_clips_per_s
    if now is not None and usual and now < SLOWER * usual:
        told.append(Sentence("attention", f"It became slower: {short(now, 3)} clips/s now, {short(usual, 3)} usually."))
    return told


def fault_sentence(run: Run) -> Sentence:
    """What went wrong, counted."""
    kinds = [str(one.get("kind")) for one in run.events]
    counts = [
        (kinds.count("skipped step"), "step was skipped", "steps were skipped"),
        (kinds.count("loss jumped"), "jump of the loss", "jumps of the loss"),
        (kinds.count("went back"), "return to a checkpoint", "returns to a checkpoint"),
        (kinds.count("save failed"), "save failed", "saves failed"),
        (len(run.bad_clips.files), "video could not be read", "videos could not be read"),
        (len(run.damage), "file of the folder is damaged or missing", "files of the folder are damaged or missing"),
    ]
    told = [counted(count, one, many) for count, one, many in counts if count]
    known_kinds = {"skipped step", "loss jumped", "went back", "save failed"}
    told += [f"“{one_line(kind, 60)}”" for kind in sorted(set(kinds) - known_kinds)]
    restarts = max(0, len(run.starts) - 1)
    again = f" It was started again {times(restarts)}." if restarts else ""
    if not told:
        return Sentence("good", f"No fault is recorded.{again}")
    return Sentence("attention", f"Recorded faults: {'; '.join(told)}.{again}")


def seconds_left(run: Run) -> float | None:
    """Training time to the last step at the present speed, without evaluations and saves; None where not known."""
    stop, step_s = run.stop_step, speed_of(run).step_s
    return None if stop is None or step_s is None else max(0, stop - run.step) * step_s
