"""The cheapest change that makes a run fit: larger ZeRO stage, activation checkpointing, smaller micro-batch, offload.

Every candidate is a handful of words for the command line, answered by `estimate` like the question itself.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from dsvid.deepspeed_json import CHECKPOINTING_ON
from dsvid.errors import DsvidError
from dsvid.plan.estimate import Plan, estimate

BLOCKS = "activation_checkpointing.number_checkpoints"
OFFLOAD = "zero_optimization.offload_optimizer.device"


@dataclass(frozen=True)
class Change:
    """Words to add to the command, what they do, and the plan with them."""

    words: tuple[str, ...]
    why: str
    plan: Plan
    kinds: tuple[str, ...]


@dataclass(frozen=True)
class Candidate:
    """Overrides of a change: None leaves a thing as it is."""

    stage: int | None = None
    checkpointing: bool = False
    blocks: int = 0  # that are computed twice; 0 = all
    micro: int | None = None
    offload: bool = False

    def kinds(self) -> tuple[str, ...]:
        """What is changed."""
        return tuple(name for name in ("stage", "checkpointing", "micro", "offload") if getattr(self, name))

    def words(self) -> tuple[str, ...]:
        """What to type."""
        shown = [f"{key}={value}" for key, value in self.ours().items()]
        return tuple(shown + [f"ds.{key}={str(value).lower()}" for key, value in self.theirs().items()])

    def ours(self) -> dict[str, Any]:
        """Overrides of the recipe."""
        return {} if self.micro is None else {"batch.micro": self.micro}

    def theirs(self) -> dict[str, Any]:
        """Overrides of the JSON."""
        found: dict[str, Any] = {}
        if self.stage is not None:
            found["zero_optimization.stage"] = self.stage
        if self.checkpointing:
            found |= {BLOCKS: self.blocks} if self.blocks else {CHECKPOINTING_ON: False}
        if self.offload:
            found[OFFLOAD] = "cpu"
        return found

    def why(self, plan: Plan) -> str:
        """What it does, in words."""
        parts = []
        if self.stage is not None:
            parts.append(f"ZeRO stage {self.stage}")
        if self.checkpointing:
            which = f"the first {self.blocks} blocks" if self.blocks else "every block"
            parts.append(f"activation checkpointing ({which} computed twice)")
        if self.micro is not None:
            parts.append(f"micro-batch {self.micro}, accumulated {plan.schedule.accumulation} times")
        if self.offload:
            parts.append("optimizer on the host (its steps are slow there)")
        return ", ".join(parts)


def candidates(plan: Plan) -> Iterator[Candidate]:
    """Changes in order of cost: the dearest thing in a change decides, then the next."""
    stages = [None, *range(plan.settings.stage + 1, 4)]
    depth = _deepest(plan)
    # where some blocks are computed twice already, all of them are named by their number
    again = (
        [(False, 0)] if plan.setting.again(depth) == depth else [(False, 0), (True, depth if plan.checkpointing else 0)]
    )
    share = plan.schedule.batch_total // plan.question.gpus
    repeat, micro = plan.recipe.data.num_sample, plan.schedule.batch_micro
    smaller = [m for m in range(micro - 1, 0, -1) if share % m == 0 and m % repeat == 0]
    offloads = [False] if plan.settings.offload_optimizer else [False, True]
    for offload, size, (checkpointing, blocks), stage in itertools.product(offloads, [None, *smaller], again, stages):
        candidate = Candidate(stage, checkpointing, blocks, size, offload)
        # at stage 0 there is nothing that could be offloaded
        if candidate != Candidate() and (not offload or plan.settings.stage or stage):
            yield candidate


def _deepest(plan: Plan) -> int:
    """Blocks of the deepest stack."""
    spec = plan.spec
    return max(spec.encoder_size.depth, spec.decoder_size.depth if spec.task == "pretrain" else 0)


def cheapest(plan: Plan) -> Change | None:
    """The first candidate that fits; None where nothing does, or where there is no need."""
    if plan.fits is not False:
        return None
    for candidate in candidates(plan):
        change = _changed(plan, candidate)
        if change is not None and change.plan.fits:
            return _fewest_blocks(plan, candidate, change) if candidate.checkpointing else change
    return None


def _fewest_blocks(plan: Plan, candidate: Candidate, change: Change) -> Change:
    """The change with as few blocks computed twice as fit: every one costs a forward."""
    few, enough = plan.setting.blocks if plan.checkpointing else 0, _deepest(plan)
    while enough - few > 1:
        count = (few + enough) // 2
        tried = _changed(plan, replace(candidate, blocks=count))
        if tried is not None and tried.plan.fits:
            enough, change = count, tried
        else:
            few = count
    return change


def others(plan: Plan, first: Change | None) -> list[Change]:
    """For each single kind of change, the least of it that fits alone, but what `first` is."""
    if plan.fits is not False:
        return []
    found: dict[str, Change] = {}
    for candidate in candidates(plan):
        kinds = candidate.kinds()
        if len(kinds) == 1 and kinds[0] not in found and (first is None or kinds != first.kinds):
            change = _changed(plan, candidate)
            if change is not None and change.plan.fits:
                found[kinds[0]] = change
    return list(found.values())


def _changed(plan: Plan, candidate: Candidate) -> Change | None:
    """The plan with a change; None where this recipe or JSON refuses it."""
    try:
        changed = estimate(plan.question.changed(candidate.ours(), candidate.theirs()))
    except DsvidError:
        return None
    return Change(candidate.words(), candidate.why(changed), changed, candidate.kinds())
