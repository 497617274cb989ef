"""How many processes a launch line starts, and what it says when it does not say it."""

from __future__ import annotations

import pytest

from dsvid.migrate.launcher import find_launch
from dsvid.migrate.shell_words import Command

FILES = {"run_x.py"}


@pytest.mark.parametrize(
    ("before", "slurm", "launcher", "world", "nodes"),
    [
        ("python", "", "python", 1, 1),
        ("python -u", "", "python", 1, 1),
        ("python -m torch.distributed.launch --nproc_per_node=8 --nnodes 4", "", "torch.distributed.launch", 32, 4),
        (
            "python3 -m torch.distributed.launch --nproc_per_node 8 --nnodes=2 --nnodes=4",
            "",
            "torch.distributed.launch",
            32,
            4,
        ),
        ("torchrun --nproc-per-node 4 --standalone", "", "torchrun", 4, 1),
        ("/env/bin/torchrun --nproc_per_node=gpu", "", "torchrun", None, 1),
        ("srun torchrun --nnodes=${SLURM_NNODES} --nproc_per_node=8", "--nodes=2", "torchrun", None, None),
        ("deepspeed --num_gpus=8", "", "deepspeed", 8, 1),
        ("deepspeed --num_gpus 8 --num_nodes 2 --hostfile h", "", "deepspeed", 16, 2),
        ("deepspeed --hostfile h", "", "deepspeed", None, None),
        ("deepspeed", "", "deepspeed", None, 1),
        ("deepspeed --include localhost:0,2,3", "", "deepspeed", 3, 1),
        ("deepspeed --include=a:0,1@b:0", "", "deepspeed", 3, 2),
        ("deepspeed --include a", "", "deepspeed", None, 1),
        ("srun -p v --ntasks=16 --ntasks-per-node=8 python -u", "", "srun", 16, 2),
        ("srun -n16 python", "", "srun", 16, None),
        ("srun -N 2 --ntasks-per-node 4 python", "", "srun", 8, 2),
        ("srun python", "--nodes=2 --ntasks-per-node=4", "srun", 8, 2),
        ("srun python", "-n 4", "srun", 4, None),
        ("srun --ntasks=${GPUS} python", "", "srun", None, None),
        ("srun python", "", "srun", None, None),
        ("mpirun -np 4 python", "", "mpirun", 4, None),
    ],
)
def test_processes(before: str, slurm: str, launcher: str, world: int | None, nodes: int | None) -> None:
    command = Command((*before.split(), "dir/run_x.py", "--a", "1"), {}, 3)
    found = find_launch(command, FILES, slurm.split())
    assert found is not None
    assert (found.launcher, found.world, found.nodes) == (launcher, world, nodes)
    assert (found.program, found.arguments, found.line) == ("dir/run_x.py", ("--a", "1"), 3)


def test_a_module_and_another_program() -> None:
    found = find_launch(Command(("python", "-m", "code.run_x", "--a"), {}, 1), FILES)
    assert found is not None and (found.program, found.arguments) == ("code/run_x.py", ("--a",))
    assert find_launch(Command(("python", "run_y.py"), {}, 1), FILES) is None
    assert find_launch(Command(("python", "run_x.py.bak"), {}, 1), FILES) is None
