"""RandAugment for clips: timm's configuration strings and picture operations, with one draw for all frames of a clip.

Every random number comes from the generator handed in (timm's own classes use Python's global one, once per picture).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dsvid.errors import RecipeError
from dsvid.recipe import nearest

FILL = (128, 128, 128)  # where an operation moves the picture's edge into view; the scripts leave timm's grey
FULL_LEVEL = 10.0  # timm's magnitude at which an operation has its full range
SETS = ("weights", "3a", "3aw", "driving")
# simple-tad's choice for traffic: nothing that hides the road or moves it out of the frame
DRIVING = (
    "AutoContrast", "Equalize", "Invert", "Rotate", "Color", "Contrast", "Brightness", "Sharpness", "ShearX", "ShearY",
)  # fmt: skip
_KEYS = {
    "m": "magnitude",
    "n": "operations in a row",
    "p": "probability of each",
    "mstd": "standard deviation of the magnitude",
    "mmax": "its upper bound",
    "inc": "1 = the operations that grow with the magnitude",
}
# What full magnitude means for the operations whose sign is drawn (degrees, slope, share of the side).
_SIGNED = {"Rotate": 30.0, "ShearX": 0.3, "ShearY": 0.3, "TranslateXRel": 0.45, "TranslateYRel": 0.45}
_AROUND_ONE = {"ColorIncreasing", "ContrastIncreasing", "BrightnessIncreasing", "SharpnessIncreasing"}
Step = tuple[str, tuple[float, ...]]


@dataclass(frozen=True)
class RandAugment:
    """A policy: how many operations, which, how strong. `parse_policy` makes it."""

    names: tuple[str, ...]
    weights: tuple[float, ...] | None = None
    operations: int = 2
    magnitude: float = FULL_LEVEL
    probability: float = 0.5
    magnitude_std: float = 0.0
    magnitude_max: float = FULL_LEVEL

    def draw(self, rng: np.random.Generator) -> list[Step]:
        """The operations of one clip with their arguments; drawn with replacement, unless they are weighted."""
        chosen = rng.choice(len(self.names), self.operations, replace=self.weights is None, p=self.weights)
        steps = []
        for index in chosen:
            used, sign = rng.random() < self.probability, 1.0 if rng.random() < 0.5 else -1.0
            magnitude = self._magnitude(rng)
            if used:
                steps.append((self.names[index], arguments(self.names[index], magnitude, sign)))
        return steps

    def _magnitude(self, rng: np.random.Generator) -> float:
        if self.magnitude_std == float("inf"):
            drawn = float(rng.uniform(0, self.magnitude))
        else:
            drawn = float(rng.normal(self.magnitude, self.magnitude_std))
        return max(0.0, min(drawn, self.magnitude_max))

    def __call__(self, clip: Tensor, rng: np.random.Generator) -> Tensor:
        """uint8 [T, H, W, 3] -> the same shape."""
        return apply(clip, self.draw(rng))


def arguments(name: str, magnitude: float, sign: float) -> tuple[float, ...]:
    """What timm's operation `name` is called with at a magnitude; `sign` is +1 or -1 where it counts."""
    from timm.data.auto_augment import LEVEL_TO_ARG

    share = magnitude / FULL_LEVEL
    if name in _SIGNED:
        return (sign * share * _SIGNED[name],)
    if name in _AROUND_ONE:
        return (max(0.1, 1.0 + sign * share * 0.9),)
    level = LEVEL_TO_ARG[name]  # draws nothing for the rest
    return () if level is None else tuple(level(magnitude, {}))


def apply(clip: Tensor, steps: list[Step]) -> Tensor:
    """The same operations on every frame, uint8 [T, H, W, 3]."""
    if not steps:
        return clip
    from timm.data.auto_augment import NAME_TO_OP

    options: dict[str, Any] = {"fillcolor": FILL, "resample": Image.Resampling.BICUBIC}
    out = np.empty(tuple(clip.shape), dtype=np.uint8)
    for place, frame in enumerate(clip.numpy()):
        picture = Image.fromarray(frame)
        for name, values in steps:
            if name.startswith("Posterize") and values[0] < 1:  # no bit is left; Pillow 13 refuses what it did before
                picture = Image.new("RGB", picture.size)
            else:
                picture = NAME_TO_OP[name](picture, *values, **options)
        out[place] = np.asarray(picture)
    return torch.from_numpy(out)


def parse_policy(text: str) -> RandAugment:
    """`rand-m7-n4-mstd0.5-inc1` and its like, read as timm reads them. Raises RecipeError for an unknown part."""
    from timm.data.auto_augment import rand_augment_choices

    first, *parts = text.split("-")
    if first != "rand":
        raise _unknown(text, first, fix="data.augment.policy=rand-m7-n4-mstd0.5-inc1")
    values: dict[str, float] = {}
    chosen = ""
    for part in parts:
        if part.startswith("t"):
            chosen = _known_set(text, part)
        else:
            key, value = _number(text, part)
            values[key] = value
    own = chosen == "driving"  # in this set nothing grows with the magnitude, whatever `inc` says
    choices = DRIVING if own else rand_augment_choices(chosen, increasing=bool(values.get("inc", 0)))
    weights = None
    if isinstance(choices, dict):
        total = sum(choices.values())
        weights = tuple(weight / total for weight in choices.values())
    std = values.get("mstd", 0.0)
    policy = RandAugment(
        names=tuple(choices),
        weights=weights,
        operations=int(values.get("n", 2)),
        magnitude=values.get("m", FULL_LEVEL),
        probability=values.get("p", 0.5),
        magnitude_std=float("inf") if std > 100 else std,
        magnitude_max=values.get("mmax", 0.0) or FULL_LEVEL,
    )
    if policy.probability > 1 or policy.operations < 1 or (weights and policy.operations > len(weights)):
        raise _unknown(text, "a number out of its range", fix=f"p from 0 to 1, n from 1 to {len(policy.names)}")
    return policy


def _number(text: str, part: str) -> tuple[str, float]:
    found = re.fullmatch(r"([a-z]+)(inf|\d+(?:\.\d+)?)", part)
    if found is None or found[1] not in _KEYS:
        key = found[1] if found else re.sub(r"[^a-z].*", "", part)
        near = "tweights" if key == "w" else nearest(key, list(_KEYS))
        raise _unknown(text, part, fix=f"did you mean {near!r}?" if near else None)
    return found[1], float(found[2])


def _known_set(text: str, part: str) -> str:
    if part[1:] not in SETS:
        near = nearest(part[1:], list(SETS))
        raise _unknown(text, part, fix=f"did you mean 't{near}'?" if near else f"one of {', '.join(SETS)} behind the t")
    return part[1:]


def _unknown(text: str, part: str, fix: str | None) -> RecipeError:
    known = "; ".join(f"{key}: {meaning}" for key, meaning in _KEYS.items())
    return RecipeError(
        f"data.augment.policy={text!r} is not understood",
        found=part,
        expected=f"`rand` and parts like m7, joined by '-' ({known}; t: the set {', '.join(SETS)})",
        fix=fix,
    )
