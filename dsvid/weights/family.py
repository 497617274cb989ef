"""What a checkpoint family is: how its files are recognised, named and described. Adding one = one `Family`.

Knows names and shapes, no values. Names are canonical when they are VideoMAE's: `encoder.blocks.N…` in pre-training
files, `blocks.N…` in fine-tuned ones, `head`, `fc_norm`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from dsvid.errors import CheckpointError
from dsvid.tokens import PositionKind, TubeletGrid
from dsvid.weights.source import WeightFile

Shapes = Mapping[str, tuple[int, ...]]
Facts = dict[str, Any]

# What wrappers put before every name: torch.compile, DeepSpeed and DDP, our objective, detection repositories.
_WRAPPERS = re.compile(r"^(?:_orig_mod\.|module\.|model\.|backbone\.)+")
_BLOCK = re.compile(r"^(?:encoder\.)?blocks\.(\d+)\.")
_DECODER_BLOCK = re.compile(r"^decoder\.blocks\.(\d+)\.")


@dataclass(frozen=True)
class Entry:
    """A tensor to be: which tensors of the file it is made from, its shape, and how. `note` says what was changed."""

    sources: tuple[str, ...]
    shape: tuple[int, ...]
    make: Callable[..., Tensor] = lambda tensor: tensor
    note: str = ""

    def then(self, shape: tuple[int, ...], change: Callable[[Tensor], Tensor], note: str) -> Entry:
        """This entry with one more change."""
        made = self.make
        return replace(self, shape=shape, make=lambda *tensors: change(made(*tensors)), note=note)


Entries = dict[str, Entry]


@dataclass(frozen=True)
class Contents:
    """A weight file under canonical names."""

    file: WeightFile
    entries: Entries

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: entry.shape for name, entry in self.entries.items()}


@dataclass(frozen=True)
class Family:
    """One checkpoint family.

    `marks` gives the sentence why a file is of this family beyond doubt, or "" ; `guess` the same for signs that others
    may share; both see plain names (no wrapper prefixes). `layout` names the group whose names it shares: within it
    `family=` decides, across groups it is an error. `refuses` says why a file of the layout cannot be this family's.
    `read` replaces the reading by `renames`; it is told whether the model is to have a class token. `dropped`: patterns
    of canonical names with the reason why nothing here needs them. `positions` is the table the
    family adds; `stored_grid` tells the grid of a table that the file holds. `describe` adds what its files say of the
    model; `states` gives the part of it that no tensor shows and that stands in the file or beside it. `norm_goes_on`:
    the family's own loader starts `fc_norm` from the encoder's norm. `inflates`: a kernel of one frame may be spread
    over a longer tubelet.
    """

    name: str
    layout: str
    positions: PositionKind
    marks: Callable[[Shapes], str] = lambda shapes: ""
    guess: Callable[[Shapes], str] = lambda shapes: ""
    refuses: Callable[[Shapes], str] = lambda shapes: ""
    renames: tuple[tuple[str, str], ...] = ()
    dropped: tuple[tuple[str, str], ...] = ()
    read: Callable[[WeightFile, bool], Entries] | None = None
    describe: Callable[[Contents], Facts] = lambda contents: {}
    states: Callable[[Contents], Facts] = lambda contents: {}
    stored_grid: Callable[[Contents, TubeletGrid], tuple[int, int, int] | None] = lambda contents, grid: None
    frames: int = 16
    norm_goes_on: bool = False
    inflates: bool = False

    def open(self, file: WeightFile, cls_token: bool = True) -> Contents:
        """The file under canonical names. Raises CheckpointError where two tensors claim one name."""
        if self.read is not None:
            return Contents(file, self.read(file, cls_token))
        entries: Entries = {}
        for name, plain in plain_names(file).items():
            for pattern, ours in self.renames:
                plain = re.sub(pattern, ours, plain)
            add(entries, plain, Entry((name,), tuple(file.tensors[name].shape)), file)
        return Contents(file, entries)

    def reason_to_drop(self, name: str) -> str:
        """Why the tensor of a canonical name is left out on purpose; "" where it is not."""
        return next((reason for pattern, reason in self.dropped if re.match(pattern, name)), "")


def plain_names(file: WeightFile) -> dict[str, str]:
    """Names in the file -> names without the prefixes of wrappers."""
    return {name: _WRAPPERS.sub("", name) for name in file.tensors}


def plain_shapes(file: WeightFile) -> dict[str, tuple[int, ...]]:
    """Shapes by plain names."""
    return {plain: tuple(file.tensors[name].shape) for name, plain in plain_names(file).items()}


def add(entries: Entries, name: str, entry: Entry, file: WeightFile) -> None:
    """Put `entry` under `name`. Raises CheckpointError where another one is there."""
    if name in entries:
        raise CheckpointError(
            f"{file.path}: two tensors mean the same parameter {name}",
            found=f"{entries[name].sources[0]} and {entry.sources[0]}",
            expected="one model in the file",
        )
    entries[name] = entry


def find(shapes: Shapes, *names: str) -> str:
    """The first of `names` that is there, or ""."""
    return next((name for name in names if name in shapes), "")


def facts_of_vit(contents: Contents) -> Facts:
    """What the tensors of a VideoMAE-like encoder say of the model. Raises CheckpointError where they are not there."""
    shapes = contents.shapes
    kernel = find(shapes, "encoder.patch_embed.proj.weight", "patch_embed.proj.weight")
    blocks = {int(m[1]) for name in shapes if (m := _BLOCK.match(name))}
    hidden = find(shapes, "encoder.blocks.0.mlp.fc1.weight", "blocks.0.mlp.fc1.weight")
    if not (kernel and blocks and hidden) or len(shapes[kernel]) != 5:
        raise CheckpointError(
            f"{contents.file.path} holds no video transformer",
            found=", ".join(sorted(shapes)[:4]),
            expected="patch_embed.proj.weight with 5 axes, blocks.0.mlp.fc1.weight, …",
        )
    dim, _, tubelet, patch, _ = shapes[kernel]
    return {
        "dim": dim,
        "depth": max(blocks) + 1,
        "patch": patch,
        "tubelet": tubelet,
        "mlp_hidden": shapes[hidden][0],
        "num_classes": head_classes(shapes),
        **_decoder_facts(shapes),
    }


def head_classes(shapes: Shapes) -> int:
    """Classes of the head in the file, 0 without one."""
    shape = shapes.get("head.weight", ())
    return shape[0] if len(shape) == 2 else 0


def _decoder_facts(shapes: Shapes) -> Facts:
    blocks = {int(m[1]) for name in shapes if (m := _DECODER_BLOCK.match(name))}
    hidden = shapes.get("decoder.blocks.0.mlp.fc1.weight")
    if not blocks or hidden is None:
        return {}
    return {"decoder_dim": hidden[1], "decoder_depth": max(blocks) + 1, "decoder_hidden": hidden[0]}


def square_grid(rows: int, frames: int) -> tuple[int, int, int] | None:
    """The grid of `rows` tokens over `frames` temporal slots and a square of sites, or None."""
    side = round((rows / frames) ** 0.5)
    return (frames, side, side) if frames * side * side == rows else None
