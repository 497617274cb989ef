"""Builds the native op once, in place, and says for whom it is missing."""

from __future__ import annotations

import os

import pytest
import torch

from dsvid.ops import build, native


@pytest.fixture(scope="session")
def build_report() -> dict[str, build.Record]:
    report = build.build()
    native.load.cache_clear()
    native._decide.cache_clear()
    return report


@pytest.fixture
def native_cpu(build_report: dict[str, build.Record], monkeypatch: pytest.MonkeyPatch) -> None:
    """The native CPU kernel is what runs; else a skip, or a failure where DSVID_REQUIRE_NATIVE=1."""
    library, reason = native.load("cpu")
    if library is None:
        text = f"no native build: {reason}"
        if os.environ.get("DSVID_REQUIRE_NATIVE") == "1":
            pytest.fail(text)
        pytest.skip(text)
    monkeypatch.setenv("DSVID_OPS", "native")


@pytest.fixture(params=["native", "reference"])
def each_backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The test runs twice: on the native CPU kernel and on the plain-torch reference."""
    if request.param == "native":
        request.getfixturevalue("native_cpu")
    monkeypatch.setenv("DSVID_OPS", request.param)
    return str(request.param)


@pytest.fixture
def cuda_device(build_report: dict[str, build.Record]) -> torch.device:
    if not torch.cuda.is_available():
        if os.environ.get("DSVID_REQUIRE_CUDA") == "1":
            pytest.fail("DSVID_REQUIRE_CUDA=1, but there is no CUDA device")
        pytest.skip("no CUDA device")
    return torch.device("cuda")
