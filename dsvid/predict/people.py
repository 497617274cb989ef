"""Where people's boxes come from: a file, torchvision's detector if its weights are on disk, else the whole frame."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch

from dsvid.data.box_file import BoxRow, read_box_file
from dsvid.data.decode import Frames
from dsvid.data.stream import VideoStream
from dsvid.errors import CheckpointError, DataError
from dsvid.timeline import Box

Found = list[tuple[Box, float]]
PERSON = 1  # torchvision's class of people (COCO)
# Builders of torchvision.models.detection, the better ones first; each has weights named "COCO_V1" or "DEFAULT".
DETECTORS = (
    "fasterrcnn_resnet50_fpn_v2",
    "fasterrcnn_resnet50_fpn",
    "fasterrcnn_mobilenet_v3_large_fpn",
    "fasterrcnn_mobilenet_v3_large_320_fpn",
)


class People(Protocol):
    """`frames` are the key frames, `seconds` theirs; `said` tells where the boxes come from."""

    frames: list[int]
    seconds: list[float]
    said: str
    notes: list[str]

    def boxes(self, frame: int, picture: Frames) -> Found:
        """Boxes in shares of the frame, and their scores."""


@dataclass
class WholeFrame:
    """One box, the whole frame."""

    frames: list[int]
    seconds: list[float]
    said: str
    notes: list[str] = field(default_factory=list)

    def boxes(self, frame: int, picture: Frames) -> Found:
        return [((0.0, 0.0, 1.0, 1.0), 1.0)]


class FromFile:
    """Boxes of a file; its seconds are the key frames."""

    def __init__(self, path: Path, stream: VideoStream, least: float) -> None:
        rows, cut = read_box_file(path, stream.width, stream.height)
        for row in rows:
            if row.second > stream.duration_s:
                raise DataError(
                    f"{row.place}: a second after the end of the video", found=f"{row.second:g}",
                    expected=f"0 to {stream.duration_s:.3f}",
                )  # fmt: skip
        kept = [row for row in rows if row.score >= least]
        if not kept:
            raise DataError(
                f"{path}: no box has a score of {least:g} or more", found=f"at most {max(r.score for r in rows):g}",
                fix="a lower --person-score",
            )  # fmt: skip
        self._rows: dict[int, list[BoxRow]] = {}
        for row in kept:
            self._rows.setdefault(stream.frame_at(row.second), []).append(row)
        self.frames = sorted(self._rows)
        self.seconds = [float(stream.seconds[frame]) for frame in self.frames]
        self.said = f"file {path}"
        self.notes = []
        if cut:
            self.notes.append(f"{cut} boxes of {path} reached over the edge of the frame: cut")
        if len(kept) < len(rows):
            self.notes.append(f"{len(rows) - len(kept)} boxes of {path} have a score below {least:g}: left out")

    def boxes(self, frame: int, picture: Frames) -> Found:
        return [(row.box, row.score) for row in self._rows[frame]]


class Detector:
    """torchvision's detector, on the key frames."""

    def __init__(
        self, name: str, path: Path, frames: list[int], seconds: list[float], least: float, device: torch.device
    ) -> None:
        from torchvision.models import detection

        self._model: Any = getattr(detection, name)(weights=None, weights_backbone=None)
        try:
            self._model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        except Exception as error:
            raise CheckpointError(
                f"{path} cannot be loaded as torchvision's {name}", found=str(error).splitlines()[0][:200],
                fix="remove it or download it again, or give --boxes FILE",
            ) from error  # fmt: skip
        self._model.to(device).eval()
        self._device, self._least = device, least
        self.frames, self.seconds = frames, seconds
        self.said = f"torchvision's {name} ({path}), people of score {least:g} or more"
        self.notes: list[str] = []

    @torch.inference_mode()
    def boxes(self, frame: int, picture: Frames) -> Found:
        height, width = picture.shape[:2]
        pixels = torch.from_numpy(np.array(picture)).to(self._device).permute(2, 0, 1).float() / 255
        (found,) = self._model([pixels])
        wanted = (found["labels"] == PERSON) & (found["scores"] >= self._least)
        shares = (found["boxes"][wanted] / pixels.new_tensor([width, height] * 2)).clamp(0, 1).tolist()
        scores = found["scores"][wanted].tolist()
        return [((b[0], b[1], b[2], b[3]), float(score)) for b, score in zip(shares, scores, strict=True)]


def open_people(stream: VideoStream, boxes: Path | None, every_s: float, least: float, device: torch.device) -> People:
    """The best source there is. Raises DataError for a box file that does not suit."""
    if boxes is not None:
        return FromFile(boxes, stream, least)
    frames = key_frames(stream, every_s)
    seconds = [float(stream.seconds[frame]) for frame in frames]
    found = detector_on_disk()
    if found is None:
        return WholeFrame(
            frames, seconds, "the whole frame",
            ["no --boxes, and no weights of a torchvision person detector on disk: the whole frame is taken for one "
             f"person's box (torchvision would keep them in {checkpoint_folder()}; nothing is downloaded)"],
        )  # fmt: skip
    return Detector(*found, frames, seconds, least, device)


def key_frames(stream: VideoStream, every_s: float) -> list[int]:
    """The frames nearest to 0, every_s, 2 * every_s, ... seconds."""
    times = np.arange(0.0, float(stream.seconds[-1]) + 1e-9, every_s)
    return sorted({stream.frame_at(float(time)) for time in times})


def checkpoint_folder() -> Path:
    """Where torchvision keeps weights that it has downloaded."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def detector_on_disk() -> tuple[str, Path] | None:
    """(builder, weights) of the best detector whose weights are there."""
    try:
        from torchvision.models import get_model_weights
    except Exception:  # not installed, or built for another torch: roi_align has its own words for that
        return None
    for name in DETECTORS:
        for weights in cast("Any", get_model_weights(name)):
            path = checkpoint_folder() / str(weights.url).rpartition("/")[2]
            if path.is_file():
                return name, path
    return None
