"""Shell text -> words: quotes, continuations, variables; what only a run would tell stays as it is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from dsvid.errors import DataError
from dsvid.migrate.launcher import slurm_words
from dsvid.migrate.shell_words import read_commands


def words(text: str, **variables: str) -> list[tuple[str, ...]]:
    return [command.words for command in read_commands(text, variables)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a \\\n  b # c\n", ("a", "b")),
        ("a b#c '#d' \"#e\"", ("a", "b#c", "#d", "#e")),
        ("a 'x y'\"z $B\"w", ("a", "x yz ${B}w")),
        ("B='x y'; a $B \"$B\" ${B}z", ("a", "x", "y", "x y", "x", "yz")),
        ("E='x ' B='  '; a ${E}y b${B}c $B ${E}", ("a", "x", "y", "b", "c", "x")),
        ("a \"\" '' $NONE_SET", ("a", "", "", "${NONE_SET}")),
        ("E=; a $E x", ("a", "x")),
        ("B=1 C=$B\na $B$C", ("a", "11")),
        ("B=0; export B=1 C=$B\na $B$C", ("a", "10")),
        ("A=(--x 1\n # no\n --y 'p q')\nA+=(--z)\na \"${A[@]}\"", ("a", "--x", "1", "--y", "p q", "--z")),
        ("A=(1 '2 3')\na ${A[@]}", ("a", "1", "2", "3")),
        ("N=${N:-8}; a ${N} ${M:-\"$N x\"} ${M-2} ${N:+yes}", ("a", "8", "8", "x", "2", "yes")),
        ("a ${N:-d e} \"${N:-d e}\" ${N:-'x  y'}", ("a", "d", "e", "d e", "x", "y")),
        ("N=; a ${N:-1} ${N-2}", ("a", "1")),
        ("a $1 $(b 'c)' $(d)) `e f` $((1 + (2)))", ("a", "${1}", "$(b 'c)' $(d))", "`e f`", "$((1 + (2)))")),
        ("O=o/$(date +%F-%H) P='x y'`f  g`; a $O/z $P", ("a", "o/$(date +%F-%H)/z", "x", "y`f  g`")),
        ("A=(--o $(b c))\na ${A[@]} ${N:-$(d e) f}", ("a", "--o", "$(b c)", "$(d e)", "f")),
        ("O='$(b c)'; a $O", ("a", "$(b", "c)")),  # text between single quotes is known, and split
        ("O=$(b c) a", ("a",)),
        ("a $@ ${@:2} \"$@\" ${B:0:2}", ("a", "${B:0:2}")),
        ("a 2>&1 >log <in b", ("a", "b")),
        ("a --k=\"$B\"=\\$x", ("a", "--k=${B}=$x")),
        ("for x in 1; do a $x; done", ("a", "1")),
        ("for x in 1 2; do a $x; done", ("a", "${x}")),
        ("if true; then B=1; fi; a $B", ("a", "1")),
        ("cat <<EOF\nit's \"open\nEOF\na b", ("a", "b")),
        ("a\r\n", ("a",)),
    ],
)  # fmt: skip
def test_words(text: str, expected: tuple[str, ...]) -> None:
    found = [each for each in words(text) if each[0] == "a"]
    assert found == [expected]


def test_a_variable_from_outside_wins_over_the_script() -> None:
    assert words("B=1\na $B $C", B="2", C="3") == [("a", "2", "3")]


def test_the_real_environment_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("B", "secret")
    assert words("a $B $HOME") == [("a", "${B}", "${HOME}")]


def test_commands_have_their_line_and_their_own_variables() -> None:
    (_, command) = read_commands("x\n\nB=1 C='2 3' a \\\n b\n")
    assert (command.line, command.words, dict(command.environment)) == (3, ("a", "b"), {"B": "1", "C": "2 3"})
    assert words("B=1 a; b $B") == [("a",), ("b", "${B}")]


def test_unknown_text_is_as_written_in_the_variables_of_a_command() -> None:
    (command,) = read_commands("O=$(b c) a")
    assert dict(command.environment) == {"O": "$(b c)"}


def test_nothing_is_executed(tmp_path: Path) -> None:
    target = tmp_path / "made"
    words(f"touch {target}; a $(touch {target}) `touch {target}`\ntouch {target} > {target}")
    assert not target.exists()


@pytest.mark.parametrize("text", ["x\na 'b", 'x\na "b', "x\nA=(b", "x\na ${b", "x\na $(b", "x\na `b"])
def test_what_is_open_is_an_error_with_its_line(text: str) -> None:
    with pytest.raises(DataError, match=r"line 2: .* is opened and never closed"):
        words(text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("A=xxxx\n" + "A=$A$A\n" * 60 + "a $A", r"line \d+: variable A grows beyond 1 MB"),
        ("A=(x y)\n" + 'A+=("${A[@]}")\n' * 60, "variable A grows"),
        ("a " + "${A:-" * 4000 + "}" * 4000, "nested too deep"),
    ],
)
def test_variables_that_grow_or_nest_without_end_are_an_error(text: str, says: str) -> None:
    with pytest.raises(DataError, match=says):
        words(text)


def test_slurm_lines() -> None:
    text = "#!/bin/bash\n#SBATCH --nodes=2 -n 4 # here\n#SBATCH --mem=0\n"
    text += "##SBATCH --nodes=9\n# SBATCH -N 7\n#SBATCH --time=1:00\n"
    assert slurm_words(text) == ["--nodes=2", "-n", "4", "--mem=0", "--time=1:00"]
