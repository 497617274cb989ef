"""A comparison as sentences, as lines for a terminal, and as a page with the curves over each other."""

from __future__ import annotations

import time
from collections.abc import Sequence

from dsvid.report.comparison import Comparison, first_difference, scores, speed_ratio
from dsvid.report.curves import Chart, curve, draw
from dsvid.report.lines import number
from dsvid.report.markup import Markup, joined, table, tag
from dsvid.report.page import sentences, whole_page
from dsvid.report.run_charts import validations
from dsvid.report.series import Numbers
from dsvid.report.verdict import SCORES, TITLES, Sentence, state_of
from dsvid.report.words import counted, one_line, plain, short

MOST_SETTINGS = 60
VALUE_WIDTH = 34  # letters of a value in the terminal's table


def compared(comparison: Comparison) -> list[Sentence]:
    """What the comparison says: of every run against the first."""
    told = []
    count = len(comparison.settings)
    told.append(
        Sentence(
            "plain",
            f"{counted(count, 'setting')} differ{'s' if count == 1 else ''}." if count else "No setting differs.",
        )
    )
    for other in range(1, len(comparison.runs)):
        told += [_loss_sentence(comparison, other), _speed_sentence(comparison, other)]
    if comparison.axis == "samples":
        told.append(Sentence("plain", "A step is not equally many clips in all runs: places are counted in clips."))
    return told


def _loss_sentence(comparison: Comparison, other: int) -> Sentence:
    found, names = first_difference(comparison, other), _pair(comparison, other)
    place = "step" if comparison.axis == "step" else "clip"
    if not found.equal and found.at is None:
        return Sentence(
            "attention", f"{names}: no line of one is at a {place} of the other, so losses cannot be compared."
        )
    if found.at is None:
        lines = f"{counted(found.equal, 'common line')} (to {place} {found.last_equal:,})"
        return Sentence("good", f"{names}: the losses are bit-equal over {lines}.")
    values = f"{short(found.ours, 9)} and {short(found.theirs, 9)}"
    before = (
        f", bit-equal over {counted(found.equal, 'common line')} before" if found.equal else ", the first common line"
    )
    return Sentence("plain", f"{names}: the losses differ first at {place} {found.at:,} ({values}){before}.")


def _speed_sentence(comparison: Comparison, other: int) -> Sentence:
    ratio, names = speed_ratio(comparison, other), _pair(comparison, other)
    if ratio is None:
        return Sentence("plain", f"{names}: the speeds cannot be compared, one of them tells none.")
    letter, first = comparison.letters[other], comparison.letters[0]
    speeds = f"medians {short(ratio[1], 3)} and {short(ratio[2], 3)} clips/s"
    return Sentence("plain", f"{names}: {letter} runs at {short(ratio[0], 3)} times the speed of {first} ({speeds}).")


def _pair(comparison: Comparison, other: int) -> str:
    return f"{comparison.letters[other]} against {comparison.letters[0]}"


# ---- terminal ------------------------------------------------------------------------------------------------------


def comparison_lines(comparison: Comparison) -> list[str]:
    """The comparison for a terminal."""
    letters = comparison.letters
    lines = [
        f"{letter}  {plain(run.folder)}: {TITLES[state_of(run)].lower()}, step {run.step:,}"
        for letter, run in zip(letters, comparison.runs, strict=True)
    ]
    lines += ["", *(plain(one.text) for one in compared(comparison))]
    rows = [[key, *(one_line(value, VALUE_WIDTH) for value in values)] for key, values in comparison.settings]
    if rows:
        lines += ["", *_aligned([["setting", *letters], *rows[:MOST_SETTINGS]])]
    if len(rows) > MOST_SETTINGS:
        lines.append(f"and {len(rows) - MOST_SETTINGS} more settings; -o FILE.html shows all")
    lines += _numbers_lines(comparison)
    found = [[words, where, *(short(value) for value in values)] for words, where, values in scores(comparison)]
    return [*lines, "", *_aligned([["score", "where", *letters], *found])] if found else lines


def _numbers_lines(comparison: Comparison) -> list[str]:
    if not comparison.common:
        return ["", f"no {comparison.axis} is in the lines of all runs: no numbers side by side"]
    head = [
        comparison.axis,
        *(f"loss {one}" for one in comparison.letters),
        *(f"grad {one}" for one in comparison.letters),
    ]
    rows = [
        [f"{at:,}", *(short(value, 6) for value in comparison.values("loss", at)),
         *(short(value) for value in comparison.values("grad_norm", at))]
        for at in comparison.shown_places()
    ]  # fmt: skip
    return ["", *_aligned([head, *rows])]


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


# ---- page ----------------------------------------------------------------------------------------------------------


def comparison_page(comparison: Comparison) -> str:
    """The comparison as one HTML page."""
    now = comparison.runs[0].now
    names = [f"{letter}: {run.name}" for letter, run in zip(comparison.letters, comparison.runs, strict=True)]
    clock = time.strftime("%Y-%m-%d %H:%M %z", time.localtime(now))
    head = [tag("p", f"Comparison of dsvid runs · {clock}", class_="quiet"), tag("h1", " · ".join(names))]
    rows = [
        (letter, plain(run.folder), TITLES[state_of(run)], f"{run.step:,}")
        for letter, run in zip(comparison.letters, comparison.runs, strict=True)
    ]
    body = [
        sentences(compared(comparison)),
        table("Runs", ("Run", "Folder", "State", "Step"), rows),
        *_damage(comparison),
        tag("h2", "Curves"),
        tag("div", joined(draw(chart) for chart in _charts(comparison, names)), class_="charts"),
        tag("h2", "Numbers at equal places"),
        *_number_tables(comparison),
        tag("h2", "Settings that differ"),
        _setting_table(comparison),
    ]
    return whole_page(" · ".join(names), head, body, now)


def _damage(comparison: Comparison) -> list[Markup]:
    items = [
        tag("p", f"{letter}: {one.file} {one_line(one.what, 300)}")
        for letter, run in zip(comparison.letters, comparison.runs, strict=True)
        for one in run.damage
    ]
    return [tag("div", joined([tag("p", "Not everything could be read:"), *items]), class_="notice")] if items else []


def _charts(comparison: Comparison, names: Sequence[str]) -> list[Chart]:
    kinds = [
        ("loss", "Loss", "", True), ("grad_norm", "Gradient norm", "", True), ("lr", "Learning rate", "", False),
        ("clips_per_s", "Throughput", "clips/s", True),
    ]  # fmt: skip
    charts = [_chart(comparison, names, *kind) for kind in kinds]
    for name, (title, unit) in SCORES.items():
        rows = [validations(run) for run in comparison.runs]
        curves = [
            curve(label, [float(one["step"]) for one in own], [number(one.get(name)) for one in own], at, smooth=False)
            for at, (label, own) in enumerate(zip(names, rows, strict=True))
        ]
        if any(one.line for one in curves):
            charts.append(Chart(f"chart-{name}", f"Validation {title}", curves, unit))
    return charts


def _chart(comparison: Comparison, names: Sequence[str], name: str, title: str, unit: str, smooth: bool) -> Chart:
    columns: list[tuple[Sequence[float], Numbers]] = [
        (sorted(column), [column[at][name] for at in sorted(column)]) for column in comparison.columns
    ]
    curves = [
        curve(label, xs, ys, at, smooth=smooth) for at, (label, (xs, ys)) in enumerate(zip(names, columns, strict=True))
    ]
    place = "step" if comparison.axis == "step" else "clips"
    return Chart(
        f"chart-{name}", title, curves, unit, x_name=place, wide=name == "loss", from_zero=name == "clips_per_s"
    )


def _number_tables(comparison: Comparison) -> list[Markup]:
    letters, shown = comparison.letters, []
    if comparison.common:
        rows = [
            (f"{at:,}", *(short(value, 6) for value in comparison.values("loss", at)))
            for at in comparison.shown_places(12)
        ]
        caption = f"Loss at {len(rows)} of {counted(len(comparison.common), 'common place')}"
        shown.append(table(caption, (comparison.axis, *letters), rows, class_="numbers"))
    else:
        shown.append(tag("p", f"No {comparison.axis} is in the lines of all runs.", class_="quiet"))
    found = [(f"{words}: {where}", *(short(value) for value in values)) for words, where, values in scores(comparison)]
    return [*shown, table("Scores", ("Score", *letters), found, class_="numbers")] if found else shown


def _setting_table(comparison: Comparison) -> Markup:
    if not comparison.settings:
        return tag("p", "None.")
    rows = [(key, *(one_line(value, 120) for value in values)) for key, values in comparison.settings]
    return table(counted(len(rows), "setting"), ("Key", *comparison.letters), rows)
