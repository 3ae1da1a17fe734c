"""Where a campaign's jobs run: on this machine, with a Snakemake profile, or by a scheduler."""

from __future__ import annotations

import dataclasses
import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from engine.campaigns.plan import COLUMN, DISTANCES, PREPARE, REPORT, Plan
from engine.campaigns.schedulers import SCHEDULERS, RunOptions, Scheduler
from engine.errors import CampaignError

QUEUED_CORES = 4  # per GPU of a queued job: a rank reads images while it trains, and compiles
START_H = 5 / 60  # of a job: imports, compilation, a slow file system
MARGIN = 3  # factor on the predicted time: schedulers end jobs that exceed their request
DISTANCES_H = 30 / 60  # between the datasets, on four cores
REPORT_H = 10 / 60  # bootstrap
Resources = Mapping[str, int]  # of a job: threads, gpu, mem_mb, runtime (minutes)


@dataclass(frozen=True)
class Site:
    """How Snakemake runs the jobs of some campaigns.

    device: of all jobs: cpu, cuda or auto (each job chooses). words: options of Snakemake.
    ranks: processes per job, each with one GPU. scheduler: the one that queues the jobs; None on
    this machine or with a profile. environment: additional variables for Snakemake.
    """

    device: str
    words: tuple[str, ...]
    ranks: int = 1
    scheduler: Scheduler | None = None
    environment: Mapping[str, str] = field(default_factory=dict)


def checked(options: RunOptions) -> RunOptions:
    """Check the options, and fill in the number of cores.

    Raises ValueError or CampaignError for options that are invalid, or have no effect in this
    combination.
    """
    is_queued, folder = options.executor in SCHEDULERS, options.profile
    if is_queued and folder:
        raise ValueError("--profile sets the executor; leave --executor out")
    if folder and not (folder / "config.yaml").is_file():
        raise CampaignError(f"--profile {folder}: {folder / 'config.yaml'} does not exist")
    of_queues = ("partition", "account", "time", "mem", "retries", "requeue")
    for name in of_queues if not is_queued else ():
        if getattr(options, name) != getattr(RunOptions, name):
            raise ValueError(f"--{name} is an option of --executor {'|'.join(SCHEDULERS)}")
    # In a scheduler's allocation, a process may use fewer cores than the machine has.
    default = (
        QUEUED_CORES * max(1, options.gpus_per_job) if is_queued else len(os.sched_getaffinity(0))
    )
    cores = options.cores or default
    return dataclasses.replace(options, cores=cores)


def of(options: RunOptions, plans: Sequence[Plan]) -> Site:
    """The site of campaigns that run together.

    Raises ValueError if the recipe's device or the number of GPUs is not available, and
    CampaignError as the scheduler does.
    """
    device, ranks = plans[0].recipe.device, max(1, options.gpus_per_job)
    scheduler: Scheduler | None = None
    environment: Mapping[str, str] = {}
    words: tuple[str, ...] = ("--cores", str(options.cores))
    if options.profile:
        words += ("--profile", str(options.profile.resolve()))
    elif options.executor in SCHEDULERS:
        scheduler = SCHEDULERS[options.executor](options)
        device = scheduler.device(device)
        words, environment = scheduler.submission(plans[0].place.path)
    else:
        import torch

        from engine.machine.devices import pick_device

        device = pick_device(device).type
        there = torch.cuda.device_count() if device == "cuda" else 0
        if device == "cuda" and ranks > there:
            raise ValueError(f"--gpus-per-job {ranks}: this machine has {there} GPUs")
        if there > 1 and not options.gpus_per_job:
            ranks = _predicted_ranks(plans, there)
        words += ("--resources", f"gpu={there}")
    if ranks > 1 and device == "cpu":
        raise ValueError(f"--gpus-per-job {ranks}: the jobs run on CPUs")
    return Site(device, words, ranks, scheduler, environment)


def _predicted_ranks(plans: Sequence[Plan], gpus: int) -> int:
    """The GPUs per job with which campaigns are predicted to end first, as a line says."""
    from engine.cost import estimate

    costs = [estimate.of(plan.recipes, len(plan.rows)) for plan in plans]
    device = estimate.gpu("A100")  # shares of times, which other GPUs have too
    ranks = estimate.gpus_per_job(costs, device, gpus)
    hours = {n: estimate.simulated(costs, device, gpus, n).hours for n in (1, ranks)}
    gain = f", {hours[1] / hours[ranks]:.2g} times as fast as with 1" if ranks > 1 else ""
    text = f"note: GPUs per job: {ranks} of {gpus}{gain} (predicted; --gpus-per-job overrides)"
    print(text, file=sys.stderr)
    return ranks


def resources(options: RunOptions, site: Site, plan: Plan, plans: int = 1) -> dict[str, Resources]:
    """The resources of each stage's jobs. plans: number of campaigns that share the cores."""
    gpus = 0 if site.device == "cpu" else site.ranks
    if options.executor == "local" and not options.profile:
        cores = max(1, options.cores // plans)
        return {
            PREPARE: {"threads": cores, "gpu": gpus},
            COLUMN: {"threads": min(plan.threads, options.cores), "gpu": gpus},
            DISTANCES: {"threads": min(plan.threads, options.cores), "gpu": min(gpus, 1)},
            REPORT: {"threads": cores},
        }
    from engine.cost import estimate

    costs = estimate.of(plan.recipes, len(plan.rows))
    cores = options.cores if site.scheduler else plan.threads
    device = estimate.gpu("A100") if gpus else estimate.cpu(cores)

    def asked(hours: float, ranks: int = 1) -> dict[str, int]:
        memory = 1000 * (options.mem or costs.memory_gb(ranks))
        time = MARGIN * (START_H + hours) if options.time is None else options.time
        of_scheduler = site.scheduler.resources(cores) if site.scheduler else {}
        limits = {"mem_mb": math.ceil(memory), "runtime": math.ceil(60 * time)}
        return {"threads": cores, **limits, **of_scheduler}

    return {
        PREPARE: asked(device.hours(costs.shared, site.ranks), site.ranks) | {"gpu": gpus},
        COLUMN: asked(costs.column_hours(device, site.ranks), site.ranks) | {"gpu": gpus},
        DISTANCES: asked(DISTANCES_H) | {"gpu": min(gpus, 1)},
        REPORT: asked(REPORT_H),
    }


def text(asked: Resources) -> str:
    """Resources as readable text, such as `1 GPU, 4 cores, 12.0 GB, 95 min`."""
    gpu, cores = asked.get("gpu", 0), asked["threads"]
    parts = [
        f"{gpu} GPU" + "s" * (gpu > 1) if gpu else "",
        f"{cores} core" + "s" * (cores > 1),
        f"{asked['mem_mb'] / 1000:.1f} GB" if "mem_mb" in asked else "",
        f"{asked['runtime']} min" if "runtime" in asked else "",
    ]
    return ", ".join(filter(None, parts))
