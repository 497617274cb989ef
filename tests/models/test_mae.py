"""The autoencoder: what each token sees, unused work left out exactly, checkpointing, and gradient norms in bf16."""

import math

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from dsvid.models import DecoderSize, EncoderSize, MaskedAutoencoder
from dsvid.tokens import TubeletGrid

GRID = TubeletGrid(4, 32, 24, 2, 8)  # 2*4*3 = 24 tokens
ENCODER, DECODER = EncoderSize(48, 2, 3, 8), DecoderSize(32, 2, 2)


def _inputs(grid: TubeletGrid = GRID, visible: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    order = torch.stack([torch.randperm(grid.tokens, generator=generator) for _ in range(2)]).int()
    seen, rest = order[:, :visible].sort().values, order[:, visible:].sort().values
    return torch.randn(2, visible, grid.values, generator=generator), seen, rest


def _step(model: MaskedAutoencoder, patches: Tensor, *rest: object) -> float:
    model.zero_grad()
    model(patches, *rest).float().square().mean().backward()
    return math.sqrt(sum(float(p.grad.double().square().sum()) for p in model.parameters() if p.grad is not None))


def test_predictions_are_those_of_the_first_decoded_tokens() -> None:
    model = MaskedAutoencoder(ENCODER, DECODER, GRID)
    patches, visible, decoded = _inputs()
    every = model(patches, visible, decoded, 18)
    assert every.shape == (2, 18, GRID.values)
    # 1e-6: a product of other shape may round differently
    assert torch.allclose(model(patches, visible, decoded, 7), every[:, :7], atol=1e-6)


def test_the_last_block_leaves_out_only_what_nobody_reads() -> None:
    model = MaskedAutoencoder(ENCODER, DECODER, GRID)
    patches, visible, decoded = _inputs()
    tokens = model.encoder_to_decoder(model.encoder(patches, visible, None))
    rows = model.decoder_positions.rows
    x = torch.cat((tokens + rows(visible), model.mask_token + rows(decoded)), dim=1)
    for block in model.decoder.blocks:
        x = block(x)
    expected = model.decoder.head(model.decoder.norm(x[:, visible.shape[1] :]))
    assert torch.allclose(model(patches, visible, decoded, 18), expected, atol=1e-6)


def test_order_of_visible_tokens_does_not_matter_but_their_place_does() -> None:
    model = MaskedAutoencoder(ENCODER, DECODER, GRID)
    patches, visible, decoded = _inputs()
    expected = model(patches, visible, decoded, 18)
    turned = model(patches.flip(1), visible.flip(1), decoded, 18)
    assert torch.allclose(turned, expected, atol=1e-5)
    assert not torch.allclose(model(patches.flip(1), visible, decoded, 18), expected, atol=1e-4)


def test_other_decoded_tokens_change_a_prediction_only_through_attention() -> None:
    model = MaskedAutoencoder(ENCODER, DECODER, GRID)
    patches, visible, decoded = _inputs()
    half = model(patches, visible, decoded[:, :9], 9)
    assert not torch.allclose(half, model(patches, visible, decoded, 9), atol=1e-5)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("drop_path", [0.0, 0.4])
def test_checkpointing_changes_no_gradient(reentrant: bool, drop_path: float) -> None:
    patches, visible, decoded = _inputs()
    gradients = []
    for function in (None, lambda block, *args: checkpoint(block, *args, use_reentrant=reentrant)):
        model = MaskedAutoencoder(ENCODER, DECODER, GRID, drop_path=drop_path).train()
        model.set_checkpointing(function)
        _step(model, patches, visible, decoded, 18, torch.tensor([1, 2]))
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])


@pytest.mark.parametrize(("count", "encoder", "decoder"), [(0, 2, 2), (1, 1, 1), (2, 2, 2), (5, 2, 2)])
def test_the_first_blocks_are_checkpointed(count: int, encoder: int, decoder: int) -> None:
    model = MaskedAutoencoder(ENCODER, DECODER, GRID).train()
    run: list[object] = []

    def function(block: torch.nn.Module, *args: torch.Tensor) -> torch.Tensor:
        run.append(block)
        return checkpoint(block, *args, use_reentrant=False)  # type: ignore[no-any-return]

    model.set_checkpointing(function, count)
    _step(model, *_inputs(), 18, torch.tensor([1, 2]))
    assert run == [*model.encoder.blocks[:encoder], *model.decoder.blocks[:decoder]]
    model.set_checkpointing(None)
    _step(model, *_inputs(), 18, torch.tensor([1, 2]))
    assert len(run) == encoder + decoder


@pytest.mark.parametrize("mode", ["autocast", "bf16 weights"])
def test_bf16_keeps_the_gradient_norm(mode: str) -> None:
    """ViT-S on a small grid; the full length, where a half-precision residual stream shows, is tested with the
    objective.
    """
    grid = TubeletGrid(8, 112, 112, 2, 16)
    patches, visible, decoded = _inputs(grid, visible=20)
    model = MaskedAutoencoder(EncoderSize(384, 12, 6, 16), DecoderSize(192, 4, 3), grid)
    truth = _step(model, patches, visible, decoded, decoded.shape[1])
    if mode == "autocast":
        with torch.autocast("cpu", torch.bfloat16):
            found = _step(model, patches, visible, decoded, decoded.shape[1])
    else:
        found = _step(model.bfloat16(), patches.bfloat16(), visible, decoded, decoded.shape[1])
    assert found == pytest.approx(truth, rel=1e-3)


@pytest.mark.parametrize("mode", ["fp32", "autocast", "bf16 weights"])
def test_the_residual_streams_are_fp32(mode: str) -> None:
    model = MaskedAutoencoder(ENCODER, DECODER, GRID)
    patches, visible, decoded = _inputs()
    seen: list[torch.dtype] = []
    for block in [*model.encoder.blocks, *model.decoder.blocks]:
        block.register_forward_hook(lambda _m, inputs, out: seen.extend([inputs[0].dtype, out.dtype]))
    if mode == "bf16 weights":
        model.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=mode == "autocast"):
        out = model(patches, visible, decoded, 3)
    assert set(seen) == {torch.float32}
    assert out.dtype == (torch.float32 if mode == "fp32" else torch.bfloat16)


def test_parameter_names_are_those_of_the_originals() -> None:
    names = set(MaskedAutoencoder(ENCODER, DECODER, GRID).state_dict())
    assert {"mask_token", "encoder_to_decoder.weight", "encoder.norm.weight", "decoder.head.bias"} <= names
    assert "encoder.blocks.1.attn.q_bias" in names and "decoder.blocks.0.mlp.fc2.weight" in names
    assert len(names) == 4 * 13 + 10  # 13 a block; patch embedding, two norms, head: 8; the projection; the token


def test_the_other_gelu_is_computed_in_encoder_and_decoder() -> None:
    patches, visible, decoded = _inputs()
    erf, tanh = (MaskedAutoencoder(ENCODER, DECODER, GRID, gelu=gelu) for gelu in ("erf", "tanh"))
    blocks = [*tanh.encoder.blocks, *tanh.decoder.blocks]
    assert {block.mlp.approximate for block in blocks} == {"tanh"}
    away = (erf(patches, visible, decoded, 18) - tanh(patches, visible, decoded, 18)).abs().max()
    assert 0 < away < 1e-2
