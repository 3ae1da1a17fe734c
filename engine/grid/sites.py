"""Where a campaign's jobs run: on this machine, through a user's profile, or on Slurm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from engine.grid import resources
from engine.grid.campaign import Plan
from engine.grid.job_graph import Job
from engine.grid.resources import Resources
from engine.recipe.request import Request


@dataclass(frozen=True)
class Site:
    """How Snakemake runs the jobs.

    device: cpu | cuda, of all jobs; auto: a job takes what it sees. words: of Snakemake's command
    line, and environment: more variables for it. ranks: processes of a job, each with a GPU.
    on_slurm: whether jobs live in a queue that must be emptied in the end.
    """

    device: str
    resources: Mapping[str, Resources]
    words: tuple[str, ...]
    ranks: int = 1
    on_slurm: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)


def local(
    plan: Plan, jobs: Sequence[Job], cores: int, gpus_per_job: int = 1, *, plans: int = 1
) -> Site:
    """This machine: each job takes its GPUs, and so many run at once as there are GPUs for.

    plans: those that share its cores. Raises ValueError where the recipe's device, or so many GPUs,
    are not there.
    """
    import torch

    from engine.machine import ranks

    device = ranks.pick_device(device_of(plan)).type
    there = torch.cuda.device_count() if device == "cuda" else 0
    check_gpus(device, gpus_per_job)
    if device == "cuda" and gpus_per_job > there:
        raise ValueError(f"--gpus-per-job {gpus_per_job}: there are {there} GPUs")
    needs = resources.local(plan, jobs, max(1, cores // plans), gpus_per_job if there else 0)
    words = ("--cores", str(cores), "--resources", f"gpu={there}")
    return Site(device, needs, words, gpus_per_job)


def profile(
    device: str, needs: Mapping[str, Resources], folder: Path, cores: int, gpus_per_job: int
) -> Site:
    """What a user's Snakemake profile says, whose executor may take `needs` into account.

    device: auto | cpu | cuda; `auto` is resolved where a job runs.
    """
    check_gpus(device, gpus_per_job)
    words = ("--cores", str(cores), "--profile", str(folder.resolve()))
    return Site(device, needs, words, gpus_per_job)


def device_of(plan: Plan) -> str:
    """The device of a campaign's recipe: auto | cpu | cuda."""
    return Request(plan.name, plan.overrides).recipe(plan.methods[0]).device


def check_gpus(device: str, gpus_per_job: int) -> None:
    """Raise ValueError for a number of GPUs that no job can have on this device."""
    if gpus_per_job < 1:
        raise ValueError(f"--gpus-per-job {gpus_per_job}: at least one is needed")
    if gpus_per_job > 1 and device == "cpu":
        raise ValueError(f"--gpus-per-job {gpus_per_job}: the jobs run on CPUs")
