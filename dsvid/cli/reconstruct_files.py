"""The files of `dsvid reconstruct`: rebuilt clips, taken one at a time, become PNG, MP4, HTML page and JSON."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dsvid.errors import DataError
from dsvid.overlay.painter import spread
from dsvid.pictures import Pixels, frame_table, png_bytes, save_png
from dsvid.predict.clips import undecodable
from dsvid.predict.reconstruct import Autoencoder, RebuiltClip
from dsvid.publish import publish_json, publish_path
from dsvid.report.reconstruction_page import Losses, ShownClip, reconstruction_page
from dsvid.report.writing import publish_page
from dsvid.timeline import clock

if TYPE_CHECKING:
    from dsvid.data.stream import VideoStream
    from dsvid.data.video_writer import VideoWriter
    from dsvid.data.windows import Window

FORMAT = {"format": "dsvid-reconstruct", "version": 1}
MOST_CLIPS = 6  # of a page
PANELS = ("original", "masked", "rebuilt", "means only")
CELL = 144  # pixels of a frame in a table


class Outputs:
    """Takes the clips of `plan`, frames `step` apart, and keeps of them only numbers and a few drawn pictures."""

    def __init__(
        self, paths: dict[str, Path], stream: VideoStream, model: Autoencoder, plan: list[Window], step: float,
        args: argparse.Namespace,
    ) -> None:  # fmt: skip
        self._paths, self._stream, self._model, self._step, self._args = paths, stream, model, step, args
        self._plan = plan
        self._wanted = set(spread(range(len(plan)), MOST_CLIPS)) if ".html" in paths else set()
        self._rows: list[dict[str, Any]] = []
        self._shown: list[ShownClip] = []

    def write(self, clips: Iterable[RebuiltClip], notes: list[str]) -> None:
        """Write every file that is asked for, each whole or not at all. Raises DataError where one cannot be."""
        try:
            if ".mp4" in self._paths:
                publish_path(self._paths[".mp4"], lambda scratch: self._draw_video(scratch, self._noted(clips)))
            else:
                for _ in self._noted(clips):
                    pass
            notes += self._missing()
            if ".html" in self._paths:
                publish_page(self._paths[".html"], self._page(notes))
            if ".json" in self._paths:
                publish_json(self._paths[".json"], self._content(notes))
        except OSError as error:
            path = ", ".join(map(str, self._paths.values()))
            raise DataError(f"-o {path} cannot be written", found=error.strerror or str(error)) from error

    def summary(self) -> str:
        """The mean loss, and that of the patches' means alone."""
        count = f"{len(self._rows)} clip{'s' if len(self._rows) > 1 else ''}"
        alone = f"the true mean of each patch alone: {self._mean('loss_of_mean'):.4f}"
        return f"loss {self._mean('loss'):.4f} over {count}; {alone}"

    def told(self) -> list[str]:
        """What the pictures are, in sentences."""
        grid, objective = self._model.objective.grid, self._model.objective
        share = f"{objective.masked_sites} of {grid.sites} patches ({objective.masked_sites / grid.sites:.0%})"
        told = [
            f"Hidden: {share}, the same in all {grid.frames} frames of a clip (tube mask, seed {self._args.seed}).",
            f"Frames {self._step:g} apart, at {self._stream.fps / self._step:.3g} frames a second.",
        ]
        if objective.norm_pix:
            told.append(
                "The model predicts each patch without its mean and contrast: both are taken from the original. "
                "'means only' shows what the means alone give; what is sharper in 'rebuilt' is the model's."
            )
        else:
            told.append("The model predicts pixels; nothing of a hidden patch is taken from the original.")
        return told

    def _noted(self, clips: Iterable[RebuiltClip]) -> Iterator[RebuiltClip]:
        """Pass the clips on; keep their numbers and the pictures that are wanted."""
        for clip in clips:
            self._rows.append(_row(clip, self._stream.duration_s, self._model.objective.grid.tubelet))
            if len(self._rows) == 1 and ".png" in self._paths:
                save_png(self._table(clip, [self._words(clip), *self.told()]), self._paths[".png"])
            if clip.number in self._wanted:
                title = f"{clock(clip.seconds[0])} – {clock(clip.seconds[-1])}, loss {clip.loss.mean():.3f}"
                alt = f"Rows of frames: {', '.join(clip.pictures)}; {self._words(clip)}"
                self._shown.append(ShownClip(title, png_bytes(self._table(clip, ())), alt))
            yield clip
        if not self._rows:
            raise DataError(f"{self._stream.path}: no frame of the clips can be decoded", fix="another --start")

    def _missing(self) -> list[str]:
        """Notes on what could not be decoded, of clips and of frames in clips."""
        notes = undecodable(len(self._rows), len(self._plan))
        if ".png" in self._paths and self._rows[0]["start_frame"] != self._plan[0].start:
            notes.append(f"the PNG shows the clip at {self._rows[0]['start_s']:.2f} s, the first that has a frame")
        counts = [row["replaced"] for row in self._rows if row["replaced"]]
        if counts:
            clips = f"{len(counts)} clip{'s' if len(counts) > 1 else ''}"
            what = f"{_frames(sum(counts))} of {clips}, which cannot be decoded"
            notes.append(f"replaced by the one before (at the very beginning by the first one after): {what}")
        return notes

    def _table(self, clip: RebuiltClip, caption: Iterable[str]) -> Pixels:
        heads = [f"{second:.2f} s" for second in clip.seconds]
        return frame_table(clip.pictures, scale_to=CELL, heads=heads, caption=list(caption))

    def _words(self, clip: RebuiltClip) -> str:
        alone = f"of the true mean of each hidden patch alone {clip.loss_of_mean.mean():.3f}"
        lost = f" {_frames(clip.replaced)} cannot be decoded: replaced." if clip.replaced else ""
        return f"Loss {clip.loss.mean():.3f}; {alone}.{lost}"

    def _draw_video(self, scratch: Path, clips: Iterable[RebuiltClip]) -> None:
        from dsvid.data.video_writer import open_writer
        from dsvid.overlay.panels import Panels

        panels = Panels(PANELS, self._model.input_size)
        with open_writer(scratch, self._stream.fps / self._step, *panels.size) as writer:
            last = -1
            for clip in clips:
                last = self._add(writer, panels, clip, last)

    def _add(self, writer: VideoWriter, panels: Any, clip: RebuiltClip, last: int) -> int:
        """Add the frames of a clip after frame `last`: the last clip may begin before the one before it ends."""
        for place, frame in enumerate(clip.window.indices.tolist()):
            if frame <= last:
                continue
            second = float(clip.seconds[place])
            words = f"{clock(second)}  loss {clip.loss[place]:.3f} (means only {clip.loss_of_mean[place]:.3f})"
            if self._model.objective.norm_pix:
                words += "; mean and contrast of hidden patches: the original's"
            writer.add(panels.at({name: clip.pictures[name][place] for name in PANELS}, words), second)
            last = frame
        return last

    def _mean(self, key: str) -> float:
        return float(np.mean([row[key] for row in self._rows]))

    def _page(self, notes: list[str]) -> str:
        middle = [(row["start_s"] + row["end_s"]) / 2 for row in self._rows]
        losses = Losses(middle, *([row[key] for row in self._rows] for key in ("loss", "loss_of_mean")))
        facts = [
            ("Loss of the hidden patches", f"{self._mean('loss'):.4f}"),
            ("Of their true means alone", f"{self._mean('loss_of_mean'):.4f}"),
            ("Hidden", f"{self._model.objective.masked_sites / self._model.objective.grid.sites:.0%}"),
            ("Clips", str(len(self._rows))),
            ("Weights", str(self._args.weights)),
        ]
        told = [*self.told(), *notes, *self._stream.notes]
        return reconstruction_page(Path(self._stream.path).name, facts, told, self._shown, losses)

    def _content(self, notes: list[str]) -> dict[str, Any]:
        stream, objective = self._stream, self._model.objective
        grid = objective.grid
        return {
            **FORMAT,
            "video": {"path": stream.path, "frames": stream.frames, "fps": stream.fps, "duration_s": stream.duration_s,
                      "width": stream.width, "height": stream.height},
            "weights": str(self._args.weights),
            "mask_ratio": self._model.mask_ratio,
            "hidden_patches": objective.masked_sites,
            "patches": grid.sites,
            "seed": self._args.seed,
            "normalised_pixels": objective.norm_pix,
            "frame_distance": self._step,
            "tubelet": grid.tubelet,
            "notes": [*notes, *stream.notes],
            "loss": self._mean("loss"),
            "loss_of_mean": self._mean("loss_of_mean"),
            "clips": self._rows,
        }  # fmt: skip


def _frames(count: int) -> str:
    return f"{count} frame{'s' if count > 1 else ''}"


def _row(clip: RebuiltClip, duration_s: float, tubelet: int) -> dict[str, Any]:
    """The numbers of a clip, as JSON has them; the mask is that of every tubelet."""
    shown = zip(clip.window.indices.tolist(), clip.seconds.tolist(), clip.loss.tolist(), strict=True)
    return {
        "start_frame": clip.window.start,
        "end_frame": clip.window.end,
        "start_s": float(clip.seconds[0]),
        "end_s": min(duration_s, float(clip.seconds[-1])),
        "padded": clip.window.padded,
        "replaced": clip.replaced,
        "loss": float(clip.loss.mean()),
        "loss_of_mean": float(clip.loss_of_mean.mean()),
        "loss_by_tubelet": clip.loss.reshape(-1, tubelet).mean(axis=1).tolist(),
        "frames": [{"frame": frame, "second": second, "loss": loss} for frame, second, loss in shown],
        "mask": clip.hidden[0].astype(int).tolist(),
    }
