"""The families with VideoMAE's block and names: VideoMAE, V2, MGMAE, SMILE, SIGMA, MME, MVD, UMT.

They differ in what lies beside the encoder in a pre-training file, and in the position table.
"""

from __future__ import annotations

from pathlib import Path

from torch import nn

from dsvid.tokens import UMT_GRID, TubeletGrid
from dsvid.weights.family import Contents, Facts, Family, Shapes, facts_of_vit, find, square_grid
from dsvid.weights.fit import FinalNormPolicy, fit_shapes
from dsvid.weights.report import LoadReport
from dsvid.weights.source import open_weights

DECODER = (
    (r"decoder\.", "the decoder of pre-training"),
    (r"encoder_to_decoder\.", "the decoder of pre-training"),
    (r"mask_token$", "the decoder of pre-training"),
)
_COMPUTED_TABLE = (r"(encoder\.)?pos_embed$", "the position table is computed from the grid")


def _any(shapes: Shapes, *starts: str) -> str:
    return next((name for name in shapes if name.startswith(starts)), "")


def has_layout(shapes: Shapes) -> bool:
    """Whether the encoder has VideoMAE's names (biases of q and v apart, none of k)."""
    return bool(find(shapes, "encoder.blocks.0.attn.q_bias", "blocks.0.attn.q_bias"))


def _sigma(shapes: Shapes) -> str:
    mark = find(shapes, "prototypes", "head.0.weight")
    return f"{mark} beside an encoder is SIGMA's" if mark and _any(shapes, "encoder.") else ""


def _mme(shapes: Shapes) -> str:
    mark = _any(shapes, "encoder_to_decoder.0.", "decoder.0.", "encoder_q.encoder.", "encoder.model.blocks.")
    return f"{mark} is MME's name" if mark and has_layout(_mme_plain(shapes)) else ""


def _mme_plain(shapes: Shapes) -> Shapes:
    return {name.removeprefix("encoder_q.").replace("encoder.model.", "encoder."): s for name, s in shapes.items()}


def _mvd(shapes: Shapes) -> str:
    mark = _any(shapes, "decoder_img.", "decoder_vid.", "mask_token_img", "mask_token_vid")
    return f"{mark} is the name of one of MVD's two decoders" if mark else ""


def _umt(shapes: Shapes) -> str:
    mark = _any(shapes, "clip_decoder.")
    return f"{mark} beside VideoMAE's block is UMT's" if mark and has_layout(shapes) else ""


def _umt_guess(shapes: Shapes) -> str:
    kernel = shapes.get(find(shapes, "encoder.patch_embed.proj.weight", "patch_embed.proj.weight"), ())
    if len(kernel) != 5 or kernel[2] != 1 or not has_layout(shapes):
        return ""
    return "VideoMAE's block with tubelets of one frame: UMT alone has these"


def _smile_guess(shapes: Shapes) -> str:
    kernel, head = shapes.get("encoder.patch_embed.proj.weight", ()), shapes.get("decoder.head.weight", ())
    if len(kernel) != 5 or not head:
        return ""
    pixels = kernel[1] * kernel[2] * kernel[3] * kernel[4]
    return f"the decoder predicts {head[0]} features of a teacher, not {pixels} pixels" if head[0] != pixels else ""


def _videomae_guess(shapes: Shapes) -> str:
    if not has_layout(shapes):
        return ""
    if _any(shapes, "encoder."):
        return "VideoMAE's names; files of VideoMAE V2 and MGMAE look the same, and mean the same"
    return (
        "VideoMAE's names, no decoder; fine-tuned files of V2, SIGMA, SMILE, MME and MGMAE look the same and mean the "
        "same, but MVD has another position table: say family=mvd for one of its files"
    )


def _has_prefix(shapes: Shapes) -> str:
    name = _any(shapes, "encoder.")
    return f"{name}: MVD's files have no prefix encoder." if name else ""


def _umt_facts(contents: Contents) -> Facts:
    facts = facts_of_vit(contents)
    table = contents.shapes.get("pos_embed") or contents.shapes.get("encoder.pos_embed")
    sites = (224 // facts["patch"]) ** 2
    if table and table[1] % sites == 0:
        facts["num_frames"] = table[1] // sites * facts["tubelet"]
    return facts


def _umt_grid(contents: Contents, target: TubeletGrid) -> tuple[int, int, int] | None:
    """UMT says nowhere what its table is for: the model's own grid where it fits, else the base grid's sites."""
    rows = (contents.shapes.get("pos_embed") or contents.shapes["encoder.pos_embed"])[1]
    sites = UMT_GRID[1] * UMT_GRID[2]
    if rows == target.tokens:
        return (target.t, target.h, target.w)
    return (rows // sites, *UMT_GRID[1:]) if rows % sites == 0 else square_grid(rows, UMT_GRID[0])


def _family(name: str, **options: object) -> Family:
    settings: dict[str, object] = {"layout": "videomae", "positions": "sincos_flat", "describe": facts_of_vit}
    settings |= {"dropped": (*DECODER, _COMPUTED_TABLE), **options}
    return Family(name, **settings)  # type: ignore[arg-type]


VIDEOMAE = _family("videomae", guess=_videomae_guess)
VIDEOMAEV2 = _family("videomaev2")
MGMAE = _family("mgmae")
SMILE = _family("smile", guess=_smile_guess)
SIGMA = _family(
    "sigma",
    marks=_sigma,
    dropped=(
        *DECODER,
        _COMPUTED_TABLE,
        (r"prototypes$", "SIGMA's prototypes"),
        (r"head\.\d+\.", "SIGMA's projection of teacher features: no classifier"),
        (r"memory", "SIGMA's memory of features"),
    ),
)
MME = _family(
    "mme",
    marks=_mme,
    renames=((r"^encoder_q\.", ""), (r"^encoder\.model\.", "encoder."), (r"^fc\.(weight|bias)$", r"head.\1")),
)
MVD = _family(
    "mvd",
    positions="sincos_separable",
    marks=_mvd,
    refuses=_has_prefix,
    dropped=(
        _COMPUTED_TABLE,
        (r"decoder_(img|vid)\.", "the decoders of distillation"),
        (r"down_(img|vid)\.", "the decoders of distillation"),
        (r"mask_token_(img|vid)$", "the decoders of distillation"),
        (r"pos_embed_(img|vid)$", "the decoders of distillation"),
    ),
)
UMT = _family(
    "umt",
    positions="sincos_umt",
    marks=_umt,
    guess=_umt_guess,
    describe=_umt_facts,
    stored_grid=_umt_grid,
    frames=8,
    dropped=(
        (r"clip_decoder\.", "the decoder of distillation"),
        (r"(encoder\.)?pos_embed$", "UMT's table is computed from the grid (it is never trained)"),
    ),
)


def load_autoencoder(model: nn.Module, path: Path | str) -> LoadReport:
    """Load a VideoMAE-layout pre-training file into a MaskedAutoencoder, in place. Raises CheckpointError."""
    return _load(model, Path(path), "pretrain", "family")


def load_encoder(model: nn.Module, path: Path | str, final_norm: FinalNormPolicy = "family") -> LoadReport:
    """Load the encoder of a VideoMAE-layout file into a VisionTransformer, in place; head and a fresh norm stay as they
    are. Raises CheckpointError.
    """
    return _load(model, Path(path), "classify", final_norm)


def _load(model: nn.Module, path: Path, task: str, final_norm: FinalNormPolicy) -> LoadReport:
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    fitted = fit_shapes(VIDEOMAE.open(open_weights(path)), VIDEOMAE, shapes, task=task, final_norm=final_norm)
    model.load_state_dict({name: fitted.tensor(name) for name in fitted.entries}, strict=False)
    return fitted.report
