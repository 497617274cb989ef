"""Numbers, times and foreign texts as they are shown: short, without secrets and control characters."""

from __future__ import annotations

import math
import re
from typing import Any

from dsvid.redact import redact

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def plain(value: Any) -> str:
    """A text from outside: secrets hidden, control characters (terminal sequences, reversed writing) replaced."""
    return _CONTROL.sub("\ufffd", redact(str(value)))


def one_line(value: Any, most: int = 200) -> str:
    """The same on one line of at most `most` letters."""
    text = " ".join(plain(value).split())
    return text if len(text) <= most else text[: most - 1] + "…"


def short(value: float | None, digits: int = 4) -> str:
    """A number with so many significant digits, "–" for none."""
    if value is None or not math.isfinite(value):
        return "–"
    if value and not 1e-3 <= abs(value) < 1e6:
        mantissa, _, power = f"{value:.{max(0, digits - 2)}e}".partition("e")
        return f"{mantissa}e{int(power)}"
    if value == int(value):
        return f"{int(value):,}"
    rounded = float(f"{value:.{digits}g}")
    return f"{rounded:,.{max(0, digits - 1 - math.floor(math.log10(abs(rounded))))}f}"


def tick(value: float, largest: float) -> str:
    """A number beside an axis that goes to `largest`: no more digits than it has."""
    if value and not 0.01 <= largest < 1e6:
        mantissa, _, power = f"{value:.1e}".partition("e")
        return f"{mantissa.removesuffix('.0')}e{int(power)}"
    text = f"{value:,.6f}".rstrip("0").rstrip(".")
    return text if text != "-0" else "0"


def percent(share: float | None) -> str:
    """A share as percent, "–" for none."""
    return "–" if share is None else f"{100 * share:.1f} %" if share < 0.1 else f"{100 * share:.0f} %"


def duration(seconds: float) -> str:
    """Seconds in the two largest units: 2 d 3 h, 3 h 04 min, 5 min 06 s, 7 s."""
    whole = max(0, int(seconds))
    if whole >= 86400:
        return f"{whole // 86400} d {whole % 86400 // 3600} h"
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"


def size(count: float) -> str:
    """Bytes in decimal units."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def times(count: int) -> str:
    """`once`, `twice`, `3 times`."""
    return {1: "once", 2: "twice"}.get(count, f"{count:,} times")


def clock(stamp: str) -> str:
    """An ISO date and time, to the minute."""
    return stamp[:16].replace("T", " ")


def counted(count: int, one: str, many: str = "") -> str:
    """`1 step`, `2 steps`."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"
