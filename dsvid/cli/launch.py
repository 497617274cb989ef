"""`dsvid launch [options] -- COMMAND`: checks, starts the launcher, keeps the save at every signal."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dsvid.errors import RecipeError

DEFAULT_RECIPE = "demo_pretrain"  # train.py's; a test compares them, because that module imports torch
RUNNERS = {"deepspeed": "deepspeed", "torchrun": "torchrun", "srun": "srun", "sbatch": "srun"}
MODULES = {"deepspeed": "deepspeed", "deepspeed.launcher.runner": "deepspeed", "torch.distributed.run": "torchrun",
           "torch.distributed.launch": "torchrun"}  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the subcommand."""
    parser.usage = "dsvid launch [options] -- deepspeed|torchrun|python … dsvid/train.py …"
    parser.add_argument("--grace", type=float, default=600.0, metavar="S",
                        help="seconds that the ranks get to save after a signal (default: 600)")  # fmt: skip
    parser.add_argument("--restarts", type=int, default=0, metavar="N",
                        help="start again up to N times after failures with a new checkpoint before them")  # fmt: skip
    parser.add_argument(
        "--hostfile", type=Path, default=None, help="hands --hostfile to a deepspeed command without one"
    )
    parser.add_argument("--ssh-limit", type=float, default=20.0, metavar="S",
                        help="seconds that all hosts together get to answer over ssh (default: 20)")  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="check, then print what each node would run")
    parser.add_argument("command_words", nargs=argparse.REMAINDER, metavar="COMMAND", help=argparse.SUPPRESS)
    parser.epilog = (
        "SIGTERM, SIGINT, SIGUSR1 -> the ranks save and end -> exit code 75 (start me again). "
        "example: dsvid launch -- deepspeed --hostfile hostfiles/2x8 dsvid/train.py --ds_config ds_configs/zero2.json"
    )


@dataclass(frozen=True)
class Command:
    """A command line, and what it starts."""

    kind: str  # deepspeed, torchrun, python, other
    words: tuple[str, ...]
    launcher_words: tuple[str, ...]  # what stands behind `deepspeed`

    @property
    def training(self) -> bool:
        """Whether it runs dsvid's training program, which saves when it is asked."""
        return any(Path(word).name == "train.py" or word == "dsvid.train" for word in self.words)

    def out(self) -> Path:
        """The run folder of the training."""
        recipe = option(self.words, "--recipe") or DEFAULT_RECIPE
        return Path(option(self.words, "--out") or Path("runs", Path(recipe).stem)).expanduser()


def run(args: argparse.Namespace) -> int:
    """Check, start, supervise; the exit code is the training's: 0, 2, 75, or the launcher's."""
    from dsvid.launching import check_deepspeed, read_deepspeed
    from dsvid.supervisor import Run, launch

    for name, value, least in (
        ("--grace", args.grace, 0),
        ("--restarts", args.restarts, 0),
        ("--ssh-limit", args.ssh_limit, 1),
    ):
        if not least <= value < 1e6:
            raise RecipeError(name, found=value, expected=f"{least} or more")
    command = read_command(args.command_words, args.hostfile)
    hosts: list[str] = []
    port = None
    if command.kind == "deepspeed":
        plan = read_deepspeed(command.launcher_words)
        given = any(word.split("=")[0] in ("-H", "--hostfile") for word in command.launcher_words)
        hosts = check_deepspeed(plan, environment=os.environ, limit_s=args.ssh_limit, given=given)
        port = plan.ssh_port
        warn_of_secrets(hosts)
    if args.dry_run:
        print_plan(command, hosts)
        return 0
    return launch(
        command.words,
        run=Run(command.out()) if command.training else None,
        grace_s=args.grace,
        restarts=args.restarts,
        rank_itself=command.kind == "python",
        keeps_code=command.kind in ("deepspeed", "python"),
        hosts=hosts,
        ssh_port=port,
    )


def read_command(words: Sequence[str], hostfile: Path | None = None) -> Command:
    """What a command line starts. Raises RecipeError where it is none, or one that must not stand below us."""
    rest = list(words[1:] if words[:1] == ["--"] else words)
    if not rest:
        raise RecipeError("no command", expected="dsvid launch -- deepspeed dsvid/train.py --ds_config FILE …")
    name = Path(rest[0]).name
    kind = RUNNERS.get(name, "python" if name.startswith("python") else "other")
    start = 1
    if kind == "python" and "-m" in rest[1:4]:
        start = rest.index("-m") + 2
        kind = MODULES.get(rest[start - 1] if start <= len(rest) else "", "python")
    if kind == "srun":
        raise RecipeError(
            f"{name} below `dsvid launch`: ending it kills its tasks before they save",
            fix="sbatch scripts/slurm/train.sh, or `dsvid slurm`: there every task is asked by itself",
        )
    if hostfile is not None:
        if kind != "deepspeed" or any(word.split("=")[0] in ("-H", "--hostfile") for word in rest):
            raise RecipeError("--hostfile", expected="a deepspeed command that has none of its own")
        rest[start:start] = ["--hostfile", str(hostfile)]
    if shutil.which(rest[0]) is None:
        raise RecipeError(f"{rest[0]} is not on PATH", fix="activate the environment, or give its whole path")
    return Command(kind, tuple(rest), tuple(rest[start:]))


def option(words: Sequence[str], name: str) -> str | None:
    """The last value of a long option of the training program, in both spellings."""
    value = None
    for index, word in enumerate(words):
        if word == name and index + 1 < len(words):
            value = words[index + 1]
        elif word.startswith(f"{name}="):
            value = word.partition("=")[2]
    return value


def warn_of_secrets(hosts: Sequence[str]) -> None:
    """Say which variables of `.deepspeed_env` everybody on the nodes can read."""
    from dsvid.launching import check_environment_file, environment_files, secrets_in
    from dsvid.supervisor import say

    for path in environment_files(os.environ) if hosts else []:
        if names := secrets_in(check_environment_file(path)):
            say(f"{path}: {', '.join(names)} will be seen in `ps` on every node and in the launcher's log")


def print_plan(command: Command, hosts: Sequence[str]) -> None:
    """What would be started: by the launcher over ssh, and the same by hand on every node."""
    print(f"would run   {shlex.join(command.words)}")
    if command.training:
        print(f"run folder  {command.out()}")
    if not hosts:
        return
    print(f"over ssh    {' '.join(hosts)}: all answer, with this Python and this folder")
    print("the same without ssh, one line on each node:")
    first = option(command.launcher_words, "--master_addr") or hosts[0]
    words = ["deepspeed", "--no_ssh", "--master_addr", first]
    rest = [word for word in command.launcher_words if word not in ("--no_ssh_check", "--force_multi")]
    if option(command.launcher_words, "--master_addr"):
        words = words[:2]
    for number, host in enumerate(hosts):
        print(f"  {host}:  dsvid launch -- {shlex.join([*words, '--node_rank', str(number), *rest])}")
