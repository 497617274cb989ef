"""Which curves of a run are drawn, with what is known beside them. Knows runs and charts; writes no page."""

from __future__ import annotations

from collections.abc import Sequence

from dsvid.report.curves import Chart, Mark, curve
from dsvid.report.lines import Row, number, whole
from dsvid.report.reading import Run
from dsvid.report.reference import band_of, chance, loss_levels
from dsvid.report.verdict import SCORES, WAIT_LIMIT
from dsvid.report.words import clock

# kind of an event -> (its letter, what is said of it)
EVENTS = {
    "skipped step": ("S", "step skipped"), "loss jumped": ("J", "the loss jumped"),
    "went back": ("B", "went back to a checkpoint"), "save failed": ("F", "a save failed"),
    "loss not finite in a step that was applied": ("N", "the loss was not finite"),
    "weights_best not written": ("W", "weights_best was not written"),
}  # fmt: skip
AVERAGE = "ema_"  # in front of the scores of averaged weights


def marks(run: Run, kinds: Sequence[str] | None = None) -> list[Mark]:
    """Starts that went on from a step, and events of some kinds (all without `kinds`)."""
    found = [
        Mark(start.step, f"R{number}", f"started again at step {start.step:,}, {clock(start.time)}")
        for number, start in enumerate(run.starts[1:], 1)
    ]
    for event in run.events:
        kind, step = str(event.get("kind")), whole(event.get("step"))
        if step is not None and kind in EVENTS and (kinds is None or kind in kinds):
            letter, words = EVENTS[kind]
            found.append(Mark(step, letter, f"{words} at step {step:,}"))
    return found


def learning_charts(run: Run) -> list[Chart]:
    """Loss, gradient norm, learning rate, and what evaluations found."""
    rows = run.training
    xs = [float(step) for step in rows.steps]
    return [
        _loss_chart(run, xs),
        Chart("chart-lr", "Learning rate", [curve("learning rate", xs, rows["lr"], smooth=False)], marks=marks(run, ()),
              linear=True, notes=["The highest of all parameter groups."]),
        Chart("chart-grad", "Gradient norm", [curve("gradient norm", xs, rows["grad_norm"])], marks=marks(run)),
        *_score_charts(run),
    ]  # fmt: skip


def _loss_chart(run: Run, xs: list[float]) -> Chart:
    levels = loss_levels(run.recipe) if run.recipe is not None else []
    band, why = band_of(run.recipe, run.argv) if run.recipe is not None else (None, "")
    each = run.steps_per_epoch
    at = [(epoch * each, low, high) for epoch, low, high in band.at] if band is not None and each else []
    return Chart(
        "chart-loss",
        "Loss",
        [curve("loss", xs, run.training["loss"])],
        levels=[(level.value, level.words) for level in levels],
        band=at,
        band_words=band.source if band is not None else "",
        marks=marks(run),
        notes=[why] if why else [],
        wide=True,
        tell_marks=True,
    )


def _score_charts(run: Run) -> list[Chart]:
    charts = []
    rows = validations(run)
    xs = [float(one["step"]) for one in rows]
    for name, (title, unit) in SCORES.items():
        curves = [
            curve(label, xs, [number(one.get(key)) for one in rows], place, smooth=False)
            for place, (key, label) in enumerate(((name, "weights"), (AVERAGE + name, "their moving average")))
        ]
        if not any(one.line for one in curves):
            continue
        level = chance(run.recipe, name) if run.recipe is not None else None
        charts.append(
            Chart(f"chart-{name}", f"Validation {title}", curves, unit, marks=marks(run, ()),
                  levels=[(level.value, level.words)] if level is not None else [])
        )  # fmt: skip
    return charts


def validations(run: Run) -> list[Row]:
    """The evaluations that are no final test, by step."""
    return sorted((one for one in run.evaluations if not one.get("final")), key=lambda one: int(one["step"]))


def speed_charts(run: Run) -> list[Chart]:
    """Throughput, waiting for data, memory, and the share of the devices' peak where it is known."""
    rows = run.training
    xs = [float(step) for step in rows.steps]
    waits = [
        None if data is None or not step else 100 * data / step
        for data, step in zip(rows["data_s"], rows["step_s"], strict=True)
    ]
    starts = marks(run, ())
    limit = f"above {WAIT_LIMIT:.0%} reading limits the speed"
    charts = [
        Chart("chart-rate", "Throughput", [curve("throughput", xs, rows["clips_per_s"])], "clips/s", from_zero=True,
              marks=starts),
        Chart("chart-wait", "Waiting for data", [curve("waiting for data", xs, waits)], "% of a step", from_zero=True,
              levels=[(100 * WAIT_LIMIT, limit)], marks=starts),
        Chart("chart-memory", "Peak memory of rank 0", [curve("memory", xs, rows["mem_gb"], smooth=False)], "GB",
              from_zero=True, marks=starts),
    ]  # fmt: skip
    if any(value is not None for value in rows["mfu"]):
        percents = [None if value is None else 100 * value for value in rows["mfu"]]
        drawn, unit = [curve("MFU", xs, percents)], "% of the peak FLOP/s"
        charts.append(Chart("chart-mfu", "Model FLOPs utilisation", drawn, unit, from_zero=True, marks=starts))
    return charts
