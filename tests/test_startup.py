"""What the ranks compare at the start."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from dsvid.recipe import load_recipe
from dsvid.runtime import Ranks
from dsvid.startup import source_hash, start_facts


def test_the_hash_is_that_of_names_and_contents(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "a.py").write_text("x = 1\n")
    (tmp_path / "data" / "b.yaml").write_text("x: 1\n")
    first = source_hash(tmp_path)
    (tmp_path / "notes.txt").write_text("not a source file")
    assert source_hash(tmp_path) == first
    (tmp_path / "a.py").write_text("x = 2\n")
    changed = source_hash(tmp_path)
    (tmp_path / "a.py").rename(tmp_path / "c.py")
    assert len({first, changed, source_hash(tmp_path), source_hash()}) == 4


def test_everything_that_must_be_the_same_is_told() -> None:
    job: Any = SimpleNamespace(recipe=load_recipe("demo_pretrain"), config={"bf16": {}}, lists={"train": "abc"})
    facts = start_facts(job, Ranks(1, 4, 1))
    assert facts["WORLD_SIZE"] == 4 and facts["SHA-256 of data"] == {"train": "abc"} and facts["ds"] == {"bf16": {}}
    assert facts["recipe"]["run"]["seed"] == 0 and facts["dsvid"]["source files"] == source_hash()
    assert {"python", "torch", "deepspeed", "numpy", "av"} <= facts["version of"].keys()
