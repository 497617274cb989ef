"""Attention backends and the one place that chooses between them: flash_attn, sdpa, or explicit matmul-softmax-matmul.

Knows tensors and devices, no model. Legend: B batch, N tokens, h heads, d head dim.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from dsvid.errors import RecipeError

Backend = Literal["flash_attn", "sdpa", "math"]
REQUESTS = ("auto", "flash_attn", "sdpa", "math")

_HALF = (torch.float16, torch.bfloat16)
# On CPU, the lengths at which explicit attention was faster than the fused kernel (forward and backward, measured on
# Zen 4); above them the N*N probabilities of a head leave the cache.
_MATH_TOKENS = {torch.float32: (512, 2048), torch.bfloat16: (1, 4096), torch.float16: (1, 4096)}
# Probabilities of one call that are kept for the backward pass; above, they are computed twice.
_KEPT_PROBS_BYTES = 1 << 28
# From here on the matrices of one head are large enough for a loop over heads to beat one batched call.
_BY_HEAD_MIN_TOKENS = 512


@functools.lru_cache(maxsize=1)
def flash_attention() -> tuple[Callable[..., Tensor] | None, str]:
    """flash-attn's function of q, k, v [B, N, h, d], or None, and why."""
    try:
        module = importlib.import_module("flash_attn")
    except (ImportError, OSError, RuntimeError) as error:  # a build for another torch raises the latter two
        return None, f"flash_attn cannot be imported ({error}); pip install flash-attn --no-build-isolation"
    return cast("Callable[..., Tensor]", module.flash_attn_func), "flash_attn"


@functools.lru_cache(maxsize=256)
def choose_backend(requested: str, device_type: str, dtype: torch.dtype, tokens: int, head_dim: int) -> Backend:
    """The backend for one kind of attention call, by what is fastest there; an explicit request is obeyed or refused.

    On CPU the fused kernel's inner products are slower than plain matrix products, in bf16 (without AMX) always, in
    fp32 from medium lengths on. Raises RecipeError for an unknown request and for flash_attn where it cannot run.
    """
    if requested not in REQUESTS:
        raise RecipeError("model.attention is unknown", found=requested, expected=", ".join(REQUESTS))
    if requested == "flash_attn":
        _require_flash(device_type, dtype, head_dim)
        return "flash_attn"
    if requested != "auto":
        return cast("Backend", requested)
    if device_type == "cuda":
        usable = dtype in _HALF and head_dim % 8 == 0 and head_dim <= 256 and flash_attention()[0] is not None
        return "flash_attn" if usable else "sdpa"
    shortest, longest = _MATH_TOKENS.get(dtype, (1, 0))
    return "math" if device_type == "cpu" and shortest <= tokens <= longest else "sdpa"


def _require_flash(device_type: str, dtype: torch.dtype, head_dim: int) -> None:
    function, reason = flash_attention()
    if device_type != "cuda" or dtype not in _HALF:
        raise RecipeError(
            "model.attention=flash_attn cannot run here",
            found=f"{dtype} on {device_type}",
            expected="fp16 or bf16 on a CUDA device",
            fix="model.attention=auto",
        )
    if head_dim % 8 or head_dim > 256:
        raise RecipeError(
            "model.attention=flash_attn does not take this head dimension",
            found=f"head dim {head_dim}",
            expected="a multiple of 8 up to 256",
            fix="model.attention=sdpa",
        )
    if function is None:
        raise RecipeError("model.attention=flash_attn is not installed", found=reason, fix="model.attention=auto")


def attend(q: Tensor, k: Tensor, v: Tensor, backend: Backend) -> Tensor:
    """softmax(q k^T / sqrt(d)) v for q [B, h, M, d] and k, v [B, h, N, d] -> [B, h, M, d]."""
    if backend == "math":
        scores = torch.matmul(q * q.shape[-1] ** -0.5, k.transpose(-2, -1))
        return torch.matmul(scores.softmax(dim=-1), v)
    if backend == "flash_attn":
        function, reason = flash_attention()
        if function is None:
            raise RecipeError("model.attention=flash_attn is not installed", found=reason, fix="model.attention=auto")
        return function(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2)
    return F.scaled_dot_product_attention(q, k, v)


def attend_packed(qkv: Tensor, backend: Backend, first: int = 0) -> Tensor:
    """softmax(q k^T / sqrt(d)) v for the output of one projection [B, N, 3, h, d] -> [B, N - first, h, d].

    Only the queries from token `first` on are computed; keys and values are always all.
    """
    by_head = backend == "math" and qkv.device.type == "cpu" and qkv.shape[1] >= _BY_HEAD_MIN_TOKENS
    if by_head and not torch.compiler.is_compiling():
        return cast("Tensor", _ExplicitAttention.apply(qkv, first))
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    return attend(q[:, :, first:], k, v, backend).transpose(1, 2)


class _ExplicitAttention(torch.autograd.Function):
    """Explicit attention on CPU, head by head, reading q, k, v in place and writing one packed gradient.

    Autograd's own version copies q, k, v to batched matrices, walks all heads between two products and stacks three
    gradients. Here the probabilities of a head are still in cache when they are used; they are kept for the backward
    pass while they are small and made again where they are not. One tensor a head: glibc gives blocks above 32 MB
    back to the system at once, and faulting them in again costs as much as a product.
    """

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, first: int) -> Tensor:
        b, n, _, h, d = qkv.shape
        rows = n - first
        keep = qkv.requires_grad and b * h * rows * n * qkv.element_size() <= _KEPT_PROBS_BYTES
        out = qkv.new_empty(b, rows, h, d)
        kept: list[Tensor] = []
        probs = qkv.new_empty(rows, n)
        for i in range(b):
            for j in range(h):
                q, k, v = qkv[i, :, :, j].unbind(1)  # each [N, d]
                if keep and kept:
                    probs = qkv.new_empty(rows, n)
                _probabilities(probs, q[first:], k)
                torch.mm(probs, v, out=out[i, :, j])
                if keep:
                    kept.append(probs)
        ctx.first = first
        ctx.save_for_backward(qkv, *kept)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        qkv, *kept = ctx.saved_tensors
        b, n, _, h, d = qkv.shape
        first = ctx.first
        grad_qkv = torch.empty_like(qkv)
        grad_qkv[:, :first, 0] = 0.0
        probs, grad_scores = qkv.new_empty(n - first, n), qkv.new_empty(n - first, n)
        for i in range(b):
            for j in range(h):
                q, k, v = qkv[i, :, :, j].unbind(1)
                grad_q, grad_k, grad_v = grad_qkv[i, :, :, j].unbind(1)
                q, grad_q, grad_out = q[first:], grad_q[first:], grad[i, :, j]
                if kept:
                    probs = kept[i * h + j]
                else:
                    _probabilities(probs, q, k)
                torch.mm(probs.t(), grad_out, out=grad_v)
                torch.mm(grad_out, v.t(), out=grad_scores)
                torch._softmax_backward_data(grad_scores, probs, -1, probs.dtype, grad_input=grad_scores)
                torch.addmm(grad_q, grad_scores, k, beta=0.0, alpha=d**-0.5, out=grad_q)
                torch.addmm(grad_k, grad_scores.t(), q, beta=0.0, alpha=d**-0.5, out=grad_k)
        return grad_qkv, None


def _probabilities(out: Tensor, q: Tensor, k: Tensor) -> None:
    # The scale is applied inside the product, before rounding to half precision.
    torch.addmm(out, q, k.t(), beta=0.0, alpha=q.shape[-1] ** -0.5, out=out)
    torch.softmax(out, dim=-1, out=out)
