"""Pre-training weights and one video -> what the autoencoder makes of its masked clips, one after the other.

Legend: T frames of a clip, S its side, t h w cells of the token grid.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dsvid.data.order import sample_seed
from dsvid.data.stream import VideoStream, clips_of
from dsvid.data.windows import Window
from dsvid.errors import CheckpointError, NoDecoderError, RecipeError
from dsvid.objectives import PretrainObjective
from dsvid.predict.clips import centre_square, noted
from dsvid.predict.settings import Settings
from dsvid.weights.card import read_card
from dsvid.weights.load import load_model

MASK_RATIO = 0.9  # of the released models (arXiv 2203.12602)
GREY = 128


@dataclass
class Autoencoder:
    """`objective` is in eval mode, on the CPU; `short_side` is that of the frames before the crop."""

    objective: PretrainObjective
    mask_ratio: float
    frames: int
    input_size: int
    short_side: int
    sampling_rate: int
    view_fps: float | None
    notes: list[str]


@dataclass(frozen=True)
class RebuiltClip:
    """One clip: `number` counts the windows; `frames`, their `seconds`, `loss` and `loss_of_mean` [T]; `pictures`, each
    uint8 [T, S, S, 3]: `original`, `masked`, `rebuilt patches` (alone), `rebuilt` (with the visible patches), `means
    only`; `hidden` bool [t, h, w]; `replaced`: how many of the T frames cannot be decoded and show another one.
    """

    number: int
    window: Window
    seconds: NDArray[np.float64]
    pictures: dict[str, NDArray[np.uint8]]
    hidden: NDArray[np.bool_]
    loss: NDArray[np.float64]
    loss_of_mean: NDArray[np.float64]
    replaced: int


def open_autoencoder(
    path: Path, *, family: str = "auto", mask_ratio: float | None = None, overrides: dict[str, Any] | None = None
) -> Autoencoder:
    """Open pre-training weights of any family. Raises CheckpointError where there is no decoder, RecipeError for a
    mask ratio that does not suit the grid."""
    card = read_card(path)
    stated = card.model.get("task")
    if stated not in (None, "pretrain"):
        raise _no_decoder(path, f"weights of task {stated}")
    try:
        model, report = load_model(path, family, **{**(overrides or {}), "task": "pretrain"})
    except NoDecoderError as error:
        raise _no_decoder(path, "an encoder alone") from error
    if report.missing:
        raise _no_decoder(path, f"no {', '.join(report.missing[:3])}")
    notes = [] if report.family == "dsvid" else [f"weights read as those of {report.family}"]
    ratio = mask_ratio
    if ratio is None:
        ratio = float(card.trained.get("mask_ratio") or MASK_RATIO)
        if not card.trained.get("mask_ratio"):
            notes.append(f"the weights do not say which mask ratio they were trained with: {ratio:g} (--mask-ratio R)")
    if "norm_pix" not in card.trained:
        notes.append("the weights do not say whether they predict normalised pixels: taken as normalised, as released")
    if not card.input:
        notes.append(f"the weights do not say how far apart frames are: every {card.sampling_rate}th (--sampling-rate)")
    try:
        objective = PretrainObjective(
            model, model.grid, mask_ratio=ratio, norm_pix=card.norm_pix, mean=card.mean, std=card.std
        )
    except RecipeError as error:  # it speaks of the recipe's key
        raise RecipeError(
            "--mask-ratio does not suit the model", found=error.found, expected=error.expected, fix="--mask-ratio 0.9"
        ) from error
    return Autoencoder(
        objective.eval(), ratio, model.grid.frames, model.grid.height, card.short_side(model.grid.height),
        card.sampling_rate, card.input.get("view_fps"), notes,
    )  # fmt: skip


def _no_decoder(path: Path, found: str) -> CheckpointError:
    return CheckpointError(
        f"--weights {path} hold no decoder: there is nothing to rebuild pixels with", found=found,
        expected="weights of pre-training, encoder and decoder: of a run with task: pretrain, or the released file",
    )  # fmt: skip


def rebuild(
    stream: VideoStream, model: Autoencoder, settings: Settings, device: torch.device, plan: list[Window], seed: int
) -> Iterator[RebuiltClip]:
    """The clips of the windows of `plan`, in order, in one reading; each has a mask of its own, drawn from `seed`.

    Clips of which no frame can be decoded are left out.
    """
    prepare = centre_square(model.short_side, model.input_size)
    seen = np.zeros(stream.frames, dtype=bool)
    pictures = noted(settings.watched(stream.pictures()), seen)
    for number, frames in clips_of(pictures, [window.indices for window in plan], prepare):
        clip = torch.stack(frames)[None].to(device)
        replaced = int((~seen[plan[number].indices]).sum())
        yield _rebuilt(stream, model, plan[number], clip, number, sample_seed(seed, 0, number), replaced)


def _rebuilt(
    stream: VideoStream, model: Autoencoder, window: Window, clip: torch.Tensor, number: int, seed: int, replaced: int
) -> RebuiltClip:
    grid = model.objective.grid
    made = model.objective.rebuild({"clip": clip, "seed": torch.tensor([seed], device=clip.device)})
    loss = made.loss[0].double().cpu().numpy()
    if not np.isfinite(loss).all():
        raise CheckpointError("what the weights predict is not finite", fix="earlier weights of that run")
    drawn = {name: frames[0].cpu().numpy() for name, frames in made.pictures.items()}
    hidden = made.hidden[0].view(grid.t, grid.h, grid.w).cpu().numpy()
    shown = hidden.repeat(grid.tubelet, 0).repeat(grid.patch, 1).repeat(grid.patch, 2)[..., None]
    pictures = {
        "original": drawn["original"],
        "masked": drawn["masked"],
        "rebuilt patches": np.where(shown, drawn["rebuilt"], np.uint8(GREY)),
        "rebuilt": drawn["rebuilt"],
        "means only": drawn["patch_mean"],
    }
    mean = made.loss_of_mean[0].double().cpu().numpy()
    return RebuiltClip(number, window, stream.seconds[window.indices], pictures, hidden, loss, mean, replaced)
