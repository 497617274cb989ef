"""ViViT (arXiv 2103.15691), by transformers' names or as simple-tad converted it to VideoMAE's.

The conversion drops the class token and, exactly, the bias of the keys; its position table stands in the file and is
used on request only (positions="checkpoint"), because simple-tad never uses it.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from dsvid.models.sizes import VIVIT_TRAITS
from dsvid.tokens import TubeletGrid, resize_table
from dsvid.weights.family import Contents, Entries, Facts, Family, Shapes, facts_of_vit, find, plain_shapes
from dsvid.weights.hf import KEY_BIAS, config_facts, has_transformers_names, read_transformers
from dsvid.weights.source import WeightFile, open_weights

_SIDE = 14  # 224 pixels in patches of 16
_FRAMES, _PIXELS = 32, 224  # transformers' defaults, which a config.json may leave out
_POOLER = (r"pooler\.", "transformers' pooler: of no use to a classifier")


def _marks(shapes: Shapes) -> str:
    mark = find(shapes, "vivit.embeddings.cls_token", "embeddings.cls_token")
    return f"{mark} is transformers' name in ViViT" if mark and has_transformers_names(shapes) else ""


def _guess(shapes: Shapes) -> str:
    converted = "encoder.pos_embed" in shapes and "encoder.blocks.0.attn.q_bias" in shapes
    return "encoder.pos_embed beside VideoMAE's names: ViViT as simple-tad converts it" if converted else ""


def _refuses(shapes: Shapes) -> str:
    name = next((name for name in shapes if name.startswith(("decoder.", "clip_decoder."))), "")
    return f"{name}: ViViT has no decoder" if name else ""


def _read(file: WeightFile, cls_token: bool) -> Entries:
    if not has_transformers_names(plain_shapes(file)):
        return Family("", "", "sincos_flat").open(file).entries
    entries = read_transformers(file)
    return entries if cls_token else converted(entries)


def converted(entries: Entries) -> Entries:
    """Entries by transformers' names -> those of simple-tad's conversion: no class token, half the temporal slots."""
    kept = {name: entry for name, entry in entries.items() if name != "encoder.cls_token"}
    table = kept["encoder.pos_embed"]
    slots, dim = (table.shape[1] - 1) // (_SIDE * _SIDE), table.shape[2]
    if slots and slots % 2 == 0 and table.shape[1] == 1 + slots * _SIDE * _SIDE:
        old, new = (slots, _SIDE, _SIDE), (slots // 2, _SIDE, _SIDE)

        def halve(stored: Tensor) -> Tensor:
            return resize_table(stored[0, 1:], old, new)[None].to(stored.dtype)

        shape = (1, table.shape[1] // 2, dim)
        kept["encoder.pos_embed"] = table.then(shape, halve, "class row dropped, pairs of slots averaged")
    else:
        shape = (1, table.shape[1] - 1, dim)
        kept["encoder.pos_embed"] = table.then(shape, lambda stored: stored[:, 1:], "class row dropped")
    return kept


def simple_tad_state(path: Path) -> dict[str, Tensor]:
    """A ViViT file of transformers as simple-tad converts it, in the dtype of the file."""
    file = open_weights(path)
    entries = converted(read_transformers(file))
    state = {name: e.make(*(file.tensors[s] for s in e.sources)).clone() for name, e in entries.items()}
    return {name: tensor for name, tensor in state.items() if not name.endswith("attn.k_bias")}


def _describe(contents: Contents) -> Facts:
    facts = {**facts_of_vit(contents), "norm_eps": 1e-6}
    if "encoder.cls_token" not in contents.entries:
        return {**facts, **_states(contents)}
    return {**facts, **VIVIT_TRAITS, "num_frames": _FRAMES, **config_facts(contents)}


def _states(contents: Contents) -> Facts:
    """Its config.json; of a converted model the heads alone, because simple-tad computes another GELU."""
    config = config_facts(contents)
    return config if "encoder.cls_token" in contents.entries else {k: v for k, v in config.items() if k == "heads"}


def _stored_grid(contents: Contents, target: TubeletGrid) -> tuple[int, int, int] | None:
    cls = "encoder.cls_token" in contents.entries
    table = contents.entries.get("encoder.pos_embed") or contents.entries["pos_embed"]
    rows = table.shape[1] - cls
    if cls and (contents.file.hf or {}).get("model_type") == "vivit":
        _, _, tubelet, patch, _ = contents.shapes["encoder.patch_embed.proj.weight"]
        config = {"num_frames": _FRAMES, "input_size": _PIXELS, **config_facts(contents)}
        side = config["input_size"] // patch
        return (config["num_frames"] // tubelet, side, side)
    if rows == target.tokens:
        return (target.t, target.h, target.w)
    return (rows // (_SIDE * _SIDE), _SIDE, _SIDE) if rows % (_SIDE * _SIDE) == 0 else None


VIVIT = Family(
    "vivit",
    layout="videomae",
    positions="sincos_flat",
    marks=_marks,
    guess=_guess,
    refuses=_refuses,
    read=_read,
    describe=_describe,
    states=_states,
    stored_grid=_stored_grid,
    norm_goes_on=True,
    dropped=(
        KEY_BIAS,
        _POOLER,
        (r"(encoder\.)?pos_embed$", "simple-tad keeps the sin-cos table (positions=checkpoint takes this one)"),
    ),
)
