"""VideoMAE and VideoMAE V2 pre-training files (`.pth`): names of the file -> names of our models, with a full
account.

Knows the file layout and our parameter names; reads with `weights_only=True`. The names inside are canonical here
already.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from dsvid.errors import CheckpointError

FinalNorm = Literal["family", "encoder_norm"]

# Parts of a pre-training file that a classifier has no place for.
_DECODER = ("decoder.", "encoder_to_decoder.", "mask_token")
# Parts of a classifier that a pre-training file does not hold.
_FRESH = ("fc_norm.", "head.")


@dataclass
class LoadReport:
    """What became of every tensor: names of our model, except `dropped` and `unexpected`, which are names of the file.

    `dropped` was left out on purpose; `missing` keeps its initial value; `unexpected` has no known use.
    """

    loaded: list[str] = field(default_factory=list)
    reshaped: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """One line per kind, for the log."""
        kinds = {name: getattr(self, name) for name in ("loaded", "reshaped", "dropped", "missing", "unexpected")}
        return [f"{kind}: {len(names)}{_some(names, kind)}" for kind, names in kinds.items()]


def _some(names: list[str], kind: str) -> str:
    if kind == "loaded" or not names:
        return ""
    return f" ({', '.join(names[:4])}{', …' if len(names) > 4 else ''})"


def read_file(path: Path | str) -> dict[str, Tensor]:
    """The state dict inside a `.pth` file, without executing anything from it.

    Raises CheckpointError for a file that is missing, damaged, holds other objects, or no tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such weight file", fix="give the path of a .pth file")
    try:
        # The originals store their command line in the file; no other class is let in.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged zip, a pickle of code, a text file: torch raises a different class for each
        reason = str(error).splitlines()[0] if str(error) else ""
        raise CheckpointError(
            f"{path}: cannot be read as weights",
            found=f"{type(error).__name__}: {reason}",
            expected="a torch file that holds tensors only",
        ) from error
    if isinstance(content, Mapping):
        for key in ("model", "module"):
            if isinstance(content.get(key), Mapping):
                content = content[key]
                break
    if not isinstance(content, Mapping) or not any(isinstance(value, Tensor) for value in content.values()):
        found = sorted(map(str, content))[:5] if isinstance(content, Mapping) else type(content).__name__
        raise CheckpointError(f"{path}: holds no weights", found=found, expected="a state dict, or one under 'model'")
    return {_plain(str(name)): value for name, value in content.items() if isinstance(value, Tensor)}


def _plain(name: str) -> str:
    """The name without what torch.compile and wrappers put before it."""
    return name.removeprefix("_orig_mod.").removeprefix("backbone.")


def autoencoder_state(
    state: Mapping[str, Tensor], shapes: Mapping[str, torch.Size], source: str = "weights"
) -> tuple[dict[str, Tensor], LoadReport]:
    """A pre-training state dict for a MaskedAutoencoder with parameters `shapes`: encoder, decoder and mask token.

    Returns fp32 tensors by our names. Raises CheckpointError for a missing parameter or another shape.
    """
    report = LoadReport()
    out = _take(state, shapes, {name: name for name in state}, report, source)
    _require(shapes, out, (), report, source)
    return out, report


def encoder_state(
    state: Mapping[str, Tensor],
    shapes: Mapping[str, torch.Size],
    source: str = "weights",
    final_norm: FinalNorm = "family",
) -> tuple[dict[str, Tensor], LoadReport]:
    """The encoder of a pre-training state dict for a VisionTransformer with parameters `shapes`.

    `final_norm` "family": the file's `encoder.norm` is dropped and `fc_norm` starts fresh, as in the originals' own
    loader; "encoder_norm": it becomes `fc_norm`. Returns fp32 tensors by our names; `head` and a fresh `fc_norm` are
    reported missing. Raises CheckpointError for a missing backbone parameter or another shape.
    """
    report = LoadReport()
    names: dict[str, str] = {}
    for name in state:
        if name.startswith(_DECODER) or (name.startswith("encoder.norm.") and final_norm == "family"):
            report.dropped.append(name)
        elif name.startswith("encoder.norm."):
            names[name] = name.replace("encoder.norm.", "fc_norm.")
        else:
            names[name] = name.removeprefix("encoder.")
    out = _take(state, shapes, names, report, source)
    _require(shapes, out, _FRESH, report, source)
    return out, report


def _take(
    state: Mapping[str, Tensor],
    shapes: Mapping[str, torch.Size],
    names: Mapping[str, str],
    report: LoadReport,
    source: str,
) -> dict[str, Tensor]:
    out: dict[str, Tensor] = {}
    for theirs, ours in names.items():
        if ours not in shapes:
            report.unexpected.append(theirs)
            continue
        tensor = state[theirs]
        if tensor.shape != shapes[ours]:
            raise CheckpointError(
                f"{source}: {theirs} has another shape than the model",
                found=list(tensor.shape),
                expected=list(shapes[ours]),
                fix="set model.arch, model.tubelet and model.num_classes to what the file was trained with",
            )
        out[ours] = tensor.float()
        report.loaded.append(ours)
    return out


def _require(
    shapes: Mapping[str, torch.Size],
    found: Mapping[str, Tensor],
    optional: tuple[str, ...],
    report: LoadReport,
    source: str,
) -> None:
    report.missing = [name for name in shapes if name not in found]
    lacking = [name for name in report.missing if not optional or not name.startswith(optional)]
    if lacking:
        raise CheckpointError(
            f"{source}: {len(lacking)} of {len(shapes)} parameters are not in the file",
            found=f"no {', '.join(lacking[:4])}; the file has {', '.join(report.unexpected[:3]) or 'nothing else'}",
            expected="a VideoMAE or VideoMAE V2 pre-training file of the same depth",
        )


def load_autoencoder(model: nn.Module, path: Path | str) -> LoadReport:
    """Load a pre-training file into a MaskedAutoencoder, in place."""
    state, report = autoencoder_state(read_file(path), _shapes(model), str(path))
    model.load_state_dict(state)
    return report


def load_encoder(model: nn.Module, path: Path | str, final_norm: FinalNorm = "family") -> LoadReport:
    """Load the encoder of a pre-training file into a VisionTransformer, in place; head and fresh norm stay as they
    are.
    """
    state, report = encoder_state(read_file(path), _shapes(model), str(path), final_norm)
    model.load_state_dict(state, strict=False)
    return report


def _shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: parameter.shape for name, parameter in model.named_parameters()}
