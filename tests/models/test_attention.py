"""Every backend gives the same numbers and gradients; the choice follows device, dtype and length."""

import pytest
import torch
from torch import Tensor

from dsvid.errors import RecipeError
from dsvid.models import attention
from dsvid.models.attention import attend, attend_packed, choose_backend

F32, BF16 = torch.float32, torch.bfloat16


def _exact(qkv: Tensor, first: int) -> Tensor:
    """Softmax attention in float64, written out."""
    q, k, v = (t.transpose(1, 2).double() for t in qkv.unbind(2))
    scores = (q @ k.transpose(-2, -1)) / q.shape[-1] ** 0.5
    return ((scores.exp() / scores.exp().sum(-1, keepdim=True)) @ v).transpose(1, 2)[:, first:]


def _run(function, qkv: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    qkv = qkv.detach().clone().requires_grad_()
    out = function(qkv)
    (out * weight.to(out.dtype)).sum().backward()
    assert qkv.grad is not None
    return out.detach(), qkv.grad


@pytest.fixture(params=["batched", "by head", "by head, recomputed"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param != "batched":
        monkeypatch.setattr(attention, "_BY_HEAD_MIN_TOKENS", 1)
    if request.param == "by head, recomputed":
        monkeypatch.setattr(attention, "_KEPT_PROBS_BYTES", 0)
    return str(request.param)


@pytest.mark.parametrize("backend", ["sdpa", "math"])
@pytest.mark.parametrize("first", [0, 5])
@pytest.mark.parametrize(("dtype", "tolerance"), [(F32, 2e-6), (BF16, 2e-2)])
def test_backends_agree_with_float64(way: str, backend: str, first: int, dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(1)
    qkv = torch.randn(2, 19, 3, 3, 8).to(dtype)
    weight = torch.randn(2, 19 - first, 3, 8)
    expected = _run(lambda x: _exact(x, first), qkv.double(), weight.double())
    found = _run(lambda x: attend_packed(x, backend, first), qkv, weight)
    for ours, exact in zip(found, expected, strict=True):
        assert ours.dtype == dtype
        assert (ours.double() - exact).abs().max() <= tolerance * max(1.0, float(exact.abs().max()))


def test_queries_that_nobody_reads_get_no_gradient(way: str) -> None:
    qkv = torch.randn(1, 12, 3, 2, 4)
    _, grad = _run(lambda x: attend_packed(x, "math", 7), qkv, torch.ones(1, 5, 2, 4))
    assert not grad[:, :7, 0].any()
    assert grad[:, 7:, 0].any() and grad[:, :7, 1:].any()


def test_head_first_layout_agrees_with_the_packed_one() -> None:
    qkv = torch.randn(2, 9, 3, 2, 4)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    for backend in ("sdpa", "math"):
        assert torch.allclose(attend(q, k, v, backend).transpose(1, 2), attend_packed(qkv, backend), atol=1e-6)


@pytest.mark.parametrize(
    ("device", "dtype", "tokens", "expected"),
    [
        ("cpu", F32, 160, "sdpa"),
        ("cpu", F32, 1568, "math"),
        ("cpu", F32, 6272, "sdpa"),
        ("cpu", BF16, 160, "math"),
        ("cpu", BF16, 1568, "math"),
        ("cpu", BF16, 20000, "sdpa"),
        ("cuda", F32, 1568, "sdpa"),
    ],
)
def test_automatic_choice(device: str, dtype: torch.dtype, tokens: int, expected: str) -> None:
    assert choose_backend("auto", device, dtype, tokens, 64) == expected


def test_flash_attention_is_taken_on_cuda_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    choose_backend.cache_clear()
    monkeypatch.setattr(attention, "flash_attention", lambda: (lambda q, k, v: v, "here"))
    assert choose_backend("auto", "cuda", BF16, 1568, 64) == "flash_attn"
    assert choose_backend("auto", "cuda", BF16, 1568, 36) == "sdpa"  # it takes head dimensions in steps of 8
    monkeypatch.setattr(attention, "flash_attention", lambda: (None, "not installed"))
    choose_backend.cache_clear()
    assert choose_backend("auto", "cuda", BF16, 1568, 64) == "sdpa"
    with pytest.raises(RecipeError, match="not installed"):
        choose_backend("flash_attn", "cuda", BF16, 1568, 64)
    choose_backend.cache_clear()


def test_an_explicit_request_is_obeyed_or_refused() -> None:
    assert choose_backend("math", "cuda", F32, 10, 64) == "math"
    with pytest.raises(RecipeError, match="CUDA"):
        choose_backend("flash_attn", "cpu", F32, 10, 64)
    with pytest.raises(RecipeError, match="flash_attn, sdpa, math"):
        choose_backend("flash", "cpu", F32, 10, 64)
