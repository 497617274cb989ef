"""Pieces of HTML that stand alone: escaped texts, tables, lists, pictures inside the page. Knows no runs."""

from __future__ import annotations

import base64
import html
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from dsvid.report.words import plain

MOST_PICTURE_BYTES = 8 << 20


class Markup(str):
    """A text that is HTML already; every other text is escaped where it is put into a page."""

    __slots__ = ()


def text(value: Any) -> Markup:
    """A value as HTML: secrets hidden, control characters replaced, everything escaped; Markup stays as it is."""
    return value if isinstance(value, Markup) else Markup(html.escape(plain(value), quote=True))


def joined(parts: Iterable[str]) -> Markup:
    """Pieces of HTML one after the other, each on a line."""
    return Markup("\n".join(parts))


def tag(name: str, content: Any = "", **attributes: Any) -> Markup:
    """An element with its content, which is escaped unless it is Markup; `class_` and `aria_label` as Python must."""
    return Markup(f"<{name}{_attributes(attributes)}>{text(content)}</{name}>")


def _attributes(attributes: dict[str, Any]) -> str:
    named = ((key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items() if value is not None)
    return "".join(f' {key}="{text(value)}"' for key, value in named)


def table(caption: str, head: Sequence[Any], rows: Iterable[Sequence[Any]], **attributes: Any) -> Markup:
    """A table with a caption and headers of columns and rows."""
    top = joined(tag("th", cell, scope="col") for cell in head)
    body = joined(tag("tr", joined([tag("th", row[0], scope="row"), *(tag("td", c) for c in row[1:])])) for row in rows)
    parts = [tag("caption", caption), tag("thead", tag("tr", top)), tag("tbody", body)]
    return tag("table", joined(parts), **attributes)


def prose(words: str) -> Markup:
    """A text in which what stands between backticks is code."""
    pieces = words.split("`")
    return Markup("".join(tag("code", piece) if at % 2 else text(piece) for at, piece in enumerate(pieces)))


def folded(summary: Any, content: Any) -> Markup:
    """Content that opens where its summary is chosen."""
    return tag("details", joined([tag("summary", summary), text(content)]))


def bullets(items: Iterable[Any], **attributes: Any) -> Markup:
    """A list."""
    return tag("ul", joined(tag("li", item) for item in items), **attributes)


def commands(lines: Sequence[tuple[str, str]]) -> Markup:
    """Commands to type, each with what it does."""
    return tag("dl", joined(joined([tag("dt", why), tag("dd", tag("pre", tag("code", line), tabindex="0"))])
                            for why, line in lines), class_="commands")  # fmt: skip


def picture(path: Path, alt: str) -> Markup:
    """A PNG inside the page. Raises ValueError where the file is not a whole PNG, or is larger than a page bears."""
    if not path.is_file():
        raise ValueError("no regular file")
    if path.stat().st_size > MOST_PICTURE_BYTES:
        raise ValueError(f"{path.stat().st_size} bytes, more than a page bears ({MOST_PICTURE_BYTES})")
    return picture_of(path.read_bytes(), alt)


def picture_of(data: bytes, alt: str) -> Markup:
    """The same of the bytes of a PNG file."""
    if data[:8] != b"\x89PNG\r\n\x1a\n" or data[12:16] != b"IHDR":
        raise ValueError("no PNG file")
    if data[-8:-4] != b"IEND":
        raise ValueError("a PNG file that is cut off")
    width, height = struct.unpack(">II", data[16:24])
    source = f"data:image/png;base64,{base64.b64encode(data).decode('ascii')}"
    # not through text(): a base64 text is no place to look for secrets in
    return Markup(f'<img src="{source}" alt="{text(alt)}" width="{width}" height="{height}">')
