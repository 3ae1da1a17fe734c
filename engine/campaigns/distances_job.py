"""The job of the distances between the datasets, from features of the pretrained model."""

from __future__ import annotations

import logging

import torch

from engine.campaigns import job_states
from engine.campaigns.column_job import builders
from engine.campaigns.parts import Distances, write_part
from engine.campaigns.plan import DISTANCES, Plan
from engine.cost.work import DISTANCE_SAMPLES
from engine.otdd import solve
from engine.otdd.problems import DistanceOptions
from loaders.files.typed_json import DamagedFile

log = logging.getLogger(__name__)
DISTANCE = DistanceOptions(samples=DISTANCE_SAMPLES)


def make_distances(plan: Plan, device: torch.device) -> None:
    """Compute the distances between all datasets, from the features of the pretrained model."""
    run, matrix = builders(plan, device, plan.columns[0])[0], None
    try:
        matrix = solve.distances(run, run.recipe.dataset.evaluated_sets, DISTANCE).plain()
    except DamagedFile:
        raise
    except ValueError as error:
        log.warning("no distances between the datasets: %s", error)
    write_part(plan.place, DISTANCES, Distances(matrix))
    job_states.advance(plan.place, DISTANCES, 1, 1)
