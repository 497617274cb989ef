"""One question and its answer: what a recipe with a DeepSpeed JSON needs on a number of GPUs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dsvid import deepspeed_json
from dsvid.communication import Links
from dsvid.data.device_copy import ON_DEVICE
from dsvid.engine import DTYPES
from dsvid.errors import DataError
from dsvid.job import model_spec
from dsvid.models.attention import choose_backend
from dsvid.models.flops import TokenCounts, forward_flops, token_counts
from dsvid.models.spec import ModelSpec
from dsvid.plan import compute, zero
from dsvid.plan.activations import Activations, Setting, activations
from dsvid.plan.sizes import ParameterSizes, parameter_sizes
from dsvid.recipe import Recipe, load_recipe
from dsvid.schedule import Schedule, resolve_schedule
from dsvid.tasks import task_of

GIB = 1 << 30
# What a process needs besides its tensors: CUDA's context, NCCL's buffers, holes in the allocator.
ASSUMED_RESERVE = 2 * GIB
# Training videos of the sets that recipes name, where their list is not here; rounded, not counted again.
KNOWN_SETS = {
    "Kinetics-400": 240_000, "Something-Something V2": 169_000, "UCF101": 9_500, "UnlabeledHybrid": 1_350_000,
    "Kinetics-710": 658_000,
}  # fmt: skip


@dataclass(frozen=True)
class Question:
    """What is asked. `ours` and `theirs` are overrides of the recipe and of the JSON `tree`; `videos` 0 = find out;
    `memory` is that of one GPU in bytes, `rate` None = not given.
    """

    recipe: str
    tree: Mapping[str, Any]
    gpus: int
    gpus_a_node: int
    ours: Mapping[str, Any] = field(default_factory=dict)
    theirs: Mapping[str, Any] = field(default_factory=dict)
    memory: int | None = None
    rate: compute.Rate | None = None
    links: Links = compute.ASSUMED_LINKS
    reserve: int = ASSUMED_RESERVE
    videos: int = 0

    def changed(self, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Question:
        """The same with more overrides."""
        return replace(self, ours={**self.ours, **ours}, theirs={**self.theirs, **theirs})


@dataclass(frozen=True)
class Videos:
    """How many training videos (or windows) there are: `count` None where it is not known; `source` says how it is."""

    count: int | None
    source: str


@dataclass(frozen=True)
class Plan:
    """The answer, in bytes, FLOPs, seconds. `peak` is without `question.reserve`."""

    question: Question
    recipe: Recipe
    config: dict[str, Any]
    schedule: Schedule
    videos: Videos
    spec: ModelSpec
    count: TokenCounts
    sizes: ParameterSizes
    settings: zero.ZeroSettings
    setting: Setting
    states: zero.States
    activations: Activations
    variants: dict[str, int]
    buffers: dict[str, int]
    step_buffers: int
    flops_model: float
    flops_executed: float
    sent_bytes: float
    checkpoint: int
    time: compute.StepTime | None

    @property
    def peak_backward(self) -> int:
        """Bytes of a GPU at the fullest moment of the backward."""
        return self.states.device + self.activations.device + sum(self.buffers.values()) + self.clips_bytes

    @property
    def peak_step(self) -> int:
        """Bytes of a GPU while the optimizer steps; the activations are gone."""
        return self.states.device + self.step_buffers

    @property
    def clips_bytes(self) -> int:
        """Micro-batches of uint8 clips: the one at work, and those on their way."""
        data = self.recipe.data
        return ON_DEVICE * self.schedule.batch_micro * data.num_frames * data.input_size**2 * 3

    @property
    def peak(self) -> int:
        """The larger of the two."""
        return max(self.peak_backward, self.peak_step)

    @property
    def fits(self) -> bool | None:
        """Whether peak and reserve are within the memory of a GPU; None where that was not given."""
        memory = self.question.memory
        return None if memory is None else self.peak + self.question.reserve <= memory

    @property
    def checkpointing(self) -> bool:
        """Whether blocks are computed twice."""
        return self.setting.checkpointing


def estimate(question: Question) -> Plan:
    """Answer. Raises DsvidError where the trainer would, for the same reason."""
    recipe = load_recipe(question.recipe, dict(question.ours))
    spec = model_spec(recipe)
    sizes = parameter_sizes(recipe)
    videos = count_videos(recipe, question.videos)
    schedule = resolve_schedule(recipe, world=question.gpus, videos=videos.count or stand_in(recipe))
    config = deepspeed_json.resolve(dict(question.tree), dict(question.theirs), recipe, schedule)
    settings = zero.read_settings(config)
    ratios = {"mask_ratio": recipe.pretrain.mask_ratio, "decoder_mask_ratio": recipe.pretrain.decoder_mask_ratio}
    count, forward = token_counts(spec, **ratios), forward_flops(spec, **ratios)
    section = config.get("activation_checkpointing")
    setting = Setting(
        schedule.batch_micro, settings.weight, backend(recipe, spec, config), section is not None,
        bool((section or {}).get("cpu_checkpointing")), deepspeed_json.checkpointed_blocks(config),
    )  # fmt: skip
    average = recipe.optim.ema_decay > 0
    executed = compute.executed_flops(
        forward, encoder_again=_share_again(setting, spec.encoder_size.depth),
        decoder_again=_share_again(setting, spec.decoder_size.depth) if spec.task == "pretrain" else 0.0,
    )  # fmt: skip
    sent = compute.collective_bytes(settings, sizes.trained, schedule.accumulation)
    return Plan(
        question=question, recipe=recipe, config=config, schedule=schedule, videos=videos, spec=spec, count=count,
        sizes=sizes, settings=settings, setting=setting,
        states=zero.model_states(sizes, settings, question.gpus, average=average),
        activations=activations(spec, count, setting),
        variants=_variants(spec, count, setting),
        buffers=zero.backward_buffers(sizes, settings, question.gpus),
        step_buffers=zero.step_buffers(sizes, settings, question.gpus),
        flops_model=forward.training, flops_executed=executed, sent_bytes=sent,
        checkpoint=zero.checkpoint_bytes(sizes, settings, question.gpus, average=average),
        time=_time(question, executed, sent, schedule),
    )  # fmt: skip


def _share_again(setting: Setting, depth: int) -> float:
    return setting.again(depth) / depth


def backend(recipe: Recipe, spec: ModelSpec, config: dict[str, Any]) -> str:
    """The attention backend on a GPU. flash_attn keeps what sdpa keeps, and need not be installed here."""
    if recipe.model.attention == "flash_attn":
        return "flash_attn"
    size, dtype = spec.encoder_size, DTYPES[deepspeed_json.precision(config)]
    return choose_backend(recipe.model.attention, "cuda", dtype, spec.grid.tokens, size.dim // size.heads)


def _variants(spec: ModelSpec, count: TokenCounts, setting: Setting) -> dict[str, int]:
    """Bytes of activations for each backend, with and without checkpointing."""
    return {
        f"{kind}{', checkpointing' if again else ''}": activations(
            spec, count, replace(setting, attention=kind, checkpointing=again, blocks=0)
        ).device
        for kind in ("sdpa", "math")
        for again in (False, True)
    }


def _time(question: Question, flops: float, sent: float, schedule: Schedule) -> compute.StepTime | None:
    if question.rate is None:
        return None
    links = replace(question.links, devices_a_node=question.gpus_a_node)
    clips = schedule.batch_total // question.gpus
    return compute.step_time(flops, clips, question.rate, sent_bytes=sent, gpus=question.gpus, links=links)


# ---- how long the list is ------------------------------------------------------------------------------------------


def stand_in(recipe: Recipe) -> int:
    """A length of list with which batch and lr come out, where the real one is not known."""
    return recipe.batch.total * 1000


def count_videos(recipe: Recipe, given: int) -> Videos:
    """The training list's length: given, the recipe's, the list's own, or the published set's; else not known.

    Raises DataError for a list that is there and broken.
    """
    limit = recipe.data.train_limit
    if given:
        return Videos(min(limit, given) if limit else given, "given with --videos")
    if recipe.run.samples_per_epoch:
        return Videos(recipe.run.samples_per_epoch, "not needed: run.samples_per_epoch")
    place = Path(recipe.data.root).expanduser() / recipe.data.train
    if recipe.data.train not in ("builtin", "footage") and not place.exists():
        named = re.search(r"commit \w+: ([^,]+),", recipe.about.source)
        if named and named[1] in KNOWN_SETS:
            return Videos(KNOWN_SETS[named[1]], f"assumed: {named[1]}, as published; {recipe.data.train} is not here")
        return Videos(None, f"{recipe.data.train} is not here; give --videos")
    try:
        length = len(task_of(recipe).open(recipe, "train"))
    except DataError:
        if recipe.data.train == "footage":
            return Videos(None, "the index of data.train=footage is not here; give --videos")
        raise
    return Videos(min(limit, length) if limit else length, f"data.train={recipe.data.train}")
