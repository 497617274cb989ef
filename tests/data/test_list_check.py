"""Which lines are good, what is said of the others, and a check that is stopped in the middle."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from dsvid.data import list_check
from dsvid.data.guarded_work import HANGS
from dsvid.data.list_check import Fault, ListCheck, Rules
from dsvid.data.video_facts import Look
from dsvid.errors import DataError
from tests.data.numbered_videos import write_video


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checked")
    write_video(path / "a.mp4", 80)
    write_video(path / "b c.mp4", 80)
    write_video(path / "short.mp4", 20)
    (path / "empty.mp4").touch()
    return path


def check(folder: Path, text: str | bytes, rules: Rules | None = None, output: Path | None = None) -> ListCheck:
    """Run the check of a list of this text in the folder."""
    (folder / "list.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    made = ListCheck(str(folder / "list.csv"), "", rules or Rules(), output)
    made.run(1)
    return made


def causes(made: ListCheck) -> list[tuple[int, str, bool]]:
    return [(fault.line, fault.cause, fault.bad) for fault in made.faults]


def test_every_line_is_named_in_its_order(folder: Path) -> None:
    text = (
        "# mine\na.mp4 0\nno label here at all\nempty.mp4 0\nnone.mp4 1\na.mp4 1\n\nb c.mp4,1\nshort.mp4 0\nz.mp4 x\n"
    )
    made = check(folder, text)
    assert causes(made) == [
        (3, list_check.LINE, True),
        (4, "zero bytes", True),
        (5, "missing", True),
        (6, list_check.LABELS, True),
        (9, list_check.SHORT, False),
        (10, list_check.LINE, True),
    ]
    assert (made.entries, made.bad, len(made.good)) == (8, 5, 3)
    assert str(made.faults[4]).endswith("short.mp4: short (kept): 20 frames, fewer than 16 x 4: clips repeat frames")


def test_labels(folder: Path) -> None:
    assert causes(check(folder, "a.mp4 3\nb c.mp4,-1\n")) == [(2, list_check.LABEL, True)]
    assert causes(check(folder, "a.mp4 3\nb c.mp4,2\n", Rules(num_classes=3))) == [(1, list_check.LABEL, True)]
    assert causes(check(folder, "a.mp4 0 -1\n")) == [], "a list without any labels is one for pre-training"


def test_parts_of_one_video_are_no_duplicates(folder: Path) -> None:
    assert causes(check(folder, "a.mp4 0 70\na.mp4 8 70\n./a.mp4 0 70\n")) == [(3, list_check.DUPLICATE, True)]


def test_only_a_line_that_is_kept_makes_a_later_one_a_duplicate(folder: Path) -> None:
    made = check(folder, "a.mp4 9\na.mp4 1\na.mp4 1\n", Rules(num_classes=3))
    assert causes(made) == [(1, list_check.LABEL, True), (3, list_check.DUPLICATE, True)]
    assert made.faults[1].text == "the same as line 2"
    assert made.good == [1]


def test_two_labels_of_one_video_are_named(folder: Path) -> None:
    made = check(folder, "a.mp4 0\n./a.mp4 2\n")
    assert causes(made) == [(2, list_check.LABELS, True)]
    assert made.faults[0].text == "2, but line 1, which is kept, says 0 of the same video"
    assert causes(check(folder, "a.mp4 0\na.mp4 2\n", Rules(allow_duplicates=True))) == [(2, list_check.LABELS, False)]


def test_what_is_bad_can_be_chosen(folder: Path) -> None:
    text = "short.mp4 0\nshort.mp4 0\n"
    made = check(folder, text, Rules(allow_duplicates=True, num_frames=8, sampling_rate=2))
    assert causes(made) == [(2, list_check.DUPLICATE, False)]
    assert causes(check(folder, text, Rules(allow_duplicates=True, drop_short=True)))[0] == (1, "short", True)


def test_the_cleaned_list_has_the_bytes_of_the_good_lines(folder: Path, tmp_path: Path) -> None:
    blob = b'\xef\xbb\xbfempty.mp4 0\r\n# kept\r\na.mp4\t 0\r\nnone.mp4 0\r\n"b c.mp4" ,1  \r\n'
    out = tmp_path / "clean.csv"
    made = check(folder, blob, output=out)
    assert made.publish() == out
    assert out.read_bytes() == b'\xef\xbb\xbf# kept\r\na.mp4\t 0\r\n"b c.mp4" ,1  \r\n'
    rows = [json.loads(line) for line in (tmp_path / "clean.csv.bad.jsonl").read_text().splitlines()]
    assert [(row["line"], row["cause"], row["bad"]) for row in rows] == causes(made)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clean.csv", "clean.csv.bad.jsonl"], "no state is left"


def test_without_a_good_line_there_is_no_list(folder: Path, tmp_path: Path) -> None:
    made = check(folder, "none.mp4 0\nx\n", output=tmp_path / "clean.csv")
    assert made.publish() is None
    assert not (tmp_path / "clean.csv").exists()
    assert (tmp_path / "clean.csv.bad.jsonl").exists()


def test_a_stopped_check_goes_on(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "list.csv").write_text("a.mp4 0\nempty.mp4 0\nb c.mp4,0\nshort.mp4 0\n")
    out = tmp_path / "clean.csv"

    def stop(faults: list[Fault]) -> None:
        if faults:
            raise KeyboardInterrupt

    def again(rules: Rules) -> int:
        return ListCheck(str(folder / "list.csv"), "", rules, out).run(1)

    with pytest.raises(KeyboardInterrupt):
        ListCheck(str(folder / "list.csv"), "", Rules(), out).run(1, stop)
    state = list_check.state_path(out)
    whole = state.read_bytes()
    state.write_bytes(whole[:-9])  # killed while it wrote
    assert again(Rules()) == 1
    assert again(Rules()) == 4
    os.utime(folder / "a.mp4")
    assert again(Rules()) == 3, "a file that has changed is looked at again"
    made = ListCheck(str(folder / "list.csv"), "", Rules(), out)
    made.run(1)
    assert causes(made) == [(2, "zero bytes", True), (4, "short", False)], "as if it had not been stopped"
    assert again(Rules(Look(full=True))) == 0, "a closer look knows nothing yet"


def test_odd_rows_of_the_state_are_skipped(folder: Path, tmp_path: Path) -> None:
    (folder / "list.csv").write_text("a.mp4 0\nb c.mp4,0\n")
    out = tmp_path / "clean.csv"

    def again() -> tuple[int, list[int]]:
        made = ListCheck(str(folder / "list.csv"), "", Rules(), out)
        return made.run(1), made.good

    assert again() == (0, [0, 1])
    state = list_check.state_path(out)
    head, first, second = state.read_bytes().splitlines(keepends=True)
    facts = json.loads(first)["facts"]
    odd = b"{}\n[]\nnull\n\xff\n" + first[:-30] + b"\n"
    state.write_bytes(head + odd + second)
    assert again() == (1, [0, 1]), "what comes behind them is known"
    for wrong in ({}, {"frames": 80}, {**facts, "more": 1}, {**facts, "frames": "many"}, 7):
        state.write_bytes(head + json.dumps({**json.loads(first), "facts": wrong}).encode() + b"\n" + second)
        assert again() == (1, [0, 1]), wrong


@pytest.mark.skipif(sys.platform != "linux", reason="the processes are Linux's")
def test_a_video_that_hangs_is_a_line_of_the_report(folder: Path) -> None:
    os.mkfifo(folder / "pipe.mp4")  # whoever opens it waits for a writer
    try:
        made = check(folder, "pipe.mp4 0\na.mp4 0\n", Rules(limit_s=1.0))
    finally:
        (folder / "pipe.mp4").unlink()
    assert causes(made) == [(1, HANGS, True)]
    assert made.good == [1]


def test_the_survey(folder: Path) -> None:
    survey = check(folder, "a.mp4 0\nshort.mp4 0\nnone.mp4 0\n").survey
    assert (survey.entries, dict(survey.frames), dict(survey.fps)) == (2, {80: 1, 20: 1}, {25.0: 2})
    assert dict(survey.sizes) == {"80x64": 2}
    assert survey.coded == 100 == sum(length * count for length, count in survey.groups.items())


def test_outputs_that_would_cost_something(folder: Path, tmp_path: Path) -> None:
    (folder / "list.csv").write_text("a.mp4 0\n")
    (tmp_path / "sub").mkdir()
    (tmp_path / "to folder").symlink_to(folder)
    (tmp_path / "to list.csv").symlink_to(folder / "list.csv")
    for output in (
        folder / "list.csv",
        folder / "." / "list.csv",
        tmp_path / "sub" / ".." / "to folder" / "list.csv",
        tmp_path / "to list.csv",
        tmp_path,
    ):
        with pytest.raises(DataError, match="-o"):
            ListCheck(str(folder / "list.csv"), "", Rules(), output)
    with pytest.raises(DataError, match="-o"):
        ListCheck(str(tmp_path / "to list.csv"), "", Rules(), folder / "list.csv")
    (folder / "clean.csv.bad.jsonl").write_text("a.mp4 0\n")
    with pytest.raises(DataError, match="-o"):
        ListCheck(str(folder / "clean.csv.bad.jsonl"), "", Rules(), folder / "clean.csv")
