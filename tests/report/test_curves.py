"""Drawn curves: what is drawn where, what is said of it, and what a range leaves out."""

from __future__ import annotations

import re
from xml.etree.ElementTree import Element

import pytest

from dsvid.report.curves import Chart, Curve, Mark, curve, draw
from dsvid.report.series import Points
from tests.report.reading_pages import Page, check_drawings


def line(*ys: float) -> Points:
    return [(float(at), y) for at, y in enumerate(ys)]


def drawing(chart: Chart) -> Element:
    return check_drawings(draw(chart))[0]


def way(drawn: Element, kind: str) -> list[tuple[float, float]]:
    (path,) = [one for one in drawn if one.get("class", "").startswith(kind)]
    return [
        (float(x), float(y)) for x, y in re.findall(r"(-?[\d.]+),(-?[\d.]+)", path.get("d") or path.get("points") or "")
    ]


def test_a_falling_line_falls_from_left_to_right() -> None:
    found = way(drawing(Chart("a", "A", [Curve("a", line(4, 3, 2))])), "line")
    assert [x for x, _ in found] == pytest.approx([12, 500, 988], abs=1), "a margin keeps the ends whole"
    assert found[0][1] < found[1][1] < found[2][1], "down is a larger y"
    assert found[1][1] == pytest.approx((found[0][1] + found[2][1]) / 2, abs=0.2)


def test_many_points_have_a_median_over_the_raw_line() -> None:
    many = [1.0 + at % 2 for at in range(200)]
    drawn = drawing(Chart("a", "A", [Curve("a", line(*many), smooth=True)]))
    raw, middle = way(drawn, "raw"), way(drawn, "line")
    spread = [max(y for _, y in some) - min(y for _, y in some) for some in (raw, middle[5:-5])]
    assert spread[0] > 300 and len(raw) == 200 and spread[1] <= spread[0]
    assert "median of 5 lines" in draw(Chart("a", "A", [Curve("a", line(*many), smooth=True)]))
    few = drawing(Chart("a", "A", [Curve("a", line(1, 2), smooth=True)]))
    assert {one.get("class") for one in few} >= {"line c0", "dots c0"}


def test_thousands_of_points_become_hundreds() -> None:
    drawn = drawing(Chart("a", "A", [Curve("a", line(*(at % 7 for at in range(9000))), smooth=True)]))
    assert len(way(drawn, "raw")) <= 600 and len(way(drawn, "line")) <= 600


def test_outliers_are_told_and_kept_out_of_the_axis() -> None:
    ys = [1 + 0.001 * at for at in range(100)]
    ys[50] = 77.0
    shown = Page(draw(Chart("a", "A", [Curve("a", line(*ys))]))).text
    assert "1 point above the axis, the farthest 77 at 50." in shown
    assert "above the axis" not in Page(draw(Chart("a", "A", [Curve("a", line(*ys[:50]))]))).text


def test_a_logarithmic_axis_is_told() -> None:
    far = Curve("a", [(float(at), 10.0**-at) for at in range(5)])
    shown = draw(Chart("a", "A", [far]))
    assert "Logarithmic axis." in shown and "1e-4" in shown
    ys = [y for _, y in way(check_drawings(shown)[0], "line")]
    assert ys[1] - ys[0] == pytest.approx(ys[3] - ys[2], abs=0.2)
    assert "Logarithmic" not in draw(Chart("a", "A", [far], linear=True))


@pytest.mark.parametrize("far", [(50, 60), (-9, -5)])
def test_a_band_beside_the_axis_is_neither_drawn_nor_told(far: tuple[int, int]) -> None:
    band = [(x, 3, 4) for x in far]
    chart = Chart("a", "A", [Curve("a", line(4, 3, 2))], band=band, band_words="two measured runs")
    assert "two measured runs" not in draw(chart) and not [one for one in drawing(chart) if one.get("class") == "band"]


def test_levels_bands_and_marks() -> None:
    chart = Chart(
        "a", "A", [Curve("a", line(4, 3, 2, 1))], levels=[(3.5, "the height of three and a half"), (900, "far away")],
        band=[(-5, 1, 2), (1, 3, 4), (9, 3, 4)], band_words="two measured runs", tell_marks=True,
        marks=[Mark(1, "S", "skipped at 1"), Mark(1.01, "S", "skipped at 1.01"), Mark(2, "R1", "started"),
               Mark(99, "R2", "x")],
    )  # fmt: skip
    shown, drawn = draw(chart), drawing(chart)
    kinds = [one.get("class", "").split()[0] for one in drawn]
    assert kinds.count("level") == 1 and kinds.count("mark") == 3 and kinds.count("band") == 1
    text = Page(shown).text
    assert "3.500: the height of three and a half" in text and "far away" not in text and "two measured runs" in text
    assert "S: skipped at 1, and once more, the last at 1.01" in text and "R1: started" in text and "R2" not in text
    assert shown.count(">S</span>") == 1, "letters do not lie on each other"
    corners = way(drawn, "band")
    assert min(y for _, y in corners) >= 0 and max(y for _, y in corners) <= 400, "the axis has room for the band"
    assert min(x for x, _ in corners) == 0 and max(x for x, _ in corners) == 1000, "cut where the axis ends"


def test_curves_differ_by_more_than_their_colour() -> None:
    chart = Chart("a", "A", [Curve("one", line(1, 2), 0), Curve("two", line(2, 1), 1), Curve("three", line(3, 3), 2)])
    dashes = {one.get("stroke-dasharray") for one in drawing(chart) if one.get("class", "").startswith("line")}
    assert len(dashes) == 3
    text = Page(draw(chart)).text
    assert all(name in text for name in ("one", "two", "three"))


def test_a_chart_is_told_in_words() -> None:
    plot = Page(draw(Chart("a", "Loss", [Curve("loss", [(5, 1.25), (10, 0.5), (15, 0.75)])]))).all("div")[0]
    assert plot["aria-label"] == (
        "Chart of Loss by step. loss: 1.250 at step 5, 0.7500 at step 15; lowest 0.5000 at 10, highest 1.250 at 5."
    )


def test_gaps_and_nothing_at_all() -> None:
    assert curve("a", [1, 2, 3], [None, 5.0, None]).line == [(2.0, 5.0)]
    assert "No number is recorded." in draw(Chart("a", "A", [curve("a", [1], [None])]))
    check_drawings(draw(Chart("a", "A", [Curve("a", [(3.0, 0.0)])], from_zero=True)))
    check_drawings(draw(Chart("a", "A", [Curve("a", line(*[0.0] * 30), smooth=True)], from_zero=True)))
    check_drawings(draw(Chart("a", "A", [Curve("a", line(-1e300, 1e300))])))
    check_drawings(draw(Chart("a", "A", [Curve("a", line(1e-300, 5e-324, 0.0))])))


def test_names_are_escaped() -> None:
    shown = draw(Chart("a", "<b>", [Curve("<i>", line(1, 2)), Curve("b", line(1))], marks=[Mark(1, "<", "<u>")]))
    assert not {"b", "i", "u"} & {tag for tag, _ in Page(shown).elements}
