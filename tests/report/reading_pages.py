"""A page as a strict reader finds it: every element closed, ids, headings, what it would load. The standard library's
parser mends nothing, so what is wrong in a page is seen.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from itertools import pairwise

VOID = {"meta", "link", "img", "br", "hr", "input"}
LOADING = ("src", "href", "action", "data", "poster", "srcset", "xlink:href", "formaction")


class Page(HTMLParser):
    """The elements of a page, in order, with their attributes; `text` is everything between them."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(page)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"{tag}: an attribute is given twice: {names}"
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.text += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


def check_page(page: str) -> Page:
    """A page that stands alone and can be read by everybody: asserts all that is asked of every page."""
    found = Page(page)
    tags = [tag for tag, _ in found.elements]
    assert page.startswith("<!doctype html>") and found.all("html")[0]["lang"] == "en"
    assert not set(tags) & {"script", "iframe", "object", "embed", "form", "base"}
    for tag, attributes in found.elements:
        assert not [name for name in attributes if name.startswith("on")], f"{tag}: {attributes}"
        for name in LOADING:
            assert attributes.get(name, "#").startswith(("#", "data:")), f"{tag} would load {attributes[name][:80]}"
    assert "url(" not in page and "@import" not in page
    ids = [attributes["id"] for _, attributes in found.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in found.elements:
        for name in ("aria-labelledby", "for"):
            assert attributes.get(name, ids[0]) in ids
    levels = [int(tag[1]) for tag in tags if tag in ("h1", "h2", "h3", "h4")]
    assert levels[0] == 1 and levels.count(1) == 1 and all(b <= a + 1 for a, b in pairwise(levels))
    assert all(image["alt"] for image in found.all("img"))
    assert all(plot["aria-label"] for plot in found.all("div") if plot.get("role") == "img")
    assert all(cell["scope"] in ("row", "col") for cell in found.all("th"))
    assert not re.search(r"<th[^>]*>\s*</th>", page), "a header says what stands below it"
    assert tags.count("table") == tags.count("caption") and tags.count("main") == 1
    check_drawings(page)
    return found


def check_drawings(page: str) -> list[ET.Element]:
    """Every drawing is XML, and no number in it is one that a browser would stumble over."""
    pieces = [piece.partition("</svg>")[0] + "</svg>" for piece in page.split("<svg ")[1:] if "</svg>" in piece]
    drawings = [ET.fromstring("<svg " + piece) for piece in pieces]
    for drawing in drawings:
        for element in drawing.iter():
            values = " ".join(element.attrib.values())
            assert "nan" not in values and "inf" not in values
    return drawings
