"""Our own weights: a weight folder, or a `.pth` that dsvid wrote; both describe their model."""

from __future__ import annotations

from dataclasses import asdict

from dsvid.errors import CheckpointError
from dsvid.models.spec import ModelSpec
from dsvid.tokens import TubeletGrid
from dsvid.weights.family import Contents, Facts, Family
from dsvid.weights.videomae import DECODER


def own_spec(contents: Contents) -> ModelSpec:
    """The model that the file describes. Raises CheckpointError where it describes none."""
    path, own = contents.file.path, contents.file.own
    if own is None:
        raise CheckpointError(f"{path} does not say what model it is of", expected="a weight folder of dsvid")
    return ModelSpec.from_config(dict(own), str(path))


def _describe(contents: Contents) -> Facts:
    spec = own_spec(contents)
    facts = {name: value for name, value in asdict(spec).items() if name != "task" or value != "pretrain"}
    return {**facts, "internvideo2": spec.internvideo2}


def _states(contents: Contents) -> Facts:
    spec = own_spec(contents)
    facts: Facts = {"heads": spec.encoder_size.heads, "gelu": spec.gelu, "norm_eps": spec.norm_eps}
    facts |= {"pooled_eps": spec.pooled_eps}
    if spec.internvideo2:
        facts["pool_heads"] = spec.pool_heads
    return facts | ({"decoder_heads": spec.decoder_size.heads} if spec.task == "pretrain" else {})


def _stored_grid(contents: Contents, target: TubeletGrid) -> tuple[int, int, int]:
    grid = own_spec(contents).grid
    return (grid.t, grid.h, grid.w)


DSVID = Family(
    "dsvid",
    layout="dsvid",
    positions="sincos_flat",
    describe=_describe,
    states=_states,
    stored_grid=_stored_grid,
    dropped=DECODER,
)
