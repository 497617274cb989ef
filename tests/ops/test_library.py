"""What torch asks of an op: schema, fake kernels, functionalisation, torch.compile, threads, forks."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from dsvid import ops
from dsvid.tokens import TubeletGrid

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
GRID = TubeletGrid(6, 32, 48, 2, 8)


def make_clip(batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(batch)
    return torch.randint(0, 256, (batch, 6, 32, 48, 3), dtype=torch.uint8, generator=generator)


def prepare(clip: Tensor, seeds: Tensor, dtype: torch.dtype = torch.bfloat16) -> tuple[Tensor, Tensor, Tensor]:
    plan = ops.plan_tokens(seeds, GRID, 18, 2)
    patches, targets = ops.gather_tokens(
        clip, plan.visible, plan.targets, GRID, mean=MEAN, std=STD, norm_pix=True, dtype=dtype
    )
    weight = plan.target_weight
    assert weight is not None
    return patches, targets * weight[:, :, None], plan.decoded


@pytest.mark.parametrize("cell_drop", [0, 2])
def test_opcheck_plan(each_backend: str, cell_drop: int) -> None:
    torch.library.opcheck(torch.ops.dsvid.plan_tokens.default, (torch.arange(3), 3, 4, 6, 18, cell_drop))


@pytest.mark.parametrize("norm_pix", [True, False])
def test_opcheck_gather(each_backend: str, norm_pix: bool) -> None:
    visible, decoded, _ = torch.ops.dsvid.plan_tokens(torch.arange(2), 3, 4, 6, 18, 0)
    settings = (2, 8, MEAN, STD, norm_pix)
    arguments = (make_clip(), visible, decoded, *settings)
    torch.library.opcheck(torch.ops.dsvid.gather_tokens.default, (*arguments, torch.float16, torch.float32))
    out = {"patches": torch.empty(2, visible.shape[1], 384), "values": torch.empty(2, decoded.shape[1], 384)}
    torch.library.opcheck(torch.ops.dsvid.gather_tokens.out, arguments, out)


def test_compiles_as_one_graph(each_backend: str) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(prepare, fullgraph=True, backend="aot_eager")
    for batch in (2, 3):
        clip, seeds = make_clip(batch), torch.arange(batch)
        assert all(map(torch.equal, compiled(clip, seeds), prepare(clip, seeds)))


def test_compiles_with_reused_buffers(each_backend: str) -> None:
    torch._dynamo.reset()
    plan = ops.plan_tokens(torch.arange(2), GRID, 18)

    def fill(clip: Tensor, patches: Tensor, targets: Tensor) -> Tensor:
        out = (patches, targets)
        ops.gather_tokens(clip, plan.visible, plan.targets, GRID, mean=MEAN, std=STD, norm_pix=True, out=out)
        return out[1] + 1

    sizes = ((2, plan.visible.shape[1], GRID.values), (2, plan.max_targets, GRID.values))
    eager, traced = ([torch.zeros(size) for size in sizes] for _ in range(2))
    wanted = fill(make_clip(), *eager)
    made = torch.compile(fill, fullgraph=True, backend="aot_eager")(make_clip(), *traced)
    assert torch.equal(made, wanted)
    assert all(map(torch.equal, traced, eager)) and float(traced[1].abs().sum()) > 0


def test_fake_tensors_have_the_shapes_of_real_ones(each_backend: str) -> None:
    real = prepare(make_clip(), torch.arange(2))
    with torch._subclasses.FakeTensorMode():
        fake = prepare(torch.empty(2, 6, 32, 48, 3, dtype=torch.uint8), torch.empty(2, dtype=torch.int64))
    assert [(each.shape, each.dtype) for each in fake] == [(each.shape, each.dtype) for each in real]


def test_threads_do_not_disturb_each_other(each_backend: str) -> None:
    cases = [(make_clip(1 + n % 4), torch.arange(1 + n % 4) + n) for n in range(16)]
    wanted = [prepare(*case) for case in cases]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            for made, expected in zip(pool.map(lambda case: prepare(*case), cases), wanted, strict=True):
                assert all(map(torch.equal, made, expected))


def _sum_in_child(connection: multiprocessing.connection.Connection) -> None:
    connection.send([float(each.double().sum()) for each in prepare(make_clip(), torch.arange(2))])
    connection.close()


def test_works_after_a_fork(each_backend: str) -> None:
    """Loader workers are forked from a process that has used the op."""
    torch.set_num_threads(1)
    wanted = [float(each.double().sum()) for each in prepare(make_clip(), torch.arange(2))]
    context = multiprocessing.get_context("fork")
    mine, theirs = context.Pipe()
    child = context.Process(target=_sum_in_child, args=(theirs,))
    child.start()
    assert mine.poll(60), "the forked process hangs"
    assert mine.recv() == wanted
    child.join(10)
    assert child.exitcode == 0
