"""`python -m dsvid.doctor.child FILE NAME…`: run checks one after the other, each finding a line of FILE at once."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path

from dsvid.doctor.finding import Finding, first_line


def main(file: Path, names: list[str]) -> None:
    """Append `{"finding": …}` for each finding of each check, and `{"done": name}` after it."""
    with file.open("a") as out:
        for name in names:
            for finding in _findings(name):
                print(json.dumps({"finding": finding.to_json()}), file=out, flush=True)
            print(json.dumps({"done": name}), file=out, flush=True)


def _findings(name: str) -> Iterable[Finding]:
    from dsvid.doctor.packages import look, wanted

    package = {each.name: each for each in wanted()}.get(name)
    try:
        if package is not None:
            return [look(package)]
        from dsvid.doctor.probes import PROBES

        return list(PROBES[name]())
    except BaseException as error:  # whatever a broken package raises: it is a line, and the next check goes on
        return [Finding(name, f"not checked: {type(error).__name__}: {first_line(error)}", "unknown")]


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
