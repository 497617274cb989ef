"""Comparisons of the reference cases. The tolerances are those of the reference; they are not widened."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def assert_close(what: str, ours: Tensor, expected: Tensor, atol: float) -> None:
    """Fail unless shapes are equal and every element is within `atol`."""
    assert ours.shape == expected.shape, f"{what}: shape {list(ours.shape)}, expected {list(expected.shape)}"
    worst = float((ours.double() - expected.double()).abs().max())
    assert worst <= atol, f"{what}: off by {worst:.3e}, allowed {atol:.0e}"


def assert_number(what: str, ours: float, expected: float, *, atol: float = 0.0, rtol: float = 0.0) -> None:
    """Fail unless |ours - expected| <= atol + rtol * |expected|."""
    error = abs(ours - expected)
    assert error <= atol + rtol * abs(expected), f"{what}: {ours!r}, expected {expected!r}"


def assert_moments(what: str, ours: Tensor, expected: dict[str, Any], atol: float) -> None:
    """Compare shape, sum, sum of squares and largest value of a tensor that the case holds only in part."""
    assert list(ours.shape) == expected["shape"], f"{what}: shape {list(ours.shape)}, expected {expected['shape']}"
    values = ours.double()
    assert_number(f"{what} largest value", float(values.abs().max()), expected["absmax"], atol=atol)
    assert_number(f"{what} sum", float(values.sum()), expected["sum"], atol=1e-6 * values.numel())
    assert_number(f"{what} sum of squares", float(values.square().sum()), expected["sumsq"], rtol=1e-5)


def rows_of(values: Tensor, io: dict[str, Tensor]) -> Tensor:
    """The rows of [B, K, P] that the case holds."""
    return values[:, io["rows"]] if "rows" in io else values


def sorted_rows(values: Tensor, index: Tensor) -> Tensor:
    """Rows [B, K, P] in the order of their token index [B, K]."""
    order = index.long().argsort(dim=1)
    return torch.gather(values, 1, order[:, :, None].expand_as(values))
