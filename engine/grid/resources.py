"""What a job of a campaign uses, and so asks Snakemake or a cluster for."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from engine.grid.campaign import Plan
from engine.grid.job_graph import PREPARE, REPORT, Job


@dataclass(frozen=True)
class Resources:
    """CPU cores, GPUs, memory in MB and minutes; 0 where nothing is asked for."""

    threads: int
    gpu: int = 0
    mem_mb: int = 0
    runtime: int = 0

    def plain(self) -> dict[str, int]:
        """Its parts by Snakemake's names, without those that are not asked for."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value}

    def text(self) -> str:
        """For people: `1 GPU, 4 cores, 12.0 GB, 95 min`."""
        parts = [
            f"{self.gpu} GPU" + "s" * (self.gpu > 1) if self.gpu else "",
            f"{self.threads} core" + "s" * (self.threads > 1),
            f"{self.mem_mb / 1000:.1f} GB" if self.mem_mb else "",
            f"{self.runtime} min" if self.runtime else "",
        ]
        return ", ".join(filter(None, parts))


def local(plan: Plan, jobs: Sequence[Job], cores: int, gpus: int) -> dict[str, Resources]:
    """What each job uses on this machine: whatever runs alone takes all of the plan's cores.

    gpus: of a job that trains or evaluates; the report finds, and needs none.
    """
    each = dict.fromkeys((job.name for job in jobs), Resources(plan.threads, gpus))
    return each | {PREPARE: Resources(cores, min(gpus, 1)), REPORT: Resources(cores)}
