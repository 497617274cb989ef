"""One line of the doctor: what was looked at, what was found, how bad it is, what mends it. Plain data."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

# "stops": training cannot start; "less": it can, with something missing; "unknown": not checked
Level = Literal["ok", "less", "stops", "unknown"]


@dataclass(frozen=True)
class Finding:
    """`cure`: what is lost, and what to type; empty where nothing is wrong."""

    name: str
    value: str
    level: Level = "ok"
    cure: str = ""

    def line(self) -> str:
        """The line, and the cure on one of its own."""
        text = f"{self.name:12} {self.value}"
        return f"{text}\n{'':12} -> {self.cure}" if self.cure else text

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready object, which `Finding(**…)` takes again."""
        return asdict(self)


def first_line(error: BaseException) -> str:
    """An error on one line."""
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__
