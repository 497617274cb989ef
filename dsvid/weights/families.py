"""The register of checkpoint families, and the choice among them."""

from __future__ import annotations

from dsvid.errors import CheckpointError
from dsvid.weights.family import Family, plain_shapes
from dsvid.weights.hf import HF
from dsvid.weights.internvideo2 import INTERNVIDEO2
from dsvid.weights.own import DSVID
from dsvid.weights.source import WeightFile
from dsvid.weights.videomae import MGMAE, MME, MVD, SIGMA, SMILE, UMT, VIDEOMAE, VIDEOMAEV2, has_layout
from dsvid.weights.vivit import VIVIT

# Guesses are asked in this order: the general one last.
FAMILIES: tuple[Family, ...] = (
    DSVID, INTERNVIDEO2, HF, VIVIT, MVD, UMT, SIGMA, MME, SMILE, MGMAE, VIDEOMAEV2, VIDEOMAE,
)  # fmt: skip


def family_names() -> tuple[str, ...]:
    """Every family by name."""
    return tuple(sorted(family.name for family in FAMILIES))


def choose_family(file: WeightFile, asked: str = "auto") -> tuple[Family, str]:
    """The family of a file and the sentence why. Raises CheckpointError for a name or a layout that is not known."""
    by_name = {family.name: family for family in FAMILIES}
    if asked != "auto" and asked not in by_name:
        raise CheckpointError(
            f"unknown checkpoint family {asked!r}", expected=", ".join(("auto", *family_names())), fix="family=auto"
        )
    if file.own is not None:
        if asked not in ("auto", "dsvid"):
            # Another family's rules would put its own heads, positions and eps in place of the stated ones.
            raise CheckpointError(
                f"{file.path} is no file of family {asked}",
                found="dsvid's own description of the model",
                expected="family dsvid, or auto",
                fix="--from dsvid, --family dsvid or model.init_family=dsvid, or leave it out",
            )
        return DSVID, "it describes its model itself"
    shapes = plain_shapes(file)
    certain = next(((family, why) for family in FAMILIES if (why := family.marks(shapes))), None)
    if asked == "hf" and certain and certain[0] is VIVIT:
        return certain  # transformers has two video models; which one, the names say
    if asked != "auto":
        _check_asked(by_name[asked], certain, file)
        return by_name[asked], "as asked" + (f"; {certain[1]}" if certain else "")
    if certain:
        return certain
    guessed = next(((family, why) for family in FAMILIES if (why := family.guess(shapes))), None)
    if guessed is None:
        raise CheckpointError(
            f"{file.path} is of no family that dsvid knows",
            found=", ".join(sorted(file.tensors)[:4]),
            expected=f"one of {', '.join(family_names())}; or these names behind another prefix: remove it",
        )
    return guessed


def _check_asked(family: Family, certain: tuple[Family, str] | None, file: WeightFile) -> None:
    """Raise CheckpointError where the file cannot be of the family that was asked for."""
    shapes = plain_shapes(file)
    found = expected = ""
    if certain is not None and certain[0] is not family:
        found, expected = certain[1], f"family={certain[0].name}, or auto"
    elif certain is None and family.layout != "videomae":
        found, expected = f"names as {', '.join(sorted(file.tensors)[:3])}", f"the names of {family.name}"
    elif certain is None and not has_layout(shapes):
        found = f"names as {', '.join(sorted(file.tensors)[:3])}"
        expected = "blocks.0.attn.q_bias or encoder.blocks.0.attn.q_bias"
    elif family.refuses(shapes):
        found, expected = family.refuses(shapes), f"the layout of {family.name}"
    if found:
        raise CheckpointError(
            f"{file.path} is no file of family {family.name}", found=found, expected=expected, fix="family=auto"
        )
