"""InternVideo2 (single_modality): distilled S/B/L, stage-1 1B/6B and fine-tuned files.

Its learned table is one of 8 frames, or separate tables for space, time and the class token.
"""

from __future__ import annotations

from dsvid.tokens import TubeletGrid
from dsvid.weights.family import Contents, Facts, Family, Shapes, facts_of_vit, find, square_grid

_FRAMES = 8  # of pre-training; a joint table says nowhere how its rows divide into time and space
_TEACHER = "a decoder or table of pre-training"


def _marks(shapes: Shapes) -> str:
    mark = find(shapes, "blocks.0.attn.q_norm.weight", "blocks.0.ls1.gamma")
    return f"{mark} is InternVideo2's name" if mark else ""


def _describe(contents: Contents) -> Facts:
    shapes = contents.shapes
    facts = facts_of_vit(contents)
    facts |= {"internvideo2": True, "positions": "learned", "norm_eps": 1e-6}
    pool = shapes.get("clip_projector.cross_attn.proj.weight")
    if pool:
        facts["pool_dim"] = pool[0]
    if "pos_embed_spatial" in shapes and "pos_embed_temporal" in shapes:
        side = round(shapes["pos_embed_spatial"][1] ** 0.5)
        frames = shapes["pos_embed_temporal"][1]
        facts |= {"positions": "learned_separate"}
    else:
        grid = _joint_grid(shapes["pos_embed"][1] - 1) if "pos_embed" in shapes else None
        frames, side = (grid[0], grid[1]) if grid else (_FRAMES, 224 // facts["patch"])
    return {**facts, "num_frames": frames * facts["tubelet"], "input_size": side * facts["patch"]}


def _joint_grid(rows: int) -> tuple[int, int, int] | None:
    """The grid of a joint table: 8 slots where they leave a square (the originals' assumption), else 16, 4, …"""
    return next((grid for frames in (_FRAMES, 16, 4, 32, 12, 24, 2, 1) if (grid := square_grid(rows, frames))), None)


def _stored_grid(contents: Contents, target: TubeletGrid) -> tuple[int, int, int] | None:
    rows = contents.shapes["pos_embed"][1] - 1
    same = rows == target.tokens
    # A fine-tuned file of the model's own size is taken as it is; a pre-training file has 8 slots where it can.
    if same and ("fc_norm.weight" in contents.entries or square_grid(rows, _FRAMES) is None):
        return (target.t, target.h, target.w)
    return _joint_grid(rows)


INTERNVIDEO2 = Family(
    "internvideo2",
    layout="internvideo2",
    positions="learned",
    marks=_marks,
    describe=_describe,
    stored_grid=_stored_grid,
    frames=_FRAMES,
    inflates=True,
    dropped=(
        (r"clip_decoder\.", _TEACHER),
        (r"final_clip_decoder\.", _TEACHER),
        (r"mae_decoder\.", _TEACHER),
        (r"(clip|mae|img)_pos_embed", _TEACHER),
    ),
)
