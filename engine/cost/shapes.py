"""Which shape of the campaigns' graphs ends first: by columns, or training and evaluation apart.

Campaigns that run together share the GPUs, so their graphs are judged together.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from engine.cost import schedule
from engine.cost.estimate import Device, Estimate
from engine.evaluation import sample
from engine.grid import job_graph
from engine.grid.job_graph import EVALUATE, TRAIN, Job
from engine.store.pending import SLICE

FASTER = 1.25  # times as fast must the split be, which starts more processes
GRAINS = 2  # parts that a GPU gets of a stage, at least: with a single one GPUs would idle more
Graph = Sequence[Job]


def columns(estimates: Sequence[Estimate]) -> list[Graph]:
    """A graph each, with a job a column."""
    return [job_graph.columns(estimate.plan) for estimate in estimates]


def split(estimates: Sequence[Estimate], device: Device, gpus: int) -> list[Graph]:
    """A graph each, with training and evaluation apart, and the long of them in parts.

    A column or a set is long where it takes more than a GPU's share of all training or evaluation.
    """
    whole = [job_graph.split(estimate.plan) for estimate in estimates]
    fair = {}
    for stage in (TRAIN, EVALUATE):
        pairs = zip(estimates, whole, strict=True)
        total = sum(sum(_hours(e, jobs, device, stage).values()) for e, jobs in pairs)
        fair[stage] = total / (gpus * GRAINS)
    graphs: list[Graph] = []
    for estimate, jobs in zip(estimates, whole, strict=True):
        training = _hours(estimate, jobs, device, TRAIN)
        long = [job.column for job in jobs if training.get(job.name, 0) > fair[TRAIN]]
        by_row = long if gpus > 1 else []
        shares = dict(_shares(estimate, jobs, device, fair[EVALUATE])) if gpus > 1 else {}
        graphs.append(job_graph.split(estimate.plan, by_row, shares))
    return graphs


def hours(
    estimates: Sequence[Estimate], graphs: Sequence[Graph], device: Device, gpus: int
) -> float:
    """Hours until the last job ends of graphs that share the GPUs, without their reports."""
    return schedule.makespan(*_all(estimates, graphs, device), gpus)


def levels(
    estimates: Sequence[Estimate], graphs: Sequence[Graph], device: Device
) -> list[dict[str, float]]:
    """Of each graph, hours from a job's start to the end (`schedule.levels`), by its name."""
    level = schedule.levels(*_all(estimates, graphs, device))
    return [{job.name: level[f"{k} {job.name}"] for job in jobs} for k, jobs in enumerate(graphs)]


def best(estimates: Sequence[Estimate], device: Device, gpus: int) -> tuple[str, list[Graph]]:
    """The name of the shape to use on so many GPUs, and the graphs: split where that is faster."""
    candidates = {"columns": columns(estimates), "split": split(estimates, device, gpus)}
    ends = {shape: hours(estimates, jobs, device, gpus) for shape, jobs in candidates.items()}
    shape = faster(ends["columns"], ends["split"])
    return shape, candidates[shape]


def faster(columns_h: float, split_h: float) -> str:
    """The shape to use, by the hours that each takes."""
    return "split" if columns_h > FASTER * split_h else "columns"


def _shares(
    estimate: Estimate, jobs: Graph, device: Device, fair: float
) -> Iterator[tuple[str, int]]:
    """Sets that several jobs evaluate, and how many; a share has a slice at least."""
    of_job = _hours(estimate, jobs, device, EVALUATE)
    for job in jobs if not sample.is_drawn(estimate.recipe) else ():
        if job.stage == EVALUATE and fair > 0:
            slices = math.ceil(estimate.images[job.set] / SLICE)
            yield job.set, min(slices, math.ceil(of_job[job.name] / fair))


def _hours(estimate: Estimate, jobs: Graph, device: Device, stage: str) -> dict[str, float]:
    """Hours of the jobs of a stage, by name."""
    return {job.name: estimate.hours_of(job, device) for job in jobs if job.stage == stage}


def _all(
    estimates: Sequence[Estimate], graphs: Sequence[Graph], device: Device
) -> tuple[Mapping[str, float], Mapping[str, Sequence[str]]]:
    """Hours and predecessors of the jobs of all graphs, by graph and name."""
    hours: dict[str, float] = {}
    after: dict[str, list[str]] = {}
    for k, (estimate, jobs) in enumerate(zip(estimates, graphs, strict=True)):
        for job in jobs:
            hours[f"{k} {job.name}"] = estimate.hours_of(job, device)
            after[f"{k} {job.name}"] = [f"{k} {name}" for name in job.after]
    return hours, after
