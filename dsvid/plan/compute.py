"""Arithmetic and time, by formula: FLOPs of a clip and of a run, seconds of a step, days, cores that feed the GPUs.

Rates are given or assumed, never measured here; every assumption is a constant below with where it comes from.
"""

from __future__ import annotations

from dataclasses import dataclass

from dsvid.communication import Links, communication_s, step_s, values_in_collectives
from dsvid.models.flops import ForwardFlops
from dsvid.plan.zero import ZeroSettings

DAY_S = 86_400.0
# Share of a GPU's peak that a step reaches. Computed from published numbers: VideoMAE ViT-B on 64 V100 5 % (issue 5 of
# MCG-NJU/VideoMAE: 800 epochs in some 27 h); NVIDIA NeMo's ViT-g/14 on images 44 % on A100, 29 % on H100.
ASSUMED_MFU = 0.3
PUBLISHED_MFU = "published: 5 % (VideoMAE, V100) to 44 % (NeMo ViT-g, A100; 29 % on H100)"
# As `dsvid bench scaling` models them.
ASSUMED_LINKS = Links(device=300e9, node=40e9)
ASSUMED_OVERLAP = 0.8
# Videos a core decodes in a second (16 frames at distance 4 of 340x256 H.264; docs/performance.md), and how much faster
# packed shards and other JPEG frames are. RandAugment costs as much as decoding.
DECODES_A_CORE = (15.0, 20.0)
SHARDS_FASTER = 8.0
RANDAUGMENT_COST = 2.0


@dataclass(frozen=True)
class Rate:
    """`peak` FLOP/s of one GPU and the share of it that is reached; `source` says where the peak is from."""

    peak: float
    share: float
    source: str

    @property
    def flops(self) -> float:
        """FLOP/s that are reached."""
        return self.peak * self.share


def executed_flops(forward: ForwardFlops, *, encoder_again: float = 0.0, decoder_again: float = 0.0) -> float:
    """FLOPs of forward and backward of a clip as they run; checkpointing computes these shares of the blocks' forward
    once more. What the decoder's last block skips is skipped there too.
    """
    again = encoder_again * forward.encoder + decoder_again * forward.decoder
    again -= forward.skipped if decoder_again == 1 else 0.0
    return forward.training - 3 * forward.skipped + again


@dataclass(frozen=True)
class StepTime:
    """Seconds of an optimizer step: arithmetic, collectives by themselves, and both with what overlaps."""

    compute_s: float
    communication_s: float
    total_s: float


def step_time(
    flops_a_clip: float, clips_a_gpu: int, rate: Rate, *, sent_bytes: float, gpus: int, links: Links
) -> StepTime:
    """A step of `clips_a_gpu` clips on each of `gpus` GPUs that send `sent_bytes` in collectives."""
    compute = flops_a_clip * clips_a_gpu / rate.flops
    sending = communication_s(sent_bytes, gpus, links) if gpus > 1 else 0.0
    return StepTime(compute, sending, step_s(compute, sending, ASSUMED_OVERLAP))


def collective_bytes(settings: ZeroSettings, parameters: int, accumulation: int) -> float:
    """Bytes in a rank's collectives in a step. From stage 2 on (stage 1 with overlap_comm) gradients are reduced
    behind every micro-batch, and stage 3 gathers the weights for every one.
    """
    once = values_in_collectives(settings.stage, parameters)
    every = {0: 0, 1: parameters if settings.overlap else 0, 2: parameters, 3: once}[settings.stage]
    return float(settings.weight * (once + (accumulation - 1) * every))


def loader_cores(clips_a_second: float, num_sample: int, *, randaugment: bool) -> tuple[float, float]:
    """(fewest, most) cores that decode `clips_a_second` from H.264; a decoded video gives `num_sample` clips."""
    cost = 1.0 + (RANDAUGMENT_COST - 1.0) * num_sample if randaugment else 1.0
    decodes = clips_a_second / num_sample * cost
    return decodes / DECODES_A_CORE[1], decodes / DECODES_A_CORE[0]
