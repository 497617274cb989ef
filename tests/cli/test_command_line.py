"""The `dsvid` command: options before, between and after `a.b=v` items, and what is said to a wrong call."""

from __future__ import annotations

import pytest

from dsvid.cli import COMMANDS, main, parse

EVAL = ["--weights", "w", "--recipe", "r"]


@pytest.mark.parametrize(
    "words",
    [
        [*EVAL, "--out", "o", "eval.crops=3", "eval.segments=2"],
        ["eval.crops=3", "eval.segments=2", *EVAL, "--out", "o"],
        ["eval.crops=3", *EVAL, "eval.segments=2", "--out", "o"],
    ],
)
def test_options_stand_anywhere(words: list[str]) -> None:
    name, args = parse(["eval", *words])
    assert name == "eval" and args.overrides == ["eval.crops=3", "eval.segments=2"] and str(args.out) == "o"


def test_positionals_come_first_and_the_rest_are_items() -> None:
    _, args = parse(["convert", "--to", "hf", "a.pth", "num_classes=5", "--from", "mvd", "--overwrite"])
    assert (str(args.source), str(args.destination), args.overrides) == ("a.pth", "num_classes=5", [])
    _, args = parse(["convert", "a.pth", "--to", "hf", "out", "num_classes=5", "--from", "mvd", "num_heads=6"])
    assert (str(args.source), str(args.destination)) == ("a.pth", "out")
    assert (args.to, args.family, args.overrides) == ("hf", "mvd", ["num_classes=5", "num_heads=6"])


def test_commands_with_commands_of_their_own_are_read_too() -> None:
    _, args = parse(["metrics", "views", "a.txt", "b.txt", "--merge", "score"])
    assert args.metric == "views" and len(args.files) == 2 and args.merge == "score"


@pytest.mark.parametrize("words", [[], ["nonsense"], ["--nonsense"], ["--", "env"]])
def test_what_is_no_command(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    assert "usage: dsvid" in capsys.readouterr().err or words == ["--", "env"]


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in COMMANDS)


@pytest.mark.parametrize("words", [["convert", "a"], ["eval", "--recipe", "r"], ["features", "l", "--wieghts", "w"]])
def test_a_wrong_call_names_the_command(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    assert f"dsvid {words[0]}" in capsys.readouterr().err
