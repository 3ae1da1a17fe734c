"""Creates the torch.distributed process group of a run.

torchrun and deepspeed set RANK, WORLD_SIZE and an address; srun sets SLURM_*. Ranks on one host
meet in a file that other users cannot access, since others could take or join a port; they then
communicate on the loopback interface, which other hosts cannot reach. Slurm gives ranks on several
hosts no port, so theirs is derived from the job step. A single process needs neither.
"""

from __future__ import annotations

import datetime
import os
import zlib

import psutil
import torch
import torch.distributed as dist
from torch.distributed import FileStore, HashStore, distributed_c10d  # type: ignore[attr-defined]

from engine.machine.files import runtime_folder
from engine.machine.programs import NoAnswer, answer

MEET = datetime.timedelta(minutes=10)  # until all ranks have arrived
WAIT = datetime.timedelta(hours=6)  # afterwards: ranks wait while rank 0 encodes a dataset
FIRST_PORT, PORTS = 20000, 12000  # below the kernel's ephemeral ports
LOOPBACK = "127.0.0.1"
# Public since torch 2.15. DeepSpeed's groups, which only average gradients, keep the default.
_set_timeout = getattr(dist, "set_timeout", None) or distributed_c10d._set_pg_timeout
STEP = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")  # identify a step


def complete_environment() -> None:
    """Sets the variables that a launcher did not set; a single process gets rank 0 of 1.

    A Slurm batch script sees its allocation's number of tasks, but is a single process. Raises
    ValueError if Slurm's commands do not give the address of the first of several nodes.
    """
    variables = os.environ
    if "RANK" in variables:
        return
    if int(variables.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        variables["RANK"] = variables["SLURM_PROCID"]
        variables["LOCAL_RANK"] = variables["SLURM_LOCALID"]
        variables["WORLD_SIZE"] = variables["SLURM_STEP_NUM_TASKS"]
        if variables.get("SLURM_STEP_NUM_NODES", "1") == "1":
            variables["LOCAL_WORLD_SIZE"] = variables["WORLD_SIZE"]
        if "MASTER_ADDR" not in variables:
            variables["MASTER_ADDR"] = LOOPBACK if _on_one_host() else _first_host()
        port = FIRST_PORT + zlib.crc32(_step().encode()) % PORTS
        variables.setdefault("MASTER_PORT", str(port))
    else:
        variables |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}


def join(device: torch.device) -> None:
    """Creates the process group of all ranks.

    Raises torch's DistError if the ranks do not meet within `MEET`, and ValueError for several
    ranks without an address.
    """
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    launch = _launch() if world > 1 and _on_one_host() else ""
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if world > 1 and missing and not launch:
        raise ValueError(f"WORLD_SIZE={world}, but {' and '.join(missing)} not set; use torchrun")
    backend = "nccl" if device.type == "cuda" else "gloo"
    if world == 1 or _on_one_host():
        for library in ("GLOO", "NCCL"):  # they would guess by the host's name
            os.environ.setdefault(f"{library}_SOCKET_IFNAME", "lo")
    if world == 1:
        dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
        return
    store = None  # torch creates one from the environment variables
    if launch:
        # The last rank that leaves removes the file. Earlier, it would block a rank that polls the
        # store, as NCCL's heartbeat does, for the store's timeout.
        store = FileStore(str(runtime_folder() / f"ranks-{launch}"), world)
        store.set_timeout(MEET)
    dist.init_process_group(
        backend,
        store=store,
        rank=rank,
        world_size=world,
        timeout=MEET,
        device_id=device if device.type == "cuda" else None,
    )
    dist.all_reduce(torch.zeros(1, device=device))  # makes all connections within `MEET`
    _set_timeout(WAIT, dist.group.WORLD)


def _on_one_host() -> bool:
    """Whether all ranks run on this host, according to torchrun, deepspeed or Slurm."""
    here = os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE")
    return here == os.environ["WORLD_SIZE"]


def _launch() -> str:
    """Returns an identifier that only the ranks of this launch share on this host.

    Returns "" for a launcher that the engine does not know, and for torchrun.
    """
    variables = os.environ
    if "TORCHELASTIC_RUN_ID" in variables:  # torchrun has its own store
        return ""
    if variables.keys() & {"CROSS_RANK", "RIB_LAUNCH"}:  # deepspeed, or our launcher
        launcher = psutil.Process(os.getppid())
        return f"{launcher.pid}-{launcher.create_time():.2f}"
    return _step() if int(variables.get("SLURM_STEP_NUM_TASKS", 1)) > 1 else ""


def _step() -> str:
    """Returns an identifier of a Slurm step, different for each restart."""
    return ".".join(os.environ.get(name, "0") for name in STEP)


def _first_host() -> str:
    """Returns the address of the step's first node, which runs task 0."""
    nodes = os.environ.get("SLURM_STEP_NODELIST", "")
    command = ("sinfo", "--noheader", "--Node", "--nodes", nodes, "--format", "%o")
    try:
        return answer(*command).split()[0]
    except (NoAnswer, IndexError) as error:
        raise ValueError(
            f"several Slurm tasks, but Slurm does not give the address of the first of {nodes!r} "
            f"({error}); set MASTER_ADDR to that host's address"
        ) from error
