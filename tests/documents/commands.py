"""The commands of the documents: each line of a shell block, with its document and line number."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.S | re.M)
_SHELL = ("bash", "sh")
_NAMED_VALUE = re.compile(r"([A-Za-z_]\w*)=(.*)", re.S)


@dataclass(frozen=True)
class Command:
    """`words` without the `NAME=value` before them, which are `variables`."""

    document: str
    line: int
    words: tuple[str, ...]
    variables: tuple[tuple[str, str], ...] = ()

    @property
    def text(self) -> str:
        """The command without its variables, on one line."""
        return shlex.join(self.words)


def documents() -> list[Path]:
    """README.md and docs/*.md."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands(path: Path) -> list[Command]:
    """Every command of the shell blocks of a document, in order. A variable that a block sets is put in its place."""
    found = []
    for language, block, first in blocks(path.read_text(encoding="utf-8")):
        known: dict[str, str] = {}
        for line, words in _lines(block) if language in _SHELL else ():
            words = [known.get(word[1:], word) if word.startswith("$") else word for word in words]
            behind = next((i for i, word in enumerate(words) if not _NAMED_VALUE.fullmatch(word)), len(words))
            variables = tuple(word.partition("=")[::2] for word in words[:behind])
            if behind == len(words):
                known |= dict(variables)
            else:
                found.append(Command(path.name, first + line, tuple(words[behind:]), variables))
    return found


def blocks(text: str) -> list[tuple[str, str, int]]:
    """(language, content, number of its first line) of every code block."""
    return [(fence[1], fence[2], text.count("\n", 0, fence.start(2)) + 1) for fence in _FENCE.finditer(text)]


def every_command() -> list[Command]:
    return [command for path in documents() for command in commands(path)]


def _lines(block: str) -> list[tuple[int, list[str]]]:
    """The commands of a block as (place of the first line, words): `\\` and open quotes join lines."""
    found, held, first = [], "", 0
    for number, line in enumerate(block.splitlines()):
        first = first if held else number
        held += line + "\n"
        if line.endswith("\\"):
            held = held[:-2] + " "
            continue
        try:
            words = shlex.split(held, comments=True)
        except ValueError:  # a quote is open
            continue
        if words:
            found.append((first, words))
        held = ""
    assert not held, f"a quote or a continuation is left open: {held}"
    return found
