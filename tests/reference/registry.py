"""Which checker reads which kind of reference case, and where cases are found.

A checker takes the folder of a case and raises (AssertionError or a DsvidError) where ours differs. A family adds its
own with `@checks("its system name")` in a module that `test_cases.py` imports; cases that name neither a system nor a
kind nor a family are told apart by what they hold, with `@recognises(predicate)`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

Checker = Callable[[Path, dict[str, Any]], None]
Predicate = Callable[[dict[str, Any]], bool]
CHECKERS: dict[str, Checker] = {}
RECOGNISED: list[tuple[Predicate, Checker]] = []


class UnknownKind(AssertionError):
    """No checker is registered for a case: an error, so that a case is never passed over in silence."""


def checks(*kinds: str) -> Callable[[Checker], Checker]:
    """Register a checker for the kinds of case named by `system` (or `kind`) in case.json."""

    def register(checker: Checker) -> Checker:
        for kind in kinds:
            assert kind not in CHECKERS, kind
            CHECKERS[kind] = checker
        return checker

    return register


def recognises(predicate: Predicate) -> Callable[[Checker], Checker]:
    """Register a checker for the cases without `system`, `kind` and `family` of which `predicate` is true."""

    def register(checker: Checker) -> Checker:
        RECOGNISED.append((predicate, checker))
        return checker

    return register


def check_case(folder: Path) -> None:
    """Run the checker of the case in `folder`."""
    case = json.loads((folder / "case.json").read_text())
    kind = case.get("system") or case.get("kind") or case.get("family")
    if kind is None:
        found = [checker for predicate, checker in RECOGNISED if predicate(case)]
        if len(found) == 1:
            found[0](folder, case)
            return
    if kind not in CHECKERS:
        raise UnknownKind(f"{folder}: no checker for cases of kind {kind!r}; known: {', '.join(sorted(CHECKERS))}")
    CHECKERS[kind](folder, case)


def find_cases(own: Path) -> list[Path]:
    """Every case folder below `own` and below the folders of DSVID_REFERENCE; a folder without any is an error."""
    roots = [own, *(Path(entry) for entry in os.environ.get("DSVID_REFERENCE", "").split(":") if entry)]
    found: list[Path] = []
    for root in roots:
        cases = sorted(file.parent for file in root.rglob("case.json"))
        if not cases:
            raise FileNotFoundError(f"{root.resolve()} holds no case.json (DSVID_REFERENCE, or tests/reference/cases)")
        found += cases
    return found
