"""Ranks: one process or many, started by deepspeed, torchrun, srun or plain python.

`start` makes the process group on which the rest of the engine relies, and sets the environment
variables that a launcher leaves out.
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
from engine.machine import memory, precision, rendezvous

T = TypeVar("T")
SEEN_S, LOOK_S = 180, 0.5  # NFS may hide a new file for 60 s (acdirmax); between two looks


@runtime_checkable
class Stored(Protocol):
    """Content of files; `proof` is written last."""

    @property
    def proof(self) -> Path: ...


def pick_device(device: str) -> torch.device:
    """The device of a single process, with TF32 switched off; `auto` takes a GPU if there is one.

    Raises ValueError for `cuda` where torch sees no GPU.
    """
    precision.no_tf32()
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device=cuda, but torch sees no GPU; use device=cpu or device=auto")
    use_gpu = torch.cuda.is_available() if device == "auto" else device == "cuda"
    return torch.device("cuda" if use_gpu else "cpu")


def of_plan(device: str) -> torch.device:
    """The device of a plan's jobs, with TF32 switched off; what reads their results may lack it."""
    precision.no_tf32()
    return pick_device(device) if device == "auto" else torch.device(device)


def present(device: torch.device) -> torch.device:
    """The device, or the CPU in place of a GPU that torch does not see.

    A report finds what GPUs made, and computes the rest where it runs.
    """
    lacks = device.type == "cuda" and not torch.cuda.is_available()
    return torch.device("cpu") if lacks else device


def start(device: str = "auto") -> torch.device:
    """Join the process group and return this rank's device; a lone process takes the first GPU.

    Raises ValueError as `pick_device` does, and where Slurm's tasks do not find each other.
    """
    use_gpu = pick_device(device).type == "cuda"
    if not use_gpu:
        memory.keep_pages()
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    rendezvous.complete_environment()
    local = int(os.environ["LOCAL_RANK"])
    if use_gpu:
        # Slurm may show each task a single GPU, as number 0. DeepSpeed reads the variable.
        local %= torch.cuda.device_count()
        os.environ["LOCAL_RANK"] = str(local)
        torch.cuda.set_device(local)
    chosen = torch.device("cuda", local) if use_gpu else torch.device("cpu")
    if not dist.is_initialized():
        import deepspeed  # imported late: DS_ACCELERATOR is read at import

        _skip_operators(deepspeed.ops)
        rendezvous.join(chosen)
        with contextlib.redirect_stdout(io.StringIO()):  # deepspeed prints where tables go
            deepspeed.init_distributed(verbose=False)  # takes the group that is there
        if not use_gpu:
            # After an error, too: a thread of gloo that lets go of a tensor while Python ends
            # aborts the process. NCCL frees its own, and leaving it waits for the other ranks.
            atexit.register(stop)
    return chosen


def rank() -> int:
    """This process's number; 0 without a process group."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """Number of processes; 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def _skip_operators(ops: object) -> None:
    """Say that none of DeepSpeed's own operators (`deepspeed.ops`) can be compiled here.

    The engine calls none. DeepSpeed would look for a compiler for each of them in every process
    (about a second), and then compile for 40 s one that only inference on several CPU ranks calls.
    """
    vars(ops).setdefault("__compatible_ops__", {})["deepspeed_shm_comm"] = False


def first(work: Callable[[], T]) -> T:
    """Do `work` on rank 0, and then on the other ranks, which find the files that rank 0 wrote.

    Every rank returns the result of its `work`. Where that is `Stored`, the other ranks begin when
    they see its proof: a network file system shows a file late to another machine, and a rank that
    missed it would make it again while rank 0 continues. An error on rank 0 is raised on all ranks;
    FileNotFoundError where a rank does not see the proof within `SEEN_S`.
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
    """Rank 0's text, on every rank."""
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
            os.listdir(path.parent)  # by which NFS asks the server again
        time.sleep(LOOK_S)


def all_agree(vote: bool) -> bool:
    """Whether every rank votes yes."""
    return least(vote) > 0


def least(value: float) -> float:
    """The smallest of the ranks' values (float32)."""
    if world() == 1:
        return value
    values = torch.tensor([float(value)], device=_meeting_place())
    dist.all_reduce(values, dist.ReduceOp.MIN)
    return values.item()


def most(value: float) -> float:
    """The largest of the ranks' values (float32)."""
    return -least(-value)


def _meeting_place() -> str:
    """The kind of device on which the ranks exchange tensors."""
    return "cuda" if dist.get_backend() == "nccl" else "cpu"


def stop() -> None:
    """Leave the process group, if there is one. DeepSpeed forgets the groups that it holds."""
    if dist.is_initialized():
        from deepspeed import comm

        comm.destroy_process_group()
