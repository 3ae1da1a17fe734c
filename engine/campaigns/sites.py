"""Where a campaign's jobs run: on this machine, with a Snakemake profile, or by a scheduler."""

from __future__ import annotations

import dataclasses
import math
import os
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from engine.campaigns.plan import (
    COLUMN,
    DISTANCES,
    EVALUATE,
    MOST_JOBS,
    PREPARE,
    PRIORITIES,
    REPORT,
    TRAIN,
    Plan,
    Shape,
    stage_of,
)
from engine.campaigns.schedulers import SCHEDULERS, RunOptions, Scheduler
from engine.errors import CampaignError

QUEUED_CORES = 4  # per GPU of a queued job: a rank reads images while it trains, and compiles
START_H = 5 / 60  # of a job: imports, compilation, a slow file system
MARGIN = 3  # factor on the predicted time: schedulers end jobs that exceed their request
DISTANCES_H = 30 / 60  # between the datasets, on four cores
REPORT_H = 10 / 60  # bootstrap
ONE = Shape()
Resources = Mapping[str, int]  # of a job: threads, gpu, mem_mb, runtime (minutes)


@dataclass(frozen=True)
class Site:
    """How Snakemake runs the jobs of some campaigns.

    device: of all jobs: cpu, cuda or auto (each job chooses). words: options of Snakemake.
    ranks: processes per job, each with one GPU. scheduler: the one that queues the jobs; None on
    this machine or with a profile. environment: additional variables for Snakemake.
    jobs_per_column: as of `Plan`. gpus: of this machine, if jobs run here on GPUs.
    """

    device: str
    words: tuple[str, ...]
    ranks: int = 1
    scheduler: Scheduler | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    jobs_per_column: int = 1
    gpus: int = 0


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
    if options.jobs_per_column > MOST_JOBS:
        raise ValueError(f"--jobs-per-column {options.jobs_per_column}: at most {MOST_JOBS}")
    # In a scheduler's allocation, a process may use fewer cores than the machine has.
    default = (
        QUEUED_CORES * max(1, options.gpus_per_job) if is_queued else len(os.sched_getaffinity(0))
    )
    cores = options.cores or default
    return dataclasses.replace(options, cores=cores)


def choose_site(options: RunOptions, plans: Sequence[Plan]) -> Site:
    """The site of campaigns that run together.

    Raises ValueError if the recipe's device or the number of GPUs is not available, and
    CampaignError as the scheduler does.
    """
    device, gpus = plans[0].recipe.device, 0
    shape = Shape(max(1, options.gpus_per_job), max(1, options.jobs_per_column))
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
        gpus = torch.cuda.device_count() if device == "cuda" else 0
        if device == "cuda" and shape.gpus_per_job > gpus:
            raise ValueError(f"--gpus-per-job {shape.gpus_per_job}: this machine has {gpus} GPUs")
        if gpus > 1 and not (options.gpus_per_job and options.jobs_per_column):
            shape = _local_shape(options, plans, gpus)
        words += ("--resources", f"gpu={gpus}")
    if shape.gpus_per_job > 1 and device == "cpu":
        raise ValueError(f"--gpus-per-job {shape.gpus_per_job}: the jobs run on CPUs")
    if (scheduler or options.profile) and not options.jobs_per_column:
        shape = _queued_shape(options, plans, device)
    ranks, jobs = shape
    return Site(device, words, ranks, scheduler, environment, jobs, gpus)


def _local_shape(options: RunOptions, plans: Sequence[Plan], gpus: int) -> Shape:
    """How campaigns use this machine's GPUs, as predicted to end first and as a line says."""
    from engine.campaigns import simulation
    from engine.cost import estimate

    grids = [simulation.planned(plan) for plan in plans]
    given = options.gpus_per_job, options.jobs_per_column
    device = estimate.gpu(simulation.TYPICAL)
    shape = simulation.best_shape(grids, device, gpus, *given)
    hours = {each: simulation.simulated(grids, device, gpus, each).hours for each in (ONE, shape)}
    gain = f", {hours[ONE] / hours[shape]:.2g} times as fast as with 1 and 1" * (shape != ONE)
    print(
        f"note: GPUs per job: {shape.gpus_per_job} of {gpus}, jobs per column: "
        f"{shape.jobs_per_column}{gain} (predicted; --gpus-per-job, --jobs-per-column override)",
        file=sys.stderr,
    )
    return shape


def _queued_shape(options: RunOptions, plans: Sequence[Plan], device: str) -> Shape:
    """How campaigns use GPUs, or cores, elsewhere, of which nobody knows how many are free."""
    from engine.campaigns import simulation
    from engine.cost import estimate

    if sum(len(plan.columns) for plan in plans) > simulation.MOST_QUEUED:
        return Shape(max(1, options.gpus_per_job))
    grids = [simulation.planned(plan) for plan in plans]
    on = estimate.cpu(options.cores) if device == "cpu" else estimate.gpu(simulation.TYPICAL)
    shape, times = simulation.queued_shape(grids, on, max(1, options.gpus_per_job))
    gain = f", {times:.2g} times as fast as 1 if no job waits" * (shape.jobs_per_column > 1)
    print(
        f"note: jobs per column: {shape.jobs_per_column}{gain} (predicted; --jobs-per-column "
        "overrides)",
        file=sys.stderr,
    )
    return shape


def resources(options: RunOptions, site: Site, plan: Plan, plans: int = 1) -> dict[str, Resources]:
    """The resources of each stage's jobs. plans: number of campaigns that share the cores."""
    gpus = 0 if site.device == "cpu" else site.ranks
    if options.executor == "local" and not options.profile:
        cores = max(1, options.cores // plans)
        share = {"threads": _threads(options, site, plan), "gpu": gpus}
        return {
            PREPARE: {"threads": cores, "gpu": gpus},
            COLUMN: {"threads": min(plan.threads, options.cores), "gpu": gpus},
            TRAIN: share,
            EVALUATE: share,
            DISTANCES: {"threads": min(plan.threads, options.cores), "gpu": min(gpus, 1)},
            REPORT: {"threads": cores},
        }
    from engine.campaigns import simulation
    from engine.cost import estimate

    grid = simulation.planned(plan)
    costs = grid.costs
    cores = options.cores if site.scheduler else plan.threads
    device = estimate.gpu(simulation.TYPICAL) if gpus else estimate.cpu(cores)
    longest: dict[str, float] = defaultdict(float)  # hours of each stage's longest job
    for job in grid.jobs(device, site.ranks):
        longest[stage_of(job.name)] = max(longest[stage_of(job.name)], job.hours)

    def asked(hours: float, ranks: int = 1) -> dict[str, int]:
        memory = 1000 * (options.mem or costs.memory_gb(ranks))
        time = MARGIN * (START_H + hours) if options.time is None else options.time
        of_scheduler = site.scheduler.resources(cores) if site.scheduler else {}
        limits = {"mem_mb": math.ceil(memory), "runtime": math.ceil(60 * time)}
        return {"threads": cores, **limits, **of_scheduler}

    return {
        PREPARE: asked(device.hours(costs.shared, site.ranks), site.ranks) | {"gpu": gpus},
        # It also makes what is lost of other jobs' work.
        COLUMN: asked(costs.column_hours(device, site.ranks), site.ranks) | {"gpu": gpus},
        TRAIN: asked(longest[TRAIN], site.ranks) | {"gpu": gpus},
        EVALUATE: asked(longest[EVALUATE], site.ranks) | {"gpu": gpus},
        DISTANCES: asked(DISTANCES_H) | {"gpu": min(gpus, 1)},
        REPORT: asked(REPORT_H),
    }


def priorities(site: Site, plan: Plan) -> Mapping[str, int]:
    """By job, a number: of two that could start, the one with the higher does. 0 if missing."""
    if site.gpus < 2:
        return PRIORITIES
    from engine.campaigns import simulation

    return simulation.priorities(plan, site.ranks)


def _threads(options: RunOptions, site: Site, plan: Plan) -> int:
    """CPU threads of a job that does a share of a column, on this machine."""
    places = site.gpus // site.ranks if site.gpus else options.cores // plan.recipe.threads
    beside = max(1, min(places, len(plan.columns) * plan.jobs_per_column))
    return max(plan.recipe.threads, min(plan.threads, options.cores // beside))


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
