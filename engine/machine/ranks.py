"""Ranks: one or more processes, started by deepspeed, torchrun, srun or plain python.

`start` creates the process group that the rest of the engine uses, and sets environment variables
that a launcher did not set.
"""

from __future__ import annotations

import atexit
import contextlib
import io
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

import torch
import torch.distributed as dist

from engine.errors import FirstRankError
from engine.machine import rendezvous
from engine.machine.devices import keep_pages, pick_device

T = TypeVar("T")
SEEN_S, LOOK_S = 180, 0.5  # limit (NFS may hide a new file for 60 s, acdirmax); between checks


@runtime_checkable
class Stored(Protocol):
    """Files of which `proof` is written last."""

    @property
    def proof(self) -> Path: ...


def start(device: str = "auto") -> torch.device:
    """Joins the process group and returns this rank's device; a single process uses the first GPU.

    Raises ValueError as `pick_device` does, and if the ranks' environment lacks an address (see
    `rendezvous`).
    """
    use_gpu = pick_device(device).type == "cuda"
    if not use_gpu:
        keep_pages()
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    rendezvous.complete_environment()
    local = int(os.environ["LOCAL_RANK"])
    if use_gpu:
        # Slurm may show each task only one GPU, with number 0. DeepSpeed reads the variable.
        local %= torch.cuda.device_count()
        os.environ["LOCAL_RANK"] = str(local)
        torch.cuda.set_device(local)
    chosen = torch.device("cuda", local) if use_gpu else torch.device("cpu")
    if not dist.is_initialized():
        import deepspeed  # imported here: it reads DS_ACCELERATOR at import

        _skip_operators(deepspeed.ops)
        rendezvous.join(chosen)
        with contextlib.redirect_stdout(io.StringIO()):  # deepspeed prints to stdout
            deepspeed.init_distributed(verbose=False)  # uses the existing group
        if not use_gpu:
            # Also after an error: a gloo thread that frees a tensor while Python shuts down aborts
            # the process. NCCL frees its own, and destroying it waits for the other ranks.
            atexit.register(stop)
    return chosen


def rank() -> int:
    """Returns this process's rank; 0 without a process group."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """Returns the number of ranks; 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def _skip_operators(ops: object) -> None:
    """Marks all of DeepSpeed's own operators (`deepspeed.ops`) as unavailable; the engine calls
    none.

    Otherwise DeepSpeed looks for a compiler for each operator in each process (about a second), and
    then compiles one for 40 s that only inference on several CPU ranks calls.
    """
    vars(ops).setdefault("__compatible_ops__", {})["deepspeed_shm_comm"] = False


def first(work: Callable[[], T]) -> T:
    """Runs `work` on rank 0, and then on the other ranks, which find the files that rank 0 wrote.

    Each rank returns the result of its `work`. If that is `Stored`, the other ranks start when they
    see its proof: a network file system may show a file late to another machine, and a rank that
    misses it would make it again while rank 0 continues.

    An error on rank 0 raises on all ranks: FirstRankError on the others. Raises FileNotFoundError
    if a rank does not see the proof within `SEEN_S`.
    """
    if rank() > 0:
        if not all_agree(True):
            raise FirstRankError("the first rank failed; its message says why")
        if proof := _from_first(""):
            _wait_for(Path(proof))
        return work()
    try:
        result = work()
    except Exception:
        all_agree(False)
        raise
    all_agree(True)
    _from_first(str(result.proof.absolute()) if isinstance(result, Stored) else "")
    return result


def _from_first(text: str) -> str:
    """Returns rank 0's text on all ranks."""
    if world() == 1:
        return text
    letters = list(text.encode())
    size = torch.tensor([len(letters)], device=_meeting_place())
    dist.broadcast(size, 0)
    letters += [0] * (int(size) - len(letters))
    told = torch.tensor(letters, dtype=torch.uint8, device=_meeting_place())
    if letters:
        dist.broadcast(told, 0)
    return bytes(told.tolist()).decode()


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
