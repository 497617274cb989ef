"""Two nodes, a Slurm on them, and what one node computes, each made once; `make test-cluster` runs these tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import nodes as cluster
from tests.cluster import slurm as scheduler
from tests.distributed.conftest import FP32, finish, must_succeed, start_ranks, words

HERE = Path(__file__).parent
STEPS = 24
SAVE_EVERY = 6


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Only where they are asked for, by path or by `-m cluster`: they need root, packages, and minutes."""
    ours = [item for item in items if HERE in item.path.parents]
    for item in ours:
        item.add_marker(pytest.mark.cluster)
    asked = any(
        path == HERE or HERE in path.parents for path in (Path(arg.split("::")[0]).resolve() for arg in config.args)
    )
    if ours and not asked and "cluster" not in (config.option.markexpr or ""):
        items[:] = [item for item in items if item not in ours]
        config.hook.pytest_deselected(items=ours)


def training(out: Path, stage: int) -> list[str]:
    """The words of train.py for the run that all of these tests make."""
    return words(out, FP32, f"ds.zero_optimization.stage={stage}", f"run.save_every={SAVE_EVERY}", steps=STEPS)


@pytest.fixture(scope="session")
def clips() -> str:
    """The cache of built-in clips, made before a node needs it; a node's home folder has none."""
    from dsvid.data.builtin import cache_folder, prepare

    prepare()
    return str(cache_folder())


@pytest.fixture(scope="session")
def one_node(tmp_path_factory: pytest.TempPathFactory, clips: str) -> dict[int, Path]:
    """Run folders of two ranks on this machine, by ZeRO stage: never interrupted, never launched by anything."""
    scratch = tmp_path_factory.mktemp("one-node")
    outs = {stage: scratch / f"z{stage}" for stage in (2, 3)}
    must_succeed(finish(start_ranks(2, [training(out, stage) for stage, out in outs.items()], scratch), timeout=400))
    return outs


def made_nodes(folder: Path, clips: str) -> Iterator[cluster.Nodes]:
    if reason := cluster.missing():
        pytest.skip(reason)
    folder.mkdir(exist_ok=True)
    made = cluster.make_nodes(folder)
    try:
        made.write_environment(f"OMP_NUM_THREADS=1\nDSVID_CACHE={clips}\nDSVID_MARK_OF_THE_TEST=1 two,three\n")
        yield made
    finally:
        cluster.end_nodes(made)


@pytest.fixture(scope="session")
def nodes(tmp_path_factory: pytest.TempPathFactory, clips: str) -> Iterator[cluster.Nodes]:
    """Two nodes with ssh between them."""
    yield from made_nodes(tmp_path_factory.mktemp("nodes"), clips)


@pytest.fixture()
def own_nodes(tmp_path: Path, clips: str) -> Iterator[cluster.Nodes]:
    """Two nodes that one test may damage."""
    yield from made_nodes(tmp_path / "nodes", clips)


@pytest.fixture()
def both(nodes: cluster.Nodes) -> Iterator[tuple[cluster.Node, cluster.Node]]:
    """Both nodes; what a failed test leaves running there is ended."""
    yield nodes.both
    for pid in nodes.left():
        try:
            os.kill(pid, 9)
        except ProcessLookupError:
            continue


@pytest.fixture(scope="session")
def slurm(nodes: cluster.Nodes) -> scheduler.Slurm:
    """A Slurm on both nodes."""
    if reason := scheduler.missing():
        pytest.skip(reason)
    return scheduler.start_slurm(nodes)
