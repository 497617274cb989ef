"""What stands before the program in a command: the launcher, and how many processes it starts.

Knows torch.distributed.launch, torchrun, deepspeed, srun (with the script's #SBATCH lines), mpirun and plain python.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from dsvid.migrate.shell_words import Command

_DIRECTIVE = re.compile(r"^#SBATCH[ \t]+(.+?)[ \t]*(?:#.*)?$", re.M)
_TORCH = {"torchrun", "torch.distributed.launch", "torch.distributed.run"}


@dataclass(frozen=True)
class Launch:
    """A program as it is started. `world` is the number of processes, None where the script does not say it;
    `nodes` likewise. `how` is the text that says where the number comes from.
    """

    program: str
    arguments: tuple[str, ...]
    launcher: str
    world: int | None
    nodes: int | None
    how: str
    environment: Mapping[str, str]
    line: int


def slurm_words(text: str) -> list[str]:
    """The options of a script's #SBATCH lines."""
    return [word for row in _DIRECTIVE.findall(text) for word in row.split()]


def find_launch(command: Command, files: Collection[str], slurm: Sequence[str] = ()) -> Launch | None:
    """The launch of one of the programs `files` in a command, or None where it starts none of them."""
    for place, word in enumerate(command.words):
        module = place > 0 and command.words[place - 1] == "-m"
        name = f"{word.rsplit('.', 1)[-1]}.py" if module else PurePosixPath(word).name
        if name in files:
            path = word.replace(".", "/") + ".py" if module else word
            launcher, world, nodes, how = _processes(command.words[:place], slurm)
            return Launch(
                path, command.words[place + 1 :], launcher, world, nodes, how, command.environment, command.line
            )
    return None


def _processes(before: Sequence[str], slurm: Sequence[str]) -> tuple[str, int | None, int | None, str]:
    """(launcher, processes, nodes, where the number comes from)."""
    names = {PurePosixPath(word).name for word in before}
    if names & _TORCH:
        launcher = "torchrun" if "torchrun" in names else "torch.distributed.launch"
        each, nodes = _number(before, "nproc_per_node"), _number(before, "nnodes", missing=1)
        return launcher, _product(each, nodes), nodes, "--nproc_per_node × --nnodes"
    if "deepspeed" in names:
        return _deepspeed(before)
    if "srun" in names:
        return _srun(before, slurm)
    if names & {"mpirun", "mpiexec"}:
        number = _number(before, "np", "n")
        return "mpirun", number, None, "-np"
    return "python", 1, 1, "one process: no launcher"


def _deepspeed(before: Sequence[str]) -> tuple[str, int | None, int | None, str]:
    include = _value(before, "include", "i")
    if include:
        hosts = include.split("@")
        slots = [host.partition(":")[2].split(",") for host in hosts]
        known = all(each != [""] for each in slots)
        return "deepspeed", sum(map(len, slots)) if known else None, len(hosts), "--include"
    remote = _value(before, "hostfile", "H") is not None
    nodes = _number(before, "num_nodes", missing=None if remote else 1)
    each = _number(before, "num_gpus", "num_accelerators")
    return "deepspeed", _product(each, nodes), nodes, "--num_gpus × --num_nodes"


def _srun(before: Sequence[str], slurm: Sequence[str]) -> tuple[str, int | None, int | None, str]:
    for words, where in ((before, "srun"), (slurm, "#SBATCH")):
        tasks = _number(words, "ntasks", "n")
        nodes = _number(words, "nodes", "N") or _number(slurm, "nodes", "N")
        each = _number(words, "ntasks_per_node") or _number(slurm, "ntasks_per_node")
        if tasks is not None:
            return "srun", tasks, nodes or (tasks // each if each and tasks % each == 0 else None), f"{where} --ntasks"
        if each and nodes:
            return "srun", each * nodes, nodes, "--ntasks-per-node × --nodes"
    return "srun", None, None, "the job's --ntasks, which the script does not name"


def _product(one: int | None, other: int | None) -> int | None:
    return None if one is None or other is None else one * other


def _number(words: Sequence[str], *names: str, missing: int | None = None) -> int | None:
    value = _value(words, *names)
    if value is None:
        return missing
    return int(value) if value.isdecimal() and int(value) > 0 else None


def _value(words: Sequence[str], *names: str) -> str | None:
    """Value of the last of `--name value`, `--name=value`, `-n value`, `-n4`; `-` and `_` within a name are one."""
    found = None
    for place, word in enumerate(words):
        bare, equals, value = word.partition("=")
        name = bare.lstrip("-").replace("-", "_")
        if not word.startswith("-"):
            continue
        if name in names:
            found = value if equals else next(iter(words[place + 1 : place + 2]), "")
        elif re.fullmatch(r"-[A-Za-z]\d+", word) and word[1] in names:
            found = word[2:]
    return found
