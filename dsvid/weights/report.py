"""What became of every tensor of a weight file, and why: for the log, for `dsvid convert`, for tests."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

_BLOCK = re.compile(r"(blocks|layer|layers|decoder_layers)\.(\d+)\.")


@dataclass
class LoadReport:
    """`loaded`, `reshaped` and `missing` are names of our model, `dropped` and `unexpected` names of the file.

    `reshaped` says how (its names are in `loaded` too), `dropped` was left out on purpose and says why; `missing` keeps
    its initial value; `unexpected` has no known use. `family` and `why` say how the file was understood, `notes` what
    else there is to know before the weights are used.
    """

    family: str = ""
    why: str = ""
    loaded: list[str] = field(default_factory=list)
    reshaped: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """The family, then one line per kind, for the log."""
        head = [f"family: {self.family} ({self.why})"] if self.family else []
        rows = [f"loaded: {len(self.loaded)}"]
        rows += [f"reshaped: {_some(f'{name}: {how}' for name, how in self.reshaped.items())}"]
        rows += [f"dropped: {_some(_reasons(self.dropped))}" if self.dropped else "dropped: 0"]
        rows += [f"missing: {_some(self.missing)}", f"unexpected: {_some(self.unexpected)}"]
        return head + rows + [f"note: {note}" for note in self.notes]

    def table(self) -> str:
        """Every tensor in aligned columns; the same parameter of several blocks is one row with their count."""
        rows = [("", "tensors", "name", "")]
        rows += _folded("loaded", {name: "" for name in self.loaded if name not in self.reshaped})
        rows += _folded("reshaped", self.reshaped)
        rows += _folded("dropped", self.dropped)
        rows += _folded("missing", dict.fromkeys(self.missing, "keeps its initial value"))
        rows += _folded("unexpected", dict.fromkeys(self.unexpected, "no known use"))
        widths = [max(len(row[i]) for row in rows) for i in range(3)]
        lines = [
            f"{kind:<{widths[0]}}  {count:>{widths[1]}}  {name:<{widths[2]}}  {note}".rstrip()
            for kind, count, name, note in rows
        ]
        head = [f"family {self.family}: {self.why}"] if self.family else []
        kinds = ("loaded", "reshaped", "dropped", "missing", "unexpected")
        counts = ", ".join(f"{len(getattr(self, kind))} {kind}" for kind in kinds)
        return "\n".join([*head, *lines, counts, *(f"note: {note}" for note in self.notes)])


def _some(items: Iterable[str]) -> str:
    names = list(items)
    return f"{len(names)} ({', '.join(names[:4])}{', …' if len(names) > 4 else ''})" if names else "0"


def _reasons(dropped: dict[str, str]) -> list[str]:
    """One item per tensor, those that share a reason together: the first names them all."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in dropped.items():
        by_reason.setdefault(reason, []).append(name)
    return [f"{len(names)} of {_stem(names)}: {reason}" for reason, names in by_reason.items()]


def _stem(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} …"


def _folded(kind: str, notes: dict[str, str]) -> list[tuple[str, str, str, str]]:
    blocks: dict[tuple[str, str], list[str]] = {}
    for name, note in notes.items():
        found = _BLOCK.search(name)
        stem = _BLOCK.sub(lambda m: f"{m[1]}.*.", name, count=1)
        blocks.setdefault((stem, note), []).append(found[2] if found else "")
    return [(kind, str(len(numbers)), stem, note) for (stem, note), numbers in blocks.items()]
