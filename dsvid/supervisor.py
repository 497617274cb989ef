"""Stands above a launcher so that a signal loses no work: asks the ranks to save, waits, and leaves nothing behind.

The launchers do not: `deepspeed` dies of SIGTERM at once and forwards nothing, `torchrun` kills after 30 s and loses
the exit code. Knows processes (Linux: /proc), signals, and which files of a run folder tell how far it is; no torch.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import secrets
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

SAVED = 75  # EX_TEMPFAIL: stopped with everything saved, start me again
MISTAKE = 2
STOP = "stop"  # in the run folder: rank 0 looks for it at every step and takes it away when it obeys
# Of its own environment the deepspeed launcher hands on to other nodes what begins with PYTHON: so this name finds our
# ranks there again, and no other job's.
MARK = "PYTHON_DSVID_LAUNCH"
POLL_S = 0.1
LINGER_S = 5.0  # for what is no rank and outlives the launcher
REMOTE_S = 30  # ranks on other nodes end by themselves when the connection breaks, or are ended after this
# A node without power answers nothing, and pdsh would wait for its ssh for ever. pdsh splits this at spaces; of an
# option that is given twice ssh takes the first, so the user's own come before.
PDSH_SSH = "PDSH_SSH_ARGS_APPEND"
SSH_ALIVE = "-o ServerAliveInterval=10 -o ServerAliveCountMax=3"
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)


@dataclass(frozen=True)
class Run:
    """The run folder that a training command writes, as far as a supervisor reads it."""

    out: Path

    def newest_step(self) -> int:
        """Step of the newest published checkpoint; -1 where there is none."""
        steps = [
            int(path.parent.name.removeprefix("step-"))
            for path in self.out.glob("checkpoints/step-*/manifest.json")
            if path.parent.name.removeprefix("step-").isdigit()
        ]
        return max(steps, default=-1)

    def logged_step(self) -> int:
        """Step of the last line of metrics.jsonl; 0 where there is none."""
        with suppress(OSError, ValueError, KeyError, IndexError):
            lines = (self.out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
            return int(json.loads(lines[-1])["step"])
        return 0

    def write_stop(self, text: str) -> bool:
        """Write the stop file; False where the run has not begun (a foreign file would spoil its new folder)."""
        if not (self.out / "recipe.yaml").is_file():
            return False
        with suppress(OSError):
            scratch = self.out / f".{STOP}"  # whole at once: who asked decides whether Slurm's script starts it again
            scratch.write_text(text + "\n", encoding="utf-8")
            scratch.replace(self.out / STOP)
            return True
        return False

    def take_stop_away(self) -> None:
        """Remove a stop file that nobody obeyed: the next start would."""
        with suppress(OSError):
            (self.out / STOP).unlink(missing_ok=True)


@dataclass
class Request:
    """Which signal came, and how often Ctrl-C; filled by the handlers."""

    signal: signal.Signals | None = None
    interrupts: int = 0

    def listen(self) -> None:
        """Take the stop signals from now on; SIGHUP only where it was not ignored (nohup)."""
        for number in STOP_SIGNALS:
            if not (number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN):
                signal.signal(number, self._note)

    def _note(self, number: int, _frame: object) -> None:
        self.signal = self.signal or signal.Signals(number)
        self.interrupts += number == signal.SIGINT


@dataclass
class Supervisor:
    """One start of a launcher, from its first process to the end of its last.

    `run` is None where the command is no training: it is ended at once then. `hosts` are nodes that it reaches by ssh.
    """

    words: Sequence[str]
    environment: Mapping[str, str]
    request: Request
    run: Run | None
    grace_s: float
    rank_itself: bool = False
    keeps_code: bool = True  # torchrun ends with 1 whatever its ranks end with
    hosts: Sequence[str] = ()
    ssh_port: int | None = None
    mark: str = field(default_factory=lambda: secrets.token_hex(8))

    def watch(self) -> int:
        """Start the launcher, see it and all its processes end, and return the exit code."""
        become_reaper()
        self._stopping_since: float | None = None
        self._asked: set[int] = set()
        self._codes: list[int] = []  # of ranks that outlived their launcher, and so became ours
        self._stop_written = False
        self._code: int | None = None
        self._ended_at = 0.0
        self._before = -1  # newest checkpoint when the stop was asked for
        self._launcher = subprocess.Popen(
            list(self.words),
            env={**self.environment, MARK: self.mark},
            start_new_session=True,  # Ctrl-C goes to the terminal's whole group; the ranks must get it through us only
            preexec_fn=_ignore_usr1,  # Slurm sends it to every process; only ranks, which set a handler, can answer
        )
        try:
            while self._alive():
                time.sleep(POLL_S)
        finally:
            self._kill_all()
            if self._stop_written and self.run:
                self.run.take_stop_away()
        assert self._code is not None
        if self.hosts and self._code != 0:
            end_on_hosts(self.hosts, self.mark, wait_s=REMOTE_S, port=self.ssh_port)
        return self._verdict(self._code)

    def _alive(self) -> bool:
        """Reap, pass the request on, and tell whether anything is left that is worth waiting for."""
        self._reap()
        if self.request.signal and self._stopping_since is None:
            self._begin_to_stop(f"{self.request.signal.name} received")
        if self._stopping_since is not None:
            if self.request.interrupts > 1 or time.monotonic() - self._stopping_since > self.grace_s or not self.run:
                why = "asked twice" if self.request.interrupts > 1 else f"--grace {self.grace_s:g} s is over"
                say(f"{why}: ending everything" if self.run else "ending everything")
                return False
            self._ask()
        if self._code is None:
            return True
        # What has no handler cannot save: loader workers of a killed rank, which carry its environment.
        ranks = [pid for pid in self._ranks() if catches(pid, signal.SIGUSR1)]
        # Over ssh the ranks are elsewhere; where the launcher was killed, its pdsh is still here as long as they are.
        elsewhere = bool(self.hosts) and self._code < 0 and any(descendants())
        if (ranks or elsewhere) and self._stopping_since is None:
            self._begin_to_stop("the launcher is gone and its ranks are not")
        late = time.monotonic() - self._ended_at > LINGER_S
        return bool(ranks) or elsewhere or (not late and any(descendants()))

    def _begin_to_stop(self, why: str) -> None:
        self._stopping_since = time.monotonic()
        if self.run:
            self._before = self.run.newest_step()
            say(f"{why}: asking the ranks to save and end, up to {self.grace_s:g} s")

    def _ask(self) -> None:
        """SIGUSR1 to each rank of this node, once, as soon as it has a handler; the stop file for ranks elsewhere."""
        ranks = self._ranks()
        for pid in ranks:
            if pid not in self._asked and catches(pid, signal.SIGUSR1):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGUSR1)
                    self._asked.add(pid)
        everywhere = bool(ranks) and all(pid in self._asked for pid in ranks) and world_size(ranks[0]) == len(ranks)
        if self.run and (self._code is None or self.hosts) and not self._stop_written and not everywhere:
            self._stop_written = self.run.write_stop("dsvid launch: save and end")

    def _ranks(self) -> list[int]:
        """The ranks of this node: children whose environment says so, without what they started themselves."""
        parents = dict(descendants())
        if self.rank_itself:
            return [self._launcher.pid] if self._launcher.pid in parents else []
        ranks = {pid for pid in parents if {"RANK", "LOCAL_RANK"} <= environment_of(pid).keys()}
        return sorted(pid for pid in ranks if parents[pid] not in ranks)

    def _reap(self) -> None:
        """Take every ended child: the launcher, and orphans, whose parent we have become (also as process 1)."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            code = os.waitstatus_to_exitcode(status)
            if pid == self._launcher.pid:
                self._code, self._ended_at = code, time.monotonic()
                self._launcher.returncode = code  # it is waited for; Popen must not try again
            elif pid in self._asked:
                self._codes.append(code)

    def _kill_all(self) -> None:
        """SIGKILL for all that is left, until nothing is."""
        end = time.monotonic() + 10
        while time.monotonic() < end:
            self._reap()
            left = [pid for pid, _ in descendants()]
            if not left and self._code is not None:
                return
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)
        say("processes are left that cannot be killed: " + " ".join(str(pid) for pid, _ in descendants()))
        self._code = self._code if self._code is not None else 1

    def _verdict(self, code: int) -> int:
        """The launcher's exit code, or 75 where the ranks ended with everything saved and the launcher lost that."""
        killed, code = code < 0, code if code >= 0 else 128 - code
        if code in (0, SAVED) or self._stopping_since is None or self.run is None:
            return code
        if self._codes and set(self._codes) <= {0, SAVED}:
            return SAVED if SAVED in self._codes else 0
        newest = self.run.newest_step()
        saved = newest > 0 and (newest > self._before or newest >= self.run.logged_step())
        return SAVED if saved and (killed or (code == 1 and not self.keeps_code)) else code


def launch(
    words: Sequence[str],
    *,
    run: Run | None,
    grace_s: float,
    restarts: int = 0,
    rank_itself: bool = False,
    keeps_code: bool = True,
    hosts: Sequence[str] = (),
    ssh_port: int | None = None,
) -> int:
    """Run a launcher under a supervisor; start it again up to `restarts` times after a failure that had progressed."""
    request = Request()
    request.listen()
    # A launcher that inherited a rank's place would be taken for that rank.
    drop = () if rank_itself else ("RANK", "LOCAL_RANK")
    environment = {name: value for name, value in os.environ.items() if name not in drop}
    if hosts:
        environment[PDSH_SSH] = f"{environment.get(PDSH_SSH, '')} {SSH_ALIVE}".strip()
    for attempt in range(restarts + 1):
        before = run.newest_step() if run else -1
        code = Supervisor(words, environment, request, run, grace_s, rank_itself, keeps_code, hosts, ssh_port).watch()
        if run is None or request.signal or code in (0, MISTAKE, SAVED) or attempt == restarts:
            break
        newest = run.newest_step()
        if newest <= before:
            say(f"exit code {code}, and no checkpoint since the start: not starting again, it would fail again")
            break
        say(f"exit code {code} after a checkpoint of step {newest}: start {attempt + 2} of at most {restarts + 1}")
    return code


def say(text: str) -> None:
    """A line for the user, on standard error: standard output is the training's."""
    print(f"dsvid launch: {text}", file=sys.stderr, flush=True)


def become_reaper() -> None:
    """Orphans below us become our children: a rank whose launcher was killed is found, asked, and reaped."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER


def _ignore_usr1() -> None:
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)


def descendants(top: int | None = None) -> Iterator[tuple[int, int]]:
    """(process, parent) of everything below process `top` (this one) that still runs."""
    parents: dict[int, int] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with suppress(OSError, IndexError, ValueError):
                # The name in parentheses may hold anything, blanks and parentheses too.
                state, parent = Path("/proc", name, "stat").read_text(errors="replace").rpartition(") ")[2].split()[:2]
                if state not in "ZX":
                    parents[int(name)] = int(parent)
    top = os.getpid() if top is None else top
    for pid in parents:
        above, seen = pid, set()
        while above in parents and above != top and above not in seen:
            seen.add(above)
            above = parents[above]
        if above == top and pid != top:
            yield pid, parents[pid]


def environment_of(pid: int) -> dict[str, str]:
    """The environment that a process was started with; empty where it is gone."""
    try:
        text = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
    except OSError:
        return {}
    return dict(item.partition("=")[::2] for item in text.split("\0") if item)


def catches(pid: int, number: signal.Signals) -> bool:
    """Whether a process has a handler for a signal: before it has, the signal would end it."""
    try:
        found = re.search(r"^SigCgt:\s*([0-9a-f]+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    except OSError:
        return False
    return bool(found and int(found[1], 16) >> (number - 1) & 1)


def world_size(pid: int) -> int:
    """The number of ranks that a rank was told; 0 where it is gone."""
    value = environment_of(pid).get("WORLD_SIZE", "")
    return int(value) if value.isdigit() else 0


# Waits until nothing with our mark runs on a host any more, then kills what does. Read from standard input: no quoting.
END_ON_HOST = r"""
left() {
  for folder in /proc/[0-9]*; do
    grep -qzx "$mark" "$folder/environ" 2>/dev/null && echo "${folder#/proc/}"
  done
}
while [ "$wait" -gt 0 ] && [ -n "$(left)" ]; do sleep 1; wait=$((wait - 1)); done
found=$(left)
if [ -n "$found" ]; then
  kill -KILL $found 2>/dev/null
  echo "killed:" $found
fi
"""


def end_on_hosts(hosts: Sequence[str], mark: str, *, wait_s: int, port: int | None) -> None:
    """End what a launch left on its nodes, and nothing else there; says what it had to kill and which host is silent.

    The launcher's own way, `pkill -f` on every node, would end other jobs of the same Python as well.
    """
    script = f"mark={shlex.quote(f'{MARK}={mark}')}\nwait={wait_s}\n{END_ON_HOST}"

    def end(host: str) -> str:
        options = ["-o", "BatchMode=yes", "-o", "ConnectTimeout=10", *(["-p", str(port)] if port else [])]
        try:
            done = subprocess.run(
                ["ssh", *options, host, "sh -s"], input=script, capture_output=True, text=True, timeout=wait_s + 30,
                check=False,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"{host} does not answer: {type(error).__name__}"
        return f"{host}: {done.stdout.strip() or done.stderr.strip()}" if done.stdout.strip() or done.returncode else ""

    with ThreadPoolExecutor(max_workers=len(hosts)) as pool:
        for line in filter(None, pool.map(end, hosts)):
            say(line)
