"""Weights in and out: checkpoint families, consolidation of ZeRO shards, the self-describing weight folder."""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    # `dsvid consolidate` needs no model code: load_model is imported when it is asked for.
    if name == "load_model":
        from dsvid.weights.load import load_model

        return load_model
    raise AttributeError(name)
