"""`dsvid convert SRC DST`: weights of any known family -> a dsvid, Hugging Face or VideoMAE layout."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsvid.errors import CheckpointError, DsvidError

if TYPE_CHECKING:
    from dsvid.models.spec import ModelSpec
    from dsvid.weights.card import Card

# In the names of tensors that only a pre-training model has a place for.
DECODER = ("decoder", "mask_token")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the subcommand."""
    parser.add_argument("source", type=Path, metavar="SRC", help="a weight file or folder")
    parser.add_argument("destination", type=Path, metavar="DST", help="a new folder (--to videomae: a .pth file)")
    parser.add_argument("--from", dest="family", default="auto", metavar="FAMILY", help="auto (default) or a family")
    parser.add_argument("--to", choices=("dsvid", "hf", "videomae"), default="dsvid", help="layout (default: dsvid)")
    parser.add_argument("--overwrite", action="store_true", help="replace DST where it is what this command writes")
    parser.add_argument("overrides", nargs="*", metavar="a.b=v",
                        help="num_classes=, num_heads=, num_frames=, image_size=, final_norm_policy=, decoder_heads=, "
                        "labels=FILE, head_map=FILE, …")  # fmt: skip
    parser.epilog = "example: dsvid convert videomae_base.pth weights/videomae --to hf num_classes=0"


def run(args: argparse.Namespace) -> None:
    """Load, print what became of every tensor, write."""
    from dsvid.cli.overrides import model_overrides
    from dsvid.weights.card import read_card
    from dsvid.weights.export import check_destination, export
    from dsvid.weights.folder import check_finite

    check_destination(args.to, args.destination, overwrite=args.overwrite)
    if not args.source.exists():
        raise CheckpointError(f"{args.source}: nothing there", expected="a weight file or folder")
    overrides = model_overrides(args.overrides)
    labels = overrides.pop("labels", None)
    card = read_card(args.source)
    model, report, remark = load_whole(args.source, args.family, given_there(card) | overrides)
    spec: ModelSpec = model.spec
    card = name_classes(card, spec, labels)
    state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    check_finite(state, args.source)
    print(f"{args.source}\n{describe(model, report)}")
    for line in (remark, *new_parts(report)):
        if line:
            print(line)
    origin = {**card.trained, "converted_from": args.source.name}
    remarks = export(args.to, args.destination, state, spec, replace(card, trained=origin), overwrite=args.overwrite)
    for line in remarks:
        print(line)
    count = sum(tensor.numel() for tensor in state.values())
    print(f"{args.destination}: {args.to}, {len(state)} tensors, {count / 1e6:.2f} M in fp32")


def given_there(card: Card) -> dict[str, Any]:
    """What a folder that dsvid wrote for transformers says of its model beside transformers' own keys."""
    return {"pooled_eps": card.model["pooled_eps"]} if "pooled_eps" in card.model else {}


def load_whole(source: Path, family: str, overrides: dict[str, Any]) -> tuple[Any, Any, str | None]:
    """(model, report, remark): of a pre-training file the autoencoder where its decoder can be built, else the encoder
    alone, which the remark says.
    """
    from dsvid.weights.load import load_model

    chosen = dict(overrides)
    classes = chosen.pop("num_classes", None)
    model, report = load_model(source, family, classes, **chosen)
    decoder = any(part in name for name in report.dropped for part in DECODER)
    if classes is not None or "task" in chosen or not decoder:
        return model, report, None
    try:
        whole, of_whole = load_model(source, family, None, **chosen, task="pretrain")
    except DsvidError as error:
        reason = "; ".join(str(part) for part in (error.what, error.found, error.fix) if part)
        return model, report, f"the encoder alone, without the decoder: {reason}"
    return whole, of_whole, "with its decoder, as a pre-training model (num_classes=0: the encoder alone)"


def describe(model: Any, report: Any) -> str:
    """What was recognised, and the table of tensors."""
    spec, grid = model.spec, model.grid
    size = spec.encoder_size
    head = f"{spec.num_classes} classes" if spec.num_classes else "no head"
    kind = "pre-training model" if spec.task == "pretrain" else f"encoder, {head}"
    return "\n".join(
        (
            f"{kind}: width {size.dim}, {size.depth} blocks, {size.heads} heads, patch {size.patch}, "
            f"{grid.frames} frames of {grid.height} x {grid.width}, tubelet {grid.tubelet}",
            report.table() if hasattr(report, "table") else "\n".join(report.lines()),
        )
    )


def new_parts(report: Any) -> list[str]:
    """Warnings about what the source does not hold."""
    if not report.missing:
        return []
    return [f"not in the source, so with initial values: {', '.join(report.missing[:6])}"]


def name_classes(card: Card, spec: ModelSpec, labels: Any) -> Card:
    """The card with the names of `labels`, else with its own where they fit the head. Raises CheckpointError."""
    from dsvid.weights.card import read_labels

    if labels is not None:
        names = read_labels(Path(str(labels)))
        if len(names) != spec.num_classes:
            raise CheckpointError(
                f"labels={labels} does not fit the head",
                found=f"{len(names)} names",
                expected=f"{spec.num_classes} classes",
                fix="another file, or num_classes=",
            )
        return card.with_labels(names, f"labels={labels}")
    if card.labels and len(card.labels) != spec.num_classes:
        if spec.num_classes:
            print(f"class names: the source has {len(card.labels)}, the model {spec.num_classes}; left out")
        return replace(card, labels=())
    return card
