"""Processes that meet: by which variables, on which port, through which interface."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
from grids import RANK_VARIABLES, environment

from engine.machine import network, rendezvous, slurm_step

ROOT = Path(__file__).resolve().parents[3]
STEP = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_NUM_NODES": "1",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "1",
}
# The environment of a batch script on two tasks, which is a process on its own.
BATCH = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment without variables of ranks, which is as before after the test."""
    for name in (*RANK_VARIABLES, *network.VARIABLES, *STEP, *BATCH):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return monkeypatch


def ranks_of(patch: pytest.MonkeyPatch, variables: dict[str, str]) -> dict[str, str]:
    for name, value in variables.items():
        patch.setenv(name, value)
    rendezvous.complete_environment(gpu=3)
    return {name: os.environ[name] for name in RANK_VARIABLES if name in os.environ}


def test_only_tasks_of_a_step_of_several_are_ranks(bare: pytest.MonkeyPatch) -> None:
    alone = {"RANK": "0", "LOCAL_RANK": "3", "WORLD_SIZE": "1"}
    for variables in ({}, BATCH, {**BATCH, "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "1"}):
        with bare.context() as patch:
            assert ranks_of(patch, variables) == alone
            for name in alone:
                del os.environ[name]
    several = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    assert ranks_of(bare, STEP) == several


def test_a_launchers_variables_are_left_alone(bare: pytest.MonkeyPatch) -> None:
    variables = {"RANK": "4", "LOCAL_RANK": "0", "WORLD_SIZE": "8", "MASTER_ADDR": "head"}
    assert ranks_of(bare, STEP | variables) == variables


def test_ranks_without_an_address(bare: pytest.MonkeyPatch) -> None:
    ranks_of(bare, {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "head"})
    with pytest.raises(ValueError, match="WORLD_SIZE=2, but MASTER_PORT not set; use torchrun"):
        rendezvous.join(torch.device("cpu"))


def test_several_hosts_without_slurms_commands(bare: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bare.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match=r"first of 'node\[1-2\]'.*set MASTER_ADDR"):
        ranks_of(bare, STEP | {"SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NODELIST": "node[1-2]"})


def test_ports_differ_by_job_step_and_restart(bare: pytest.MonkeyPatch) -> None:
    firsts = set()
    for variable in ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT"):
        for number in range(1, 4):
            with bare.context() as patch:
                patch.setenv(variable, str(number))
                ports = rendezvous.candidates(slurm_step.step_name())
            assert len(set(ports)) == rendezvous.CANDIDATES
            assert all(1024 < port < 32768 for port in ports)
            firsts.add(ports[0])
    assert len(firsts) == 9


@contextlib.contextmanager
def busy(port: int, greeting: bytes) -> Iterator[None]:
    """Another program on a port, which sends a greeting, or nothing, to each connection."""
    with socket.create_server(("127.0.0.1", port)) as server:

        def talk() -> None:
            with contextlib.suppress(OSError):
                while greeting:
                    server.accept()[0].sendall(greeting)

        thread = threading.Thread(target=talk, daemon=True)
        thread.start()
        yield
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_busy_ports_are_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """A silent program, one that speaks, and the greeting of another step hold the first three."""
    monkeypatch.setattr(rendezvous, "ANSWER_S", 0.2)
    ports = rendezvous.candidates(f"rib {os.getpid()}")
    with contextlib.ExitStack() as stack:
        stack.enter_context(busy(ports[0], b""))
        stack.enter_context(busy(ports[1], b"SSH-2.0\r\n"))
        stack.enter_context(rendezvous.greeting("127.0.0.1", ports[2:], "rib 6.0.0", 1))
        stack.enter_context(rendezvous.greeting("127.0.0.1", ports, "rib 7.0.0", 4242))
        assert rendezvous.ask("127.0.0.1", ports, "rib 7.0.0") == 4242


def test_nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendezvous, "MEET", datetime.timedelta(seconds=0.3))
    ports = rendezvous.candidates(f"rib nobody {os.getpid()}")
    with pytest.raises(ValueError, match=r"rank 0 did not answer at 127\.0\.0\.1.*MASTER_ADDR"):
        rendezvous.ask("127.0.0.1", ports, "rib 7.0.0")


def test_interfaces_are_those_of_the_machine() -> None:
    names = psutil.net_if_addrs()
    assert network.interface_of("127.0.0.1") == network.interface_of("127.0.1.1") == "lo"
    assert network.interface_of("192.0.2.77") == ""  # nobody has a documentation address
    for name, entries in names.items():
        for entry in entries:
            if entry.family == socket.AF_INET and not entry.address.startswith("127."):
                assert network.interface_of(entry.address) == name


def test_the_users_interface_stays(bare: pytest.MonkeyPatch) -> None:
    bare.setenv("GLOO_SOCKET_IFNAME", "ib0")
    network.choose_interface("", same_host=True)
    assert [os.environ[name] for name in network.VARIABLES] == ["ib0", "lo"]


def test_a_first_host_that_knows_itself_as_loopback(bare: pytest.MonkeyPatch) -> None:
    """As Debian's 127.0.1.1: the interface is that of the default route."""
    routes = {"127.0.1.1": "127.0.0.1", network.BEYOND: "10.9.8.7"}
    bare.setattr(network, "local_address", routes.__getitem__)
    bare.setattr(network, "interface_of", {"10.9.8.7": "eth7"}.__getitem__)
    network.choose_interface("127.0.1.1", same_host=False)
    assert [os.environ[name] for name in network.VARIABLES] == ["eth7", "eth7"]


WORKER = """
import datetime, json, os, sys, time, torch, torch.distributed as dist
from engine.machine import rendezvous
rendezvous.MEET = datetime.timedelta(seconds=float(sys.argv[1]))
rendezvous.complete_environment(0)
rendezvous.join(torch.device("cpu"))
if dist.get_rank():
    time.sleep(float(sys.argv[2]))
total = torch.tensor([1.0 + dist.get_rank()])
dist.all_reduce(total)
import psutil
place = {c.laddr.ip for c in psutil.Process().net_connections() if c.status == "LISTEN"}
print(json.dumps([total.item(), sorted(place)]), flush=True)
"""


def meet(tasks: list[dict[str, str]], meet_s: float, pause_s: float) -> list:
    """Run WORKER as each of these tasks at once; what each prints, or its exit code."""
    bare = {k: v for k, v in environment().items() if not k.startswith("SLURM_")}
    command = [sys.executable, "-c", WORKER, str(meet_s), str(pause_s)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    processes = [
        subprocess.Popen(command, cwd=ROOT, env=bare | task, **pipes)  # type: ignore[call-overload]
        for task in tasks
    ]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    return [
        json.loads(output) if process.returncode == 0 else process.returncode
        for process, output in zip(processes, outputs, strict=True)
    ]


@pytest.mark.slow
def test_a_process_on_its_own_listens_nowhere_but_on_the_loopback() -> None:
    ((total, places),) = meet([BATCH], 5, 0)
    assert total == 1 and set(places) <= {"127.0.0.1"}


@pytest.mark.slow
def test_tasks_of_a_step_meet_on_the_loopback_and_then_wait_long() -> None:
    """The second works for longer than the time to meet, as a rank does that encodes a set."""
    job = STEP | {"SLURM_JOB_ID": str(os.getpid())}
    tasks = [job | {"SLURM_PROCID": "0", "SLURM_LOCALID": "0"}, job]
    assert [result[0] for result in meet(tasks, 6, 8)] == [3, 3]
    (_, places), _ = meet(tasks, 20, 0)
    assert set(places) <= {"127.0.0.1"}


@pytest.mark.slow
def test_a_task_whose_partner_never_comes_ends() -> None:
    job = STEP | {"SLURM_JOB_ID": str(os.getpid()), "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    assert all(isinstance(code, int) and code for code in meet([job], 2, 0))
