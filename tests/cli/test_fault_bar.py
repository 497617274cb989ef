"""Every file moves the bar; of the faults so many are told."""

from __future__ import annotations

import pytest

from dsvid.cli.fault_bar import SHOWN, FaultBar


def test_faults_are_told_up_to_a_number(capsys: pytest.CaptureFixture[str]) -> None:
    with FaultBar(60, "video", "not made: ", initial=5) as bar:
        for number in range(50):
            bar.tell("" if number % 2 else f"v{number}.mp4")
    told = capsys.readouterr().out.splitlines()
    assert told == [f"not made: v{number}.mp4" for number in range(0, 2 * SHOWN, 2)]


def test_all_of_them_where_that_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    with FaultBar(30, "entry", most=None) as bar:
        for number in range(30):
            bar.tell(f"a{number}", f"b{number}")
    assert len(capsys.readouterr().out.splitlines()) == 60
