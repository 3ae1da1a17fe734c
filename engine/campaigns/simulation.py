"""Simulates the workflow of campaigns on a number of GPUs, or of cores, and chooses its shape.

The report, which takes seconds, is left out.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from engine.campaigns.plan import (
    DISTANCES,
    EVALUATE,
    PREPARE,
    PRIORITIES,
    REPORT,
    TRAIN,
    Plan,
    Shape,
    stage_of,
)
from engine.cost import estimate, rates, work
from engine.cost.estimate import Device, Estimate
from engine.cost.schedule import Job, Schedule, longest_first, simulate
from engine.cost.work import Work

NEAR = 1.05  # a prediction does not tell apart what is closer
NODE_GPUS = 8  # a job runs on one node
JOBS_PER_COLUMN = (1, 2, 4, 8)  # that are compared
ROUNDS = 4  # columns per GPU, above which a column's end leaves few of them idle
MOST_QUEUED = 100  # columns, above which a queue takes one job of each
MOST_STARTS = 0.2  # of queued jobs' GPU time
TYPICAL = "A100"  # the GPU of predictions that decide; others have other times and similar shares


@dataclass(frozen=True)
class Planned:
    """A campaign and its work."""

    plan: Plan
    costs: Estimate

    def jobs(self, device: Device, places: int, grid: str = "") -> Iterator[Job]:
        """The workflow's jobs. places: GPUs, or cores, of all but the distances, which take one
        GPU, and the report. grid: a prefix of the jobs' names."""
        one = places if device.cores else 1
        for name, needs in self.plan.needs.items():
            size = one if name == DISTANCES else places
            hours = device.hours(self._work(name), 1 if device.cores else size)
            priority = PRIORITIES.get(name, 0)
            yield Job(grid + name, hours, size, [grid + need for need in needs], priority)

    def hours_on_cores(self, core: Device, cores: int) -> float:
        """Hours of the campaign on this number of cores, of which a job uses the plan's threads."""
        each = min(cores, self.plan.threads)
        device = estimate.cpu(each, core.fp32)
        return simulate(list(self.jobs(device, each)), cores).hours

    def _work(self, job: str) -> Sequence[Work]:
        stage, plan = stage_of(job), self.plan
        if stage == PREPARE:
            return self.costs.shared
        if stage == DISTANCES:
            return self.costs.distances
        if stage == REPORT:
            return []
        parts, cells = self._columns[plan.column_of(job).job], plan.cells_of(job)
        own = [part for part in parts if part.cell in cells]
        if stage == TRAIN:
            return work.in_a_job(own)
        evaluations = [part for part in parts if part.cell is None]
        if stage == EVALUATE:
            return work.in_a_job(evaluations[plan.shares[job].turn :: plan.jobs_per_column])
        is_evaluated = any(stage_of(need) == EVALUATE for need in plan.needs[job])
        return work.in_a_job([*own, *([] if is_evaluated else evaluations)])

    @cached_property
    def _columns(self) -> Mapping[str, list[Work]]:
        jobs = (column.job for column in self.plan.columns)
        return dict(zip(jobs, self.costs.columns, strict=True))


def planned(plan: Plan) -> Planned:
    """Counts the work of a campaign. Raises ValueError as `estimate.campaign_cost`."""
    return Planned(plan, estimate.campaign_cost(plan.recipes, len(plan.rows)))


def simulated(grids: Sequence[Planned], device: Device, gpus: int, shape: Shape) -> Schedule:
    """The workflow of one or more grids on this number of GPUs, of several machines under Slurm
    where there are more than `NODE_GPUS`."""
    jobs = [
        job
        for number, grid in enumerate(_shaped(grids, shape))
        for job in grid.jobs(device, shape.gpus_per_job, f"{number}-" if number else "")
    ]
    notice = rates.NOTICE_S / 3600 if gpus > NODE_GPUS else 0.0
    return simulate(longest_first(jobs), gpus, notice)


def best_shape(
    grids: Sequence[Planned],
    device: Device,
    gpus: int,
    gpus_per_job: int = 0,
    jobs_per_column: int = 0,
) -> Shape:
    """The shape that takes the least GPU time of those within `NEAR` of the earliest end.

    gpus_per_job, jobs_per_column: kept, unless 0. A job has at most a machine's GPUs, each machine
    room for whole jobs, and each grid's `batch_size / accumulation` is a multiple of its GPUs.
    """
    trained = [grid.costs.recipe.train for grid in grids]
    batch = math.gcd(*(train.batch_size // train.accumulation for train in trained))
    machine = min(gpus, NODE_GPUS)
    ranks = [n for n in range(1, machine + 1) if batch % n == 0 and machine % n == 0]
    jobs = JOBS_PER_COLUMN if _columns(grids) <= ROUNDS * gpus else JOBS_PER_COLUMN[:1]
    shapes = itertools.product(
        [gpus_per_job] if gpus_per_job else ranks, [jobs_per_column] if jobs_per_column else jobs
    )
    ends = {shape: simulated(grids, device, gpus, shape) for shape in map(Shape._make, shapes)}
    earliest = min(schedule.hours for schedule in ends.values())
    near = [shape for shape, schedule in ends.items() if schedule.hours <= NEAR * earliest]
    return min(near, key=lambda shape: ends[shape].work)


def queued_shape(
    grids: Sequence[Planned], device: Device, gpus_per_job: int
) -> tuple[Shape, float]:
    """The shape with which campaigns end first if every job finds its GPUs at once, of those that
    take at most `MOST_STARTS` of their time to start jobs; and the gain over a job per column."""
    ends = {}
    for jobs in JOBS_PER_COLUMN:
        shape = Shape(gpus_per_job, jobs)
        places = gpus_per_job * sum(len(grid.plan.jobs) for grid in _shaped(grids, shape))
        ends[shape] = simulated(grids, device, places, shape)
    least = min(schedule.work for schedule in ends.values())
    paid = [shape for shape, each in ends.items() if each.work <= least / (1 - MOST_STARTS)]
    earliest = min(ends[shape].hours for shape in paid)
    near = [shape for shape in paid if ends[shape].hours <= NEAR * earliest]
    shape = min(near, key=lambda shape: ends[shape].work)
    return shape, ends[Shape(gpus_per_job)].hours / ends[shape].hours


def priorities(plan: Plan, gpus_per_job: int) -> dict[str, int]:
    """Of each job of a campaign, the predicted seconds of the longest chain that it begins."""
    jobs = list(planned(plan).jobs(estimate.gpu(TYPICAL), gpus_per_job))
    return {job.name: round(3600 * job.priority) for job in longest_first(jobs)}


def _columns(grids: Sequence[Planned]) -> int:
    return sum(len(grid.plan.columns) for grid in grids)


def _shaped(grids: Sequence[Planned], shape: Shape) -> Sequence[Planned]:
    jobs = shape.jobs_per_column
    plans = [dataclasses.replace(grid.plan, jobs_per_column=jobs) for grid in grids]
    return [Planned(plan, grid.costs) for plan, grid in zip(plans, grids, strict=True)]
