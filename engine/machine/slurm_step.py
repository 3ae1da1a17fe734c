"""What Slurm says of the step that this process is a task of."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping

RANKS = {
    "RANK": "SLURM_PROCID",
    "LOCAL_RANK": "SLURM_LOCALID",
    "WORLD_SIZE": "SLURM_STEP_NUM_TASKS",
}
ASK_S = 30


def has_ranks(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process is a task of several, as srun starts them.

    A batch script has the number of its allocation's tasks, but it is a process on its own.
    """
    inside = "SLURM_STEP_ID" in environment and "SLURM_PROCID" in environment
    return inside and int(environment.get("SLURM_STEP_NUM_TASKS", 1)) > 1


def on_same_host() -> bool:
    """Whether all tasks of the step are on this host."""
    return int(os.environ.get("SLURM_STEP_NUM_NODES", 1)) == 1


def step_name() -> str:
    """Name of the step, which no step beside it has."""
    names = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")
    return ".".join(os.environ.get(name, "0") for name in names)


def first_host() -> str:
    """Address of the step's first node, on which task 0 runs.

    Raises ValueError where Slurm's commands do not say it.
    """
    nodes = os.environ.get("SLURM_STEP_NODELIST", "")
    try:
        name = _answer("scontrol", "show", "hostnames", nodes).split()[0]
        return _answer("sinfo", "--noheader", "--nodes", name, "--format", "%o").split()[0]
    except (OSError, IndexError, subprocess.SubprocessError) as error:
        raise ValueError(
            f"several Slurm tasks, but Slurm does not say the address of the first of {nodes!r} "
            f"({error}); set MASTER_ADDR to that host's address"
        ) from error


def _answer(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=ASK_S)
    return done.stdout
