"""A shell script as commands made of words, variables filled in: a reader of text, no shell.

Nothing is executed and the real environment is not looked at: what only a run would tell (`$(…)`, `$1`, a variable that
the script does not set) stays in the word as it is written.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from dsvid.errors import DataError

MAX_SCRIPT_BYTES = 1 << 20
MAX_DEPTH = 50  # of brackets in brackets
_OPERATORS = ("&&", "||", ";;", ";", "|", "&", "(", ")", "\n")
_RESERVED = {"if", "then", "else", "elif", "fi", "do", "done", "while", "until", "!", "time", "exec", "{", "}"}
_DECLARING = {"export", "declare", "local", "readonly", "typeset"}
_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)(\+?)=(.*)", re.S)
_NAME = re.compile(r"[A-Za-z_]\w*|[0-9@*#?$!-]")
_BRACED = re.compile(r"(\w+|[@*#?])(\[[@*]\])?(?:(:?[-=+])(.*)|(:[^-=+].*))?$", re.S)
_BLANKS = " \t\n"
# In place of the blanks of unknown text, which nothing may split; surrogates, because no text that was read holds them.
_HIDE = str.maketrans(_BLANKS, "\ud800\ud801\ud802")
_SHOW = {hidden: blank for blank, hidden in _HIDE.items()}
UNKNOWN = re.compile(r"\$\{?\w|\$\(|`")


@dataclass(frozen=True)
class Piece:
    """Part of a word: plain `text`, a `variable` by name, or text that only a run would know (`unknown`)."""

    kind: str
    text: str
    quoted: bool = False
    operator: str = ""  # of ${NAME:-word}: the sign, and the word
    word: str = ""


@dataclass(frozen=True)
class Token:
    """A word (`pieces`), an array `NAME=( … )` (`items`) or an operator, and its line."""

    line: int
    pieces: tuple[Piece, ...] = ()
    operator: str = ""
    items: tuple[Token, ...] | None = None


@dataclass(frozen=True)
class Command:
    """The words of one command after its variables are filled in, the variables set for it alone, and its line."""

    words: tuple[str, ...]
    environment: Mapping[str, str]
    line: int


@dataclass
class _Variables:
    fixed: Mapping[str, str]
    values: dict[str, list[str]] = field(default_factory=dict)

    def get(self, name: str) -> list[str] | None:
        return [self.fixed[name]] if name in self.fixed else self.values.get(name)


def read_commands(text: str, variables: Mapping[str, str] | None = None) -> list[Command]:
    """Every simple command of a script in order; `variables` win over what the script assigns.

    Conditions and loops are read as if each of their lines ran once. Raises DataError for an open quote or bracket, and
    for variables that grow or nest without end.
    """
    known = _Variables(dict(variables or {}))
    commands: list[Command] = []
    group: list[Token] = []
    for token in [*_tokens(text), Token(0, operator="\n")]:
        if not token.operator:
            group.append(token)
            continue
        command = _command(group, known)
        if command is not None:
            commands.append(command)
        group = []
    return commands


def _command(group: Sequence[Token], known: _Variables) -> Command | None:
    tokens = list(group)
    while tokens and _literal(tokens[0]) in _RESERVED:
        tokens.pop(0)
    if not tokens:
        return None
    line = tokens[0].line
    if _literal(tokens[0]) == "for" and len(tokens) > 2:
        values = [word for token in tokens[3:] for word in _words(token, known)]
        known.values.pop(_literal(tokens[1]), None)
        if len(values) == 1:  # of several values nobody can say which one is meant
            known.values[_literal(tokens[1])] = values
        return None
    declares = _literal(tokens[0]) in _DECLARING
    assigned: dict[str, list[str]] = {}
    before = dict(known.values)
    rest = tokens[1:] if declares else tokens
    while rest and (found := _assignment(rest[0], known)) is not None:
        assigned[found[0]] = found[1]
        rest = rest[1:]
        if not declares:  # `A=1 B=$A` goes from left to right; the words of `export` are filled in first
            known.values[found[0]] = found[1]
    if declares or not rest:
        known.values.update(assigned)
        return None
    known.values = before
    words = tuple(word.translate(_SHOW) for token in rest for word in _words(token, known))
    environment = {name: " ".join(value).translate(_SHOW) for name, value in assigned.items()}
    return Command(words, environment, line) if words else None


def _literal(token: Token) -> str:
    plain = all(piece.kind == "text" and not piece.quoted for piece in token.pieces)
    return "".join(piece.text for piece in token.pieces) if plain else ""


def _assignment(token: Token, known: _Variables) -> tuple[str, list[str]] | None:
    """(name, value) of `NAME=value`, `NAME+=value` and `NAME=( … )`; None for any other word."""
    first = token.pieces[0] if token.pieces else Piece("text", "")
    found = _ASSIGNMENT.fullmatch(first.text) if first.kind == "text" and not first.quoted else None
    if found is None:
        return None
    name, plus, begin = found.groups()
    if token.items is not None:
        value = [word for item in token.items for word in _words(item, known)]
    else:
        value = ["".join(_filled((Piece("text", begin), *token.pieces[1:]), known, split=False))]
    if plus:
        old = known.get(name) or []
        value = [*old, *value] if token.items is not None else ["".join([*old, *value])]
    if sum(map(len, value)) > MAX_SCRIPT_BYTES:
        raise DataError(f"line {token.line}: variable {name} grows beyond 1 MB")
    return name, value


def _words(token: Token, known: _Variables) -> list[str]:
    """The words that a token becomes: an unquoted variable may hold several, or none."""
    whole = token.pieces[0] if len(token.pieces) == 1 else None
    if whole is not None and whole.kind == "variable" and whole.text == "@":
        return []
    if whole is not None and whole.kind == "variable" and whole.word == "[@]":
        values = known.get(whole.text)
        if values is not None:
            return values if whole.quoted else _split(" ".join(values))
    return _filled(token.pieces, known, split=True)


def _split(text: str) -> list[str]:
    return [word for word in re.split(f"[{_BLANKS}]+", text) if word]


def _filled(pieces: Sequence[Piece], known: _Variables, *, split: bool) -> list[str]:
    words: list[str] = []
    current, begun = "", False
    for piece in pieces:
        if piece.kind != "variable":
            text = piece.text.translate(_HIDE) if piece.kind == "unknown" else piece.text
            current, begun = current + text, True
            continue
        value = _value(piece, known)
        if piece.quoted or not split:
            current, begun = current + value, True
            continue
        parts = _split(value)
        if value.startswith(tuple(_BLANKS)) and begun:
            words.append(current)
            current, begun = "", False
        for number, part in enumerate(parts):
            if number:
                words.append(current)
                current = ""
            current, begun = current + part, True
        if parts and value.endswith(tuple(_BLANKS)):
            words.append(current)
            current, begun = "", False
    return [*words, current] if begun else words


def _value(piece: Piece, known: _Variables) -> str:
    """Text of a variable; what is not known stays as written. `$@` and `$*` are empty: arguments are not read."""
    if piece.text in ("@", "*"):
        return ""
    values = known.get(piece.text)
    value = None if values is None else " ".join(values)
    if piece.operator in (":+", "+"):
        return "" if value is None else _inner(piece.word, known)
    if piece.operator and (value is None or (not value and piece.operator.startswith(":"))):
        value = _inner(piece.word, known)
        if piece.operator.endswith("="):
            known.values[piece.text] = [value]
    return f"${{{piece.text}}}" if value is None else value


def _inner(text: str, known: _Variables) -> str:
    filled = (_filled(token.pieces, known, split=False) for token in _tokens(text) if token.pieces)
    return " ".join("".join(words) for words in filled)


# ---- characters -> tokens ------------------------------------------------------------------------------------------


def _tokens(text: str) -> list[Token]:
    return _Reader(text.replace("\r\n", "\n")).read()


class _Reader:
    """One pass over the characters; `at` is the place, `line` its line."""

    def __init__(self, text: str) -> None:
        self.text, self.at, self.line = text, 0, 1
        self.tokens: list[Token] = []
        self.documents: list[str] = []  # ends of here-documents that begin behind this line

    def read(self) -> list[Token]:
        """All tokens up to the end of the text."""
        while self.at < len(self.text):
            self._next()
        return self.tokens

    def _next(self) -> None:
        char = self.text[self.at]
        if self.text.startswith("\\\n", self.at):
            self._skip(2)
        elif char in " \t":
            self._skip(1)
        elif char == "#":
            end = self.text.find("\n", self.at)
            self.at = len(self.text) if end < 0 else end
        elif char in "<>" or re.compile(r"(\d+|&)[<>]").match(self.text, self.at):
            self._redirection()
        else:
            operator = next((each for each in _OPERATORS if self.text.startswith(each, self.at)), None)
            if operator is None:
                self.tokens.append(self._word())
                return
            self.tokens.append(Token(self.line, operator=operator))
            self._skip(len(operator))
            if operator == "\n":
                self._skip_documents()

    def _skip(self, count: int) -> None:
        self.line += self.text.count("\n", self.at, self.at + count)
        self.at += count

    def _redirection(self) -> None:
        """Skip `> file`, `2>&1`, `<<< text`; remember the end of a here-document."""
        found = re.compile(r"(\d+|&)?(<<<|<<-?|[<>]&|>>|>\||<>|[<>])[ \t]*").match(self.text, self.at)
        assert found is not None
        self._skip(len(found.group()))
        if self.at < len(self.text) and self.text[self.at] != "\n":
            target = self._word()
            if found.group(2) in ("<<", "<<-"):
                self.documents.append("".join(piece.text for piece in target.pieces))

    def _skip_documents(self) -> None:
        for end in self.documents:
            while self.at < len(self.text):
                stop = self.text.find("\n", self.at)
                stop = len(self.text) if stop < 0 else stop
                row = self.text[self.at : stop]
                self._skip(stop + 1 - self.at)
                if row.strip() == end:
                    break
        self.documents = []

    def _word(self) -> Token:
        line = self.line
        pieces: list[Piece] = []
        while self.at < len(self.text):
            char = self.text[self.at]
            if char == "(" and pieces and _ASSIGNMENT.fullmatch(pieces[-1].text) and pieces[-1].text.endswith("="):
                return Token(line, tuple(pieces), items=self._array())
            if char in " \t\n;|&()<>":
                break
            if char == "'":
                pieces.append(Piece("text", self._until("'", self.at + 1), quoted=True))
            elif char == '"':
                pieces += self._double_quoted()
            elif char in "$`":
                pieces.append(self._dollar(quoted=False))
            else:
                pieces.append(Piece("text", self._plain()))
        return Token(line, tuple(pieces))

    def _plain(self) -> str:
        out = ""
        while self.at < len(self.text) and self.text[self.at] not in " \t\n;|&()<>'\"$`":
            if self.text[self.at] == "\\":
                self._skip(1)
                if self.at < len(self.text) and self.text[self.at] == "\n":
                    self._skip(1)
                    continue
            out += self.text[self.at : self.at + 1]
            self._skip(1)
        return out

    def _until(self, end: str, start: int) -> str:
        """Text from `start` to the next `end`, which is passed. Raises DataError where there is none."""
        stop = self.text.find(end, start)
        if stop < 0:
            self._open(end)
        found = self.text[start:stop]
        self._skip(stop + 1 - self.at)
        return found

    def _open(self, sign: str) -> NoReturn:
        raise DataError(f"line {self.line}: {sign} is opened and never closed", expected="a whole shell script")

    def _double_quoted(self) -> list[Piece]:
        begin = self.line
        self._skip(1)
        pieces, out = [], ""
        while self.at < len(self.text) and self.text[self.at] != '"':
            char = self.text[self.at]
            if char in "$`":
                pieces += [Piece("text", out, quoted=True), self._dollar(quoted=True)]
                out = ""
                continue
            if char == "\\" and self.text[self.at + 1 : self.at + 2] in ("$", "`", '"', "\\", "\n"):
                self._skip(1)
                char = "" if self.text[self.at] == "\n" else self.text[self.at]
            out += char
            self._skip(1)
        if self.at >= len(self.text):
            self.line = begin
            self._open('"')
        self._skip(1)
        pieces.append(Piece("text", out, quoted=True))
        return [piece for piece in pieces if piece.kind != "text" or piece.text] or [Piece("text", "", quoted=True)]

    def _dollar(self, *, quoted: bool) -> Piece:
        if self.text[self.at] == "`":
            return Piece("unknown", f"`{self._until('`', self.at + 1)}`", quoted)
        if self.text.startswith("$(", self.at):
            return Piece("unknown", self._bracketed("(", ")"), quoted)
        if self.text.startswith("${", self.at):
            whole = self._bracketed("{", "}")
            found = _BRACED.match(whole[2:-1])
            if found is None:
                return Piece("unknown", whole, quoted)
            name, index, operator, word, other = found.groups()
            if other is not None and name not in "@*":  # ${NAME:2} and the like
                return Piece("unknown", whole, quoted)
            return Piece("variable", name, quoted, operator or "", word or ("[@]" if index else ""))
        found = _NAME.match(self.text, self.at + 1)
        if found is None:
            self._skip(1)
            return Piece("text", "$", quoted)
        self._skip(1 + len(found.group()))
        return Piece("variable", found.group(), quoted)

    def _bracketed(self, left: str, right: str) -> str:
        """`$(…)` or `${…}` with what is nested in it, as text."""
        start, depth, quote, begin = self.at, 0, "", self.line
        while True:
            if self.at >= len(self.text):
                self.line = begin
                self._open("$" + left)
            char = self.text[self.at]
            if quote:
                quote = "" if char == quote else quote
            elif char in "'\"":
                quote = char
            elif char in (left, right):
                depth += 1 if char == left else -1
                if depth > MAX_DEPTH:
                    raise DataError(f"line {self.line}: {left} is nested too deep", expected=f"{MAX_DEPTH} or fewer")
            self._skip(1)
            if char == right and depth == 0 and not quote:
                return self.text[start : self.at]

    def _array(self) -> tuple[Token, ...]:
        self._skip(1)
        outer, self.tokens = self.tokens, []
        begin = self.line
        while self.at < len(self.text) and self.text[self.at] != ")":
            self._next()
        items, self.tokens = self.tokens, outer
        if self.at >= len(self.text):
            self.line = begin
            self._open("(")
        self._skip(1)
        return tuple(item for item in items if not item.operator)
