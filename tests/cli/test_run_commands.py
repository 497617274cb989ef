"""`dsvid report`, `dsvid status`, `dsvid compare` as they are typed: what is written, printed and refused."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from dsvid.cli import main, status
from dsvid.lock_owner import process_place
from tests.report.made_run import make_eventful, make_settings, make_trained, train_row
from tests.report.reading_pages import check_page


def test_a_report_lies_in_the_run_or_where_it_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_trained(tmp_path / "run")
    assert main(["report", str(run)]) == 0
    assert "The loss went down" in capsys.readouterr().out
    assert main(["report", "-o", str(tmp_path / "new" / "a.html"), str(run)]) == 0
    for path in (run / "report.html", tmp_path / "new" / "a.html"):
        check_page(path.read_text(encoding="utf-8"))
    names = ["ds_config.json", "metrics.jsonl", "recipe.yaml", "report.html", "run.json"]
    assert sorted(path.name for path in run.iterdir()) == names


def test_damage_is_said_and_is_no_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_trained(tmp_path)
    (run / "recipe.yaml").write_text("model: {archi: vit_base}")
    for words in (["report", str(run)], ["status", str(run)], ["compare", str(run), str(run)]):
        assert main(words) == 0
        shown = capsys.readouterr()
        assert "not read" in shown.out and "recipe.yaml" in shown.out and not shown.err


@pytest.mark.parametrize("command", [["report"], ["status"], ["compare"], ["compare", "-o", "x.html"]])
def test_what_is_no_run_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_text("")
    assert main([*command, "photos"]) == 2
    error = capsys.readouterr().err
    assert "photos is no run folder" in error and "a.png" in error
    assert [path.name for path in tmp_path.iterdir()] == ["photos"] and len(list((tmp_path / "photos").iterdir())) == 1


def test_places_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_trained(tmp_path / "run")
    (tmp_path / "file").write_text("kept")
    for out in (tmp_path, tmp_path / "file" / "a.html"):
        assert main(["report", str(run), "-o", str(out)]) == 2
        assert main(["compare", str(run), str(run), "-o", str(out)]) == 2
    error = capsys.readouterr().err
    assert str(tmp_path / "file") in error
    assert f"found:    a folder\n  expected: a file\n  fix:      -o {tmp_path}" in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "run"]


def test_one_run_cannot_be_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(make_settings(tmp_path))]) == 2
    assert "2 to 6" in capsys.readouterr().err


def test_a_comparison_in_the_terminal_and_as_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = make_trained(tmp_path / "a"), make_eventful(tmp_path / "b")
    assert main(["compare", str(one), str(other), "-o", str(tmp_path / "c.html")]) == 0
    shown = capsys.readouterr().out
    assert f"A  {one}: ended without a word, step 400" in shown and "differ first at step 20" in shown
    check_page((tmp_path / "c.html").read_text(encoding="utf-8"))


def test_status_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", str(make_trained(tmp_path)), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["state"], facts["step"], facts["stop_step"]) == ("ended", 400, 3200)


def test_status_is_watched_until_the_run_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_trained(tmp_path)
    owner = {**process_place(os.getpid()), "since": "now", "token": "t"}
    (run / ".lock").write_text(json.dumps(owner))
    waits: list[float] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        with (run / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(train_row(410 + len(waits))) + "\n" + '{"kind": "tr')
        if len(waits) == 2:
            (run / ".lock").unlink()

    monkeypatch.setattr(status, "_wait", wait)
    assert main(["status", str(run), "--watch", "7", "--json"]) == 0
    looks = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert waits == [7, 7] and [look["state"] for look in looks] == ["running", "running", "ended"]
    assert looks[1]["step"] == 411


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf"])
def test_an_odd_interval(tmp_path: Path, seconds: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", str(make_settings(tmp_path)), f"--watch={seconds}"]) == 2
    assert "--watch" in capsys.readouterr().err
