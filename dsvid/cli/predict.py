"""`dsvid predict --weights W VIDEO`: what a model says of a video over time, as table, JSON, contact sheet, video."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsvid.errors import DataError, RecipeError

if TYPE_CHECKING:
    import torch

    from dsvid.data.stream import VideoStream
    from dsvid.predict.weights import Predictor
    from dsvid.timeline import Timeline

SUFFIXES = (".json", ".png", ".mp4", ".html")
TOP = {"classify": 5, "detect": 3}
THRESHOLD = {"detect": 0.1, "anomaly": 0.5}
PERSON_SCORE = 0.8  # as in AVA's evaluation
EPILOG = """\
box files (--boxes), coordinates of the upright frame:
  csv   second,x1,y1,x2,y2[,score]   shares of the frame, 0 to 1; x1,y1 is the upper left corner. A header line,
                                     empty lines and lines that begin with # are skipped
  json  [{"image_id": SECOND, "bbox": [x, y, w, h] in pixels, "score": 0.97}, ...]   AVA's person boxes
  The seconds of the file are the key frames. Without a file: torchvision's person detector if its weights are on
  disk (nothing is downloaded), else the whole frame is one box.

examples:
  dsvid predict --weights runs/ft/weights video.mp4
  dsvid predict --weights runs/ft/weights video.mp4 -o page.html
  dsvid predict --weights runs/ft/weights video.mp4 -o out.json -o sheet.png -o out.mp4 --every 0.5
  dsvid predict --weights vit_b_k400_ft.pth --labels k400_names.txt video.mp4 -o sheet.png
  dsvid predict --weights runs/ava/weights video.mp4 --boxes boxes.csv -o out.mp4
  dsvid predict --weights vit_b_ava.pth --task detect video.mp4 -o out.mp4
  dsvid predict --weights runs/dota/weights drive.mp4 -o risk.json -o risk.png -o risk.mp4
  dsvid predict --weights vit_s_dota.pth --task anomaly drive.mp4 --threshold 0.7 --every 0.1
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the subcommand."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("video", type=Path, metavar="VIDEO", help="a video file of any length")
    parser.add_argument("--weights", type=Path, required=True, metavar="W",
                        help="fine-tuned weights: a run or weight folder, or a file of any family")  # fmt: skip
    parser.add_argument("-o", "--out", type=Path, action="append", default=[], metavar="FILE",
                        help=".json, .png (contact sheet), .mp4, .html; once for each (default: a table)")  # fmt: skip
    parser.add_argument("--boxes", type=Path, default=None, metavar="FILE", help="people's boxes, see below")
    parser.add_argument("--labels", type=Path, default=None, metavar="FILE",
                        help="class names: one a line, JSON, or AVA's label map (.pbtxt)")  # fmt: skip
    parser.add_argument("--task", choices=("auto", "classify", "detect", "anomaly"), default="auto",
                        help="for files that do not say what they are for (default: classify)")  # fmt: skip
    parser.add_argument("--family", default="auto", help="family of the weights (default: auto)")
    parser.add_argument("--every", type=float, default=None, metavar="S",
                        help="seconds between predictions (default: people 1, risk every frame, "
                        "else clip after clip)")  # fmt: skip
    parser.add_argument("--top", type=int, default=None, metavar="K", help="classes shown (default: 5; of a person 3)")
    parser.add_argument("--threshold", type=float, default=None, metavar="P",
                        help="actions of a person below it are not shown, save the best (default: 0.1); "
                        "a risk at or above it is an alarm (default: 0.5)")  # fmt: skip
    parser.add_argument("--person-score", type=float, default=None, metavar="P",
                        help="boxes below it are left out (default: 0.8, as in AVA's evaluation)")  # fmt: skip
    rate = parser.add_mutually_exclusive_group()
    rate.add_argument("--sampling-rate", type=int, default=None, metavar="R",
                      help="distance of a clip's frames (default: as trained)")  # fmt: skip
    rate.add_argument("--view-fps", type=float, default=None, metavar="F", help="sample at this rate instead")
    parser.add_argument("--batch", type=int, default=4, metavar="N", help="clips in one forward")
    parser.add_argument("overrides", nargs="*", metavar="a=b", help="for the model: num_heads=6, num_frames=32, …")
    parser.epilog = EPILOG


def run(args: argparse.Namespace) -> None:
    """Predict, then write or print. Raises DsvidError before the work where it can be known."""
    outputs = check_outputs(args.out, args.video)
    _check(args)
    from dsvid.cli.overrides import model_overrides
    from dsvid.cli.predict_page import write_page
    from dsvid.data.decode import quiet_decoders
    from dsvid.data.stream import open_stream
    from dsvid.overlay.text import check_font, drawable
    from dsvid.predict.weights import open_predictor
    from dsvid.runtime import pick_device, read_ranks
    from dsvid.show import show

    drawn = {suffix.lstrip("."): path for suffix, path in outputs.items() if suffix != ".json"}
    if drawn:
        check_font()
    quiet_decoders()
    overrides = model_overrides(args.overrides)
    with open_stream(args.video) as stream:
        predictor = open_predictor(
            args.weights, task=args.task, family=args.family, overrides=overrides, labels=args.labels
        )
        _check_for(args, predictor.task)
        device = pick_device(read_ranks())
        predictor.objective.to(device)
        timeline = predict(args, stream, predictor, device)
        notes = list(timeline.notes)
        if drawn and any(drawable(name) != name for name in predictor.names.names):
            notes.append("names are drawn in Latin letters without accents; DSVID_FONT=FILE.ttf draws others")
        for note in notes:
            print(f"note: {note}", file=sys.stderr)
        if not outputs:
            print(timeline.table())
            return
        if ".json" in outputs:
            write_json(outputs[".json"], {**timeline.to_json(), "weights": str(args.weights)})
        with tempfile.TemporaryDirectory(prefix="dsvid-predict-") as scratch:
            page = drawn.pop("html", None)
            if page is not None:  # the page holds the sheet
                drawn.setdefault("png", Path(scratch) / "sheet.png")
            if drawn:
                show(timeline, stream, **drawn, watched=progress("draw", stream.frames))
            if page is not None:
                write_page(page, timeline, drawn["png"].read_bytes(), args.weights)
    for path in outputs.values():
        print(f"written: {path}")


def predict(args: argparse.Namespace, stream: VideoStream, predictor: Predictor, device: torch.device) -> Timeline:
    """The timeline of the task of the weights."""
    from dsvid.predict.anomaly import judge
    from dsvid.predict.classify import classify
    from dsvid.predict.detect import detect
    from dsvid.predict.settings import Settings

    settings = Settings(
        every_s=args.every or 0.0,
        top=args.top or TOP.get(predictor.task, 0),
        threshold=THRESHOLD.get(predictor.task, 0.0) if args.threshold is None else args.threshold,
        person_score=PERSON_SCORE if args.person_score is None else args.person_score,
        batch=args.batch,
        sampling_rate=args.sampling_rate,
        view_fps=args.view_fps,
        watched=progress("predict", stream.frames),
    )
    if predictor.task == "detect":
        return detect(stream, predictor, settings, device, args.boxes)
    if predictor.task == "anomaly":
        return judge(stream, predictor, settings, device)
    return classify(stream, predictor, settings, device)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write the file, whole or not at all. Raises DataError."""
    import json

    from dsvid.publish import publish_text

    try:
        publish_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    except OSError as error:
        raise DataError(f"-o {path} cannot be written", found=error.strerror or str(error)) from error


def progress(word: str, frames: int) -> Callable[[Iterable[Any]], Iterable[Any]]:
    """A bar over the frames of a video, where there is a terminal."""

    def watched(pictures: Iterable[Any]) -> Iterator[Any]:
        from tqdm import tqdm

        yield from tqdm(pictures, desc=word, total=frames, unit="frame", disable=None, leave=False)

    return watched


def check_outputs(paths: list[Path], video: Path, suffixes: Sequence[str] = SUFFIXES) -> dict[str, Path]:
    """Suffix -> file. Raises DataError for other suffixes, two of a kind, the video itself, places that cannot be
    written: before the work, not after it.
    """
    outputs: dict[str, Path] = {}
    for path in paths:
        suffix = path.suffix.lower()
        if suffix not in suffixes:
            raise DataError(f"-o {path}: what should be written?", found=suffix or "no suffix",
                            expected=", ".join(suffixes))  # fmt: skip
        if suffix in outputs:
            raise DataError(f"-o {path}: a second {suffix}", found=f"-o {outputs[suffix]}", expected="one of each kind")
        if path.exists() and (path.is_dir() or (video.exists() and path.samefile(video))):
            raise DataError(
                f"-o {path} is {'a folder' if path.is_dir() else 'the video itself'}", expected="a new file"
            )
        folder = next(each for each in path.absolute().parents if each.exists())
        if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
            why = "no permission" if folder.is_dir() else "a file"
            raise DataError(f"-o {path} cannot be written", found=f"{folder}: {why}", expected="a folder to write into")
        outputs[suffix] = path
    return outputs


def _check(args: argparse.Namespace) -> None:
    import math

    for name in ("every", "top", "batch", "sampling_rate", "view_fps"):
        value = getattr(args, name)
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise RecipeError(f"--{name.replace('_', '-')} must be positive", found=value, expected="a number above 0")
    for name in ("threshold", "person_score"):
        value = getattr(args, name)
        if value is not None and not 0 <= value <= 1:
            raise RecipeError(f"--{name.replace('_', '-')}", found=value, expected="0 to 1")
    if args.boxes is not None and args.every is not None:
        raise RecipeError("--every and --boxes", expected="one of them: the seconds of the file are the key frames")


def _check_for(args: argparse.Namespace, task: str) -> None:
    """Raise RecipeError for an option that has no effect on weights of `task`."""
    if args.boxes is not None and task != "detect":
        raise RecipeError(
            "--boxes is for weights of detection", found=f"weights of task {task}",
            fix="leave it out; --task detect for weights of AVA that do not say so",
        )  # fmt: skip
    for value, option, tasks, what in (
        (args.top, "--top", ("classify", "detect"), "classes and actions"),
        (args.threshold, "--threshold", ("detect", "anomaly"), "actions and risk"),
        (args.person_score, "--person-score", ("detect",), "people's boxes"),
    ):
        if value is not None and task not in tasks:
            raise RecipeError(f"{option} is for {what}", found=f"weights of task {task}", fix="leave it out")
