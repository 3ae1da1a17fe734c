"""How the processes of a run meet: the process group of torch.distributed.

A process on its own needs no port. The tasks of a Slurm step, which have no launcher, agree on one
without a word: the first task greets the others on a port that follows from the step's name and
tells them where its store listens. So do ranks that deepspeed or a job of ours starts on one host:
every deepspeed sets the same MASTER_PORT, and a store there would listen on all interfaces. All
other launchers set MASTER_ADDR and MASTER_PORT.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import socket
import threading
import time
import zlib
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch.distributed import HashStore, TCPStore, distributed_c10d  # type: ignore[attr-defined]

from engine.machine import network, parent, slurm_step

MEET = datetime.timedelta(minutes=10)  # until every rank has arrived
WAIT = datetime.timedelta(hours=6)  # afterwards: ranks wait while rank 0 encodes a set
FIRST_PORT, PORTS = 20000, 12000  # below the range from which the kernel gives ports
CANDIDATES = 16  # ports that may be busy before a step gives up
ANSWER_S = 2.0  # for a greeting; programs that hold the port may say nothing


def complete_environment(gpu: int) -> None:
    """Set the variables that a launcher sets; a process on its own takes GPU `gpu`.

    Raises ValueError as `slurm_step.first_host` does.
    """
    if "RANK" not in os.environ:
        alone = {"RANK": "0", "LOCAL_RANK": str(gpu), "WORLD_SIZE": "1"}
        several = slurm_step.has_ranks()
        for name, value in alone.items():
            os.environ[name] = os.environ[slurm_step.RANKS[name]] if several else value
        if several and "MASTER_ADDR" not in os.environ:
            os.environ["MASTER_ADDR"] = (
                "127.0.0.1" if slurm_step.on_same_host() else slurm_step.first_host()
            )


def join(device: torch.device) -> None:
    """Make the process group of all ranks.

    Raises torch's DistError where they have not met within `MEET`, ValueError for several ranks
    without an address.
    """
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    same_host = _on_same_host(world)
    name = _launch(same_host=same_host)
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if world > 1 and missing and not name:
        raise ValueError(f"WORLD_SIZE={world}, but {' and '.join(missing)} not set; use torchrun")
    backend = "nccl" if device.type == "cuda" else "gloo"
    network.choose_interface(os.environ.get("MASTER_ADDR", ""), same_host=same_host)
    if world == 1:
        dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
        return
    with contextlib.ExitStack() as stack:
        host = "127.0.0.1" if same_host else ""
        store = stack.enter_context(_store(f"rib {name}", host, rank, world)) if name else None
        dist.init_process_group(
            backend, store=store, rank=rank, world_size=world, timeout=MEET,
            device_id=device if device.type == "cuda" else None,
        )  # fmt: skip
        dist.all_reduce(torch.zeros(1, device=device))  # all connections are made within `MEET`
    distributed_c10d._set_pg_timeout(WAIT, dist.group.WORLD)  # torch has no public way


def _on_same_host(world: int) -> bool:
    """Whether all ranks run here, as far as torchrun, deepspeed or Slurm tells."""
    for name in ("LOCAL_WORLD_SIZE", "LOCAL_SIZE"):
        if name in os.environ:
            return int(os.environ[name]) == world
    if world == 1 or os.environ.get("MASTER_ADDR") in ("127.0.0.1", "localhost"):
        return True
    return slurm_step.has_ranks() and slurm_step.on_same_host()


def _launch(*, same_host: bool) -> str:
    """The name by which the ranks of a launch meet; "" where they meet at MASTER_PORT."""
    if same_host and (name := parent.launch()):
        return name
    if "MASTER_PORT" not in os.environ and slurm_step.has_ranks():
        return slurm_step.step_name()
    return ""


@contextlib.contextmanager
def _store(name: str, host: str, rank: int, world: int) -> Iterator[TCPStore]:
    """The store of a launch. Rank 0 greets until the block ends, when all have arrived.

    host: the address on which rank 0 listens; "": all, and MASTER_ADDR is its host's.
    """
    master, ports = host or os.environ["MASTER_ADDR"], candidates(name)
    if rank > 0:
        port = ask(master, ports, name)
        os.environ["MASTER_PORT"] = str(port)
        yield TCPStore(master, port, world, False, MEET, wait_for_workers=False)
        return
    listener = listen(host, [0])
    port = listener.getsockname()[1]
    os.environ["MASTER_PORT"] = str(port)
    store = TCPStore(
        "127.0.0.1", port, world, True, MEET, wait_for_workers=False,
        master_listen_fd=listener.detach(),
    )  # fmt: skip
    with greeting(host, ports, name, port):
        yield store


def candidates(name: str) -> list[int]:
    """The ports on which a step of this name may greet, in their order."""
    start = zlib.crc32(name.encode())
    return [FIRST_PORT + (start + k) % PORTS for k in range(CANDIDATES)]


def listen(host: str, ports: list[int]) -> socket.socket:
    """A socket that listens on the first free of these ports.

    Raises OSError where all are busy.
    """
    for port in ports[:-1]:
        with contextlib.suppress(OSError):
            return socket.create_server((host, port), backlog=512)
    return socket.create_server((host, ports[-1]), backlog=512)


@contextlib.contextmanager
def greeting(host: str, ports: list[int], name: str, store: int) -> Iterator[None]:
    """Tell everybody who connects to one of `ports` the step's name and its store's port."""
    with listen(host, ports) as server:

        def greet() -> None:
            with contextlib.suppress(OSError):  # the server is closed
                while True:
                    visitor, _ = server.accept()
                    with visitor, contextlib.suppress(OSError):
                        visitor.sendall(f"{name} {store}\n".encode())

        thread = threading.Thread(target=greet, daemon=True)
        thread.start()
        yield
        server.shutdown(socket.SHUT_RDWR)  # wakes `accept`
        thread.join()


def ask(host: str, ports: list[int], name: str) -> int:
    """The port of the store of the step `name`, as its first task tells on one of `ports`.

    Raises ValueError if nobody tells within `MEET`.
    """
    end = time.monotonic() + MEET.total_seconds()
    while time.monotonic() < end:
        for port in ports:
            with (
                contextlib.suppress(OSError),
                socket.create_connection((host, port), ANSWER_S) as connection,
            ):
                words = connection.recv(256).decode(errors="replace").strip().rpartition(" ")
                if words[0] == name and words[2].isdigit():
                    return int(words[2])
        time.sleep(0.2)
    raise ValueError(
        f"rank 0 did not answer at {host}, ports {ports[0]} to {ports[-1]}, within {MEET}; set "
        "MASTER_ADDR to an address of its host that the other hosts reach"
    )
