"""The interface of a cluster's scheduler."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

RETRIES = 2  # of a job in a queue


@dataclass(frozen=True)
class RunOptions:
    """The user's options for where a campaign runs.

    executor: `local`, or a scheduler's name. cores: 0: all of this machine, in a queue 4 of each
    job. time (hours), mem (GB): of each job; None: as predicted. partition, account: empty: the
    scheduler's own. retries: None: `RETRIES`.
    """

    executor: str = "local"
    cores: int = 0
    gpus_per_job: int = 1
    profile: Path | None = None
    partition: str = ""
    account: str = ""
    time: float | None = None
    mem: float | None = None
    retries: int | None = None
    requeue: bool = False


class Scheduler(abc.ABC):
    """A cluster's scheduler. Snakemake submits jobs and watches them, by its executor plugin; this
    says how, and answers what only the cluster knows.

    title: its name in messages. job_variable: the environment variable that holds a job's number in
    the queue, inside the job.
    """

    title: ClassVar[str]
    job_variable: ClassVar[str]

    @abc.abstractmethod
    def __init__(self, options: RunOptions) -> None:
        """Raises CampaignError where the cluster or Snakemake's plugin is not there."""

    @abc.abstractmethod
    def device(self, chosen: str) -> str:
        """`cpu` or `cuda`, for the jobs of a recipe with `device` as chosen (`auto`, too). Raises
        ValueError where the cluster has no GPUs for `cuda`."""

    @abc.abstractmethod
    def submission(self, place: Path) -> tuple[tuple[str, ...], Mapping[str, str]]:
        """Snakemake's options that submit the jobs of the plan in the folder `place`, and variables
        to add to its environment. Raises ValueError for a folder that cannot be handed over."""

    @abc.abstractmethod
    def cancel(self, place: Path) -> None:
        """Remove the plan's jobs from the queue, as far as the scheduler answers."""

    @classmethod
    @abc.abstractmethod
    def end_of(cls, job: str) -> str:
        """How the scheduler ended the job of this number, such as `TIMEOUT (give more hours by
        --time)`; empty where it ended none or does not know."""

    def resources(self, cores: int) -> Mapping[str, int]:
        """Resources of a job, by Snakemake's names, in addition to `threads`, `gpu`, `mem_mb` and
        `runtime` (minutes)."""
        return {}

    def why_none_ran(self, log: str) -> str:
        """Why jobs never began, by what Snakemake logged; empty where it does not say."""
        return ""

    def is_there(self) -> bool:
        """Whether the scheduler answers now."""
        return True
