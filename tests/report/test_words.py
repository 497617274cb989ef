"""Numbers and foreign texts as they are shown."""

from __future__ import annotations

import pytest

from dsvid.report.words import clock, counted, duration, one_line, percent, plain, short, size, tick, times


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.99331, "0.9933"), (0.0004348, "4.35e-4"), (12, "12"), (3840.0, "3,840"), (1234567.0, "1.23e6"), (0.0, "0"),
     (9.99996, "10.00"), (-0.5, "-0.5000"), (None, "–"), (float("nan"), "–"), (float("inf"), "–")],
)  # fmt: skip
def test_short_numbers(value: float | None, shown: str) -> None:
    assert short(value) == shown


def test_numbers_of_an_axis_are_alike() -> None:
    assert [tick(value, 6e-4) for value in (0.0, 2e-4, 4e-4)] == ["0", "2e-4", "4e-4"]
    assert [tick(value, 1.3) for value in (0.0, 0.25, 1.0)] == ["0", "0.25", "1"]
    assert tick(20_000, 20_000) == "20,000" and tick(2.5e7, 2.5e7) == "2.5e7"


def test_times_and_counts() -> None:
    assert [duration(s) for s in (-3, 7.9, 65, 3700, 90_000)] == ["0 s", "7 s", "1 min 05 s", "1 h 01 min", "1 d 1 h"]
    assert [times(count) for count in (1, 2, 1000)] == ["once", "twice", "1,000 times"]
    assert [counted(1, "step"), counted(0, "step"), counted(2, "ox", "oxen")] == ["1 step", "0 steps", "2 oxen"]
    assert clock("2026-11-27T05:17:06+0000") == "2026-11-27 05:17"
    assert [percent(share) for share in (0.051, 0.4, None)] == ["5.1 %", "40 %", "–"]
    assert [size(count) for count in (5, 15_656_855, 2e12)] == ["5 B", "15.7 MB", "2 TB"]


def test_foreign_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_abcdef")
    assert plain("a\x1b[31m\u202e hf_abcdef http://me:secret@x") == "a\ufffd[31m\ufffd *** http://me:***@x"
    assert plain("two\nlines\tkept") == "two\nlines\tkept"
    assert one_line("a\n  b" + "c" * 300, 10) == "a bcccccc…"
