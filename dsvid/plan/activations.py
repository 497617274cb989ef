"""What the backward pass keeps of the forward, by formula: every tensor that autograd saves, block by block.

Follows the modules of `dsvid.models` operation by operation; tests/plan/test_activations.py compares it with what
autograd really saves. Legend: N tokens in, M tokens out, D width, m MLP width, h heads, w bytes of a weight,
B clips. The residual stream is fp32 in every precision.
"""

from __future__ import annotations

from dataclasses import dataclass

from dsvid.models.flops import TokenCounts
from dsvid.models.spec import ModelSpec

FP32 = 4
FUSED = ("sdpa", "flash_attn")  # both keep q, k, v, the output and one fp32 number for each query


@dataclass(frozen=True)
class Setting:
    """How a micro-batch of `clips` runs: bytes of a weight, attention ("sdpa", "flash_attn", "math"), checkpointing,
    of the first `blocks` blocks of each stack (0: all).
    """

    clips: int
    weight: int
    attention: str
    checkpointing: bool = False
    on_host: bool = False
    blocks: int = 0

    def again(self, depth: int) -> int:
        """How many blocks of a stack are computed twice."""
        return min(depth, self.blocks or depth) if self.checkpointing else 0


@dataclass(frozen=True)
class Activations:
    """Bytes of a micro-batch: `saved` on the device from forward to backward, `recomputed` for the one block that
    checkpointing runs again, `working` for gradients on their way, `host` where checkpoints are moved there.
    """

    saved: int
    recomputed: int
    working: int
    host: int = 0

    @property
    def device(self) -> int:
        """All on the device."""
        return self.saved + self.recomputed + self.working


@dataclass(frozen=True)
class _Stack:
    """A row of equal blocks; the last computes `rows` tokens only."""

    depth: int
    tokens: int
    rows: int
    dim: int
    hidden: int
    heads: int
    normed: bool  # InternVideo2's block

    def saved(self, setting: Setting, rows: int) -> int:
        """Bytes that one block saves; its input is counted, its output is the next one's."""
        inside = _normed_block if self.normed else _block
        return inside(self, setting, rows)


def activations(spec: ModelSpec, count: TokenCounts, setting: Setting) -> Activations:
    """Activations of one micro-batch on one device."""
    stacks = _stacks(spec, count)
    outside = _outside(spec, count, setting)
    working = max(_working(stack, setting) for stack in stacks)
    inputs = sum(setting.again(stack.depth) * _residual(stack, setting) for stack in stacks)
    kept = 0 if setting.on_host else inputs
    whole = sum(_saved_whole(stack, setting) for stack in stacks)
    live = max(_recomputed(stack, setting) for stack in stacks)
    return Activations(outside + kept + whole, live, working, host=inputs - kept)


def _saved_whole(stack: _Stack, setting: Setting) -> int:
    """Bytes of the blocks that are not computed twice, the last ones."""
    whole = stack.depth - setting.again(stack.depth)
    if whole == 0:
        return 0
    return (whole - 1) * stack.saved(setting, stack.tokens) + stack.saved(setting, stack.rows)


def _recomputed(stack: _Stack, setting: Setting) -> int:
    """Bytes of the block that is computed again; its input is there already."""
    return stack.saved(setting, stack.tokens) - _residual(stack, setting) if setting.again(stack.depth) else 0


def _stacks(spec: ModelSpec, count: TokenCounts) -> list[_Stack]:
    size = spec.encoder_size
    stacks = [_Stack(size.depth, count.encoded, count.encoded, size.dim, size.hidden, size.heads, spec.internvideo2)]
    if spec.task == "pretrain":
        own = spec.decoder_size
        tokens = count.encoded + count.decoded
        stacks.append(_Stack(own.depth, tokens, count.decoded, own.dim, own.hidden, own.heads, False))
    return stacks


def _residual(stack: _Stack, setting: Setting) -> int:
    return FP32 * setting.clips * stack.tokens * stack.dim


def _layer_norm(setting: Setting, tokens: int, dim: int) -> int:
    """Mean and deviation of each token, the output that the next product saves, weights in fp32 where they are not."""
    copies = 2 * FP32 * dim if setting.weight < FP32 else 0
    return setting.clips * tokens * (2 * FP32 + setting.weight * dim) + copies


def _attention(stack: _Stack, setting: Setting, rows: int) -> int:
    """q, k, v as attention saves them, its output, and the probabilities or their logarithmic sums."""
    b, n, d, w = setting.clips, stack.tokens, stack.dim, setting.weight
    out = b * rows * d * w
    if setting.attention in FUSED:
        return 3 * b * n * d * w + out + FP32 * b * stack.heads * rows
    # Batched products copy k and v out of the packed projection, but of a single clip, where both are views of it.
    packed = 3 * n * d * w if b == 1 else 2 * b * n * d * w
    return packed + b * rows * d * w + out + b * stack.heads * rows * n * w


def _mlp(stack: _Stack, setting: Setting, rows: int) -> int:
    """In and out of GELU."""
    return 2 * setting.clips * rows * stack.hidden * setting.weight


def _block(stack: _Stack, setting: Setting, rows: int) -> int:
    b, n, d = setting.clips, stack.tokens, stack.dim
    residuals = FP32 * b * d * (n + rows)
    norms = _layer_norm(setting, n, d) + _layer_norm(setting, rows, d)
    return residuals + norms + _attention(stack, setting, rows) + _mlp(stack, setting, rows)


def _rms_norm(setting: Setting, tokens: int, dim: int) -> int:
    """The reciprocal of each token and the normalised values."""
    return setting.clips * tokens * (FP32 + setting.weight * dim)


def _normed_block(stack: _Stack, setting: Setting, rows: int) -> int:
    """InternVideo2's: q and k normalised too, each branch scaled in fp32. It computes all tokens."""
    b, n, d, w = setting.clips, stack.tokens, stack.dim, setting.weight
    own = b * n * d
    residuals = 2 * FP32 * own
    norms = 4 * _rms_norm(setting, n, d) + 2 * own * w  # of the branches (and their outputs), of q, of k
    wide = 2 * FP32 * own if w < FP32 else 0  # q and k in fp32 before they are normalised
    scales = 2 * FP32 * own
    # q and k of attention are outputs of the norms, v is a view of the packed projection
    packed = 3 * own * w
    if setting.attention in FUSED:
        attention = packed + 3 * own * w + FP32 * b * stack.heads * n
    else:
        copies = 2 * own * w if b == 1 else 3 * own * w
        kept = packed if b == 1 or w == FP32 else 0
        attention = kept + copies + own * w + b * stack.heads * n * n * w
    return residuals + norms + wide + scales + attention + _mlp(stack, setting, rows)


def _outside(spec: ModelSpec, count: TokenCounts, setting: Setting) -> int:
    """Patches before the blocks; norms, head and loss behind them."""
    b, w, size, values = setting.clips, setting.weight, spec.encoder_size, spec.grid.values
    patches = b * (count.encoded - spec.extra_tokens) * values * w
    last = FP32 * b * count.encoded * size.dim
    if spec.task == "pretrain":
        own = spec.decoder_size
        behind = last + _layer_norm(setting, count.encoded, size.dim)
        behind += FP32 * b * count.decoded * own.dim + _layer_norm(setting, count.predicted, own.dim)
        return patches + behind + b * count.predicted * values * (w + FP32)  # predictions and fp32 targets
    if spec.internvideo2:  # the pooling: tokens, keys and values, each behind a norm of its own
        pooled = 2 * _layer_norm(setting, count.encoded, size.dim) + 2 * b * count.encoded * size.dim * w
        return patches + last + pooled
    if spec.final_norm == "tokens":
        read = size.dim if spec.pool == "first" else 0  # a mean saves nothing
        return patches + last + _layer_norm(setting, count.encoded, read)
    return patches


def _working(stack: _Stack, setting: Setting) -> int:
    """Gradients at work in the backward of one block: the stream's, and those of the wider of MLP and attention."""
    b, n, d, w = setting.clips, stack.tokens, stack.dim, setting.weight
    attention = 4 * b * n * d * w
    if setting.attention not in FUSED:
        attention += 2 * b * stack.heads * n * n * w
    return FP32 * b * n * d + max(2 * b * n * stack.hidden * w, attention)
