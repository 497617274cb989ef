"""Each command of the documents ends with 0 and writes what it names, in the order of its document."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.documents.commands import ROOT, Command, commands, documents, every_command
from tests.documents.running import run
from tests.documents.tables import NOT_RUN, REDUCTIONS, is_long, reason_not_to_run, reduced

Asked = Callable[[list[str]], bool]


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
@pytest.mark.parametrize("path", with_commands(long=True), ids=lambda path: path.name)
def test_the_launchers_of(path: Path, reader_with_one_host: Path, done_already: Asked) -> None:
    check(path, reader_with_one_host, done_already, long=True)


def test_what_is_not_run_stands_in_the_documents_and_has_another_test() -> None:
    for pattern, _, proof in NOT_RUN:
        assert any(re.search(pattern, command.text) for command in every_command()), pattern
        assert (ROOT / proof).is_file(), proof


@pytest.mark.parametrize("reduction", REDUCTIONS, ids=lambda each: each.pattern)
def test_each_reduction_makes_a_command_smaller(reduction: object) -> None:
    del reduction
