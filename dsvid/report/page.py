"""The report of a run as one HTML page that needs nothing beside it: no network, no script, no other file."""

from __future__ import annotations

import time
from collections.abc import Iterable

from dsvid import __version__
from dsvid.report import parts
from dsvid.report.curves import Chart, draw
from dsvid.report.markup import Markup, bullets, folded, joined, table, tag, text
from dsvid.report.reading import Run
from dsvid.report.run_charts import learning_charts, speed_charts
from dsvid.report.series import equal_steps, known
from dsvid.report.style import style_sheet
from dsvid.report.verdict import TITLES, Sentence, seconds_left, speed_of, state_of, verdict
from dsvid.report.words import duration, percent, short

SIGNS = {"good": ("✓", "Good: "), "attention": ("!", "Attention: "), "bad": ("✕", "Bad: "), "plain": ("·", "")}
TONES = {"running": "good", "finished": "good", "stopped": "attention", "failed": "bad", "ended": "bad",
         "not started": "attention"}  # fmt: skip
ROWS = 16  # of the table of numbers


def report_page(run: Run) -> str:
    """The page of a run."""
    samples = parts.samples(run)  # first: damaged pictures are found here, and told at the top
    state = state_of(run)
    head = [
        tag("p", f"Report of a dsvid run · {_clock(run.now)}", class_="quiet"),
        tag("h1", run.name),
        tag("p", TITLES[state], class_=f"state {TONES[state]}"),
    ]
    body = [
        sentences(verdict(run)),
        *parts.damage(run),
        *_figures(run),
        tag("h2", "Is it learning?"),
        *_charts(learning_charts(run), run),
        *_numbers(run),
        *parts.evaluations(run),
        tag("h2", "What limits the speed?"),
        *_charts(speed_charts(run), run),
        parts.what_to_turn(run),
        tag("h2", "What went wrong?"),
        *parts.faults(run),
        *samples,
        tag("h2", "Settings"),
        *parts.settings(run),
        tag("h2", "Where and with what it ran"),
        *parts.environment(run),
        tag("h2", "What to do next"),
        parts.next_steps(run),
    ]
    return whole_page(f"{TITLES[state]}: {run.name}", head, body, run.now)


def whole_page(title: str, head: Iterable[str], body: Iterable[str], now: float) -> str:
    """A page around its parts."""
    made = f"Made by dsvid {__version__} on {_clock(now)}. The page holds everything that it shows, and loads nothing."
    icon = "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg'/%3E"
    meta = [
        Markup('<meta charset="utf-8">'),
        Markup('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        Markup("""<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; """
               """style-src 'unsafe-inline'">"""),
        tag("title", title),
        Markup(f'<link rel="icon" href="{icon}">'),
        Markup(f"<style>{style_sheet()}</style>"),
    ]  # fmt: skip
    content = [
        tag("a", "To the content", href="#content", class_="skip"),
        tag("header", joined(head)),
        tag("main", joined(body), id="content"),
        tag("footer", tag("p", made)),
    ]
    inside = f"<head>\n{joined(meta)}\n</head>\n<body>\n{joined(content)}\n</body>"
    return f'<!doctype html>\n<html lang="en">\n{inside}\n</html>\n'


def sentences(told: Iterable[Sentence]) -> Markup:
    """Sentences of a verdict, each with a sign, which is said in words where it is not seen."""
    items = []
    for one in told:
        sign, words = SIGNS[one.tone]
        seen = tag("span", sign, class_=f"sign {one.tone}", aria_hidden="true")
        items.append(Markup(seen + hidden(words) + text(one.text)))
    return bullets(items, class_="verdict")


def hidden(words: str) -> Markup:
    """Words for those who do not see the page."""
    return tag("span", words, class_="skip") if words else Markup("")


def _clock(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M %z", time.localtime(seconds))


def _figures(run: Run) -> list[Markup]:
    """The numbers that are looked for first."""
    rows = run.training
    if not rows.steps:
        return []
    speed, stop, left = speed_of(run), run.stop_step, seconds_left(run)
    losses = known(rows["loss"])
    tail = losses[-max(1, len(losses) // 10) :]
    items = [
        ("Step", f"{run.step:,}" + (f" of {stop:,}" if stop else "")),
        ("Epoch", short(rows.last("epoch"))),
        ("Clips seen", short(rows.last("samples"), 6)),
        ("Loss, last tenth", short(sum(tail) / len(tail)) if tail else "–"),
        ("Clips a second", short(speed.clips_per_s, 3)),
        ("Seconds a step", short(speed.step_s, 3)),
        ("Waiting for data", percent(speed.wait)),
        ("Peak memory", f"{short(rows.last('mem_gb'), 3)} GB"),
        ("MFU", percent(speed.mfu) if speed.mfu is not None else "not known"),
        ("Time in steps", duration(_seconds_in_steps(run))),
        *([("Time left", duration(left))] if left and state_of(run) == "running" else []),
    ]
    pairs = joined(tag("div", joined([tag("dt", name), tag("dd", value)])) for name, value in items)
    return [tag("dl", pairs, class_="figures")]


def _seconds_in_steps(run: Run) -> float:
    """Seconds a step times steps, over all lines: saves, evaluations and starts are not in it."""
    rows, before, total = run.training, 0, 0.0
    for step, seconds in zip(rows.steps, rows["step_s"], strict=True):
        total += (step - before) * (seconds or 0.0)
        before = step
    return total


def _charts(charts: list[Chart], run: Run) -> list[Markup]:
    if not run.training.steps and not run.evaluations:
        return [tag("p", "No training line is written yet.", class_="quiet")]
    return [tag("div", joined(draw(chart) for chart in charts), class_="charts")]


def _numbers(run: Run) -> list[Markup]:
    """The curves as a table, for those who want numbers and those who do not see curves."""
    rows = run.training
    if not rows.steps:
        return []
    place = {step: at for at, step in enumerate(rows.steps)}
    shown = [place[step] for step in equal_steps(rows.steps, ROWS)]
    cells = [
        (f"{rows.steps[at]:,}", *(short(rows[name][at]) for name in ("loss", "grad_norm", "lr", "clips_per_s")))
        for at in shown
    ]
    head = ("Step", "Loss", "Grad norm", "Lr", "Clips/s")
    caption = f"{len(shown)} of {len(rows.steps):,} lines; all of them are in metrics.jsonl"
    return [folded("The curves as numbers", table(caption, head, cells, class_="numbers"))]
