"""A Slurm of four nodes on this machine, without systemd, control groups or a database.

Debian: apt-get install --no-install-recommends slurm-wlm munge. All files are in one folder, ports
are free ones, and the nodes are daemons on the loopback, so nothing of a real Slurm is touched.
"""

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from helpers.processes import lives, until

DAEMONS, CLIENTS = ("munged", "slurmctld", "slurmd"), ("sbatch", "srun", "squeue", "scancel")
ADMIN_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
NODES, CPUS = 4, 4  # Slurm believes that each node has so many
SETTINGS = """\
ClusterName=rib
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={control}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=10
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0
ReturnToService=2
KillWait=2
MinJobAge=600
GresTypes=gpu
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=node[1-{nodes}] NodeHostname=localhost NodeAddr=127.0.0.1 Port=[{first}-{last}] \
CPUs={cpus} RealMemory=16000 Gres=gpu:2 State=UNKNOWN
PartitionName=main Nodes=node[1-2] Default=YES MaxTime=INFINITE DefaultTime=60 DefMemPerCPU=3000
PartitionName=patient Nodes=node[3-4] MaxTime=INFINITE DefaultTime=60 DefMemPerCPU=3000
PartitionName=urgent Nodes=node[3-4] PriorityTier=10 PreemptMode=OFF MaxTime=10
"""
GPUS = (
    f"NodeName=node[1-{NODES}] Name=gpu File=/dev/null,/dev/zero\n"  # any devices stand in for GPUs
)
# Snakemake's job step drops all variables of Slurm before it calls srun, the settings' place too.
CLIENT = '#!/bin/sh\nSLURM_CONF={settings} exec {program} "$@"\n'


def missing() -> list[str]:
    """Programs of Slurm that this machine lacks."""
    return [name for name in (*DAEMONS, *CLIENTS) if shutil.which(name, path=ADMIN_PATH) is None]


@dataclass(frozen=True)
class Cluster:
    """A running cluster, whose commands find it by `environment`."""

    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        path = os.pathsep.join([str(self.folder / "bin"), ADMIN_PATH])
        return {"SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": path}

    def ask(self, *command: str, timeout_s: float = 60, must: bool = True) -> str:
        """Standard output of a command of Slurm's; `must`: which has to succeed."""
        process = subprocess.run(
            command, env=os.environ | self.environment, capture_output=True, text=True,
            timeout=timeout_s,
        )  # fmt: skip
        assert process.returncode == 0 or not must, f"{command}: {process.stderr}"
        return process.stdout

    def queue(self) -> list[str]:
        """A line for each job that waits, runs or ends."""
        return self.ask("squeue", "--noheader", "--format", "%i %j %T").splitlines()


@contextlib.contextmanager
def running(folder: Path) -> Iterator[Cluster]:
    """Start the daemons, and stop them and all jobs in the end."""
    cluster, environment = Cluster(folder), {**os.environ, "PATH": ADMIN_PATH}
    _configure(folder)
    environment |= cluster.environment
    munge = folder / "munge"
    options = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log"}
    files = [f"--{name}={munge / file}" for name, file in options.items()]

    def start(*command: str) -> None:
        subprocess.run(command, env=environment, check=True, timeout=60)

    try:
        start("munged", "--force", *files, f"--seed-file={munge / 'seed'}")
        start("slurmctld", "-c")
        until(lambda: "is UP" in cluster.ask("scontrol", "ping", must=False), "Slurm is up", 30)
        for number in range(1, NODES + 1):
            start("slurmd", "-N", f"node{number}")
        states = ("sinfo", "--noheader", "--Node", "--format", "%T")
        idle = lambda: set(cluster.ask(*states, must=False).split()) == {"idle"}  # noqa: E731
        until(idle, "all nodes are idle", 30)
        yield cluster
    finally:
        with contextlib.suppress(AssertionError, OSError, subprocess.TimeoutExpired):
            cluster.ask("scancel", "--full", f"--user={getpass.getuser()}")
            until(lambda: not cluster.queue(), "the queue is empty", 30)
        _stop([*folder.glob("*.pid"), munge / "pid"])


def _configure(folder: Path) -> None:
    for name in ("munge", "state", "bin", *(f"spool-node{n + 1}" for n in range(NODES))):
        (folder / name).mkdir(parents=True)
    folder.chmod(0o755)
    (folder / "munge").chmod(0o711)
    key = folder / "munge" / "key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    first = _free_ports(NODES + 1)
    settings = folder / "slurm.conf"
    values = {"folder": folder, "user": getpass.getuser(), "nodes": NODES, "cpus": CPUS}
    ports = {"control": first, "first": first + 1, "last": first + NODES}
    settings.write_text(SETTINGS.format(**values, **ports))
    (folder / "cgroup.conf").write_text("CgroupPlugin=disabled\n")
    (folder / "gres.conf").write_text(GPUS)
    for name in (*CLIENTS, "sinfo", "scontrol", "sacct"):
        client = folder / "bin" / name
        program = shutil.which(name, path=ADMIN_PATH)
        client.write_text(CLIENT.format(settings=settings, program=program))
        client.chmod(0o755)


def _free_ports(count: int) -> int:
    """The first of so many ports side by side that nobody listens on."""
    for first in range(17000 + os.getpid() % 2000, 32000, count):
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for port in range(first, first + count):
                stack.enter_context(socket.create_server(("127.0.0.1", port)))
            return first
    raise AssertionError("no free ports")


def _stop(files: Sequence[Path]) -> None:
    numbers = [int(file.read_text()) for file in files if file.is_file()]
    for number in numbers:
        with contextlib.suppress(ProcessLookupError):
            os.kill(number, signal.SIGTERM)
    until(lambda: not any(map(lives, numbers)), "Slurm's daemons end", 10)
