"""Each command of the documents ends with 0 and writes what it names, in the order of its document."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.documents.commands import ROOT, Command, blocks, commands, documents, every_command
from tests.documents.running import Ended, run
from tests.documents.tables import NOT_RUN, REDUCTIONS, Reduction, is_long, reason_not_to_run, reduced

Asked = Callable[[list[str]], bool]
MOST_READ = {"README.md", "cluster.md", "finetuning.md"}  # the launchers of the others are left out by SHORT=1


def with_commands(*, long: bool) -> list[Path]:
    return [path for path in documents() if any(is_long(each) is long for each in to_run(path))]


def to_run(path: Path) -> list[Command]:
    return [command for command in commands(path) if not reason_not_to_run(command)]


def check(path: Path, folder: Path, done_already: Asked, *, long: bool) -> None:
    """Run the commands of a document one after the other; all that fail are told at once."""
    failed = []
    for command in to_run(path):
        if is_long(command) is not long or done_already(reduced(command, Path("/"))):
            continue
        ended = run(command, folder, apart=long)
        print(f"\n$ {command.text}\n{ended.text}")
        if not ended.fine:
            lines = "\n".join(ended.text.strip().splitlines()[-12:])
            lacks = f", not written: {', '.join(map(str, ended.missing))}" if ended.missing else ""
            failed.append(f"{path.name}:{command.line}: {command.text}\nexit code {ended.code}{lacks}\n{lines}")
    assert not failed, "\n\n".join(failed)


@pytest.mark.parametrize("path", with_commands(long=False), ids=lambda path: path.name)
def test_the_commands_of(path: Path, reader: Path, done_already: Asked) -> None:
    check(path, reader, done_already, long=False)


@pytest.mark.long
@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, marks=[] if path.name in MOST_READ else [pytest.mark.slow])
        for path in with_commands(long=True)
    ],
    ids=lambda path: path.name,
)
def test_the_launchers_of(path: Path, reader_with_one_host: Path, done_already: Asked) -> None:
    check(path, reader_with_one_host, done_already, long=True)


def test_every_command_is_run_or_in_the_table_of_those_that_are_not() -> None:
    run_here = [each for long in (False, True) for path in with_commands(long=long) for each in to_run(path)]
    left_out = [command for command in every_command() if command not in run_here]
    assert len(run_here) > 100 and all(reason_not_to_run(command) for command in left_out)
    for pattern, _, proof in NOT_RUN:
        assert any(re.search(pattern, command.text) for command in left_out), f"{pattern} stands in no document"
        assert (ROOT / proof).is_file(), proof


@pytest.mark.parametrize("path", documents(), ids=lambda path: path.name)
def test_no_command_hides_in_a_block_of_no_language(path: Path) -> None:
    for language, block, _ in blocks(path.read_text(encoding="utf-8")):
        hidden = re.search(r"^(\w+=\S+ )*(dsvid|deepspeed|torchrun|python|make|sbatch) ", block, re.M)
        assert language or not hidden, block


@pytest.mark.parametrize("reduction", REDUCTIONS, ids=lambda each: each.pattern)
def test_a_reduction_has_its_commands_and_takes_no_option_away(reduction: Reduction) -> None:
    found = [command for command in every_command() if re.search(reduction.pattern, command.text)]
    assert found, "it matches no command of the documents"
    assert not [word for word in reduction.instead if word.startswith("-")]
    for command in found:
        options = [word for word in command.words if word.startswith("-")]
        words = reduced(command, Path("/"))
        assert all(words.count(option) >= options.count(option) for option in options), command.text


def test_words_are_read_as_a_shell_reads_them(tmp_path: Path) -> None:
    document = tmp_path / "a.md"
    lines = ["```text", "dsvid no", "```", "dsvid no", "```bash", "# dsvid no", 'S="a', 'b"']
    lines += ["A=1 dsvid one \\", '  two "$S" # three', "dsvid four", "```", ""]
    document.write_text("\n".join(lines))
    one, four = commands(document)
    assert one == Command("a.md", 9, ("dsvid", "one", "two", "a\nb"), (("A", "1"),))
    assert four == Command("a.md", 11, ("dsvid", "four"))


def test_a_command_that_fails_or_leaves_its_target_out_is_told(tmp_path: Path) -> None:
    def ended(*words: str) -> Ended:
        return run(Command("a.md", 1, words), tmp_path, apart=False)

    assert ended("dsvid", "recipes").fine
    assert ended("dsvid", "recipes", "no_such_recipe").code == 2
    (tmp_path / "old.csv").write_text("from before\n")
    os.utime(tmp_path / "old.csv", (1e9, 1e9))
    assert ended("true", "-o", "old.csv").missing == (tmp_path / "old.csv",)
    assert not ended("true").fine and ended("echo", "said").fine
