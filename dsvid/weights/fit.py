"""Fits a file's tensors to a model's parameters: which becomes which, what is left out and why, what is missing.

Shapes are settled before a value is read. Knows canonical names and the families' rules, no file formats.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from dsvid.documents import parse_json, read_text
from dsvid.errors import CheckpointError
from dsvid.tokens import TubeletGrid, resize_table
from dsvid.weights.family import Contents, Entries, Entry, Family, Shapes
from dsvid.weights.report import LoadReport

FinalNormPolicy = Literal["family", "simple_tad", "ava"]
FINAL_NORM_POLICIES = ("family", "simple_tad", "ava")
# What a file need not hold: it starts fresh, and is reported.
_FRESH = ("fc_norm.", "norm.", "head.")
# What an autoencoder starts from random values with `fresh_decoder`, and the norm where a classifier's file has none.
_DECODER = ("decoder.", "encoder_to_decoder.", "mask_token")
# A block that the model has no place for: it is deeper in the file, or has parts that are not computed here.
_BLOCK = re.compile(r"(?:encoder\.|decoder\.)?blocks\.\d+\.")
_TABLES = ("pos_embed", "pos_embed_spatial", "pos_embed_temporal")


@dataclass
class Fitted:
    """The tensors for a model: `entries` by our parameter names, made and checked one at a time."""

    contents: Contents
    report: LoadReport
    entries: Entries = field(default_factory=dict)

    def tensor(self, name: str) -> Tensor:
        """The fp32 values of our parameter `name`, in memory of their own. Raises CheckpointError as `read_into`."""
        return self.read_into(name, torch.empty(self.entries[name].shape))

    def read_into(self, name: str, out: Tensor) -> Tensor:
        """Copy the values of our parameter `name` to `out`, in its dtype, and give the pages of the file back.

        Raises CheckpointError for NaN, infinity and what the dtype cannot hold.
        """
        entry, file = self.entries[name], self.contents.file
        out.copy_(entry.make(*(file.tensors[source] for source in entry.sources)))
        if out.numel() and not all(bool(end.isfinite()) for end in out.aminmax()):
            raise CheckpointError(
                f"{file.path}: {entry.sources[0]} holds NaN or infinity, or overflows {out.dtype}",
                fix="use an earlier checkpoint",
            )
        for source in entry.sources:
            file.release(source)
        return out


def fit_shapes(
    contents: Contents,
    family: Family,
    shapes: Shapes,
    *,
    task: str,
    grid: TubeletGrid | None = None,
    final_norm: FinalNormPolicy = "family",
    head_map: Path | str = "",
    fresh_decoder: bool = False,
    why: str = "",
) -> Fitted:
    """The tensors of `contents` for a model with parameters `shapes`.

    `task` "pretrain" wants encoder and decoder, with `fresh_decoder` the encoder alone; every other one the encoder and
    a head of the model's size. `grid` is the model's: stored tables are resized to it. Raises CheckpointError for a
    missing parameter or another shape.
    """
    fitting = _Fitting(contents, family, shapes, grid, final_norm, Path(head_map) if head_map else None, why)
    if task != "pretrain":
        return fitting.encoder()
    return fitting.encoder_alone() if fresh_decoder else fitting.autoencoder()


class _Fitting:
    def __init__(
        self,
        contents: Contents,
        family: Family,
        shapes: Shapes,
        grid: TubeletGrid | None,
        policy: FinalNormPolicy,
        head_map: Path | None,
        why: str,
    ) -> None:
        self.contents, self.family, self.shapes, self.grid = contents, family, shapes, grid
        self.policy, self.head_map = policy, head_map
        self.path = contents.file.path
        self.report = LoadReport(family=family.name, why=why)
        self.fitted = Fitted(contents, self.report)
        self.stray: list[str] = []
        # Under mean pooling the originals have no norm over the tokens, only one behind the pooling.
        self.pooled = "fc_norm.weight" in shapes
        self.both_norms = {"norm.weight", "fc_norm.weight"} <= {self.bare(name) for name in contents.entries}
        if policy == "ava" and self.pooled:
            raise CheckpointError(
                "final_norm=ava needs a model with a norm over all tokens",
                found="one that norms what it has pooled",
                fix="task: detect, or final_norm=family",
            )

    @staticmethod
    def bare(name: str) -> str:
        return name.removeprefix("encoder.")

    def autoencoder(self) -> Fitted:
        """Every parameter of an autoencoder, by its own name."""
        for name, entry in self.contents.entries.items():
            if name in self.shapes:
                self.take(name, entry)
            else:
                # The families drop decoders; here a block of one is judged as one of the encoder is.
                self.leave(name.removeprefix("decoder.") if _BLOCK.match(name) else name, entry)
        self.require(())
        return self.fitted

    def encoder_alone(self) -> Fitted:
        """The encoder of an autoencoder, from a file of any kind; its decoder starts from random values."""
        for name, entry in self.contents.entries.items():
            own = f"encoder.{self.bare(name)}"
            if own == "encoder.patch_embed.proj.weight":
                self.kernel(own, entry)
            elif own in self.shapes:
                self.take(own, entry)
            elif own.startswith(("encoder.fc_norm.", "encoder.head.")):
                self.drop(entry, "an autoencoder has no classifier")
            else:
                self.leave(name, entry)
        self.require((*_DECODER, "encoder.norm."))
        return self.fitted

    def encoder(self) -> Fitted:
        """An encoder with its norm and head."""
        for name, entry in self.contents.entries.items():
            own = self.bare(name)
            if own.startswith(("norm.", "fc_norm.")):
                self.norm(own, entry)
            elif own in ("head.weight", "head.bias"):
                self.head(own, entry)
            elif own in _TABLES and own in self.shapes:
                self.table(own, entry)
            elif own == "patch_embed.proj.weight" and own in self.shapes:
                self.kernel(own, entry)
            elif own in self.shapes:
                self.take(own, entry)
            else:
                self.leave(name, entry)
        if self.head_map is not None and "head.weight" not in self.fitted.entries:
            raise CheckpointError(f"head_map={self.head_map}: {self.path} has no head", fix="leave head_map out")
        self.require(_FRESH)
        return self.fitted

    def take(self, name: str, entry: Entry) -> None:
        expected = tuple(self.shapes[name])
        if entry.shape != expected:
            raise CheckpointError(
                f"{self.path}: {entry.sources[0]} has another shape than the model",
                found=list(entry.shape),
                expected=list(expected),
                fix="set model.arch, model.tubelet and model.num_classes to what the file was trained with",
            )
        if name in self.fitted.entries:
            raise CheckpointError(
                f"{self.path}: two tensors mean the same parameter {name}",
                found=f"{self.fitted.entries[name].sources[0]} and {entry.sources[0]}",
            )
        self.fitted.entries[name] = entry
        self.report.loaded.append(name)
        if entry.note:
            self.report.reshaped[name] = entry.note

    def drop(self, entry: Entry, reason: str) -> None:
        self.report.dropped.update(dict.fromkeys(entry.sources, reason))

    def leave(self, name: str, entry: Entry) -> None:
        reason = self.family.reason_to_drop(name)
        if reason:
            self.drop(entry, reason)
        elif _BLOCK.match(name):
            self.stray += entry.sources
        else:
            self.report.unexpected += entry.sources

    def norm(self, own: str, entry: Entry) -> None:
        """The norm over all tokens (`norm`) or behind the pooling (`fc_norm`), as the policy says."""
        kind, _, leaf = own.partition(".")
        target = "fc_norm" if self.pooled else "norm"
        if kind == target:
            self.take(own, entry)
        elif self.both_norms:
            self.drop(entry, f"the file has {target} itself")
        elif kind == "norm":
            if self.policy == "simple_tad" or self.family.norm_goes_on:
                self.take(f"fc_norm.{leaf}", entry)
            else:
                self.drop(entry, "fc_norm starts fresh, as in the family's own loader (else final_norm=simple_tad)")
        elif self.policy == "simple_tad":
            self.take(f"norm.{leaf}", entry)
        else:
            self.drop(entry, "a norm of pooled features; this model norms all tokens, from fresh")

    def head(self, own: str, entry: Entry) -> None:
        """The classifier: taken for as many classes, by a map for others, else left out."""
        if own not in self.shapes:
            self.drop(entry, "the model has no head")
            return
        theirs, ours = entry.shape[0], self.shapes[own][0]
        if self.head_map is not None:
            rows = torch.tensor(read_head_map(self.head_map, theirs, ours))
            note = f"{ours} of {theirs} classes by {self.head_map.name}"
            entry = entry.then((ours, *entry.shape[1:]), lambda tensor: tensor[rows], note)
        elif theirs != ours:
            self.drop(entry, f"{theirs} classes, the model has {ours} (head_map= chooses among them)")
            return
        self.take(own, entry)

    def table(self, own: str, entry: Entry) -> None:
        """A stored position table, resized to the model's grid; rows of a class token stay as they are."""
        assert self.grid is not None
        new = (self.grid.t, self.grid.h, self.grid.w)
        dim = entry.shape[-1]
        first = self.shapes[own][1] - self.grid.tokens if own == "pos_embed" else 0
        if own == "pos_embed":
            old = self.family.stored_grid(self.contents, self.grid)
            if old is None:
                raise CheckpointError(
                    f"{self.path}: {entry.sources[0]} has {entry.shape[1]} rows, of no grid that can be told",
                    expected=f"a table for {new[0]}x{new[1]}x{new[2]} tokens, or of a square grid",
                    fix="load it with the num_frames and image_size it was trained with",
                )
        elif own == "pos_embed_spatial":
            side = round(entry.shape[1] ** 0.5)
            same = entry.shape[1] == self.grid.sites
            old, new = (1, new[1], new[2]) if same else (1, side, side), (1, new[1], new[2])
        else:
            old, new = (entry.shape[1], 1, 1), (new[0], 1, 1)
        if old != new and entry.shape[1] == first + old[0] * old[1] * old[2]:
            note = f"{'x'.join(map(str, old))} positions to {'x'.join(map(str, new))}"
            shape = (1, first + new[0] * new[1] * new[2], dim)

            def resize(table: Tensor) -> Tensor:
                rows = resize_table(table[0, first:], old, new)
                return torch.cat((table[0, :first].to(rows.dtype), rows))[None]

            entry = entry.then(shape, resize, note)
        self.take(own, entry)

    def kernel(self, own: str, entry: Entry) -> None:
        """The patch embedding; a kernel of one frame is spread over the tubelet where the family does that."""
        tubelet = self.shapes[own][2]
        if self.family.inflates and len(entry.shape) == 5 and entry.shape[2] == 1 and tubelet > 1:
            shape = (*entry.shape[:2], tubelet, *entry.shape[3:])
            note = f"a kernel of 1 frame repeated {tubelet} times and divided by {tubelet}"
            entry = entry.then(shape, lambda t: t.float().repeat(1, 1, tubelet, 1, 1) / tubelet, note)
        self.take(own, entry)

    def require(self, optional: tuple[str, ...]) -> None:
        """Raise CheckpointError where a parameter is missing that may not start fresh."""
        self.report.missing = [name for name in self.shapes if name not in self.fitted.entries]
        lacking = [name for name in self.report.missing if not optional or not name.startswith(optional)]
        if not lacking:
            self.refuse_stray()
            return
        others = [*self.stray, *self.report.unexpected, *self.report.dropped]
        raise CheckpointError(
            f"{self.path}: {len(lacking)} of {len(self.shapes)} parameters are not in the file",
            found=f"no {', '.join(lacking[:4])}; the file has {', '.join(others[:3]) or 'nothing else'}",
            expected=f"a file of {self.family.name} of the same depth"
            + ("" if optional else ", with its decoder: pre-training weights"),
            fix=None if optional else "model.fresh_decoder=true, for a file of an encoder",
        )

    def refuse_stray(self) -> None:
        """Raise CheckpointError where the file's blocks hold more than the model's: it would compute something else."""
        if not self.stray:
            return
        blocks = {found[0] for name in self.shapes if (found := _BLOCK.match(name))}
        decoder = sum(stem.startswith("decoder.") for stem in blocks)
        raise CheckpointError(
            f"{self.path} holds tensors of blocks that the model has no place for",
            found=f"{len(self.stray)}: {', '.join(self.stray[:4])}",
            expected=f"a model of {len(blocks) - decoder} blocks" + (f" and {decoder} of a decoder" if decoder else ""),
            fix="the depth that the file was trained with (model.arch, model.decoder_depth; depth=, decoder_depth=)",
        )


def read_head_map(path: Path, theirs: int, ours: int | None) -> list[int]:
    """For each of our classes the row of the file's head: a JSON list, or one integer a line, `#` starts a comment.

    `ours` None takes any number of classes.
    Raises CheckpointError for a file that cannot be read, another length, or a class that is not there.
    """
    try:
        text = read_text(path.expanduser())
        if text.lstrip().startswith("["):
            rows = [_integer(row) for row in parse_json(text)]
        else:
            lines = (line.partition("#")[0].strip() for line in text.splitlines())
            rows = [int(line) for line in lines if line]
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"head_map={path} cannot be read", found=str(error), expected="a JSON list, or one integer a line"
        ) from error
    wrong = [row for row in rows if not 0 <= row < theirs]
    if wrong or not rows or (ours is not None and len(rows) != ours):
        raise CheckpointError(
            f"head_map={path} does not fit",
            found=f"class {wrong[0]}" if wrong else f"{len(rows)} entries",
            expected=f"a class from 0 to {theirs - 1}" if wrong else f"{ours}, one for each class of the model",
        )
    return rows


def _integer(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{value!r} is no integer")
    return value
