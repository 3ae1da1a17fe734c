"""Ranks: one process or many, started by deepspeed, torchrun, srun or plain python.

`start` fills in the variables that each launcher leaves out, so that the rest of the engine can
take a process group for granted.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import io
import os
import shutil
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist

from engine.errors import FirstRankError
from engine.machine import memory, precision

T = TypeVar("T")
SLURM = {"RANK": "SLURM_PROCID", "LOCAL_RANK": "SLURM_LOCALID", "WORLD_SIZE": "SLURM_NTASKS"}
BUILDS_WITHIN_S, LOADS_WITHIN_S = 300, 60  # what another program may need for DeepSpeed's op
PATIENCE = datetime.timedelta(hours=6)  # other ranks wait while the first one encodes or caches


def strip_launcher_words(words: list[str]) -> list[str]:
    """Command-line words without the `--local_rank=N` that the deepspeed launcher puts first."""
    kept = []
    skip = False
    for word in words:
        if skip:
            skip = False
        elif word in ("--local_rank", "--local-rank"):
            skip = True
        elif not word.startswith(("--local_rank=", "--local-rank=")):
            kept.append(word)
    return kept


def pick_device(device: str) -> torch.device:
    """The device of a single process, where fp32 is fp32; `auto` takes a GPU where there is one.

    Raises ValueError when `cuda` is asked for and absent.
    """
    precision.no_tf32()
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device=cuda, but torch sees no GPU; use device=cpu or device=auto")
    use_gpu = torch.cuda.is_available() if device == "auto" else device == "cuda"
    return torch.device("cuda" if use_gpu else "cpu")


def start(device: str = "auto", gpu: int = 0) -> torch.device:
    """Join the process group and return this rank's device; a lone process takes GPU `gpu`.

    Raises ValueError as `pick_device` does, and when no C++ compiler is found, which DeepSpeed
    needs once on a CPU.
    """
    use_gpu = pick_device(device).type == "cuda"
    if not use_gpu:
        memory.keep_pages()
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        if os.access(sys.prefix, os.W_OK):  # what is compiled fits one environment's torch only
            own = str(Path(sys.prefix) / "torch_extensions")
            os.environ.setdefault("TORCH_EXTENSIONS_DIR", own)
        if shutil.which(os.environ.get("CXX", "c++")) is None and shutil.which("g++") is None:
            raise ValueError("no C++ compiler found; DeepSpeed needs one on a CPU: install g++")
        beside = Path(sys.executable).parent
        if (beside / "ninja").is_file():  # another version would build all again, by turns with it
            os.environ["PATH"] = os.pathsep.join([str(beside), os.environ.get("PATH", "")])
    if "RANK" not in os.environ:
        under_slurm = "SLURM_PROCID" in os.environ and int(os.environ.get("SLURM_NTASKS", 1)) > 1
        alone = {"RANK": "0", "LOCAL_RANK": str(gpu), "WORLD_SIZE": "1"}
        for name, slurm in SLURM.items():
            default = alone[name]
            os.environ[name] = os.environ.get(slurm, default) if under_slurm else default
        if under_slurm and "MASTER_ADDR" not in os.environ:
            raise ValueError(
                "several Slurm tasks but no MASTER_ADDR; export "
                "MASTER_ADDR=$(scontrol show hostnames $SLURM_JOB_NODELIST | head -n 1)"
            )
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    if "MASTER_PORT" not in os.environ:
        job = os.environ.get("SLURM_JOB_ID")
        os.environ["MASTER_PORT"] = str(20000 + int(job) % 20000 if job else free_port())
    local = int(os.environ["LOCAL_RANK"])
    if use_gpu:
        # Slurm may show each task a GPU of its own, as number 0. DeepSpeed reads the variable.
        local %= torch.cuda.device_count()
        os.environ["LOCAL_RANK"] = str(local)
        torch.cuda.set_device(local)
    if not dist.is_initialized():
        import deepspeed  # imported late: DS_ACCELERATOR is read at import

        if not use_gpu:
            _load_cpu_op()
        backend = "nccl" if use_gpu else "gloo"
        with contextlib.redirect_stdout(io.StringIO()):  # it reports its op to where tables go
            deepspeed.init_distributed(backend, timeout=PATIENCE, verbose=False)
    return torch.device("cuda", local) if use_gpu else torch.device("cpu")


def _load_cpu_op() -> None:
    """Load what DeepSpeed compiles for a CPU (40 s, once), one process at a time.

    torch guards a build by a bare file; a killed process leaves it behind, and all later ones would
    wait for it for ever. While the kernel's lock is ours it is left over, or another program's.
    """
    from deepspeed.accelerator import get_accelerator
    from torch.utils import cpp_extension

    default = cpp_extension.get_default_build_root()
    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR", default))
    root.mkdir(parents=True, exist_ok=True)
    with (root / ".rib.lock").open("a") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        for lock in root.glob("**/deepspeed_shm_comm/lock"):
            built = any(lock.parent.glob("*.so"))
            _outwait(lock, LOADS_WITHIN_S if built else BUILDS_WITHIN_S)
        accelerator = get_accelerator()
        assert accelerator is not None
        builder = accelerator.create_op_builder("ShareMemCommBuilder")
        if builder is not None and builder.is_compatible(verbose=False):
            builder.load(verbose=False)


def _outwait(lock: Path, patience_s: float) -> None:
    with contextlib.suppress(FileNotFoundError):
        while time.time() - lock.stat().st_mtime < patience_s:
            time.sleep(0.2)
        lock.unlink()


def free_port() -> int:
    """A TCP port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def rank() -> int:
    """This process's number; 0 without a process group."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """Number of processes; 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def first(work: Callable[[], T]) -> T:
    """Let rank 0 do `work` first, and the others once it has finished, so that they find its files.

    Every rank returns what `work` gave it. An error on the first rank is raised on all.
    """
    if world() == 1:
        return work()
    failed = torch.zeros(1, device=_device())
    result = None
    error: Exception | None = None
    if rank() == 0:
        try:
            result = work()
        except Exception as caught:  # told to the other ranks before it is raised again
            error = caught
            failed += 1
    dist.broadcast(failed, 0)
    if error is not None:
        raise error
    if failed.item():
        raise FirstRankError("the first rank failed; its message says why")
    return result if rank() == 0 else work()  # type: ignore[return-value]


def _device() -> torch.device:
    on_gpu = dist.get_backend() == "nccl"
    return torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")


def all_agree(found: bool) -> bool:
    """Whether every rank says yes."""
    if world() == 1:
        return found
    votes = torch.tensor([int(found)], device=_device())
    dist.all_reduce(votes, dist.ReduceOp.MIN)
    return bool(votes.item())


def least(value: float) -> float:
    """The smallest of the ranks' values (float32)."""
    if world() == 1:
        return value
    values = torch.tensor([value], device=_device())
    dist.all_reduce(values, dist.ReduceOp.MIN)
    return values.item()


def stop() -> None:
    """Leave the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()
