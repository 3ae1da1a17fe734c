"""Processes that meet: by which variables, on which port; and what a rank waits for."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.machine import ranks
from engine.store.artifacts import Artifact
from helpers.grids import RANK_VARIABLES, environment
from helpers.processes import ROOT

STEP = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_PROCID": "1", "SLURM_LOCALID": "1"}
STEP |= {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "1"}
# The environment of a batch script on two tasks, which is a process on its own.
BATCH = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
LAUNCHED = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}
OTHERS = ("LOCAL_WORLD_SIZE", "LOCAL_SIZE", "CROSS_RANK", "RIB_LAUNCH", "SLURM_RESTART_COUNT")


def ranks_of(patch: pytest.MonkeyPatch, variables: dict[str, str]) -> dict[str, str]:
    """The variables of ranks that a process gets which has these alone."""
    for name in {*RANK_VARIABLES, *OTHERS, *STEP, *BATCH, *variables}:
        patch.setenv(name, variables.get(name, ""))  # so that it is as before after the test
        if name not in variables:
            patch.delenv(name)
    ranks.complete_environment()
    return {name: os.environ[name] for name in RANK_VARIABLES if name in os.environ}


def test_only_tasks_of_a_step_of_several_are_ranks(monkeypatch):
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    for variables in ({}, BATCH, {**BATCH, "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "1"}):
        assert ranks_of(monkeypatch, variables) == alone
    several = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    assert several.items() <= ranks_of(monkeypatch, STEP).items()


def test_a_launchers_variables_are_left_alone(monkeypatch):
    variables = {"RANK": "4", "LOCAL_RANK": "0", "WORLD_SIZE": "8", "MASTER_ADDR": "head"}
    assert (
        ranks_of(monkeypatch, STEP | variables | {"CROSS_RANK": "1", "LOCAL_SIZE": "4"})
        == variables
    )


def test_launches_steps_and_restarts_meet_apart(monkeypatch):
    """deepspeed gives every launch on a host the same port."""
    with subprocess.Popen(["sleep", "9"]) as other:
        names = set()
        for launcher in (os.getpid(), other.pid):
            monkeypatch.setattr(os, "getppid", lambda launcher=launcher: launcher)
            ranks_of(monkeypatch, LAUNCHED | {"CROSS_RANK": "0", "LOCAL_SIZE": "2"})
            names |= {ranks._launch(), ranks._launch()}
        other.kill()
    ports = set()
    for variable in ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT"):
        for number in range(8, 11):
            ports.add(ranks_of(monkeypatch, STEP | {variable: str(number)})["MASTER_PORT"])
            names.add(ranks._launch())
    assert len(names) == 2 + 9 and len(ports) == 9
    assert all(1024 < int(port) < 32768 for port in ports)
    ranks_of(monkeypatch, STEP | LAUNCHED | {"TORCHELASTIC_RUN_ID": "x"})
    assert not ranks._launch(), "torchrun has a store of its own"


def test_why_ranks_cannot_meet_is_named(monkeypatch, tmp_path):
    ranks_of(monkeypatch, LAUNCHED | {"MASTER_ADDR": "head"})
    with pytest.raises(ValueError, match="WORLD_SIZE=2, but MASTER_PORT not set; use torchrun"):
        ranks.join(torch.device("cpu"))
    shared = tmp_path / "rib"
    shared.mkdir()
    shared.chmod(0o777)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    ranks_of(monkeypatch, STEP)
    with pytest.raises(PermissionError, match="others can write"):
        ranks.join(torch.device("cpu"))
    monkeypatch.setenv("PATH", str(tmp_path))  # tasks on several hosts need Slurm's commands
    with pytest.raises(ValueError, match=r"first of 'node\[1-2\]'.*set MASTER_ADDR"):
        ranks_of(
            monkeypatch, STEP | {"SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NODELIST": "node[1-2]"}
        )


WORKER = """
import datetime, os, time, torch, torch.distributed as dist
from engine.machine import ranks
from engine.store.artifacts import Artifact
ranks.MEET = datetime.timedelta(seconds=6)
ranks.complete_environment()
ranks.join(torch.device("cpu"))
time.sleep(8 * dist.get_rank())  # longer than the time to meet, as one that encodes a set
total = torch.tensor([1.0 + dist.get_rank()])
dist.all_reduce(total)
if dist.get_rank():  # NCCL's heartbeat looks into the store while other ranks end
    time.sleep(2)
    begin = time.monotonic()
    dist.distributed_c10d._get_default_store().check(["any"])
    assert time.monotonic() - begin < 1, "it waits for the file"
import psutil
listening = {c.laddr.ip for c in psutil.Process().net_connections() if c.status == "LISTEN"}
print(total.item(), *listening - {"127.0.0.1"}, flush=True)
dist.destroy_process_group()
"""


def meet(*tasks: dict[str, str]) -> list[str]:
    """What WORKER prints as each of these tasks at once."""
    bare = {k: v for k, v in environment().items() if not k.startswith("SLURM_")}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    command = [sys.executable, "-c", WORKER]
    processes = [subprocess.Popen(command, cwd=ROOT, env=bare | task, **pipes) for task in tasks]
    return [process.communicate(timeout=120)[0] for process in processes]


@pytest.mark.slow
def test_tasks_meet_where_no_other_user_can_and_then_wait_long(tmp_path, monkeypatch):
    """A user of the same machine could take the port, or join."""
    second = STEP | {"SLURM_JOB_ID": str(os.getpid()), "XDG_RUNTIME_DIR": str(tmp_path)}
    first = second | {"SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    (tmp_path / "alone").mkdir()  # where its partner never comes
    alone = first | {"XDG_RUNTIME_DIR": str(tmp_path / "alone")}
    port = int(ranks_of(monkeypatch, second)["MASTER_PORT"])
    with socket.create_server(("127.0.0.1", port)):
        assert meet(first, second) == ["3.0\n", "3.0\n"]
    assert meet(alone) == [""]
    assert (tmp_path / "rib").stat().st_mode & 0o777 == 0o700 and not list(tmp_path.glob("rib/*"))


@pytest.fixture
def rank_1(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """This process is rank 1, and rank 0 tells it of the artefact in this folder."""
    proof = Artifact(tmp_path / "cell").proof
    proof.parent.mkdir()
    proof.touch()
    monkeypatch.setattr(ranks, "rank", lambda: 1)
    monkeypatch.setattr(ranks, "all_agree", lambda vote: True)
    monkeypatch.setattr(ranks, "_from_first", lambda text: str(proof))
    monkeypatch.setattr(ranks, "LOOK_S", 0.01)
    return proof


def test_a_rank_begins_when_it_sees_what_rank_0_wrote(rank_1, monkeypatch):
    """A network file system says for a while that the file is not there."""
    looks, is_file = [], Path.is_file

    def late(path: Path) -> bool:
        looks.append(path)
        return len(looks) > 3 and is_file(path)

    monkeypatch.setattr(Path, "is_file", late)
    assert ranks.first(lambda: rank_1.is_file() and len(looks)) == 5
    assert set(looks) == {rank_1}


def test_a_rank_that_never_sees_it_says_so(rank_1, monkeypatch):
    monkeypatch.setattr(ranks, "SEEN_S", 0.05)
    rank_1.unlink()
    with pytest.raises(FileNotFoundError, match=f"rank 0 wrote {rank_1}, but rank 1 does not see"):
        ranks.first(lambda: pytest.fail("it would make the artefact again"))
