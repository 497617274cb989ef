"""What has to be right before a launcher is started: hostfile, `.deepspeed_env`, arguments, and hosts that answer.

Knows the `deepspeed` launcher's command line and what it makes of it (one string for a shell on every node); imports
no torch and starts no training.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from dsvid.errors import RecipeError

HOSTFILE = "/job/hostfile"  # where the deepspeed launcher looks without --hostfile
MAX_SLOTS = 1024
HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# The launcher hands variables that begin so from its own environment to the other nodes.
EXPORTED = ("MLFLOW", "PYTHON", "MV2", "UCX", "NCCL")
# It puts a value with odd characters between double quotes, and nothing more: a shell still reads the first four of
# these there. `'` and `;` are safe in quotes, but not in other launchers of the same file.
UNSAFE_VALUE = re.compile(r"[$`\"\\';\x00-\x1f\x7f]")
# A word without a blank is not quoted at all, one with a blank gets double quotes (those in it a backslash).
# `[0.9,0.95]` survives.
UNSAFE_BARE = re.compile(r"[^\w@%+=:,./\[\]^-]")
UNSAFE_QUOTED = re.compile(r"[$`\\\x00-\x1f\x7f]")
PDSH_NUMBER = re.compile(r"%[hun%]")  # pdsh puts the host, the user or the number of the node in its place
SECRET = re.compile(r"KEY|TOKEN|SECRET|PASS", re.IGNORECASE)


@dataclass(frozen=True)
class DeepSpeedCommand:
    """A `deepspeed …` command line, read as the launcher reads it."""

    hostfile: Path
    include: str
    exclude: str
    num_nodes: int
    ssh: bool
    force_multi: bool
    ssh_port: int | None
    module: bool
    script: str
    words: tuple[str, ...]

    def hosts(self) -> list[str]:
        """The hosts that it will reach over ssh; none where everything runs here."""
        if not self.ssh or not self.hostfile.is_file():
            return []
        hosts = list(read_hostfile(self.hostfile))
        if self.include:
            named = {part.partition(":")[0] for part in self.include.split("@")}
            hosts = [host for host in hosts if host in named]
        if self.exclude:
            whole = {part for part in self.exclude.split("@") if ":" not in part}
            hosts = [host for host in hosts if host not in whole]
        if self.num_nodes > 0:
            hosts = hosts[: self.num_nodes]
        return hosts if len(hosts) > 1 or self.force_multi else []


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise RecipeError("the `deepspeed` command line", found=message, fix="see `deepspeed --help`")


def deepspeed_parser() -> argparse.ArgumentParser:
    """The launcher's options: which take a value, so that the script is found behind them."""
    parser = _Parser(prog="deepspeed", add_help=False)
    parser.add_argument("-H", "--hostfile", default=HOSTFILE)
    parser.add_argument("-i", "--include", default="")
    parser.add_argument("-e", "--exclude", default="")
    parser.add_argument("--num_nodes", type=int, default=-1)
    parser.add_argument("--num_gpus", "--num_accelerators", type=int, default=-1)
    for name in ("--master_port", "--node_rank", "--ssh_port"):
        parser.add_argument(name, type=int, default=None)
    for name in ("--launcher_args", "--enable_each_rank_log", "--autotuning", "--bind_core_list", "--venv_script"):
        parser.add_argument(name, default=None)
    parser.add_argument("--master_addr", default="")
    parser.add_argument("--launcher", default="pdsh")
    parser.add_argument("--log_level", default="info")
    parser.add_argument("-q", "--quiet", action="store_true")
    for name in ("module", "no_python", "no_local_rank", "no_ssh", "no_ssh_check", "force_multi", "save_pid"):
        parser.add_argument(f"--{name}", action="store_true")
    parser.add_argument("--bind_cores_to_rank", action="store_true")
    parser.add_argument("user_script")
    parser.add_argument("user_args", nargs=argparse.REMAINDER)
    return parser


def read_deepspeed(words: Sequence[str]) -> DeepSpeedCommand:
    """The words behind `deepspeed`. Raises RecipeError where the launcher would not understand them."""
    args = deepspeed_parser().parse_args(list(words))
    if args.no_ssh and args.node_rank is None:
        raise RecipeError("deepspeed --no_ssh needs --node_rank", expected="0 on the first node, 1 on the second, …")
    return DeepSpeedCommand(
        hostfile=Path(args.hostfile),
        include=args.include,
        exclude=args.exclude,
        num_nodes=args.num_nodes,
        ssh=not args.no_ssh and args.launcher.lower() == "pdsh",
        force_multi=args.force_multi,
        ssh_port=args.ssh_port,
        module=args.module,
        script=args.user_script,
        words=tuple(args.user_args),
    )


def check_deepspeed(
    command: DeepSpeedCommand, *, environment: Mapping[str, str], limit_s: float, given: bool
) -> list[str]:
    """Check all that a `deepspeed` command depends on; returns the hosts that it will reach over ssh.

    `given` tells whether --hostfile was on the command line: then it has to be there. Raises RecipeError.
    """
    if given and not command.hostfile.is_file():
        raise RecipeError(f"hostfile {command.hostfile}", found="no such file", fix="one `name slots=N` a line")
    if command.hostfile.is_file():
        _check_filters(command, read_hostfile(command.hostfile))
    hosts = command.hosts()
    if not hosts:
        return []
    for path in environment_files(environment):
        check_environment_file(path)
    if shutil.which("pdsh", path=environment.get("PATH")) is None:
        raise RecipeError("pdsh is not on PATH", fix="install pdsh, or start every node with `deepspeed --no_ssh`")
    check_words([command.script, *command.words])
    check_exported(environment)
    folder = os.path.abspath(".")
    if UNSAFE_BARE.search(folder):
        raise RecipeError(f"the folder {folder!r} cannot be reached through pdsh", fix="a path of plain characters")
    check_hosts(hosts, limit_s=limit_s, port=command.ssh_port, script=None if command.module else command.script)
    return hosts


def read_hostfile(path: Path) -> dict[str, int]:
    """Host names and slots of a hostfile (`name slots=N` a line, `#` comments), in its order.

    Raises RecipeError with the line where a host comes twice, a name holds anything but letters, digits, `.`, `_`, `-`,
    or slots are not 1 to 1024; the launcher would start none of these, or something else.
    """
    try:
        text = path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"hostfile {path} cannot be read", found=str(error)) from error
    hosts: dict[str, int] = {}
    lines: dict[str, int] = {}
    for number, line in enumerate(text.split("\n"), 1):
        where = f"hostfile {path}, line {number}"
        if line.endswith("\r"):
            raise RecipeError(f"{where}: a line end of DOS", fix=f"sed -i 's/\\r$//' {shlex.quote(str(path))}")
        entry = line.split("#")[0].strip(" \t")
        if not entry:
            continue
        name, slots = _host_entry(where, entry)
        if name in hosts:
            raise RecipeError(
                f"hostfile {path}, line {number}: {name} is there twice",
                found=f"line {lines[name]} names it too",
                fix=f"one line: {name} slots={hosts[name] + slots}",
            )
        hosts[name], lines[name] = slots, number
    if not hosts:
        raise RecipeError(f"hostfile {path} names no host", expected="a line like: node1 slots=8")
    return hosts


def _host_entry(where: str, entry: str) -> tuple[str, int]:
    name, *rest = entry.split()
    if not HOST.fullmatch(name) or len(name) > 253:
        raise RecipeError(
            f"{where}: not a host name",
            found=repr(name),
            expected="letters, digits, `.`, `_` and `-`",
            fix="a user name or a port belongs into ~/.ssh/config",
        )
    number = re.fullmatch(r"slots=([0-9]+)", rest[0]) if len(rest) == 1 else None
    if number is None:
        raise RecipeError(f"{where}: not understood", found=repr(entry), expected=f"{name} slots=8")
    slots = int(number[1]) if len(number[1]) < 9 else MAX_SLOTS + 1
    if not 1 <= slots <= MAX_SLOTS:
        raise RecipeError(
            f"{where}: slots of {name}",
            found=rest[0],
            expected=f"the number of its devices, 1 to {MAX_SLOTS}",
            fix="leave the line out to leave the host out" if slots == 0 else None,
        )
    return name, slots


def _check_filters(command: DeepSpeedCommand, hosts: dict[str, int]) -> None:
    """--include and --exclude name hosts and slots of the hostfile."""
    for option, text in (("--include", command.include), ("--exclude", command.exclude)):
        for part in filter(None, text.split("@")):
            name, _, slots = part.partition(":")
            wrong = [
                slot for slot in filter(None, slots.split(",")) if not slot.isdigit() or int(slot) >= hosts.get(name, 0)
            ]
            if name not in hosts or wrong:
                raise RecipeError(
                    f"{option} {text}",
                    found=f"slot {wrong[0]} of {name}" if name in hosts else f"no host {name} in {command.hostfile}",
                    expected=f"slots 0 to {hosts[name] - 1}" if name in hosts else ", ".join(hosts),
                )


def environment_files(environment: Mapping[str, str]) -> list[Path]:
    """The `.deepspeed_env` files that the launcher reads: in the home folder and here; DS_ENV_FILE is another name."""
    name = environment.get("DS_ENV_FILE") or ".deepspeed_env"
    files = {Path(folder, name).absolute() for folder in (environment.get("HOME") or os.path.expanduser("~"), ".")}
    return sorted(path for path in files if path.is_file())


def check_environment_file(path: Path) -> dict[str, str]:
    """The variables of a `.deepspeed_env` file. Raises RecipeError with name and line where a shell would read more.

    The launcher writes each line into a command for a shell on every node, as `export NAME="VALUE";`.
    """
    found: dict[str, str] = {}
    try:
        lines = path.read_bytes().decode("utf-8").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} cannot be read", found=str(error)) from error
    for number, line in enumerate(lines, 1):
        where = f"{path}, line {number}"
        name, equals, value = line.partition("=")
        if not equals or not NAME.fullmatch(name):
            fix = "leave out blank lines, comments and `export`" if not name.strip() or name[0] in "#e" else None
            raise RecipeError(
                f"{where}: not NAME=VALUE", found=repr(_shown(name, line)), expected="NAME=VALUE", fix=fix
            )
        problem = UNSAFE_VALUE.search(value.removesuffix("\r")) or PDSH_NUMBER.search(value)
        if problem or value.endswith("\r"):
            shown = repr(problem[0]) if problem else "a line end of DOS"
            raise RecipeError(
                f"{where}: the value of {name} cannot be handed to other nodes",
                found=f"{shown}, which the launcher passes to a shell as it is",
                expected="a value without $ ` \" ' \\ ; and %h %u %n %%; no quotes are needed around blanks",
                fix=f"set {name} on the nodes themselves",
            )
        found[name] = value
    return found


def _shown(name: str, line: str) -> str:
    """A line for a message; never a value whose name says that it is secret."""
    return name if SECRET.search(name) else line


def secrets_in(found: Iterable[str]) -> list[str]:
    """Names that look like secrets: what `.deepspeed_env` holds is seen in `ps` on every node."""
    return sorted(name for name in found if SECRET.search(name))


def check_exported(environment: Mapping[str, str]) -> None:
    """The variables that the launcher itself hands on. Raises RecipeError by name where a shell would change one."""
    for name, value in environment.items():
        if name.startswith(EXPORTED) and (problem := UNSAFE_VALUE.search(value) or PDSH_NUMBER.search(value)):
            raise RecipeError(
                f"the variable {name} cannot be handed to other nodes",
                found=f"{problem[0]!r} in it; the launcher exports every {', '.join(f'{p}*' for p in EXPORTED)}",
                fix=f"unset {name}, or give it a plain value",
            )


def check_words(words: Sequence[str]) -> None:
    """The script and its arguments. Raises RecipeError for what would not arrive byte for byte through pdsh."""
    for word in words:
        quoted = " " in word
        problem = (UNSAFE_QUOTED if quoted else UNSAFE_BARE).search(word) or PDSH_NUMBER.search(word)
        if problem or not word:
            raise RecipeError(
                f"the argument {word!r} would not reach the other nodes as it is",
                found=f"{problem[0]!r} in it" if problem else "an empty word",
                expected="plain characters; the launcher hands its arguments to a shell on every node",
                fix="put the value into a recipe file and name that with --recipe",
            )


def check_hosts(hosts: Sequence[str], *, limit_s: float, port: int | None = None, script: str | None = None) -> None:
    """Ask all hosts at once, over ssh, for this Python, this folder and the script. Raises RecipeError with the names.

    `limit_s` bounds the whole check: a host that hangs is named as well.
    """
    end = time.monotonic() + limit_s
    ask = remote_check(sys.executable, os.path.abspath("."), script)
    with ThreadPoolExecutor(max_workers=len(hosts)) as pool:
        answers = list(pool.map(lambda host: _ask_host(host, ask, port, end), hosts))
    failed = [f"{host}: {answer}" for host, answer in zip(hosts, answers, strict=True) if answer]
    if failed:
        raise RecipeError(
            f"{len(failed)} of {len(hosts)} hosts cannot take part; nothing was started",
            found="\n            ".join(failed),
            expected="every host of the hostfile to answer over ssh without a password, with the same paths as here",
            fix=f"try `ssh {failed[0].partition(':')[0]} true`, or leave the host out of the hostfile",
        )


def remote_check(python: str, folder: str, script: str | None) -> str:
    """A line for the shell of a host: says what is missing there and ends with 1, or ends with 0."""
    wanted = [("-x", python, "no Python at"), ("-d", folder, "no folder")]
    if script is not None:
        wanted.append(("-f", os.path.join(folder, script), "no file"))
    return "; ".join(
        f"test {flag} {shlex.quote(path)} || {{ echo {shlex.quote(f'{text} {path}')}; exit 1; }}"
        for flag, path, text in wanted
    )


def _ask_host(host: str, ask: str, port: int | None, end: float) -> str:
    """Why the host cannot take part; empty where it can."""
    left = max(0.1, end - time.monotonic())
    options = ["-o", "BatchMode=yes", "-o", f"ConnectTimeout={max(1, int(left))}"]
    command = ["ssh", *options, *(["-p", str(port)] if port else []), host, ask]
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            errors="replace", start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        return f"ssh cannot be started: {error}"
    # Not communicate(timeout): what ssh itself started (a proxy) would hold the pipes and this check open.
    timer = threading.Timer(left, _kill_session, [process])
    timer.start()
    out, errors = process.communicate()
    expired = not timer.is_alive()
    timer.cancel()
    if expired:
        return "no answer in time"
    if process.returncode == 0:
        return ""
    said = [line for line in (out + errors).splitlines() if line.strip()]
    return said[-1].strip() if said else f"ssh ended with {process.returncode}"


def _kill_session(process: subprocess.Popen[str]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, 9)
