"""`dsvid env`: whether training can start here, what runs what, what is missing, and the words that mend it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dsvid.doctor.finding import Finding

EPILOG = """\
exit code: 0 training can start here, 1 it cannot (the last line says why)
Lines that begin with -> say what is lost without the thing above, and what to type.

example: dsvid env --json env.json
"""
PROBES = ("devices", "compute", "attention", "native_ops", "cuda_compiler", "decoders", "jpeg")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the subcommand."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--json", type=Path, default=None, metavar="FILE", help="write the same as JSON")
    parser.epilog = EPILOG


def run(args: argparse.Namespace) -> int:
    """Print the report; 1 where training cannot start. Raises DsvidError where FILE cannot be written."""
    findings = examine_all()
    for finding in findings:
        print(finding.line())
    stops = [finding for finding in findings if finding.level == "stops"]
    less = [finding.name for finding in findings if finding.level == "less"]
    unknown = [finding.name for finding in findings if finding.level == "unknown"]
    print()
    for what, names in (("worth a look", less), ("not checked", unknown)):
        if names:
            print(f"{what}: {', '.join(dict.fromkeys(names))}")
    if args.json is not None:
        _write(args.json, findings, not stops)
    if stops:
        print("training cannot start here: " + "; ".join(f"{each.name} ({each.value})" for each in stops))
        return 1
    print("training can start here")
    return 0


def examine_all() -> list[Finding]:
    """Every finding, in the order shown. What imports torch runs in a process beside this one."""
    from concurrent.futures import ThreadPoolExecutor

    from dsvid.doctor.apart import examine
    from dsvid.doctor.machine import look_around, programs, python
    from dsvid.doctor.packages import LOST, wanted

    names = [each.name for each in wanted()]
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(examine, [*names, *PROBES], [name for name in names if name not in LOST])
        machine = [*programs(), *look_around()]
        found = waiting.result()
    return [python(), *found, *machine]


def _write(path: Path, findings: list[Finding], can_start: bool) -> None:
    from dsvid.errors import DataError
    from dsvid.publish import publish_json

    try:
        publish_json(path, {"can_start": can_start, "findings": [finding.to_json() for finding in findings]})
    except OSError as error:
        raise DataError(f"--json {path} cannot be written", found=error.strerror or str(error)) from error
