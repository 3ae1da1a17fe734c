"""The interface of a cluster's scheduler."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

RETRIES = 2  # of a queued job


@dataclass(frozen=True)
class RunOptions:
    """The user's options for where a campaign runs.

    executor: `local`, or a scheduler's name. cores: 0 means all of this machine, or 4 per GPU of a
    queued job. gpus_per_job: of all jobs but distances and report; 0 means as predicted to end
    first on this machine, and 1 elsewhere. jobs_per_column: as `Plan.jobs_per_column`; 0 means as
    predicted to end first on GPUs and elsewhere, and 1 on this machine's cores. profile: folder of
    a Snakemake profile. time (hours), mem (GB): per job; None means as predicted. partition,
    account: empty means the scheduler's default. retries: None means `RETRIES`. requeue: whether
    the scheduler requeues preempted jobs.
    """

    executor: str = "local"
    cores: int = 0
    gpus_per_job: int = 0
    jobs_per_column: int = 0
    profile: Path | None = None
    partition: str = ""
    account: str = ""
    time: float | None = None
    mem: float | None = None
    retries: int | None = None
    requeue: bool = False


class Scheduler(abc.ABC):
    """A cluster's scheduler.

    Snakemake's executor plugin submits and watches the jobs. This class provides the plugin's
    options and queries the cluster.

    title: its name in messages. job_variable: the environment variable that contains the job's ID
    inside a job.
    """

    title: ClassVar[str]
    job_variable: ClassVar[str]

    @abc.abstractmethod
    def __init__(self, options: RunOptions) -> None:
        """Raises CampaignError if the cluster or Snakemake's plugin is not available."""

    @abc.abstractmethod
    def device(self, chosen: str) -> str:
        """The device of the jobs, `cpu` or `cuda`, for a recipe's `device` (cpu, cuda or auto).

        Raises ValueError for `cuda` if the cluster has no GPUs.
        """

    @abc.abstractmethod
    def submission(self, place: Path) -> tuple[tuple[str, ...], Mapping[str, str]]:
        """Options of Snakemake that submit the jobs of the plan in the folder `place`, and
        variables to add to its environment.

        Raises ValueError for a folder whose path the plugin cannot handle.
        """

    @abc.abstractmethod
    def cancel(self, place: Path) -> None:
        """Remove the plan's jobs from the queue, if the scheduler answers."""

    @classmethod
    @abc.abstractmethod
    def end_of(cls, job: str) -> str:
        """How the scheduler ended the job with this ID, such as `TIMEOUT (give more hours by
        --time)`, or empty if it did not end it or does not know."""

    def resources(self, cores: int) -> Mapping[str, int]:
        """Resources of a job in addition to `threads`, `gpu`, `mem_mb` and `runtime` (minutes), by
        Snakemake's names."""
        return {}

    def ends(self, log: str) -> Mapping[str, str]:
        """How jobs ended that the scheduler ended, from Snakemake's log, by the job's marker as
        Snakemake names it."""
        return {}

    def refusal(self, log: str) -> str:
        """Why the scheduler refused a job, from Snakemake's log, or empty if it refused none."""
        return ""

    def states(self) -> Mapping[str, str] | None:
        """The states of the user's jobs by ID, PENDING if a job waits; None if the scheduler does
        not answer."""
        return {}

    def obstacle(self, workflow: int) -> str:
        """Why Snakemake (a process ID) cannot submit its next job now, or empty if it can."""
        return ""
