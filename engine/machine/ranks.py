"""Ranks: one or more processes, started by deepspeed, torchrun, srun or plain python.

`start` creates the process group that the rest of the engine uses, and sets environment variables
that a launcher did not set.

torchrun and deepspeed set RANK, WORLD_SIZE and an address; srun sets SLURM_*. Ranks on one host
meet in a file that other users cannot access, since others could take or join a port; they then
communicate on the loopback interface, which other hosts cannot reach. Slurm gives ranks on several
hosts no port, so theirs is derived from the job step. A single process needs neither.
"""

from __future__ import annotations

import atexit
import contextlib
import datetime
import io
import os
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar, cast

import psutil
import torch
import torch.distributed as dist
from torch.distributed import FileStore, HashStore  # type: ignore[attr-defined]

from engine.errors import OtherRankError
from engine.machine import compat
from engine.machine.devices import keep_pages, pick_device
from engine.machine.files import runtime_folder
from engine.machine.programs import NoAnswer, answer

T = TypeVar("T")
MEET = datetime.timedelta(minutes=10)  # until all ranks have arrived
WAIT = datetime.timedelta(hours=6)  # afterwards: ranks wait while rank 0 encodes a dataset
SEEN_S, LOOK_S = 180, 0.5  # limit (NFS may hide a new file for 60 s, acdirmax); between checks
FIRST_PORT, PORTS = 20000, 12000  # below the kernel's ephemeral ports


def start(device: str = "auto") -> torch.device:
    """Joins the process group and returns this rank's device; a single process uses the first GPU.

    Raises ValueError as `pick_device` does, and if the ranks' environment lacks an address.
    """
    use_gpu = pick_device(device).type == "cuda"
    if not use_gpu:
        keep_pages()
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    complete_environment()
    local = int(os.environ["LOCAL_RANK"])
    if use_gpu:
        # Slurm may show each task only one GPU, with number 0. DeepSpeed reads the variable.
        local %= torch.cuda.device_count()
        os.environ["LOCAL_RANK"] = str(local)
        torch.cuda.set_device(local)
    chosen = torch.device("cuda", local) if use_gpu else torch.device("cpu")
    if not dist.is_initialized():
        import deepspeed  # imported here: it reads DS_ACCELERATOR at import

        compat.without_operators(deepspeed)
        join(chosen)
        with contextlib.redirect_stdout(io.StringIO()):  # deepspeed prints to stdout
            deepspeed.init_distributed(verbose=False)  # uses the existing group
        if not use_gpu:
            # Also after an error: a gloo thread that frees a tensor while Python shuts down aborts
            # the process. NCCL frees its own, and destroying it waits for the other ranks.
            atexit.register(stop)
    return chosen


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
            variables["MASTER_ADDR"] = "127.0.0.1" if _on_one_host() else _first_host()
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
    compat.set_timeout(WAIT, dist.group.WORLD)


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
    names = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")
    return ".".join(os.environ.get(name, "0") for name in names)


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


def rank() -> int:
    """Returns this process's rank; 0 without a process group."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """Returns the number of ranks; 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def first(work: Callable[[], T]) -> T:
    """Runs `work` on rank 0, and then on the other ranks, which find the files that rank 0 wrote.

    Each rank returns the result of its `work`. If that has a `proof`, the file that is written
    last, the other ranks start when they see it: a network file system may show a file late to
    another machine, and a rank that misses it would make it again while rank 0 continues.

    An error on rank 0 raises on all ranks, as of `together`. Raises FileNotFoundError if a rank
    does not see the proof within `SEEN_S`.
    """
    with together():
        result = work() if rank() == 0 else None
    proof = getattr(result, "proof", None)
    text = _from_first(str(proof.absolute()) if proof else "")
    if rank() == 0:
        return cast(T, result)
    if text:
        _wait_for(Path(text))
    return work()


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Lets an error that some ranks raise in the block end it on all ranks: OtherRankError on those
    without one, which would otherwise wait for the failed ranks.

    All ranks enter. The block must not wait for other ranks.
    """
    try:
        yield
    except Exception:
        all_agree(False)
        raise
    if not all_agree(True):
        raise OtherRankError("another rank failed; its message says why")


def _from_first(text: str) -> str:
    """Returns rank 0's text on all ranks."""
    if world() == 1:
        return text
    letters = list(os.fsencode(text))
    size = torch.tensor([len(letters)], device=_meeting_place())
    dist.broadcast(size, 0)
    letters += [0] * (int(size) - len(letters))
    told = torch.tensor(letters, dtype=torch.uint8, device=_meeting_place())
    if letters:
        dist.broadcast(told, 0)
    return os.fsdecode(bytes(told.tolist()))


def _wait_for(path: Path) -> None:
    end = time.monotonic() + SEEN_S
    while not path.is_file():
        if time.monotonic() > end:
            raise FileNotFoundError(
                f"rank 0 wrote {path}, but rank {rank()} does not see it after {SEEN_S} s; every "
                "node must have the same folder `runs` at the same path"
            )
        with contextlib.suppress(OSError):
            os.listdir(path.parent)  # makes NFS ask the server again
        time.sleep(LOOK_S)


def all_agree(vote: bool) -> bool:
    """Whether all ranks vote yes."""
    return least(vote) > 0


def least(value: float) -> float:
    """Returns the minimum of the ranks' values (float64)."""
    return _reduced(value, dist.ReduceOp.MIN)


def most(value: float) -> float:
    """Returns the maximum of the ranks' values (float64)."""
    return _reduced(value, dist.ReduceOp.MAX)


def total(value: float) -> float:
    """Returns the sum of the ranks' values (float64)."""
    return _reduced(value, dist.ReduceOp.SUM)


def _reduced(value: float, how: dist.ReduceOp.RedOpType) -> float:
    if world() == 1:
        return value
    values = torch.tensor([value], dtype=torch.float64, device=_meeting_place())
    dist.all_reduce(values, how)
    return values.item()


def _meeting_place() -> str:
    """The type of device on which the ranks exchange tensors."""
    return "cuda" if dist.get_backend() == "nccl" else "cpu"


def stop() -> None:
    """Leaves the process group, if any, through DeepSpeed, so that it forgets its groups."""
    if dist.is_initialized():
        from deepspeed import comm

        comm.destroy_process_group()
