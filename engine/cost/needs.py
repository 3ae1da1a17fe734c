"""What the jobs of a campaign ask a cluster for: derived from the estimate of their work.

A job that asks for too little is ended by the cluster, so the numbers are generous: the predicted
time counts threefold, and an attempt after a failure asks for a multiple (`workflow.smk`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from engine.cost.estimate import Device, Estimate
from engine.grid.job_graph import PREPARE, REPORT, Job
from engine.grid.resources import Resources

MARGIN = 3  # of the predicted time
START_MIN = 30  # imports, compilation, a slow file system
REPORT_MIN = 120  # distances between the sets, bootstrap
ENCODE_S = 0.02  # to decode and resize a photo, a core
PROCESS_MB = 3000  # Python, torch, numba and compiled code
COPIES = 4  # of a model: weights, gradient and two moments of the optimizer
CORE = Device(tflops=0.05, fp32_tflops=0.05)  # 20 GFLOP/s; the demo reached 26 a core


def of(
    costs: Estimate,
    jobs: Sequence[Job],
    device: str,
    *,
    cores: int,
    gpus: int = 1,
    hours: float | None = None,
    gigabytes: float | None = None,
) -> dict[str, Resources]:
    """Resources by job. device: cpu | cuda. cores: of each job. gpus: of a job that trains or
    evaluates.

    hours, gigabytes: of every job in place of what is predicted.
    """
    gpus = gpus if device == "cuda" else 0
    memory = _megabytes(costs) if gigabytes is None else math.ceil(1000 * gigabytes)
    encoding_h = ENCODE_S * sum(costs.images.values()) / cores / 3600

    def of_job(job: Job) -> Resources:
        if job.stage == REPORT:
            minutes = REPORT_MIN if hours is None else 60 * hours
            return Resources(cores, 0, memory, math.ceil(minutes))
        of_gpus = min(gpus, 1) if job.stage == PREPARE else gpus
        peak = Device() if device == "cuda" else CORE
        share = max(1, of_gpus) if device == "cuda" else cores
        beside_h = encoding_h if job.stage == PREPARE else 0
        predicted = costs.hours_of(job, peak) / share + beside_h
        minutes = START_MIN + MARGIN * 60 * predicted if hours is None else 60 * hours
        return Resources(cores, of_gpus, memory, math.ceil(minutes))

    return {job.name: of_job(job) for job in jobs}


def _megabytes(costs: Estimate) -> int:
    """Memory of a job: the process, a model in training, those of a bank, and the largest set."""
    models = (COPIES + len(costs.plan.methods)) * costs.parameters * 4
    largest = max(costs.images.values()) * 3 * costs.recipe.model.image_size**2  # resident, uint8
    return PROCESS_MB + math.ceil((models + largest) / 1e6)
