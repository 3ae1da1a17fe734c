"""How the processes of a run meet: the process group of torch.distributed.

torchrun and deepspeed set RANK, WORLD_SIZE and an address; srun sets SLURM_*. Ranks on one host
meet in a file that no other user can reach, where a port could be taken, or joined; then they talk
on the loopback, which no other host reaches. Slurm gives ranks on several hosts no port, so theirs
follows from the step. A process on its own needs neither.
"""

from __future__ import annotations

import atexit
import datetime
import os
import zlib

import psutil
import torch
import torch.distributed as dist
from torch.distributed import FileStore, HashStore, distributed_c10d  # type: ignore[attr-defined]

from engine.machine.files import runtime_folder
from engine.machine.programs import NoAnswer, answer
from loaders.root import Root

MEET = datetime.timedelta(minutes=10)  # until every rank has arrived
WAIT = datetime.timedelta(hours=6)  # afterwards: ranks wait while rank 0 encodes a set
FIRST_PORT, PORTS = 20000, 12000  # below the range from which the kernel gives ports
LOOPBACK = "127.0.0.1"
# Public since torch 2.15; DeepSpeed's groups, which only average gradients, keep torch's own time.
_set_timeout = getattr(dist, "set_timeout", None) or distributed_c10d._set_pg_timeout
STEP = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")  # tell a step from all others


def complete_environment() -> None:
    """Set the variables that a launcher leaves out; a process on its own takes the first GPU.

    A Slurm batch script has the number of its allocation's tasks, but is a process on its own.
    Raises ValueError where Slurm's commands do not say the address of the first of several nodes.
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
    """Make the process group of all ranks.

    Raises torch's DistError where they have not met within `MEET`, ValueError for several ranks
    without an address.
    """
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    launch = _launch() if world > 1 and _on_one_host() else ""
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if world > 1 and missing and not launch:
        raise ValueError(f"WORLD_SIZE={world}, but {' and '.join(missing)} not set; use torchrun")
    backend = "nccl" if device.type == "cuda" else "gloo"
    if world == 1 or _on_one_host():
        for library in ("GLOO", "NCCL"):  # which would guess by the host's name
            os.environ.setdefault(f"{library}_SOCKET_IFNAME", "lo")
    if world == 1:
        dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
        return
    store = None  # torch's own makes one of the variables
    if launch:
        folder, file = runtime_folder(), f"ranks-{launch}"
        store = FileStore(str(folder / file), world)
        store.set_timeout(MEET)
        if rank == 0:  # until then groups of ranks are made by it
            atexit.register(Root(folder).remove, file)
    dist.init_process_group(
        backend,
        store=store,
        rank=rank,
        world_size=world,
        timeout=MEET,
        device_id=device if device.type == "cuda" else None,
    )
    dist.all_reduce(torch.zeros(1, device=device))  # all connections are made within `MEET`
    _set_timeout(WAIT, dist.group.WORLD)


def _on_one_host() -> bool:
    """Whether all ranks run here, as torchrun, deepspeed or Slurm tells."""
    here = os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE")
    return here == os.environ["WORLD_SIZE"]


def _launch() -> str:
    """An identifier shared by the ranks of this launch and by no others on this host, ever.

    It is empty under a launcher that the engine does not know.
    """
    variables = os.environ
    if "TORCHELASTIC_RUN_ID" in variables:  # torchrun has a store already
        return ""
    if variables.keys() & {"CROSS_RANK", "RIB_LAUNCH"}:  # of deepspeed, and of ours
        launcher = psutil.Process(os.getppid())
        return f"{launcher.pid}-{launcher.create_time():.2f}"
    return _step() if int(variables.get("SLURM_STEP_NUM_TASKS", 1)) > 1 else ""


def _step() -> str:
    """An identifier of a Slurm step, different for each restart."""
    return ".".join(os.environ.get(name, "0") for name in STEP)


def _first_host() -> str:
    """Address of the step's first node, on which task 0 runs."""
    nodes = os.environ.get("SLURM_STEP_NODELIST", "")
    command = ("sinfo", "--noheader", "--Node", "--nodes", nodes, "--format", "%o")
    try:
        return answer(*command).split()[0]
    except (NoAnswer, IndexError) as error:
        raise ValueError(
            f"several Slurm tasks, but Slurm does not say the address of the first of {nodes!r} "
            f"({error}); set MASTER_ADDR to that host's address"
        ) from error
