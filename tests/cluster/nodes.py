"""Two nodes on one machine: namespaces for network, processes, mounts and host name, joined by a virtual cable.

Nothing of the host is changed: /etc/passwd, /etc/hosts, /run and /dev/shm are replaced in the nodes' own mounts,
the cable has no end on the host, and when a node's first process ends the kernel ends everything in it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
TOOLS = ("unshare", "nsenter", "setpriv", "ip", "sshd", "ssh", "ssh-keygen", "pdsh")
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# The first process of a node. $1 folder of the cluster, $2 name. It never writes outside the folder and its own mounts.
START_NODE = r"""
set -eu
mount --make-rprivate /
mount --bind "$1/passwd-$2" /etc/passwd
mount --bind "$1/hosts" /etc/hosts
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /dev/shm
mkdir -p /run/sshd
hostname "$2"
ip link set lo up
exec "$(command -v sshd)" -D -e -f "$1/sshd_config"
"""

SSHD_CONFIG = """\
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/id.pub
StrictModes no
PermitRootLogin prohibit-password
PasswordAuthentication no
UsePAM no
MaxStartups 100
PidFile none
"""


def missing() -> str:
    """Why the nodes cannot be made here; empty where they can."""
    if os.geteuid() != 0:
        return "needs root: network and process namespaces"
    absent = [tool for tool in TOOLS if shutil.which(tool, path=SYSTEM_PATH) is None]
    if absent:
        return f"{', '.join(absent)} not installed: `make test-cluster` installs what is missing"
    tried = subprocess.run(
        ["unshare", "--net", "--mount", "--uts", "--ipc", "--pid", "--fork", "true"], capture_output=True, text=True
    )
    return "" if tried.returncode == 0 else f"namespaces are not allowed here: {tried.stderr.strip()}"


@dataclass
class Node:
    """One node: its name, its address, and its first process as the host sees it."""

    name: str
    address: str
    folder: Path
    keeper: subprocess.Popen[bytes]
    first: int = 0
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def home(self) -> Path:
        return self.folder / f"home-{self.name}"

    def words(self, command: Sequence[str], cwd: Path, environment: dict[str, str]) -> list[str]:
        """The command as the host has to call it, to run inside the node with this environment and no other."""
        settings = {
            "HOME": str(self.home),
            "PATH": f"{BIN}:{SYSTEM_PATH}",
            "USER": "root",
            "LANG": "C.UTF-8",
            **environment,
        }
        enter = ["nsenter", "--target", str(self.first), "--all", "bash", "-c", 'cd "$1" && shift && exec "$@"', "bash"]
        return [*enter, str(cwd), "env", "-i", *(f"{key}={value}" for key, value in settings.items()), *command]

    def start(
        self, command: Sequence[str], *, cwd: Path, log: Path, environment: dict[str, str] | None = None
    ) -> subprocess.Popen[str]:
        """Start a command inside the node; its output goes to `log`."""
        with log.open("a") as out:
            process = subprocess.Popen(
                self.words(command, cwd, environment or {}), stdout=out, stderr=subprocess.STDOUT, text=True,
                stdin=subprocess.DEVNULL,
            )  # fmt: skip
        self.started.append(process)
        return process

    def run(self, command: Sequence[str], *, cwd: Path | None = None, timeout: float = 60) -> str:
        """Run a command inside the node to its end, which must be a success; returns what it printed."""
        done = subprocess.run(
            self.words(command, cwd or self.folder, {}), capture_output=True, text=True, timeout=timeout, check=False
        )
        assert done.returncode == 0, f"{self.name}: {' '.join(command)} ended with {done.returncode}:\n{done.stderr}"
        return done.stdout

    def processes(self, of: Callable[[dict[str, str], str], bool]) -> list[int]:
        """Host numbers of the node's processes whose (environment, command line) `of` accepts."""
        inside = os.readlink(f"/proc/{self.first}/ns/pid")
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                if os.readlink(entry / "ns" / "pid") != inside:
                    continue
                environ = (entry / "environ").read_bytes().decode(errors="replace")
                command = (entry / "cmdline").read_bytes().decode(errors="replace").replace("\0", " ")
            except OSError:  # it has just ended
                continue
            pairs = dict(item.partition("=")[::2] for item in environ.split("\0") if item)
            if command and of(pairs, command):  # a dead one that nobody has asked about has no command line
                found.append(int(entry.name))
        return sorted(found)

    def ranks(self) -> list[int]:
        """Host numbers of the node's ranks; srun's have no RANK before they set it themselves."""

        def is_rank(env: dict[str, str], command: str) -> bool:
            program, *words = command.split()
            told = {"RANK", "LOCAL_RANK"} <= env.keys() or "SLURM_LOCALID" in env
            return "python" in program and "-m" not in words and told and "train.py" in command

        return self.processes(is_rank)

    def of_the_launch(self) -> list[int]:
        """Host numbers of everything that a launcher may leave behind."""
        names = ("deepspeed", "torchrun", "torch.distributed", "pdsh", "train.py", "dsvid launch")
        return self.processes(lambda _, command: any(name in command for name in names) and "slurm" not in command)

    def cable(self, state: str) -> None:
        """Cut the node's cable ("down"), or put it back ("up"); what runs goes on, and hears nothing."""
        enter = ["nsenter", "--target", str(self.keeper.pid), "--net"]
        subprocess.run([*enter, "ip", "link", "set", "eth0", state], check=True)

    def power_off(self) -> None:
        """End the node and everything in it at once."""
        self.keeper.kill()  # --kill-child takes the first process along, and with it the whole node
        self.keeper.wait()

    def supervisor(self) -> int:
        """Host number of the one `dsvid launch` of this node."""
        (pid,) = self.processes(lambda env, command: "-m dsvid launch" in command and "RANK" not in env)
        return pid


@dataclass
class Nodes:
    """Both nodes and the folder that they share."""

    folder: Path
    both: tuple[Node, Node]

    @property
    def hostfile(self) -> Path:
        return self.folder / "hostfile"

    def left(self) -> list[int]:
        """Host numbers of what launchers left on either node."""
        return [pid for node in self.both for pid in node.of_the_launch()]

    def write_environment(self, text: str) -> None:
        """`.deepspeed_env` of the first node's home, where the launcher looks for it."""
        (self.both[0].home / ".deepspeed_env").write_text(text)


def make_nodes(folder: Path) -> Nodes:
    """Start both nodes with an ssh server each, which take each other's key. End them with `end_nodes`."""
    names = ("node1", "node2")
    addresses = {name: f"10.77.0.{number}" for number, name in enumerate(names, 1)}
    _write_files(folder, addresses)
    both = tuple(Node(name, addresses[name], folder, _start_keeper(folder, name)) for name in names)
    nodes = Nodes(folder, (both[0], both[1]))
    try:
        for node in nodes.both:
            node.first = wait_until(lambda node=node: _child(node.keeper.pid), 10, f"{node.name} to start")  # type: ignore[misc]
        first, second = (str(node.keeper.pid) for node in nodes.both)
        subprocess.run(
            ["ip", "link", "add", "eth0", "netns", first, "type", "veth", "peer", "name", "eth0", "netns", second],
            check=True,
        )
        for node in nodes.both:
            enter = ["nsenter", "--target", str(node.keeper.pid), "--net", "ip"]
            subprocess.run([*enter, "addr", "add", f"{node.address}/24", "dev", "eth0"], check=True)
            # also on lo: eth0 goes with the other node, and a node must reach itself all the same
            subprocess.run([*enter, "addr", "add", f"{node.address}/32", "dev", "lo"], check=True)
            subprocess.run([*enter, "link", "set", "eth0", "up"], check=True)
        for node in nodes.both:
            for other in names:
                wait_until(lambda node=node, other=other: _answers(node, other), 15, f"ssh {node.name} {other}")  # type: ignore[misc]
    except BaseException:
        end_nodes(nodes)
        raise
    return nodes


def end_nodes(nodes: Nodes) -> None:
    """End both nodes and all that runs in them, and wait until it is gone."""
    spaces = []
    for node in nodes.both:
        if node.first:
            with suppress(OSError):
                spaces.append(os.readlink(f"/proc/{node.first}/ns/pid"))
        node.power_off()
    for process in (process for node in nodes.both for process in node.started):
        process.wait(timeout=20)

    def gone() -> bool:
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and os.readlink(entry / "ns" / "pid") in spaces:
                    return False
            except OSError:
                continue
        return True

    wait_until(gone, 20, "the nodes' processes to end")


def wait_until(ready: Callable[[], object], limit_s: float, what: str, every_s: float = 0.1):  # type: ignore[no-untyped-def]
    """What `ready` gives as soon as it is true; an AssertionError after `limit_s`."""
    end = time.monotonic() + limit_s
    while True:
        result = ready()
        if result:
            return result
        assert time.monotonic() < end, f"waited {limit_s} s for {what}"
        time.sleep(every_s)


def _write_files(folder: Path, addresses: dict[str, str]) -> None:
    """Keys, accounts and names of the nodes; every file lies in `folder`."""
    for key in ("host_key", "id"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key)], check=True)
    hosts = "".join(f"{address} {name}\n" for name, address in addresses.items())
    (folder / "hosts").write_text(f"127.0.0.1 localhost\n{hosts}")
    (folder / "hostfile").write_text("".join(f"{name} slots=1\n" for name in addresses))
    (folder / "sshd_config").write_text(SSHD_CONFIG.format(folder=folder))
    host_key = " ".join((folder / "host_key.pub").read_text().split()[:2])
    accounts = Path("/etc/passwd").read_text().splitlines()
    for name in addresses:
        home = folder / f"home-{name}"
        (home / ".ssh").mkdir(parents=True, mode=0o700)
        shutil.copy(folder / "id", home / ".ssh" / "id_ed25519")
        (home / ".ssh" / "known_hosts").write_text("".join(f"{other} {host_key}\n" for other in addresses))
        # Only root's home moves: there are the keys and `.deepspeed_env`, and the real ones are not touched.
        moved = [f"root:x:0:0:root:{home}:/bin/bash" if line.startswith("root:") else line for line in accounts]
        (folder / f"passwd-{name}").write_text("\n".join(moved) + "\n")


def _start_keeper(folder: Path, name: str) -> subprocess.Popen[bytes]:
    spaces = ["--net", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child", "--mount-proc"]
    with (folder / f"{name}.log").open("wb") as log:
        return subprocess.Popen(
            # A test run that is killed takes its nodes along.
            ["setpriv", "--pdeathsig", "KILL", "unshare", *spaces, "bash", "-c", START_NODE, "bash", str(folder), name],
            stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env={"PATH": SYSTEM_PATH},
        )  # fmt: skip


def _child(pid: int) -> int:
    words = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(words[0]) if words else 0


def _answers(node: Node, other: str) -> bool:
    ssh = ["ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=2", other, "true"]
    return subprocess.run(node.words(ssh, node.folder, {}), capture_output=True, check=False).returncode == 0
