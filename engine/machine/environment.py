"""The variables by which launchers and Slurm tell a process that it is one of several."""

from __future__ import annotations

import os

# Of torchrun, deepspeed and our own launcher. Those of Slurm and of torchrun's agent have prefixes.
OF_RANKS = {
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
    *("GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_NAME", "ROLE_RANK", "ROLE_WORLD_SIZE"),
    *("CROSS_RANK", "CROSS_SIZE", "LOCAL_SIZE", "RIB_LAUNCH"),
}
PREFIXES = ("TORCHELASTIC_", "SLURM_")


def of_jobs() -> dict[str, str]:
    """The environment of a campaign's jobs: this process's, without what makes it one of several.

    A job would take itself for a rank of the launch, or a task of the Slurm job, that `rib
    campaign` was started in, and wait for the others.
    """
    return {name: value for name, value in os.environ.items() if not _of_ranks(name)}


def _of_ranks(name: str) -> bool:
    return name in OF_RANKS or (name.startswith(PREFIXES) and name != "SLURM_CONF")
