"""`dsvid reconstruct --weights W VIDEO -o FILE`: what an autoencoder makes of a masked video, beside the original."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from dsvid.errors import DataError, RecipeError

if TYPE_CHECKING:
    from dsvid.data.stream import VideoStream
    from dsvid.predict.reconstruct import Autoencoder

SUFFIXES = (".png", ".mp4", ".html", ".json")
EPILOG = """\
  .png   one clip: rows are the original, what the encoder sees, the rebuilt patches alone, these beside the visible
         ones, and the true mean colour of each hidden patch, which a model of normalised pixels gets for nothing
  .mp4   the whole video, clip after clip, side by side
  .html  a page with up to 6 clips and the loss over the video; it needs no other file and no network
  .json  the loss of each clip, tubelet and frame, and the masks

examples:
  dsvid reconstruct --weights runs/k400/weights video.mp4 -o rebuilt.png
  dsvid reconstruct --weights videomae_vit_b_1600e.pth video.mp4 -o rebuilt.mp4 -o rebuilt.html --mask-ratio 0.75
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the subcommand."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("video", type=Path, metavar="VIDEO", help="a video file of any length")
    parser.add_argument("--weights", type=Path, required=True, metavar="W",
                        help="of pre-training, with decoder: a run or weight folder, a file of any family")  # fmt: skip
    parser.add_argument("-o", "--out", type=Path, action="append", required=True, metavar="FILE",
                        help=".png, .mp4, .html, .json; once for each")  # fmt: skip
    parser.add_argument("--mask-ratio", type=float, default=None, metavar="R",
                        help="share of the patches that is hidden (default: as trained, else 0.9)")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the masks (default: 0)")
    parser.add_argument("--start", type=float, default=0.0, metavar="S", help="second of the first clip (default: 0)")
    parser.add_argument("--family", default="auto", help="family of the weights (default: auto)")
    rate = parser.add_mutually_exclusive_group()
    rate.add_argument("--sampling-rate", type=int, default=None, metavar="R",
                      help="distance of a clip's frames (default: as trained)")  # fmt: skip
    rate.add_argument("--view-fps", type=float, default=None, metavar="F", help="sample at this rate instead")
    parser.add_argument("overrides", nargs="*", metavar="a=b", help="for the model: decoder_heads=6, num_frames=32, …")
    parser.epilog = EPILOG


def run(args: argparse.Namespace) -> None:
    """Rebuild and write. Raises DsvidError before the work where it can be known."""
    from dsvid.cli.predict import check_outputs

    paths = check_outputs(args.out, args.video, SUFFIXES)
    _check(args)
    from dsvid.cli.overrides import model_overrides
    from dsvid.data.decode import quiet_decoders
    from dsvid.data.stream import open_stream
    from dsvid.overlay.text import check_font
    from dsvid.predict.reconstruct import open_autoencoder

    check_font()
    quiet_decoders()
    overrides = model_overrides(args.overrides)
    with open_stream(args.video) as stream:
        model = open_autoencoder(
            args.weights, family=args.family, mask_ratio=args.mask_ratio, overrides=overrides
        )  # fmt: skip
        _rebuild(args, stream, model, paths)


def _rebuild(args: argparse.Namespace, stream: VideoStream, model: Autoencoder, paths: dict[str, Path]) -> None:
    import sys

    from dsvid.cli.predict import progress
    from dsvid.cli.reconstruct_files import Outputs
    from dsvid.predict.clips import clip_windows
    from dsvid.predict.reconstruct import rebuild
    from dsvid.predict.settings import Settings
    from dsvid.runtime import pick_device, read_ranks

    if not 0 <= args.start < stream.duration_s:
        raise DataError("--start lies outside of the video", found=f"{args.start:g} s",
                        expected=f"0 to {stream.duration_s:.2f}")  # fmt: skip
    device = pick_device(read_ranks())
    model.objective.to(device)
    settings = Settings(
        sampling_rate=args.sampling_rate, view_fps=args.view_fps, watched=progress("rebuild", stream.frames)
    )
    notes = [*model.notes]
    plan = clip_windows(stream, model, settings, notes, stream.frame_at(args.start))
    if set(paths) == {".png"}:
        plan = plan[:1]
    outputs = Outputs(paths, stream, model, plan, settings.step(model, stream.fps), args)
    outputs.write(rebuild(stream, model, settings, device, plan, args.seed), notes)
    for note in [*notes, *stream.notes]:
        print(f"note: {note}", file=sys.stderr)
    print(outputs.summary())
    for path in paths.values():
        print(f"written: {path}")


def _check(args: argparse.Namespace) -> None:
    import math

    if args.mask_ratio is not None and not 0 < args.mask_ratio < 1:
        raise RecipeError("--mask-ratio", found=args.mask_ratio, expected="a number between 0 and 1, as 0.9")
    if not math.isfinite(args.start) or args.start < 0:
        raise RecipeError("--start", found=args.start, expected="a second of the video, 0 or more")
    if not 0 <= args.seed < 1 << 63:
        raise RecipeError("--seed", found=args.seed, expected="a whole number, 0 or more")
    for name in ("sampling_rate", "view_fps"):
        value = getattr(args, name)
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise RecipeError(f"--{name.replace('_', '-')} must be positive", found=value, expected="a number above 0")
