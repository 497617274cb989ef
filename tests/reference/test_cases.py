"""Runs every reference case below `cases/` and below the folders of DSVID_REFERENCE (separated by ':')."""

from pathlib import Path

import check_anomaly  # noqa: F401  registers its checkers
import check_ava  # noqa: F401
import check_backbones  # noqa: F401
import check_finetuning  # noqa: F401
import check_masks  # noqa: F401
import check_pretraining  # noqa: F401
import pytest
from registry import check_case, find_cases

CASES = find_cases(Path(__file__).parent / "cases")


@pytest.mark.parametrize("folder", CASES, ids=lambda folder: "/".join(folder.parts[-2:]))
def test_case(folder: Path) -> None:
    check_case(folder)
