"""Runs every reference case below `cases/` and below the folders of DSVID_REFERENCE (separated by ':')."""

from pathlib import Path

import pytest

from tests.reference import (
    check_anomaly,  # noqa: F401  registers its checkers
    check_ava,  # noqa: F401
    check_backbones,  # noqa: F401
    check_finetuning,  # noqa: F401
    check_masks,  # noqa: F401
    check_pretraining,  # noqa: F401
)
from tests.reference.registry import check_case, find_cases

CASES = find_cases(Path(__file__).parent / "cases")


@pytest.mark.parametrize("folder", CASES, ids=lambda folder: "/".join(folder.parts[-2:]))
def test_case(folder: Path) -> None:
    check_case(folder)
