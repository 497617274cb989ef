"""`dsvid bench step`: one training step (forward and backward from uint8 clips) against transformers' VideoMAE; here
pre-training with its targets, in bench_finetune the classification of clips.

Both arms start from the same weights, clips and masks; the arms take turns, and the loss must be equal.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dsvid.errors import DsvidError
from dsvid.models import MaskedAutoencoder, decoder_size, encoder_size
from dsvid.models.flops import training_flops
from dsvid.models.spec import ModelSpec
from dsvid.objectives.pretrain import IMAGENET_MEAN, IMAGENET_STD, PretrainObjective, masked_loss
from dsvid.ops import plan_tokens, tube_mask
from dsvid.tokens import TubeletGrid

# Gradient norms of bf16 arms may differ from fp32 by this share; the loss alone does not show a wrong residual stream.
_GRAD_NORM_SHARE = 1e-3
_LOSS_SHARE = {"fp32": 1e-5, "bf16": 2e-3}


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure every arm and return seconds (medians), losses, gradient norms and ratios; prints a table.

    Raises DsvidError where transformers is missing, or where two arms disagree in loss or gradient norm.
    """
    torch.set_num_threads(args.threads)
    bench = _bench(args)
    arms = bench.arms()
    results = {arm.name: Result() for arm in arms}
    for repeat in range(args.repeats + 1):
        bench.rates.append(matmul_rate(torch.bfloat16 if bench.half else torch.float32, bench.device))
        for arm in arms:
            results[arm.name].add(bench.measure(arm), keep=repeat > 0)
    report = bench.report(results)
    _print(report)
    bench.check(results)
    return report


def _bench(args: argparse.Namespace) -> Bench:
    if args.task == "pretrain":
        return Bench(args)
    from dsvid.cli.bench_finetune import FinetuneBench

    return FinetuneBench(args)


@dataclass
class Arm:
    name: str
    model: nn.Module
    step: Callable[[], Tensor]


class Result:
    def __init__(self) -> None:
        self.cpu_s: list[float] = []
        self.wall_s: list[float] = []
        self.loss = 0.0
        self.grad_norm = 0.0

    def add(self, measured: tuple[float, float, float, float], keep: bool) -> None:
        cpu_s, wall_s, self.loss, self.grad_norm = measured
        if keep:
            self.cpu_s.append(cpu_s)
            self.wall_s.append(wall_s)


class Bench:
    """The clips, masks and models of one comparison."""

    classes = 0

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.spec = ModelSpec(
            args.task, args.arch, args.frames, args.size, num_classes=self.classes, attention=args.attention
        )
        self.encoder = encoder_size(args.arch)
        self.grid = TubeletGrid(args.frames, args.size, args.size, 2, self.encoder.patch)
        self.device = torch.device(args.device)
        generator = torch.Generator().manual_seed(args.seed)
        clip = _moving_noise(generator, args.batch, args.frames, args.size)
        seeds = torch.arange(args.batch, dtype=torch.int64) + args.seed
        self.batch = {"clip": clip.to(self.device), "seed": seeds.to(self.device)}
        self.half = args.dtype == "bf16"
        self.rates: list[float] = []

    def arms(self) -> list[Arm]:
        """Ours (in bf16 also with bf16 weights, as DeepSpeed trains), transformers eager and SDPA, and fp32 as a
        yardstick.
        """
        arms = [self._ours("dsvid", self.half, False)]
        if self.half:
            arms.append(self._ours("dsvid, bf16 weights", False, True))
        if self.args.compile:
            name = "dsvid compiled, bf16 weights" if self.half else "dsvid compiled"
            arms.append(self._ours(name, False, self.half, compiled=True))
        if self.args.alone:
            return arms
        arms += [self._theirs("transformers eager", "eager"), self._theirs("transformers sdpa", "sdpa")]
        return arms

    def objective(self) -> Any:
        """Ours, with the seed's weights."""
        self.decoder = decoder_size(self.args.arch, "videomae")
        model = MaskedAutoencoder(
            self.encoder, self.decoder, self.grid, attention=self.args.attention, seed=self.args.seed
        )
        objective = PretrainObjective(
            model, self.grid, mask_ratio=self.args.mask_ratio, decoder_mask_ratio=self.args.decoder_mask_ratio
        )
        self.masked_sites, self.cell_drop = objective.masked_sites, objective.cell_drop
        return objective

    def flops(self) -> float:
        """Of a step, by formula."""
        ratios = {"mask_ratio": self.args.mask_ratio, "decoder_mask_ratio": self.args.decoder_mask_ratio}
        return float(self.args.batch) * training_flops(self.spec, **ratios)

    def _ours(self, name: str, autocast: bool, cast: bool, compiled: bool = False) -> Arm:
        objective = self.objective().to(self.device)
        if cast:
            objective.bfloat16()
        if compiled:
            objective.compile()

        def step() -> Tensor:
            with self._autocast(autocast):
                return objective(self.batch).loss  # type: ignore[no-any-return]

        return Arm(name, objective, step)

    def _theirs(self, name: str, attention: str) -> Arm:
        source = MaskedAutoencoder(self.encoder, self.decoder, self.grid, seed=self.args.seed)
        model = _transformers_model(self.encoder, self.decoder, self.grid, attention)
        _load_transformers(model, source)
        model.to(self.device)
        mask = tube_mask(self.batch["seed"], self.grid, self.masked_sites)

        def step() -> Tensor:
            pixels = self.pixels()  # the targets are computed inside their forward
            with self._autocast(self.half):
                if self.cell_drop:
                    return self._their_dual_loss(model, pixels, mask)
                return model(pixels, bool_masked_pos=mask).loss  # type: ignore[no-any-return]

        return Arm(name, model, step)

    def pixels(self) -> Tensor:
        """Normalised floats [B, T, 3, H, W], which their transforms hand over."""
        mean = torch.tensor(IMAGENET_MEAN, device=self.device).view(1, 1, 3, 1, 1)
        std = torch.tensor(IMAGENET_STD, device=self.device).view(1, 1, 3, 1, 1)
        pixels: Tensor = self.batch["clip"].permute(0, 1, 4, 2, 3).float()
        return pixels.div_(255.0).sub_(mean).div_(std)

    def _their_dual_loss(self, model: Any, pixels: Tensor, mask: Tensor) -> Tensor:
        """Dual masking with transformers' modules, which have none: its forward, with fewer tokens for the decoder."""
        plan = plan_tokens(self.batch["seed"], self.grid, self.masked_sites, self.cell_drop)
        encoded = model.encoder_to_decoder(model.videomae(pixels, bool_masked_pos=mask).last_hidden_state)
        places = model.position_embeddings.expand(len(mask), -1, -1).type_as(pixels)
        decoded = places.gather(1, plan.decoded.long()[..., None].expand(-1, -1, places.shape[-1]))
        visible = places[~mask].reshape(len(mask), -1, places.shape[-1])
        tokens = torch.cat([encoded + visible, model.mask_token + decoded], dim=1)
        predictions = model.decoder(tokens, decoded.shape[1]).logits[:, : plan.max_targets]
        with torch.no_grad():  # its own way to the targets, then those that are wanted
            targets = _textbook_targets(pixels, self.grid)
            index = plan.targets.long()[..., None].expand(-1, -1, targets.shape[-1])
            targets = targets.gather(1, index)
        return masked_loss(predictions, targets, plan.target_weight)

    @contextlib.contextmanager
    def _autocast(self, enabled: bool) -> Iterator[None]:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=enabled):
            yield

    def measure(self, arm: Arm) -> tuple[float, float, float, float]:
        """CPU seconds, wall seconds, loss and gradient norm of one step."""
        arm.model.zero_grad(set_to_none=True)
        clock = time.thread_time if self.args.threads == 1 else time.process_time
        self._wait()
        cpu, wall = clock(), time.perf_counter()
        loss = arm.step()
        loss.backward()  # type: ignore[no-untyped-call]
        self._wait()
        cpu, wall = clock() - cpu, time.perf_counter() - wall
        gradients = [p.grad.double().square().sum() for p in arm.model.parameters() if p.grad is not None]
        return cpu, wall, float(loss.detach()), float(torch.stack(gradients).sum().sqrt())

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def report(self, results: dict[str, Result]) -> dict[str, Any]:
        """Medians, ratios to the two baselines, and the fp32 gradient norm beside a bf16 run."""
        clock = "wall_s" if self.device.type == "cuda" else "cpu_s"
        arms: dict[str, dict[str, Any]] = {
            name: {
                "cpu_s": statistics.median(result.cpu_s),
                "wall_s": statistics.median(result.wall_s),
                "spread": [min(getattr(result, clock)), max(getattr(result, clock))],
                "loss": result.loss,
                "grad_norm": result.grad_norm,
            }
            for name, result in results.items()
        }
        flops = self.flops()
        rate, shared = statistics.median(self.rates), self.args.threads if clock == "cpu_s" else 1
        for arm in arms.values():
            arm["share_of_matmul"] = flops / (arm[clock] / shared) / rate
        report: dict[str, Any] = {
            "settings": vars(self.args) | {"clock": clock},
            "gflop": flops / 1e9,
            "matmul_gflop_s": rate / 1e9,
            "arms": arms,
            "ratios": {},
            "spread": {},
        }
        for ours in (name for name in arms if name.startswith("dsvid")):
            for baseline in () if self.args.alone else ("eager", "sdpa"):
                ratios = [
                    theirs / mine
                    for theirs, mine in zip(
                        getattr(results[f"transformers {baseline}"], clock), getattr(results[ours], clock), strict=True
                    )
                ]
                report["ratios"][f"{baseline} / {ours}"] = statistics.median(ratios)
                report["spread"][f"{baseline} / {ours}"] = [min(ratios), max(ratios)]
        if self.half:
            yardstick = self._ours("fp32", False, False)
            report["fp32"] = dict(zip(("loss", "grad_norm"), self.measure(yardstick)[2:], strict=True))
            self.truth = report["fp32"]
        else:
            self.truth = {
                k: arms["dsvid" if self.args.alone else "transformers eager"][k] for k in ("loss", "grad_norm")
            }
        return report

    def check(self, results: dict[str, Result]) -> None:
        """Raise DsvidError unless losses (and our gradient norms) agree with the yardstick."""
        for name, result in results.items():
            allowed = _LOSS_SHARE[self.args.dtype]
            _agree(f"loss of {name}", result.loss, self.truth["loss"], allowed)
            if name.startswith("dsvid"):
                _agree(f"gradient norm of {name}", result.grad_norm, self.truth["grad_norm"], _GRAD_NORM_SHARE)


def _textbook_targets(pixels: Tensor, grid: TubeletGrid) -> Tensor:
    """Targets of all tokens [B, N, P] of normalised video [B, T, 3, H, W], as the originals compute them."""
    mean = torch.tensor(IMAGENET_MEAN, device=pixels.device).view(1, 1, 3, 1, 1)
    std = torch.tensor(IMAGENET_STD, device=pixels.device).view(1, 1, 3, 1, 1)
    frames = (pixels * std + mean).reshape(len(pixels), grid.t, grid.tubelet, 3, grid.h, grid.patch, grid.w, grid.patch)
    cut = frames.permute(0, 1, 4, 6, 2, 5, 7, 3).reshape(len(pixels), grid.tokens, grid.pixels, 3)
    deviation = cut.var(dim=-2, unbiased=True, keepdim=True).sqrt() + 1e-6
    return ((cut - cut.mean(dim=-2, keepdim=True)) / deviation).reshape(len(pixels), grid.tokens, grid.values)


def matmul_rate(dtype: torch.dtype, device: torch.device, repeats: int = 5) -> float:
    """FLOP/s of the machine's matrix product at sizes of a ViT's layers, the fastest of some: the limit of a step."""
    best = 0.0
    for rows, inner, columns in ((1568, 768, 3072), (1024, 1024, 1024)):
        left, right = (torch.randn(shape, device=device).to(dtype) for shape in ((rows, inner), (inner, columns)))
        seconds = []
        for _ in range(repeats):
            since = time.thread_time() if device.type == "cpu" else time.perf_counter()
            torch.mm(left, right)
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds.append((time.thread_time() if device.type == "cpu" else time.perf_counter()) - since)
            if sum(seconds) > 1:  # emulated bf16 takes seconds a product
                break
        best = max(best, 2.0 * rows * inner * columns / statistics.median(seconds))
    return best


def _agree(what: str, found: float, expected: float, share: float) -> None:
    if not abs(found / expected - 1.0) <= share:
        raise DsvidError(f"bench step: the {what} is wrong", found=found, expected=f"{expected} within {share:.0e}")


def _moving_noise(generator: torch.Generator, batch: int, frames: int, size: int) -> Tensor:
    """Smooth coloured noise that drifts: uint8 [B, T, H, W, 3], with spatial and temporal structure like video."""
    coarse = torch.rand(batch, 3, frames // 4 + 1, size // 16 + 1, size // 16 + 1, generator=generator)
    video = nn.functional.interpolate(coarse, size=(frames, size, size), mode="trilinear", align_corners=True)
    video = video + 0.05 * torch.rand(video.shape, generator=generator)
    return (video * 240.0).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 4, 1).contiguous()


def _transformers_model(encoder: Any, decoder: Any, grid: TubeletGrid, attention: str) -> Any:
    try:
        from transformers import VideoMAEConfig, VideoMAEForPreTraining
    except ImportError as error:
        raise DsvidError(
            "bench step compares with transformers, which cannot be imported",
            found=str(error),
            fix="pip install 'dsvid[bench]'",
        ) from error
    config = VideoMAEConfig(
        image_size=grid.height,
        patch_size=grid.patch,
        num_frames=grid.frames,
        tubelet_size=grid.tubelet,
        hidden_size=encoder.dim,
        num_hidden_layers=encoder.depth,
        num_attention_heads=encoder.heads,
        intermediate_size=encoder.hidden,
        decoder_hidden_size=decoder.dim,
        decoder_num_hidden_layers=decoder.depth,
        decoder_num_attention_heads=decoder.heads,
        decoder_intermediate_size=decoder.hidden,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        layer_norm_eps=1e-6,
        use_mean_pooling=False,
        norm_pix_loss=True,
        attn_implementation=attention,
    )
    model = VideoMAEForPreTraining(config).train()
    model.decoder.norm.eps = 1e-6  # it ignores layer_norm_eps there; the originals use 1e-6
    return model


def _load_transformers(model: Any, source: MaskedAutoencoder) -> None:
    """Copy our weights under transformers' names; raises DsvidError for a tensor of theirs that stays unset."""
    weights = transformers_state(source)
    unset = [name for name in model.state_dict() if name not in weights]
    if unset:
        raise DsvidError(
            "bench step: this transformers version has weights that are not known here",
            found=", ".join(unset[:5]),
            fix="pip install 'transformers>=4.40,<6'",
        )
    model.load_state_dict({name: weights[name] for name in model.state_dict()})


def transformers_state(source: MaskedAutoencoder) -> dict[str, Tensor]:
    """Our weights under the names of transformers' VideoMAEForPreTraining, query and value biases under both its
    namings.
    """
    simple = {
        "encoder.patch_embed.proj.": "videomae.embeddings.patch_embeddings.projection.",
        "encoder.norm.": "videomae.layernorm.",
    }
    inner = {
        "norm1.": "layernorm_before.",
        "norm2.": "layernorm_after.",
        "attn.proj.": "attention.output.dense.",
        "mlp.fc1.": "intermediate.dense.",
        "mlp.fc2.": "output.dense.",
    }
    out: dict[str, Tensor] = {}
    for name, tensor in source.state_dict().items():
        if ".blocks." not in name:
            for ours, theirs in simple.items():
                if name.startswith(ours):
                    name = theirs + name.removeprefix(ours)
            out[name] = tensor
            continue
        part, _, rest = name.partition(".blocks.")
        index, _, leaf = rest.partition(".")
        layer = f"videomae.encoder.layer.{index}." if part == "encoder" else f"decoder.decoder_layers.{index}."
        attention = f"{layer}attention.attention."
        if leaf == "attn.qkv.weight":
            for key, piece in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                out[f"{attention}{key}.weight"] = piece
        elif leaf in ("attn.q_bias", "attn.v_bias"):
            short = leaf.removeprefix("attn.")
            out[attention + short] = tensor
            out[f"{attention}{'query' if short == 'q_bias' else 'value'}.bias"] = tensor
        else:
            for ours, theirs in inner.items():
                if leaf.startswith(ours):
                    out[layer + theirs + leaf.removeprefix(ours)] = tensor
    return out


def _print(report: dict[str, Any]) -> None:
    settings = report["settings"]
    mask = f", mask {settings['mask_ratio']}" if settings["task"] == "pretrain" else ""
    print(
        f"bench step: {settings['task']} {settings['arch']} {settings['dtype']}, "
        f"{settings['batch']} clips of {settings['frames']}x{settings['size']}x{settings['size']}{mask}, "
        f"{settings['threads']} thread(s), "
        f"{settings['device']}, median of {settings['repeats']}"
    )
    print(
        f"  {report['gflop']:.1f} GFLOP a step; matrix products {report['matmul_gflop_s']:.0f} GFLOP/s in turns with it"
    )
    for name, arm in report["arms"].items():
        print(
            f"  {name:28s} cpu {arm['cpu_s']:.4f} s  wall {arm['wall_s']:.4f} s  {_range(arm['spread'])}  "
            f"loss {arm['loss']:.7f}  grad norm {arm['grad_norm']:.7f}  "
            f"{arm['share_of_matmul']:.0%} of the matmul limit"
        )
    if "fp32" in report:
        print(
            f"  {'fp32 yardstick':28s} loss {report['fp32']['loss']:.7f}  grad norm {report['fp32']['grad_norm']:.7f}"
        )
    for name, ratio in report["ratios"].items():
        print(f"  {name:36s} {ratio:.3f}x  {_range(report['spread'][name])}")


def _range(spread: list[float]) -> str:
    return f"({spread[0]:.3f} to {spread[1]:.3f})"
