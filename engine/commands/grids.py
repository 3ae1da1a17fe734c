"""The grids that `rib campaign` runs at once: their jobs, and where these run."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from engine.grid import job_graph, sites, slurm
from engine.grid.campaign import Plan
from engine.grid.workflow import Grid
from engine.machine import quiet

GPUS_ELSEWHERE = 8  # that a cluster is taken to have free, to choose between the shapes


def grids_of(arguments: argparse.Namespace, plans: Sequence[Plan]) -> list[Grid]:
    """A grid of each plan, in the shape and on the site that the command line says.

    `--shape auto` splits only where several GPUs end sooner by it, as predicted. Raises as
    `sites.local` and `slurm.site` do, and as `estimate.of` where a prediction is needed.
    """
    cores, gpus = arguments.cores, arguments.gpus_per_job
    is_local = arguments.executor == "local" and not arguments.profile
    at_once = _at_once(arguments, plans) if is_local else GPUS_ELSEWHERE // max(1, gpus)
    by_columns = [job_graph.columns(plan) for plan in plans]
    if is_local and (arguments.shape == "columns" or (arguments.shape == "auto" and at_once < 2)):
        return [
            Grid(plan, jobs, sites.local(plan, jobs, cores, gpus, plans=len(plans)))
            for plan, jobs in zip(plans, by_columns, strict=True)
        ]
    from engine.cost import estimate, needs, shapes

    quiet.libraries()
    costs = [estimate.of(plan) for plan in plans]
    device = estimate.Device()
    graphs: Sequence[Sequence[job_graph.Job]] = by_columns
    if arguments.shape == "split":
        graphs = shapes.split(costs, device, at_once)
    elif arguments.shape == "auto":
        _, graphs = shapes.best(costs, device, at_once)
    grids = []
    levels = shapes.levels(costs, graphs, device)
    for plan, cost, jobs, level in zip(plans, costs, graphs, levels, strict=True):
        if is_local:
            site = sites.local(plan, jobs, cores, gpus, plans=len(plans))
        elif arguments.profile:
            kind = sites.device_of(plan)
            predicted = needs.of(cost, jobs, kind, cores=plan.threads, gpus=gpus)
            site = sites.profile(kind, predicted, arguments.profile, cores, gpus)
        else:
            options = slurm.Options(
                arguments.partition, arguments.account, gpus, arguments.requeue, arguments.retries
            )
            cluster = slurm.cluster(options.partition)
            kind = slurm.device(sites.device_of(plan), cluster)
            predicted = needs.of(
                cost, jobs, kind,
                cores=cores, gpus=gpus, hours=arguments.time, gigabytes=arguments.mem,
            )  # fmt: skip
            site = slurm.site(options, cluster, kind, predicted, plan.path.parent)
        priorities = {name: round(3600 * hours) for name, hours in level.items()}
        grids.append(Grid(plan, jobs, site, priorities))
    return grids


def _at_once(arguments: argparse.Namespace, plans: Sequence[Plan]) -> int:
    """Jobs that run at once on this machine; 1 on CPUs, unless the split is asked for."""
    import torch

    from engine.machine import ranks

    if ranks.pick_device(sites.device_of(plans[0])).type == "cuda":
        return max(1, torch.cuda.device_count() // max(1, arguments.gpus_per_job))
    return max(1, arguments.cores // plans[0].threads) if arguments.shape == "split" else 1
