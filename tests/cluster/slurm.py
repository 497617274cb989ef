"""A real Slurm on the two nodes: munge and slurmd on both, slurmctld on the first. It ends with the nodes."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.nodes import SYSTEM_PATH, Nodes, wait_until

TOOLS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel", "squeue")

# cred_expire is also how long a requeued job waits before it starts again; two minutes without it.
CONFIG = """\
ClusterName=dsvid
SlurmctldHost=node1
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=/run/munge/munge.socket,cred_expire=5
StateSaveLocation={folder}/slurm/state
SlurmdSpoolDir={folder}/slurm/spool-%n
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.pid
SlurmctldLogFile={folder}/slurm/slurmctld.log
SlurmdLogFile={folder}/slurm/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0,sched_min_interval=1000
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobRequeue=1
KillWait=5
InactiveLimit=0
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
NodeName=node[1-2] CPUs=1 RealMemory=1000 State=UNKNOWN
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""

# munge wants a folder and a key of its own user; /run is the node's own. $1 folder of the cluster.
START_MUNGE = r"""
set -eu
mkdir -p /run/munge
cp "$1/munge.key" /run/munge/key
chmod 400 /run/munge/key
chown -R munge: /run/munge
setpriv --reuid munge --regid munge --clear-groups "$(command -v munged)" --socket=/run/munge/munge.socket \
  --key-file=/run/munge/key --pid-file=/run/munge/pid --log-file=/run/munge/log --seed-file=/run/munge/seed
"""


def missing() -> str:
    """Which of Slurm's programs are not here; empty where all are."""
    absent = [tool for tool in TOOLS if shutil.which(tool, path=SYSTEM_PATH) is None]
    return f"{', '.join(absent)} not installed: `make test-cluster` installs what is missing" if absent else ""


@dataclass
class Slurm:
    """The controller's node, and where jobs are submitted."""

    nodes: Nodes
    config: Path

    def call(self, *words: str, cwd: Path | None = None) -> str:
        """A Slurm command on the first node; what it printed."""
        return self.nodes.both[0].run(["env", f"SLURM_CONF={self.config}", *words], cwd=cwd)

    def submit(self, words: Sequence[str], cwd: Path, environment: dict[str, str]) -> str:
        """`sbatch …`; returns the number of the job."""
        settings = [f"{key}={value}" for key, value in environment.items()]
        said = self.nodes.both[0].run(["env", f"SLURM_CONF={self.config}", *settings, *words], cwd=cwd)
        found = re.search(r"Submitted batch job (\d+)", said)
        assert found, said
        return found[1]

    def job(self, number: str) -> dict[str, str]:
        """What `scontrol show job` says."""
        shown = self.call("scontrol", "--oneliner", "show", "job", number)
        return dict(word.partition("=")[::2] for word in shown.split() if "=" in word)

    def state(self, number: str) -> str:
        return self.job(number)["JobState"]

    def logs(self) -> str:
        """The ends of the daemons' logs, for a failed test."""
        texts = [f"{path.name}:\n{path.read_text()[-1500:]}" for path in sorted(self.config.parent.glob("*.log"))]
        return "\n".join(texts)


def start_slurm(nodes: Nodes) -> Slurm:
    """Start the daemons and wait until both nodes are idle."""
    folder = nodes.folder / "slurm"
    (folder / "state").mkdir(parents=True)
    (nodes.folder / "munge.key").write_bytes(os.urandom(128))
    config = folder / "slurm.conf"
    config.write_text(CONFIG.format(folder=nodes.folder))
    slurm = Slurm(nodes, config)
    for node in nodes.both:
        node.run(["bash", "-c", START_MUNGE, "bash", str(nodes.folder)])
    nodes.both[0].run(["slurmctld", "-f", str(config)])
    for node in nodes.both:
        node.run(["slurmd", "-N", node.name, "-f", str(config)])

    def idle() -> bool:
        return slurm.call("sinfo", "--noheader", "--Node", "--format=%t").split() == ["idle", "idle"]

    wait_until(idle, 30, "both Slurm nodes to be idle", every_s=0.5)
    return slurm
